"""Training, retraining with fixed masks, and evaluation (the paper's protocol, Section 5)."""

import contextlib
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapnb.checks import is_plain, require, require_whole
from lapnb.pruning.layers import sound_backward
from lapnb.pruning.masks import fitting, zero
from lapnb.store import is_ours, save_tensors
from lapnb.training.checkpoints import adam, facts_of, resume, state_of
from lapnb.training.data import Data, augment, stream
from lapnb.training.graph import Graph
from lapnb.training.networks import Network

PRECISIONS = ("float32", "bfloat16")
CHUNK = 25  # steps between two fresh random streams; checkpoints fall on its multiples
CHECKPOINT_SECONDS = 60.0
SHORT = (torch.float16, torch.bfloat16)


def train(
    model: nn.Module,
    data: Data,
    steps: int,
    lr: float = 1.2e-3,
    batch_size: int = 60,
    masks: list[Tensor] | None = None,
    seed: int = 0,
    stage: str = "dense",
    checkpoint: pathlib.Path | None = None,
    progress: Callable[[int], None] | None = None,
    precision: str = "float32",
) -> nn.Module:
    """Train `model` in place with Adam at a constant learning rate; return it, in evaluation mode.

    Each step draws `batch_size` training images without replacement from a stream that depends
    on (`seed`, `stage`) and the step only. With `masks` (boolean, in the order and shapes of
    `prunable_layers`) the weights outside them are zeroed first and stay exactly zero: their
    gradient is zero from the first step, so Adam's moments and updates are zero too.

    A model may return logits of shape (batch, classes), or (networks, batch, classes) for several
    independent networks trained at once; their losses are added, so each trains as if alone. One
    that diverges leaves the others alone; its loss is not finite from then on, and `evaluate` says
    which it is.

    Modules are trained in training mode. If only some of the modules with parameters are in
    evaluation mode (a frozen batch norm), they stay in it; if all are, all are set to train.

    `checkpoint` is a file: a run longer than a minute saves its state there and, called again,
    resumes from the last saved step. If the file is damaged or began from other weights or masks,
    it prints so and starts afresh. `progress` is called with the number of finished steps.

    On a GPU the steps of this project's networks are launched as one CUDA graph, whose bits are
    those of single steps; hooks in Python run in the first four steps only.

    `precision` "bfloat16" computes the network and the loss under autocast; weights, Adam and
    `evaluate` stay float32. A model whose own weights have 16 bits is trained in float32 and
    rounded at the end.

    Raises ValueError for an argument that makes no sense, a file that is no checkpoint, or one
    of another network, other settings or other data; FloatingPointError when the loss (of several
    networks: of every one) is no longer finite.
    """
    _check_types(model, data)
    require_whole("steps", steps, 0)
    require_whole("batch_size", batch_size, 1, len(data.train_labels))
    require_whole("seed", seed, 0)
    require(isinstance(lr, Real) and 0 < lr < math.inf, "lr", "a number above 0", lr)
    require(precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", precision)
    require(isinstance(stage, str), "stage", "a string", stage)
    require(progress is None or callable(progress), "progress", "a function", progress)
    require([*model.parameters()] != [], "model", "one with parameters", model)
    pruned = [] if masks is None else fitting(model, masks)
    if checkpoint is not None:
        require(isinstance(checkpoint, str | pathlib.Path), "checkpoint", "a path", checkpoint)
        checkpoint = pathlib.Path(checkpoint)
        allowed = "the name of a new file, or of a checkpoint that train wrote"
        require(is_ours(checkpoint), "checkpoint", allowed, str(checkpoint))
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    device, start, facts, saved = data.train_images.device, 0, {}, time.monotonic()
    cast = dict(enabled=precision == "bfloat16", cache_enabled=False)  # weights change in place
    precise = torch.autocast(device.type, torch.bfloat16, **cast)
    with _prepared(model, device):
        parameters, dtype = list(model.parameters()), _dtype(model)
        optimizer = adam(parameters, lr)
        zero(pruned)
        kept = [(layer.weight, mask.to(layer.weight)) for layer, mask in pruned]
        if checkpoint:
            settings = f"seed {seed}, stage {stage}, lr {lr}, batch size {batch_size}, {precision}"
            facts = facts_of(model, data, masks or [], settings)
            start = resume(checkpoint, state_of(model, optimizer), facts, steps)
        if not any(m.training for m in model.modules() if [*m.parameters(recurse=False)]):
            model.train()
        share = torch.full((batch_size,), 1 / batch_size, dtype=dtype, device=device)
        batches = _batches(data, batch_size, start, seed, stage, dtype)

        def step(images: Tensor, labels: Tensor) -> Tensor:
            with precise:
                _, losses = _computed(model, images, labels)
            for parameter in parameters:
                parameter.grad = None
            losses.backward(share.expand_as(losses))  # of the mean over each network's batch
            for weight, mask in kept:
                if weight.grad is not None:  # a layer may be frozen
                    weight.grad.mul_(mask)
            optimizer.step()
            return losses.detach()

        if device.type == "cuda" and isinstance(model, Network):
            step = Graph(step)
        for done, (images, labels) in zip(range(start + 1, steps + 1), batches, strict=False):
            losses = step(images, labels)
            if done % CHUNK == 0 or done == steps:
                if not losses.mean(-1).isfinite().any():
                    raise FloatingPointError(f"the loss was {losses.mean().item()} at step {done}")
                if progress:
                    progress(done)
                if checkpoint and done < steps and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save_tensors(checkpoint, state_of(model, optimizer), facts | {"step": done})
                    saved = time.monotonic()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: str = "test") -> tuple:
    """Mean cross-entropy and accuracy (%) of `model` on the `split` "test" or "train".

    Two floats; for a model of several networks (see `train`) two tensors, one value per network.
    The loss of a network that has diverged is not finite, whatever its accuracy. The model computes
    in its own precision, without the caller's autocast. Modules keep their own modes: a frozen
    batch norm stays frozen. Raises ValueError for another split, and for data that is no `Data`.
    """
    _check_types(model, data)
    require(split in ("test", "train"), "split", '"test" or "train"', split)
    images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
    modes = [(module, module.training) for module in model.modules()]
    loss = correct = 0
    model.eval()
    try:
        with torch.autocast(images.device.type, enabled=False):  # the caller's
            for some, right in zip(images.split(500), labels.split(500), strict=True):
                logits, losses = _computed(model, data.normalise(some).to(_dtype(model)), right)
                loss = loss + losses.sum(-1)
                correct = correct + (logits.argmax(-1) == right).sum(-1)
    finally:
        for module, mode in modes:
            module.training = mode
    loss, accuracy = loss / len(labels), 100 * correct.double() / len(labels)
    return (loss.item(), accuracy.item()) if loss.ndim == 0 else (loss, accuracy)


