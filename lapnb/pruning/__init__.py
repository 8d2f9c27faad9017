"""Pruning criteria, the layers that they look at, and masks."""

import copy

import torch
from torch import Tensor, nn


def owns_memory(tensor: Tensor) -> bool:
    """Whether there is memory for each of its numbers, which an expanded view does not have."""
    usual = tensor.layout == torch.strided and not tensor.is_quantized
    return usual and tensor.nbytes <= tensor.untyped_storage().nbytes()


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds real numbers, of 16 bits or more, and has memory for each."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and owns_memory(tensor)


def twin_of(model: nn.Module, shared: bool = False) -> nn.Module:
    """A copy in eval mode, without gradients, that can be run, and changed unless `shared`.

    `shared`: its parameters have the memory of the model's.
    """
    values = [value for module in model.modules() for value in vars(module).values()]
    # deepcopy takes no results
    stored = {id(value): value.detach().clone() for value in values if isinstance(value, Tensor)}
    for parameter in model.parameters() if shared else ():
        stored[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    twin = copy.deepcopy(model, stored).requires_grad_(False)
    for module in twin.modules():
        module.training = False
    return twin
