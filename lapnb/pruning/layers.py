"""The one place that knows how a model's layers follow each other.

Units are channels for a convolution, rows (outputs) and columns (inputs) for a linear layer.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

CALL_ORDER = "modules must be defined in the order in which they are called, without side branches"


@dataclass
class Layer:
    """A prunable layer: its qualified name, its module and its own batch norm, if any."""

    name: str
    module: nn.Conv2d | nn.Linear
    batch_norm: nn.Module | None = None

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)


def prunable_layers(model: nn.Module) -> list[Layer]:
    """The Conv2d and Linear layers of `model` in the order of their definition.

    That order is the paper's protocol: a layer's neighbours are those defined just before and
    after it, residual additions are ignored, and so is any other branch whose widths happen to
    fit. A batch norm belongs to the layer before it. Layers below a module named `shortcut` or
    `downsample` stay dense and are not listed; modules without parameters (activations,
    pooling, dropout, flatten) are passed over.

    Raises TypeError for anything but a module; ValueError, naming the module, for one that cannot
    be handled or does not fit the layer before it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    layers: list[Layer] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if {"shortcut", "downsample"} & set(name.split(".")):
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers.append(Layer(name, module))
            if any(module.weight is other.weight for other in layers[:-1]):
                raise ValueError(f"{name} shares its weight with an earlier layer: not supported")
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            attach_batch_norm(layers, name, module)
        elif not passed_over(module):
            raise ValueError(
                f"cannot prune around {name or 'the model itself'} ({type(module).__name__}): only "
                "Conv2d, Linear, BatchNorm and modules without parameters are supported"
            )
    if not layers:
        raise ValueError(f"{type(model).__name__} has no Conv2d or Linear layer to prune")
    for first, second in pairwise(layers):
        check_pair(first, second)
    return layers


def passed_over(module: nn.Module) -> bool:
    """Whether a module is neither a normalisation nor the direct owner of parameters."""
    is_leaf = next(module.children(), None) is None
    if is_leaf and re.search(r"Norm(\dd)?$", type(module).__name__):  # may have no parameters
        return False
    return isinstance(module, nn.PReLU) or not list(module.parameters(recurse=False))


def attach_batch_norm(layers: list[Layer], name: str, batch_norm: nn.Module) -> None:
    """Give the last of `layers` its batch norm, over its channels or (1d) over all columns."""
    if not layers or layers[-1].batch_norm is not None:
        before = f"{layers[-1].name} has one already" if layers else "no layer comes before it"
        raise ValueError(f"cannot tell whose batch norm {name} is: {before} ({CALL_ORDER})")
    layer, width, outputs = layers[-1], batch_norm.num_features, len(layers[-1].weight)
    over_columns = isinstance(layer.module, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm1d)
    if width % outputs != 0 or (width > outputs and not over_columns):
        raise ValueError(f"batch norm {name} ({width}) does not fit {layer.name} ({outputs})")
    if batch_norm.running_var is None:
        raise ValueError(f"batch norm {name} has no running variance: set track_running_stats=True")
    layer.batch_norm = batch_norm


def check_pair(first: Layer, second: Layer) -> None:
    """Raise ValueError unless the outputs of `first` can be the inputs of `second`."""
    outputs, inputs = len(first.weight), second.weight.shape[1] * second.groups
    flattened = isinstance(first.module, nn.Conv2d) and isinstance(second.module, nn.Linear)
    fits = inputs == outputs or (flattened and inputs % outputs == 0)
    if not fits or len(batch_norm_scale(first)) not in (outputs, inputs):
        follower, leader = f"{second.name} ({inputs} inputs)", f"{first.name} ({outputs} outputs)"
        raise ValueError(f"{follower} does not fit {leader} before it ({CALL_ORDER})")


def batch_norm_scale(layer: Layer) -> Tensor:
    """|gamma| / sqrt(running_var + eps) per feature of the layer's batch norm; 1 without one."""
    norm = layer.batch_norm
    if norm is None:
        return torch.ones(len(layer.weight), device=layer.weight.device)
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().abs()


def row_norms(weight: Tensor) -> Tensor:
    """Frobenius norm of all that enters each output unit; shape (outputs,)."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)


def column_norms(weight: Tensor, groups: int) -> Tensor:
    """Frobenius norm of all that leaves each input unit, in its own group; shape (inputs,)."""
    squares = weight.reshape(groups, len(weight) // groups, -1).square().sum(1)  # sums over rows
    return squares.view(groups * weight.shape[1], -1).sum(1).sqrt()  # over kernel positions


def spread(values: Tensor, columns: int) -> Tensor:
    """Repeat each channel's value for the columns that it feeds after a flatten."""
    return values if len(values) == columns else values.repeat_interleave(columns // len(values))


@torch.no_grad()
def looking_back(layers: list[Layer], weights: list[Tensor], i: int) -> Tensor:
    """`before` of layer i: ||W_{i-1}[j, :]|| times batch norm; 1 for the first layer."""
    if i == 0:
        return torch.ones(1, device=weights[0].device)
    outputs, per_group, *kernel = weights[i].shape
    groups = layers[i].groups
    norms, scale = row_norms(weights[i - 1]), batch_norm_scale(layers[i - 1])
    factor = spread(norms, groups * per_group) * spread(scale, groups * per_group)
    factor = factor.view(groups, per_group, *(1 for _ in kernel))
    # Each output sees the inputs of its own group.
    return factor.repeat_interleave(outputs // groups, dim=0) if groups > 1 else factor


@torch.no_grad()
def looking_ahead(layers: list[Layer], weights: list[Tensor], i: int) -> Tensor:
    """`after` of layer i: ||W_{i+1}[:, k]|| times batch norm; only the latter for the last."""
    factor = batch_norm_scale(layers[i])
    if i + 1 < len(layers):
        norms = column_norms(weights[i + 1], layers[i + 1].groups)
        factor = norms * spread(factor, len(norms))
    outputs, *rest = weights[i].shape
    # All columns that a channel feeds after a flatten count together.
    return row_norms(factor.view(outputs, -1)).view(outputs, *(1 for _ in rest))


def neighbours(layers: list[Layer], weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """Factors (before, after) of layer i, broadcastable to its weight.

    `weights` has a tensor in the shape of each layer's weight: the weights themselves, or pruned
    or rescaled ones. Zeroing one weight w of layer i distorts the block of layers i-1, i and i+1 by
    |w| * before * after in Frobenius norm: the paper's L_i(w), batch norms included.
    """
    return looking_back(layers, weights, i), looking_ahead(layers, weights, i)
