"""The neighbours of each layer where layers are called in the order of their definition."""

import torch
from torch import Tensor, nn

from lapnb.pruning.layers import (
    CONVOLUTIONS,
    Layer,
    batch_norm_scale,
    called,
    column_norms,
    layers_with_norms,
    modules_by_name,
    row_norms,
)

ORDERED = "definition_order"  # the attribute by which a model says that its layers are a chain


def chain_layers(model: nn.Module) -> list[Layer]:
    """Return the linear layers and convolutions of a chain, in the order of their definition.

    Layers that stay dense (`prunable = False`) are part of the chain. Layers at or below a module
    with the attribute `definition_order = False`, such as the shortcuts of our ResNets, are not:
    the paper's protocol ignores them.
    """
    return layers_with_norms(modules_by_name(model, ORDERED), (nn.Linear, *CONVOLUTIONS))


def check_chain(model: nn.Module) -> None:
    """Raise ValueError unless a model is known to call its layers in the order of definition.

    This is known of our own models, which have the attribute `definition_order = True`, as long as
    the layers and batch norms of the chain hold all their weights.
    """
    fault = chain_fault(model, chain_layers(model))
    if fault:
        raise ValueError(
            f"cannot tell the neighbours of layers {fault}: pass example=, a batch of the model's "
            "inputs, to find neighbours by following it"
        )


def chain_fault(model: nn.Module, layers: list[Layer]) -> str:
    """Say where it is unknown whether `layers` are called in this order; "" if it is known."""
    if not getattr(model, ORDERED, False):
        return f"in {type(model).__name__}"
    members = [module for layer in layers for module in (layer.module, layer.batch_norm)]
    for name, module in modules_by_name(model, ORDERED):
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if tensors and module not in members:
            return f"around {called(name, module)}"
    return ""


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
