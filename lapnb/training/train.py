"""Training, retraining with a fixed mask, and evaluation (the paper's protocol, Section 5)."""

import math
import pathlib
import time
import zlib
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adam import adam

from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import apply_masks
from lapnb.store import CorruptFile, load_tensors, save_tensors
from lapnb.training.data import Data, augment

PRECISIONS = ("float32", "bfloat16")
CHUNK = 25  # steps between two fresh random streams; checkpoints fall on its multiples
CHECKPOINT_SECONDS = 60.0
# PyTorch's defaults
ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, amsgrad=False, maximize=False)


def stream(seed: int, stage: str, chunk: int = 0) -> np.random.Generator:
    """Random numbers that depend on (seed, stage, chunk) only, never on earlier draws."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), chunk])


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
    """Train `model` in place with Adam at a constant learning rate, and return it.

    Each step draws `batch_size` training images without replacement from a stream that depends
    on (`seed`, `stage`) and the step only. With `masks` (boolean, in the order and shapes of
    `prunable_layers`) the weights outside them are zeroed first and stay exactly zero: their
    gradient is zero from the first step, so Adam's moments and updates are zero too.

    A model may return logits of shape (batch, classes), or (networks, batch, classes) for several
    independent networks trained at once; their losses are added, so each trains as if alone.

    `checkpoint` is a file: a run longer than a minute saves itself there and, when called again,
    goes on at the step where it was. `progress` is called with the number of finished steps.

    `precision` "bfloat16" computes the network and the loss under autocast; weights, Adam and
    `evaluate` stay float32.

    Raises ValueError for a number or precision that makes no sense, a batch larger than the
    training set or a checkpoint of another network or training, and FloatingPointError when the
    loss is no longer finite.
    """
    largest = len(data.train_labels)
    for name, number, least in (
        ("steps", steps, 0),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(number, Integral) or number < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {number!r}")
    if batch_size > largest:
        raise ValueError(
            f"batch_size must be at most {largest}, the size of the training set; got {batch_size}"
        )
    if not (isinstance(lr, Real) and 0 < lr < math.inf):
        raise ValueError(f"lr must be a number above 0; got {lr!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if checkpoint is not None:
        checkpoint = pathlib.Path(checkpoint)
        if checkpoint.is_dir():
            raise ValueError(f"checkpoint must name a file; {checkpoint} is a folder")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    # Adam's moments of weights that get no gradient decay into denormal numbers, which are slow
    torch.set_flush_denormal(True)
    weights, kept = [], []
    if masks is not None:
        apply_masks(model, masks)
        weights = [layer.weight for layer in prunable_layers(model)]
        kept = [mask.to(weight) for mask, weight in zip(masks, weights, strict=True)]
    parameters = list(model.parameters())
    moments = [
        (torch.zeros_like(p), torch.zeros_like(p), torch.zeros((), device=p.device))
        for p in parameters
    ]
    identity = zlib.crc32(
        b"".join([repr(model).encode(), *(bytes(m.cpu().numpy()) for m in masks or ())])
    )
    training = f"seed {seed}, stage {stage}, lr {lr}, batch size {batch_size}, {identity:08x}"
    if precision != "float32":
        training += f", {precision}"
    start = _resume(checkpoint, _state(model, moments), training, steps) if checkpoint else 0
    labels, device = data.train_labels, data.train_images.device
    share = torch.tensor(1 / batch_size, device=device)  # of an image in the mean over its batch
    model.train()
    saved = time.monotonic()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, enabled=False),  # the caller's, which would reach backward too
    ):
        for step in range(start, steps):
            if step % CHUNK == 0:
                rng = stream(seed, stage, step // CHUNK)
                torch.manual_seed(int(rng.integers(2**63)))  # dropout
                batches = (
                    rng.choice(len(labels), batch_size, False, shuffle=False) for _ in range(CHUNK)
                )
                if not data.augmentation:  # which draws between them; else all at once is faster
                    batches = iter(list(batches))
            batch = torch.from_numpy(next(batches)).to(device)
            images = data.train_images.index_select(0, batch)
            images = augment(images, data.augmentation, rng)
            # no cache of cast weights: they change in place
            with torch.autocast(
                device.type, torch.bfloat16, precision != "float32", cache_enabled=False
            ):
                logits = model(data.normalise(images))
                target = labels.index_select(0, batch).expand(logits.shape[:-1])
                # the classes' axis second, as cross_entropy wants it
                loss = F.cross_entropy(logits.movedim(-1, 1), target, reduction="sum")
            for parameter in parameters:
                parameter.grad = None
            loss.backward(share)
            for weight, mask in zip(weights, kept, strict=True):
                if weight.grad is not None:  # a layer may be frozen
                    weight.grad.mul_(mask)
            _step(parameters, moments, lr)
            done = step + 1
            if done % CHUNK == 0 or done == steps:
                if not loss.isfinite():
                    raise FloatingPointError(f"the loss was {(loss * share).item()} at step {done}")
                if progress:
                    progress(done)
                if checkpoint and done < steps and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    about = {"training": training, "step": str(done)}
                    save_tensors(checkpoint, _state(model, moments), about)
                    saved = time.monotonic()
    if masks is not None and any((w * ~m).any() for w, m in zip(weights, masks, strict=True)):
        raise AssertionError("a pruned weight came back during retraining")
    model.eval()
    return model


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, split: str = "test") -> tuple:
    """Mean cross-entropy and accuracy (%) of `model` on the `split` "test" or "train".

    Two floats; for a model of several networks (see `train`) two tensors, one value per network.
    """
    if split not in ("test", "train"):
        raise ValueError(f'split must be "test" or "train", got {split!r}')
    images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for batch in torch.arange(len(labels), device=labels.device).split(500):
        logits = model(data.normalise(images[batch]))
        target = labels[batch].expand(logits.shape[:-1])
        losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        loss = loss + losses.view(target.shape).sum(-1)
        correct = correct + (logits.argmax(-1) == target).sum(-1)
    model.train(was_training)
    loss, accuracy = loss / len(labels), 100 * correct.double() / len(labels)
    return (loss.item(), accuracy.item()) if loss.ndim == 0 else (loss, accuracy)


@torch.no_grad()
def _step(
    parameters: list[Tensor], moments: list[tuple[Tensor, Tensor, Tensor]], lr: float
) -> None:
    """One step of `torch.optim.Adam(lr=lr, fused=True)`, by the function that it calls.

    What the optimizer object does around it in every step costs a small network several per cent.
    moments: per parameter the first, the second, and the number of steps so far.
    """
    updates = [
        (p, p.grad, *m) for p, m in zip(parameters, moments, strict=True) if p.grad is not None
    ]
    weights, gradients, means, squares, counts = map(list, zip(*updates, strict=True))
    adam(weights, gradients, means, squares, [], counts, lr=lr, fused=True, **ADAM)


def _state(model: nn.Module, moments: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """All that changes in training, by name, without a copy."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in enumerate(moments):
        for name, value in zip(("exp_avg", "exp_avg_sq", "step"), values, strict=True):
            state[f"adam.{number}.{name}"] = value
    return state


def _resume(path: pathlib.Path, state: dict[str, Tensor], training: str, steps: int) -> int:
    """Fill `state` from a checkpoint and return its step; 0, the beginning, without a sound one."""
    try:
        tensors, metadata = load_tensors(path)
    except FileNotFoundError:
        return 0
    except CorruptFile as error:
        print(f"{error}; this run starts again from its first step")
        return 0
    found, step = metadata.get("training"), int(metadata.get("step", 0))
    same = {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in state.items()}
    if not same or found != training or step > steps:
        raise ValueError(
            f"checkpoint {path} is of another network or training ({found}, step {step}; this one: "
            f"{training}, {steps} steps); name another file, or delete it"
        )
    for name, value in state.items():
        value.copy_(tensors[name])
    return step
