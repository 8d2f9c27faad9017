"""The neighbours of each layer where layers are called in the order of their definition."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from lapnb.pruning.layers import (
    BATCH_NORMS,
    CONVOLUTIONS,
    Layer,
    batch_norm_scale,
    called,
    column_norms,
    row_norms,
)

PASS_EXAMPLE = "pass example=, a batch of the model's inputs, to find neighbours by following it"


def chain_layers(model: nn.Module) -> list[Layer]:
    """Return the linear layers and convolutions of a chain, in the order of their definition.

    Layers that stay dense (`prunable = False`) are part of the chain. What lies below a module
    with the attribute `definition_order = False` is not, such as the shortcuts of our ResNets: the
    paper's protocol ignores them.
    """
    layers: list[Layer] = []
    for name, module in _modules_in_order(model):
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            layers.append(Layer(name, module))
        is_norm = isinstance(module, BATCH_NORMS) and module.running_var is not None
        if is_norm and layers and layers[-1].batch_norm is None:
            layers[-1].batch_norm = module
    return layers


def chain_fault(model: nn.Module, layers: list[Layer]) -> str:
    """Return why it is not known that `layers` are called in this order; "" where it is known.

    It is known of models that say so by the attribute `definition_order = True`: our own, and
    those only while `layers` and their batch norms hold all their weights.
    """
    unknown = "cannot tell the neighbours of layers"
    if not getattr(model, "definition_order", False):
        return f"{unknown} in {type(model).__name__}: {PASS_EXAMPLE}"
    known = {id(module) for layer in layers for module in (layer.module, layer.batch_norm)}
    for name, module in _modules_in_order(model):
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and id(module) not in known:
            return f"{unknown} around {called(name, module)}: {PASS_EXAMPLE}"
    for first, second in pairwise(layers):
        if not _fit(first, second):
            return f"{unknown}, as {second.name} does not fit {first.name}: {PASS_EXAMPLE}"
    return ""


def _modules_in_order(model: nn.Module) -> list[tuple[str, nn.Module]]:
    modules = [(f"{name}.", module) for name, module in model.named_modules()]
    aside = tuple(name for name, module in modules if not getattr(module, "definition_order", True))
    return [(name[:-1], module) for name, module in modules if not name.startswith(aside)]


def _fit(first: Layer, second: Layer) -> bool:
    """Whether one layer's outputs can be the next one's inputs, after a flatten too."""
    inputs = second.weight.shape[1] * second.groups
    flattened = isinstance(second.module, nn.Linear) and not isinstance(first.module, nn.Linear)
    return inputs == first.outputs or (flattened and inputs % first.outputs == 0)


@torch.no_grad()
def neighbours(layers: list[Layer], weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """Return the factors (before, after) of layer i in a chain, broadcastable to its weight.

    Zeroing one weight w of layer i distorts the block of layers i-1, i and i+1 by
    |w| * before * after in Frobenius norm: the paper's L_i(w), batch norms included.

    Args:
        layers: the layers of the chain.
        weights: a tensor in the shape of each layer's weight: the weights themselves, or pruned or
            rescaled ones.
        i: the number of the layer.
    """
    layer = layers[i]
    before = weights[i].new_ones(1)
    if i > 0:
        inputs = weights[i].shape[1] * layer.groups
        norms = _spread(row_norms(weights[i - 1]), inputs)
        scale = batch_norm_scale(layers[i - 1]).to(weights[i])
        before = layer.per_input(norms * _spread(scale, inputs))
    after = batch_norm_scale(layer).to(weights[i])
    if i + 1 < len(layers):
        norms = column_norms(weights[i + 1], layers[i + 1].groups)
        after = norms * _spread(after, len(norms))
    # All columns that a channel feeds after a flatten count together.
    return before, layer.per_output(row_norms(after.view(len(weights[i]), -1)))


def _spread(values: Tensor, columns: int) -> Tensor:
    """Repeat each channel's value for the columns that it feeds after a flatten."""
    return values.repeat_interleave(columns // len(values))
