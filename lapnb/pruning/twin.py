"""A copy of a model that may be run and changed."""

import copy

from torch import nn

from lapnb.pruning.layers import called


def twin_of(model: nn.Module, unread: tuple | list = ()) -> nn.Module:
    """Copy a model, in eval mode and without gradients and hooks, to be run and changed.

    The copy shares no memory with the model. `unread` parameters take no memory either: in the copy
    they have shape and type, but no values, and cannot be written.

    Raises:
        ValueError: a module cannot be copied.
    """
    stand_ins: dict = {}  # keyed by the id of the original, as deepcopy does
    for parameter in unread:
        zeros = parameter.new_zeros(()).expand(parameter.shape)
        stand_ins[id(parameter)] = nn.Parameter(zeros, requires_grad=False)
    try:
        twin = copy.deepcopy(model, stand_ins)
    except Exception as error:  # a module may hold anything
        raise ValueError(f"cannot copy {called('', model)}: {error}") from error
    for module in twin.modules():
        module.training = False
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                value.clear()
    return twin.requires_grad_(False)
