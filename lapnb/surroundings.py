"""What PyTorch does by default belongs to the caller; results must not depend on it."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """Compute as PyTorch does when it starts; afterwards restore what the caller has set.

    New tensors are float32 on the CPU, gradients are recorded, and the CPU multiplies float32 as
    such, not as bfloat16 (`torch.set_float32_matmul_precision("medium")` or autocast). It serves as
    `with usual_torch():` and as the decorator `@usual_torch()`.

    >>> with torch.inference_mode(), torch.device("meta"), usual_torch():
    ...     print(torch.zeros(1, requires_grad=True).device)
    cpu
    """
    dtype = torch.get_default_dtype()
    on_cpu = contextlib.nullcontext()
    if torch.get_default_device().type != "cpu":  # entered only then, as it slows every call
        on_cpu = torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    onednn = torch.backends.mkldnn
    products, convolutions = onednn.matmul.fp32_precision, onednn.conv.fp32_precision
    onednn.matmul.fp32_precision = onednn.conv.fp32_precision = "ieee"
    try:
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
            on_cpu,
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        onednn.matmul.fp32_precision = products
        onednn.conv.fp32_precision = convolutions
