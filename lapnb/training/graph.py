"""A training step on a GPU, launched as a whole.

Launching the kernels of a small network one by one takes longer than running them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARMING = 3  # steps before the capture; PyTorch wants them on another stream


class CapturedStep:
    """`step(images, labels)` as a CUDA graph: captured at its fourth call, then replayed.

    The step must do the same each time, with tensors only, and may not ask for a value of one. All
    batches have one shape. The result is overwritten by the next call.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]):
        self.step = step
        self.graph = torch.cuda.CUDAGraph()
        self.inputs = ()
        self.calls = 0

    def __call__(self, *batch: Tensor) -> Tensor:
        self.calls += 1
        self.inputs = self.inputs or tuple(map(torch.clone, batch))
        for kept, new in zip(self.inputs, batch, strict=True):
            kept.copy_(new)
        if self.calls <= WARMING:
            current, other = torch.cuda.current_stream(), torch.cuda.Stream()
            other.wait_stream(current)
            with torch.cuda.stream(other):
                losses = self.step(*self.inputs)
            current.wait_stream(other)
            return losses
        if self.calls == WARMING + 1:
            with torch.cuda.graph(self.graph):
                self.losses = self.step(*self.inputs)
        self.graph.replay()
        return self.losses
