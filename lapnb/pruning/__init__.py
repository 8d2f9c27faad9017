"""Pruning criteria, the layers that they look at, and masks."""

import torch
from torch import Tensor


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds real numbers and has memory for each, which an expanded view does not."""
    real = tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.is_quantized
    strided = real and tensor.layout == torch.strided
    return strided and tensor.nbytes <= tensor.untyped_storage().nbytes()
