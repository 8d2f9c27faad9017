"""Pruning criteria, the layers that they look at, and masks."""

import torch
from torch import Tensor


def owns_memory(tensor: Tensor) -> bool:
    """Whether there is memory for each of its numbers, which an expanded view does not have."""
    usual = tensor.layout == torch.strided and not tensor.is_quantized
    return usual and tensor.nbytes <= tensor.untyped_storage().nbytes()


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds real numbers, of 16 bits or more, and has memory for each."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and owns_memory(tensor)