def _check_types(model: nn.Module, data: Data) -> None:
    require(isinstance(model, nn.Module), "model", "a torch.nn.Module", type(model).__name__)
    allowed = "what load_data(name), Data.from_tensors(…) or Data.from_datasets(train, test) give"
    require(isinstance(data, Data), "data", allowed, type(data).__name__)
    for name, p in model.named_parameters():
        right = not (nn.parameter.is_lazy(p) or p.is_meta) and is_plain(p)
        allowed = "a plain, initialised tensor of real numbers with memory of its own"
        require(right, name, allowed, f"{p.dtype}, {p.layout}, {p.device}")


@contextlib.contextmanager
def _prepared(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Weights of 16 bits in float32, and what training needs of the process; then all put back."""
    short = {t: t.dtype for t in [*model.parameters(), *model.buffers()] if t.dtype in SHORT}
    flushing = torch.tensor(1e-40).item() == 0
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, enabled=False),  # the caller's, which would reach backward too
        sound_backward(model),
    ):
        # Adam's moments of weights that get no gradient decay into denormal numbers, which are slow
        torch.set_flush_denormal(True)
        for tensor in short:
            tensor.data = tensor.data.float()
        try:
            yield
        finally:
            torch.set_flush_denormal(flushing)
            torch.clear_autocast_cache()  # of the caller's casts, of weights that have changed
            for tensor, dtype in short.items():
                tensor.data = tensor.data.to(dtype)


def _dtype(model: nn.Module) -> torch.dtype:
    """What a model takes its images in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _batches(data, batch_size, start, seed, stage, dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of each step from `start`, without end; seeds dropout, too."""
    labels = data.train_labels
    for chunk in itertools.count(start // CHUNK):
        rng = stream(seed, stage, chunk)
        torch.manual_seed(int(rng.integers(2**63)))  # dropout
        drawn = (rng.choice(len(labels), batch_size, False, shuffle=False) for _ in range(CHUNK))
        # augmentation draws between them; without it, all at once is faster
        for batch in drawn if data.augmentation else list(drawn):
            # non_blocking here and in Data: else a GPU's step would have to end before the copy
            chosen = torch.from_numpy(batch).to(labels.device, non_blocking=True)
            images = augment(data.train_images.index_select(0, chosen), data.augmentation, rng)
            yield data.normalise(images).to(dtype), labels.index_select(0, chosen)


def _computed(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and each image's cross-entropy, never in 16 bits: (batch,) or (networks, batch)."""
    try:
        logits = model(images)
        wide = logits.float() if logits.dtype in SHORT else logits
        labels = labels.expand(wide.shape[:-1])
        # the classes' axis second, as cross_entropy wants it
        return logits, F.cross_entropy(wide.movedim(-1, 1), labels, reduction="none")
    except (RuntimeError, IndexError) as error:
        about = f"images of {(*images.shape[1:],)} and labels up to {labels.max()}"
        raise ValueError(f"model cannot compute the loss of data, {about}: {error}") from error
