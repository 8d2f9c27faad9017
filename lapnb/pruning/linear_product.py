"""The product of all layers of a linear network, J = W_L ⋯ W_1 (paper, Section 3)."""

import torch
from torch import Tensor, nn

from lapnb.pruning.chains import chain_layers


def check_linear(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, unless all are linear layers without batch norm."""
    for layer in chain_layers(model):
        if not isinstance(layer.module, nn.Linear) or layer.batch_norm is not None:
            needs = "the product of all layers needs linear layers without batch norm"
            raise ValueError(f"{needs}; {layer.name} is {type(layer.module).__name__}")


def whole_network(weights: list[Tensor], i: int) -> tuple[Tensor, Tensor]:
    """Return the factors of layer i, with all layers before and all after it as its neighbours.

    Without activations |w| · before · after is the exact distortion ‖J(W̃) − J(W)‖_F that zeroing w
    causes.
    """
    before = after = weights[i].new_ones(())
    if i > 0:
        before = product(weights[:i]).norm(dim=1)[None, :]
    if i + 1 < len(weights):
        after = product(weights[i + 1 :]).norm(dim=0)[:, None]
    return before, after


def product(weights: list[Tensor]) -> Tensor:
    """Return J, of shape (outputs, inputs): what linear layers compute together."""
    if len(weights) == 1:
        return weights[0]
    with torch.autocast(weights[0].device.type, enabled=False):
        return torch.linalg.multi_dot(weights[::-1])


@torch.no_grad()
def relative_distortion(dense: nn.Module, pruned: nn.Module) -> float:
    """Return ‖J(W̃) − J(W)‖_F / ‖J(W)‖_F of two fully-connected networks."""
    before = product([layer.values for layer in chain_layers(dense)])
    after = product([layer.values for layer in chain_layers(pruned)])
    return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))
