"""Training, retraining with fixed masks, and evaluation (the paper's protocol, Section 5)."""

import contextlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapnb.checks import owns_memory, require, require_whole
from lapnb.pruning.layers import sound_backward
from lapnb.pruning.masks import fitting, zero
from lapnb.surroundings import usual_torch
from lapnb.training.checkpoints import Checkpoint
from lapnb.training.data import CHUNK, Data, augment, stream
from lapnb.training.graph import CapturedStep
from lapnb.training.networks import Network

PRECISIONS = ("float32", "bfloat16")


@usual_torch()
def train(
    model: nn.Module,
    data: Data,
    steps: int,
    lr: float = 1.2e-3,
    batch_size: int = 60,
    masks: list[Tensor] | None = None,
    seed: int = 0,
    stage: str = "dense",
    checkpoint: pathlib.Path | Checkpoint | None = None,
    progress: Callable[[int], None] | None = None,
    precision: str = "float32",
) -> nn.Module:
    """Train `model` in place with Adam at a constant learning rate.

    Each step draws its batch from a random stream that depends on (`seed`, `stage`) and the step
    only. Pruned weights get no gradient from the first step, so Adam leaves them exactly zero.

    A model returns logits of shape (batch, classes), or (networks, batch, classes) for several
    independent networks trained at once. Their losses are added, so each trains as if alone, even
    beside one that diverges; `evaluate` says which that is. If a model returns a tuple or dict, its
    first value counts.

    A model in evaluation mode is set to train. One in training mode is taken as it is: those of its
    modules that are in evaluation mode (a frozen batch norm) stay so.

    On a GPU each step of this project's networks is launched as one CUDA graph, which gives the
    same bits as a step without it. Hooks in Python run in the first four steps only.

    Args:
        model: Any module of 32- or 64-bit weights.
        data: What to train on.
        steps: The number of batches.
        lr: Adam's learning rate.
        batch_size: Images in a batch, drawn without replacement.
        masks: Boolean, in the order and shapes of `prunable_layers`: the weights outside them are
            zeroed first and stay zero.
        seed: A whole number from 0.
        stage: A name that gives other batches with the same seed, as "retrain" does.
        checkpoint: A file. A run of more than a minute saves its state there and, called again,
            resumes from the last saved step. If the file began from other weights or masks, it
            says so and starts afresh. A `Checkpoint` in place of the path tells afterwards when
            the training began, as if a resumed run had never been stopped.
        progress: Is called with the number of finished steps.
        precision: "bfloat16" computes the network and the loss under autocast; weights, Adam and
            `evaluate` stay float32.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: an argument makes no sense, or the file is of another network, other settings
            or other data.
        CorruptFile: the file is damaged, or no checkpoint.
        FloatingPointError: the loss (of several networks: of every one) is no longer finite.

    >>> import lapnb
    >>> data = lapnb.load_data("mnist5k")
    >>> model = lapnb.train(lapnb.build_model("fcn", width=0.1, seed=0), data, steps=100)
    >>> lapnb.evaluate(model, data)[1] > 50  # % of the test images
    True
    """
    _check(model, data, steps, lr, batch_size, seed, precision)
    pruned = [] if masks is None else fitting(model, masks)
    device = data.train_images.device
    with _prepared(model, device):
        on_gpu = device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), lr, fused=True, capturable=on_gpu)
        zero(pruned)
        start = 0
        if checkpoint is not None:
            if not isinstance(checkpoint, Checkpoint):
                checkpoint = Checkpoint(pathlib.Path(checkpoint))
            settings = f"seed {seed}, stage {stage}, lr {lr}, batch size {batch_size}, {precision}"
            start = checkpoint.resume(model, optimizer, masks or [], data, settings, steps)
        if not model.training:
            model.train()
        take_step = _step(model, optimizer, pruned, batch_size, device, precision)
        batches = _batches(data, batch_size, start, seed, stage)
        for step, batch in zip(range(start + 1, steps + 1), batches, strict=False):
            losses = take_step(*batch)
            if step % CHUNK == 0 or step == steps:
                if not losses.mean(-1).isfinite().any():
                    raise FloatingPointError(f"the loss was {losses.mean().item()} at step {step}")
                if progress is not None:
                    progress(step)
                if checkpoint is not None:
                    checkpoint.save(step)
        optimizer.zero_grad()
    return model.eval()


