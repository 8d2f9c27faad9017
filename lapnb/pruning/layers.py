"""The layers of a network that can be pruned.

Units are channels for a convolution, rows (outputs) and columns (inputs) for a linear layer.
"""

import contextlib
import copy
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
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
USED = "forward", "_conv_forward"  # the methods in which a layer uses its weight


@dataclass
class Layer:
    """A prunable layer: its qualified name, its module and its own batch norm, if any."""

    name: str
    module: nn.Module
    batch_norm: nn.Module | None = None

    def __post_init__(self):
        self.groups: int = getattr(self.module, "groups", 1)
        # whether the weight's first dimension is that of the inputs
        self.transposed: bool = isinstance(self.module, TRANSPOSED)
        self.outputs: int = getattr(self.module, "out_features", 0) or self.module.out_channels

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def values(self) -> Tensor:
        """The weight, detached, in float32 or better; ValueError where it is on the meta device."""
        if self.weight.is_meta:
            about = called(self.name, self.module)
            raise ValueError(f"cannot prune {about}: its weight, on the meta device, has no values")
        return at_least_float(self.weight.detach())

    def per_output(self, units: Tensor) -> Tensor:
        """One number per output unit, shaped to multiply the weight."""
        return self._along(int(self.transposed), units)

    def per_input(self, units: Tensor) -> Tensor:
        """One number per input unit, shaped to multiply the weight."""
        return self._along(int(not self.transposed), units)

    def _along(self, dimension: int, units: Tensor) -> Tensor:
        rest = [1] * (self.weight.ndim - 2)
        if dimension == 0:
            return units.view(-1, 1, *rest)
        factor, rows = units.view(self.groups, -1, *rest), len(self.weight) // self.groups
        return factor.repeat_interleave(rows, dim=0) if self.groups > 1 else factor  # in a group


