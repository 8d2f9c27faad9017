"""The layers of a network that can be pruned.

Units are channels for a convolution, rows (outputs) and columns (inputs) for a linear layer.
"""

import contextlib
import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lapnb.checks import is_plain

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
PRUNABLE = nn.Linear, *CONVOLUTIONS, *TRANSPOSED
EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
DENSE = nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear, *EMBEDDINGS
BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


@dataclass
class Layer:
    """A prunable layer: its qualified name, its module and its own batch norm, if any."""

    name: str
    module: nn.Module
    batch_norm: nn.Module | None = None

    def __post_init__(self):
        # whether the weight's first dimension is that of the inputs
        self.transposed: bool = isinstance(self.module, TRANSPOSED)
        is_linear = isinstance(self.module, nn.Linear)
        self.groups: int = 1 if is_linear else self.module.groups
        self.outputs: int = self.module.out_features if is_linear else self.module.out_channels

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def values(self) -> Tensor:
        """Return the weight, detached, in float32 or better."""
        return at_least_float(self.weight.detach())

    def per_output(self, units: Tensor) -> Tensor:
        """Shape one number per output unit to multiply the weight."""
        return self._along(units, self.transposed)

    def per_input(self, units: Tensor) -> Tensor:
        """Shape one number per input unit to multiply the weight."""
        return self._along(units, not self.transposed)

    def _along(self, units: Tensor, is_second: bool) -> Tensor:
        """Shape numbers along the weight's first dimension or its second, which is per group."""
        positions = [1] * (self.weight.ndim - 2)
        if not is_second:
            return units.view(-1, 1, *positions)
        factor = units.view(self.groups, -1, *positions)
        if self.groups > 1:
            factor = factor.repeat_interleave(len(self.weight) // self.groups, dim=0)
        return factor


def at_least_float(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def prunable_layers(model: nn.Module) -> list[Layer]:
    """List the linear and (transposed) convolution layers of `model` in the order of definition.

    Layers at or below a module with the attribute `prunable = False` stay dense and are not listed.
    A module that has two names is one layer. The first batch norm that fits, of those defined
    after a layer and before the next one, belongs to it.

    Args:
        model: any network.

    Returns:
        The layers, each with its `name`, `module`, `weight` and `batch_norm` (or None).

    Raises:
        TypeError: `model` is not a module.
        ValueError: zeros in the weight of a layer would not do what they should, as the weight is
            shared, computed from something else, not initialised yet, empty or complex, or changed
            by the layer's own `forward`. The sentence names all such layers.

    >>> [layer.name for layer in prunable_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))]
    ['0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    layers = layers_with_norms(modules_by_name(model, "prunable"), PRUNABLE)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear or convolution layer to prune")
    _refuse_faults(model, layers)
    return layers


def layers_with_norms(modules: list[tuple[str, nn.Module]], kinds: tuple) -> list[Layer]:
    """List the modules of these kinds as layers, each with the first batch norm that follows it."""
    layers: list[Layer] = []
    for name, module in modules:
        if isinstance(module, kinds):
            layers.append(Layer(name, module))
        elif isinstance(module, BATCH_NORMS) and layers and layers[-1].batch_norm is None:
            layers[-1].batch_norm = module if _fits(module, layers[-1]) else None
    return layers


def _fits(norm: nn.Module, layer: Layer) -> bool:
    """Return whether a batch norm scales a layer's units, or their columns after a flatten."""
    columns, remainder = divmod(norm.num_features, layer.outputs)
    flat = isinstance(norm, nn.BatchNorm1d)
    return norm.running_var is not None and not remainder and (flat or columns == 1)


def modules_by_name(model: nn.Module, flag: str) -> list[tuple[str, nn.Module]]:
    """List modules by qualified name, without those at or below one whose `flag` is False."""
    excluded = {
        submodule
        for module in model.modules()
        if not getattr(module, flag, True)
        for submodule in module.modules()
    }
    return [(name, module) for name, module in model.named_modules() if module not in excluded]


def _refuse_faults(model: nn.Module, layers: list[Layer]) -> None:
    """Raise ValueError that names all layers whose weight cannot be pruned and says why."""
    uses = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    faults: dict[str, list[str]] = {}
    for layer in layers:
        fault = _fault(layer.module, uses)
        if fault:
            faults.setdefault(fault, []).append(called(layer.name, layer.module))
    if faults:
        reasons = [f"{', '.join(names)}: it {reason}" for reason, names in faults.items()]
        advice = "set its prunable = False to leave it dense"
        raise ValueError(f"cannot prune {'; '.join(reasons)} ({advice})")


def _fault(module: nn.Module, uses: Counter) -> str:
    """Say why a layer does not compute with its own `weight` unchanged; "" if it does."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "computes its weight from other tensors, as torch.nn.utils.prune makes it do"
    if uses[id(weight)] > 1:
        return "shares its weight"
    if not (weight.numel() and is_plain(weight)):
        return f"has a weight of {weight.dtype}, {tuple(weight.shape)}, no plain real numbers"
    is_usual = type(module).__module__.startswith("torch.nn.modules")
    is_patched = {"forward", "_conv_forward"} & vars(module).keys()
    if (is_patched or not is_usual) and not _takes_weight(module):
        return "has a forward of its own, which may change its weight"
    return ""


def functional_of(module: nn.Module) -> str:
    """Return the name of the function in torch.nn.functional that a layer calls with its weight."""
    if isinstance(module, nn.Linear):
        return "linear"
    kind = "conv_transpose" if isinstance(module, TRANSPOSED) else "conv"
    return f"{kind}{module.weight.ndim - 2}d"


def _takes_weight(module: nn.Module) -> bool:
    """Return whether a module's forward passes its weight unchanged to its usual function alone."""
    trial = copy.deepcopy(module).to("meta").eval()
    names = set()  # of the functions that compute something from the weight

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            takes = any(value is trial.weight for value in tree_leaves((args, kwargs)))
            if takes and isinstance(out, Tensor) and out is not trial.weight:
                names.add(func.__name__)
            return out

    units = trial.in_features if isinstance(trial, nn.Linear) else trial.in_channels
    positions = [64] * (trial.weight.ndim - 2)
    image = torch.zeros([1, units, *positions], dtype=trial.weight.dtype, device="meta")
    try:
        with Watch(), torch.no_grad():
            trial.forward(image)
    except Exception:  # a forward may raise anything for an input that is not its own
        return False
    return names == {functional_of(module)}


def sound_backward(model: nn.Module) -> contextlib.AbstractContextManager:
    """Keep backward passes of `model` away from a fault of oneDNN, which writes past its memory.

    On processors with AVX2 only, the gradient of a 1×1 convolution with a stride and fewer than 8
    input channels overruns its workspace when the input is channels-last (oneDNN issue 6035).
    PyTorch's own kernels take over for a network that has such a layer.
    """
    if any(map(_overruns, model.modules())):
        return torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None)
    return contextlib.nullcontext()


def _overruns(module: nn.Module) -> bool:
    if not isinstance(module, CONVOLUTIONS):
        return False
    pointwise = set(module.kernel_size) == {1} and set(module.stride) != {1}
    return pointwise and module.in_channels // module.groups < 8


def called(name: str, module: nn.Module) -> str:
    """Return what messages call a module: its name and its type."""
    return f"{name or 'the model'} ({type(module).__name__})"


def batch_norm_scale(layer: Layer) -> Tensor:
    """Return |gamma| / sqrt(running_var + eps) per feature of the batch norm; 1 without one."""
    norm = layer.batch_norm
    if norm is None:
        return layer.values.new_ones(layer.outputs)
    return norm_scale(norm.running_var, norm.weight, norm.eps).to(layer.values)


def norm_scale(variance: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    scale = (at_least_float(variance) + eps).rsqrt()
    return scale if gamma is None else scale * gamma.detach().abs()


def row_norms(weight: Tensor) -> Tensor:
    """Return the Frobenius norm of all weights that enter each output unit; shape (outputs,)."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)


def column_norms(weight: Tensor, groups: int) -> Tensor:
    """Return the norm of the weights that leave each input unit, in its group; shape (inputs,)."""
    squares = weight.reshape(groups, len(weight) // groups, -1).square().sum(1)  # sums over rows
    return squares.view(groups * weight.shape[1], -1).sum(1).sqrt()  # over kernel positions
