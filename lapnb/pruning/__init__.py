"""Pruning criteria, the layers that they look at, and masks."""

import copy
import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn


def require(right: bool, name: str, allowed: str, given: Any) -> None:
    """Raise ValueError, in the one form that all parameters share, unless `right`."""
    if not right:
        raise ValueError(f"{name} must be {allowed}; got {given!r}")


def require_whole(name: str, given: Any, least: int, most: float = math.inf) -> None:
    """Raise ValueError unless `given` is a whole number from `least` to `most`."""
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    allowed = f"a whole number of at least {least}" + f" and at most {most}" * (most < math.inf)
    require(whole and least <= given <= most, name, allowed, given)


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
