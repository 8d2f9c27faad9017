"""The layers of a network that can be pruned.

Units are channels for a convolution, rows (outputs) and columns (inputs) for a linear layer.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lapnb.checks import is_plain

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
TRANSPOSED = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
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
    """The linear and (transposed) convolution layers of `model` in the order of their definition.

    Layers at or below a module with the attribute `prunable = False` stay dense and are not listed.
    A batch norm belongs to the layer defined before it, if it fits and is the only one there.

    Raises TypeError for anything but a module; ValueError, naming the layer, where zeros in its
    weight would not do what they should: a weight that is shared, that is computed from something
    else, not initialised yet, empty or complex, or that the layer's own `forward` may change.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    layers: list[Layer] = []
    norms = 0  # since the last layer
    for name, module in modules_by_name(model):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)):
            _check_weight(name, module, uses)
            layers.append(Layer(name, module))
            norms = 0
        elif isinstance(module, BATCH_NORMS) and layers:
            norms += 1
            own = norms == 1 and _fits(module, layers[-1])
            layers[-1].batch_norm = module if own else None
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear or convolution layer to prune")
    return layers


def modules_by_name(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules by qualified name in the order of definition, without those that stay dense."""
    named = [(f"{name}.".lstrip("."), m) for name, m in model.named_modules(remove_duplicate=False)]
    dense = tuple(name for name, module in named if not getattr(module, "prunable", True))
    return [(name[:-1], module) for name, module in named if not name.startswith(dense)]


def _check_weight(name: str, module: nn.Module, uses: Counter) -> None:
    """Raise ValueError unless a layer computes with a parameter `weight` of its own, as it is."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    base = next(c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules."))
    methods = [getattr(getattr(module, f, None), "__func__", None) for f in USED]
    if weight is None:
        reason = "computes its weight from other tensors, as torch.nn.utils.prune makes it do"
    elif uses[id(weight)] > 1:
        reason = "shares its weight"
    elif nn.parameter.is_lazy(weight):
        reason = "has no weight before the model has run once"
    elif not (weight.numel() and is_plain(weight)):
        about = f"{weight.dtype}, {tuple(weight.shape)}, {weight.layout}"
        reason = f"has a weight of {about}, no plain real numbers"
    elif methods != [getattr(base, f, None) for f in USED]:
        reason = "has a forward of its own, which may change its weight"
    else:
        return
    about = f"{called(name, module)}: it {reason}"
    raise ValueError(f"cannot prune {about} (set its prunable = False to leave it dense)")


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