def at_least_float(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def prunable_layers(model: nn.Module) -> list[Layer]:
    """List the linear and (transposed) convolution layers of `model` in the order of definition.

    Layers at or below a module with the attribute `prunable = False` stay dense and are not listed.
    A module that has two names is one layer. A batch norm belongs to the layer defined before it,
    if it fits and is the only one there.

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
    _refuse_faults(model)
    layers: list[Layer] = []
    norms = 0  # since the last layer
    for name, module in modules_by_name(model):
        if isinstance(module, PRUNABLE):
            layers.append(Layer(name, module))
            norms = 0
        elif isinstance(module, BATCH_NORMS) and layers:
            norms += 1
            fits = norms == 1 and _fits(module, layers[-1])
            layers[-1].batch_norm = module if fits else None
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear or convolution layer to prune")
    return layers


def dense_parameters(model: nn.Module) -> list[tuple[str, nn.Module, Tensor]]:
    """List the weights that no prunable layer holds, such as those of an LSTM or an embedding.

    Each comes as (its name, the module that holds it, the parameter). Biases, scales of norm layers
    and what lies below a module with `prunable = False` are not listed.
    """
    return [
        (f"{name}.{key}".lstrip("."), module, parameter)
        for name, module in modules_by_name(model)
        if isinstance(module, DENSE)
        for key, parameter in module.named_parameters(recurse=False)
        if "weight" in key
    ]


def modules_by_name(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules by qualified name in the order of definition, without those that stay dense."""
    dense = {
        below
        for module in model.modules()
        if not getattr(module, "prunable", True)
        for below in module.modules()
    }
    return [(name, module) for name, module in model.named_modules() if module not in dense]


def _refuse_faults(model: nn.Module) -> None:
    """Raise ValueError that names all layers whose weight cannot be pruned, and why."""
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    faults: dict[str, list[str]] = {}
    sizes = {True: 0, False: 0}  # how many weights have a fault
    for name, module in modules_by_name(model):
        if isinstance(module, PRUNABLE):
            fault = _fault(module, uses)
            if fault:
                faults.setdefault(fault, []).append(called(name, module))
            sizes[bool(fault)] += _size(module)
    if faults:
        reasons = [f"{', '.join(names)}: it {reason}" for reason, names in faults.items()]
        share = sizes[True] / max(sum(sizes.values()), 1)
        raise ValueError(
            f"cannot prune {'; '.join(reasons)} (set its prunable = False to leave it dense: "
            f"{share:.0%} of the weights in all such layers)"
        )


def _fault(module: nn.Module, uses: Counter) -> str:
    """Say why a layer does not compute with a `weight` of its own, as it is; "" if it does."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None:
        return "computes its weight from other tensors, as torch.nn.utils.prune makes it do"
    if uses[id(weight)] > 1:
        return "shares its weight"
    if nn.parameter.is_lazy(weight):
        return "has no weight before the model has run once"
    if not (weight.numel() and is_plain(weight)):
        about = f"{weight.dtype}, {tuple(weight.shape)}, {weight.layout}"
        return f"has a weight of {about}, no plain real numbers"
    base = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.mod"))
    methods = [getattr(getattr(module, f, None), "__func__", None) for f in USED]
    if methods != [getattr(base, f, None) for f in USED] and not _takes_weight(module):
        return "has a forward of its own, which may change its weight"
    return ""


def _size(module: nn.Module) -> int:
    return 0 if nn.parameter.is_lazy(module.weight) else module.weight.numel()


def functional_of(module: nn.Module) -> str:
    """The name of the function in torch.nn.functional that a layer calls with its weight."""
    if isinstance(module, nn.Linear):
        return "linear"
    kind = "conv_transpose" if isinstance(module, TRANSPOSED) else "conv"
    return f"{kind}{module.weight.ndim - 2}d"


class _Uses(TorchFunctionMode):
    """Collects the names of the functions that compute something from a weight."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        takes = any(value is self.weight for value in tree_leaves((args, kwargs)))
        if takes and isinstance(out, Tensor) and out is not self.weight:
            self.names.add(func.__name__)
        return out


@torch.no_grad()
def _takes_weight(module: nn.Module) -> bool:
    """Whether a forward of its own hands the weight itself to its function, and to no other."""
    try:
        trial = copy.deepcopy(module).to("meta").eval()
        shape = [1, getattr(trial, "in_features", 0) or trial.in_channels]
        if not isinstance(trial, nn.Linear):
            shape += [8 + d * k for d, k in zip(trial.dilation, trial.kernel_size, strict=True)]
        with _Uses(trial.weight) as uses:
            trial.forward(torch.zeros(shape, dtype=trial.weight.dtype, device="meta"))
    except Exception:  # whatever a forward does with an input that is not its own
        return False
    return uses.names == {functional_of(module)}


@contextlib.contextmanager
def sound_backward(model: nn.Module) -> Iterator[None]:
    """Keep backward passes of `model` away from a fault of oneDNN, which writes past its memory.

    On processors with AVX2 only, the gradient of a 1×1 convolution with a stride and fewer than 8
    input channels overruns its workspace when the input is channels-last (oneDNN issue 6035).
    PyTorch's own kernels take over for a network that has such a layer.
    """
    if not any(map(_overruns, model.modules())):
        yield
        return
    flags = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(*flags)


def _overruns(module: nn.Module) -> bool:
    if not isinstance(module, CONVOLUTIONS):
        return False
    pointwise = set(module.kernel_size) == {1} and set(module.stride) != {1}
    return pointwise and module.in_channels // module.groups < 8


def called(name: str, module: nn.Module) -> str:
    """What messages call a module."""
    return f"{name or 'the model'} ({type(module).__name__})"


def warn(message: str) -> None:
    """Warn at the line outside this package and torch from which it was called."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(("lapnb.pruning", "torch.")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _fits(norm: nn.Module, layer: Layer) -> bool:
    """Whether a batch norm scales a layer's units or, after a flatten, the columns they become."""
    flat = isinstance(norm, nn.BatchNorm1d) and not isinstance(layer.module, nn.Linear)
    columns, rest = divmod(norm.num_features, layer.outputs)
    return norm.running_var is not None and not rest and (flat or columns == 1)


def batch_norm_scale(layer: Layer) -> Tensor:
    """|gamma| / sqrt(running_var + eps) per feature of the layer's batch norm; 1 without one."""
    if (norm := layer.batch_norm) is None:
        return layer.values.new_ones(layer.outputs)
    return norm_scale(norm.running_var, norm.weight, norm.eps).to(layer.values)


def norm_scale(variance: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    scale = (at_least_float(variance) + eps).rsqrt()
    return scale if gamma is None else scale * gamma.detach().abs()


def row_norms(weight: Tensor) -> Tensor:
    """Frobenius norm of all that enters each output unit; shape (outputs,)."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)


def column_norms(weight: Tensor, groups: int) -> Tensor:
    """Frobenius norm of all that leaves each input unit, in its own group; shape (inputs,)."""
    squares = weight.reshape(groups, len(weight) // groups, -1).square().sum(1)  # sums over rows
    return squares.view(groups * weight.shape[1], -1).sum(1).sqrt()  # over kernel positions
