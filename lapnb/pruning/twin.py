"""A copy of a model that may be run and changed."""

import copy
from collections import OrderedDict

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lapnb.pruning.layers import called


def twin_of(model: nn.Module, unread: tuple | list = ()) -> nn.Module:
    """A copy in eval mode, without gradients and hooks, that can be run and changed.

    It shares no memory with the model. `unread` parameters take no memory either: in the copy they
    have shape and type, but no values, and cannot be written.

    Raises:
        ValueError: a module cannot be copied. The sentence names it.
    """
    copies: dict = {}  # by the id of what they stand for, as deepcopy keeps them
    for module in model.modules():
        for key, value in vars(module).items():
            if key.endswith("_hooks") and isinstance(value, dict):
                copies[id(value)] = OrderedDict()
            for tensor in tree_leaves(value):  # deepcopy takes no results
                if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                    copies[id(tensor)] = tensor.detach().clone()
    for parameter in unread:
        stand_in = parameter.new_zeros(()).expand(parameter.shape)
        copies[id(parameter)] = nn.Parameter(stand_in, requires_grad=False)
    try:
        twin = copy.deepcopy(model, copies)
    except Exception as error:  # whatever a module holds
        raise ValueError(f"cannot copy {_uncopied(model, copies)}: {error}") from error
    for module in twin.modules():
        module.training = False
    return twin.requires_grad_(False)


def _uncopied(model: nn.Module, copies: dict) -> str:
    """Name the module and its attribute that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                if key != "_modules":
                    copy.deepcopy(value, dict(copies))
            except Exception:
                return f"{key} of {called(name, module)}"
    return called("", model)
