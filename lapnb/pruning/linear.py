"""A fully-connected network as one linear map: what a linear network computes end to end."""

import torch
from torch import Tensor, nn

from lapnb.pruning.layers import Layer, prunable_layers


def product(weights: list[Tensor]) -> Tensor:
    """J = W_L ⋯ W_1, shape (outputs, inputs)."""
    return torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]


@torch.no_grad()
def relative_distortion(dense: nn.Module, pruned: nn.Module) -> float:
    """‖J(W̃) − J(W)‖_F / ‖J(W)‖_F of two fully-connected networks (paper, Section 3)."""
    before, after = (
        product([layer.weight for layer in _linear_layers(prunable_layers(model))])
        for model in (dense, pruned)
    )
    return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))


def whole_network(layers: list[Layer], weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """`neighbours` with all layers before and all layers after layer i as the two factors.

    On a network without activations |w| · before · after is then the exact distortion
    ‖J(W̃) − J(W)‖_F of zeroing w. ValueError for anything but linear layers in a row.
    """
    _linear_layers(layers)
    before = after = weights[i].new_ones(())
    if i > 0:
        before = product(weights[:i]).norm(dim=1)[None, :]
    if i + 1 < len(weights):
        after = product(weights[i + 1 :]).norm(dim=0)[:, None]
    return before, after


def _linear_layers(layers: list[Layer]) -> list[Layer]:
    for layer in layers:
        if not isinstance(layer.module, nn.Linear) or layer.batch_norm is not None:
            raise ValueError(
                f"the product of all layers needs linear layers without batch norm; {layer.name} "
                f"is {type(layer.module).__name__}"
            )
    return layers
