"""A copy of a model that may be run and changed."""

import copy

from torch import Tensor, nn


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
