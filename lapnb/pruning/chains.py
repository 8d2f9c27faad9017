"""The neighbours of each layer in a chain of layers, and the product of a linear network."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from lapnb.pruning.layers import (
    Layer,
    batch_norm_scale,
    called,
    column_norms,
    modules_by_name,
    prunable_layers,
    row_norms,
)

PASS_EXAMPLE = "pass example=, a batch of the model's inputs, to find neighbours by following it"


def chain_fault(model: nn.Module, layers: list[Layer], linear: bool = False) -> str:
    """Why it is not known that layers are called in the order of definition; "" if it is.

    Known to be such a chain are an nn.Sequential of layers, their batch norms and modules of
    torch.nn that keep units apart, nested or not, and a model that says so by the attribute
    `definition_order = True`: our own, whose residual additions the paper's protocol ignores. Each
    layer's outputs must be the next one's inputs in number. `linear`: as `whole_network` needs it.
    """
    for layer in layers if linear else ():
        if not isinstance(layer.module, nn.Linear) or layer.batch_norm is not None:
            needs = "the product of all layers needs linear layers without batch norm"
            return f"{needs}; {layer.name} is {type(layer.module).__name__}"
    in_order = getattr(model, "definition_order", False)
    known = {id(m) for x in layers if not x.transposed for m in (x.module, x.batch_norm)}
    for name, module in modules_by_name(model) if in_order else model.named_modules():
        owned = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not (id(module) in known or _keeps_units(module) or (in_order and not owned)):
            where = called(name, module)
            return f"cannot tell the neighbours of layers around {where}: {PASS_EXAMPLE}"
    flat = in_order or any(isinstance(module, nn.Flatten) for module in model.modules())
    for first, second in pairwise(layers):
        inputs = second.weight.shape[1] * second.groups
        columns, rest = divmod(inputs, first.outputs)
        kinds = [isinstance(layer.module, nn.Linear) for layer in (first, second)]
        if rest or (columns != 1 and not (flat and kinds == [False, True])):
            what = f"{second.name} ({inputs} inputs) does not fit {first.name}"
            return f"{what} ({first.outputs} outputs), the layer defined before it: {PASS_EXAMPLE}"
    return ""


def _keeps_units(module: nn.Module) -> bool:
    """Whether a module has a place in a chain between layers and their batch norms."""
    room = type(module).__module__.removeprefix("torch.nn.modules.")
    kept = room in ("activation", "container", "dropout", "flatten", "padding", "pooling")
    mixes = isinstance(module, nn.GLU | nn.MultiheadAttention)
    mixes = mixes or getattr(module, "start_dim", 1) != 1  # of a Flatten
    return (kept and not mixes) or isinstance(module, nn.Identity)


def _spread(values: Tensor, columns: int) -> Tensor:
    """Repeat each channel's value for the columns that it feeds after a flatten."""
    return values.repeat_interleave(columns // len(values))


@torch.no_grad()
def neighbours(layers: list[Layer], weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """Factors (before, after) of layer i in a chain of layers, broadcastable to its weight.

    `weights` has a tensor in the shape of each layer's weight: the weights themselves, or pruned
    or rescaled ones. Zeroing one weight w of layer i distorts the block of layers i-1, i and i+1 by
    |w| * before * after in Frobenius norm: the paper's L_i(w), batch norms included.
    """
    layer, scale = layers[i], batch_norm_scale(layers[i])
    before = weights[i].new_ones(1)
    if i > 0:
        inputs = weights[i].shape[1] * layer.groups
        norms = _spread(row_norms(weights[i - 1]), inputs)
        before = layer.per_input(norms * _spread(batch_norm_scale(layers[i - 1]), inputs))
    if i + 1 < len(layers):
        norms = column_norms(weights[i + 1], layers[i + 1].groups)
        scale = norms * _spread(scale, len(norms))
    # All columns that a channel feeds after a flatten count together.
    return before, layer.per_output(row_norms(scale.view(len(weights[i]), -1)))


def whole_network(weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """`neighbours` with all layers before and all layers after layer i as the two factors.

    Without activations |w| · before · after is then the exact distortion ‖J(W̃) − J(W)‖_F.
    """
    one, last = weights[i].new_ones(()), i + 1 == len(weights)
    before = product(weights[:i]).norm(dim=1)[None, :] if i > 0 else one
    after = one if last else product(weights[i + 1 :]).norm(dim=0)[:, None]
    return before, after


def product(weights: list[Tensor]) -> Tensor:
    """J = W_L ⋯ W_1, shape (outputs, inputs): what linear layers compute together."""
    with torch.autocast(weights[0].device.type, enabled=False):
        return torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]


@torch.no_grad()
def relative_distortion(dense: nn.Module, pruned: nn.Module) -> float:
    """‖J(W̃) − J(W)‖_F / ‖J(W)‖_F of two fully-connected networks (paper, Section 3)."""
    before, after = (
        product([layer.values for layer in prunable_layers(model)]) for model in (dense, pruned)
    )
    return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))