def _step(model, optimizer, pruned, batch_size, device, precision) -> Callable:
    """Return a function that takes one step of Adam on the mean loss, with masked gradients.

    The function takes images and labels, and returns the loss of each image.
    """
    kept = [(layer.weight, mask.to(layer.weight)) for layer, mask in pruned]
    dtype = next(model.parameters()).dtype
    share = torch.full((batch_size,), 1 / batch_size, dtype=dtype, device=device)
    low = precision == "bfloat16"
    # casts are not kept for the next step, as weights change in place
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=low, cache_enabled=False)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with autocast:
            _, losses = _computed(model, images, labels)
        optimizer.zero_grad()
        losses.backward(share.expand_as(losses))  # of each network's mean over its batch
        for weight, mask in kept:
            if weight.grad is not None:  # a layer may be frozen
                weight.grad.mul_(mask)
        optimizer.step()
        return losses.detach()

    if device.type == "cuda" and isinstance(model, Network):
        return CapturedStep(step)
    return step


@usual_torch()
@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: str = "test") -> tuple:
    """Compute the mean cross-entropy and the accuracy (%) of `model`.

    The model computes in its own precision, without the caller's autocast. Modules keep their own
    modes: a frozen batch norm stays frozen.

    Args:
        model: A module that returns logits, as in `train`.
        data: What to evaluate on.
        split: "test" or "train".

    Returns:
        Two floats; for a model of several networks two tensors, one value per network. The loss of
        a network that has diverged is not finite, whatever its accuracy.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", width=0.1, seed=0)
    >>> loss, accuracy = lapnb.evaluate(model, lapnb.load_data("mnist5k"))
    >>> accuracy < 30  # the model is not trained
    True
    """
    images = getattr(data, f"{split}_images")
    labels = getattr(data, f"{split}_labels")
    modes = [(module, module.training) for module in model.modules()]
    loss = correct = 0
    model.eval()
    try:
        for part, answers in zip(images.split(500), labels.split(500), strict=True):
            logits, losses = _computed(model, data.normalise(part), answers)
            loss = loss + losses.sum(-1)
            correct = correct + (logits.argmax(-1) == answers).sum(-1)
    finally:
        for module, mode in modes:
            module.training = mode
    loss = loss / len(labels)
    accuracy = 100 * correct.double() / len(labels)
    if loss.ndim > 0:
        return loss, accuracy
    return loss.item(), accuracy.item()


def _check(model, data, steps, lr, batch_size, seed, precision) -> None:
    require_whole("steps", steps, 0)
    require_whole("batch_size", batch_size, 1, len(data.train_labels))
    require_whole("seed", seed, 0)
    require(lr is not True and 0 < lr < math.inf, "lr", "a number above 0", lr)
    require(precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", precision)
    for name, p in model.named_parameters():
        usable = p.dtype in (torch.float32, torch.float64) and owns_memory(p)
        allowed = "real numbers of 32 or 64 bits, with memory for each"
        require(usable, name, allowed, f"{p.dtype}, {p.layout}")


@contextlib.contextmanager
def _prepared(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Prepare the process for training, and afterwards put its settings back.

    They are the random state, whether oneDNN computes, and whether denormal numbers count as zero.
    """
    flushing = torch.tensor(1e-40).item() == 0
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), sound_backward(model):
        # Adam's moments of weights that get no gradient decay into denormal numbers, which are slow
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(flushing)


def _batches(data, batch_size, start, seed, stage) -> Iterator:
    """Yield the normalised images and labels of each step from `start`, without end.

    Dropout is seeded, too.
    """
    labels = data.train_labels
    for chunk in itertools.count(start // CHUNK):
        rng = stream(seed, stage, chunk)
        torch.manual_seed(int(rng.integers(2**63)))  # dropout
        drawn = (rng.choice(len(labels), batch_size, False, shuffle=False) for _ in range(CHUNK))
        # augmentation draws between two batches; without it, drawing all at once is faster
        for batch in drawn if data.augmentation else list(drawn):
            # non_blocking here and in Data: a GPU's step need not end before the copy
            chosen = torch.from_numpy(batch).to(labels.device, non_blocking=True)
            images = augment(data.train_images.index_select(0, chosen), data.augmentation, rng)
            yield data.normalise(images), labels.index_select(0, chosen)


def _computed(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and each image's cross-entropy, (batch,) or (networks, batch).

    The cross-entropy is never computed in 16 bits.
    """
    output = model(images.to(next(model.parameters()).dtype))
    if isinstance(output, Mapping):
        output = [*output.values()]
    if not isinstance(output, Tensor):  # GoogLeNet and Inception return auxiliary logits, too
        output = output[0]
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    labels = labels.expand(wide.shape[:-1])
    # cross_entropy wants the axis of classes second
    return output, F.cross_entropy(wide.movedim(-1, 1), labels, reduction="none")
