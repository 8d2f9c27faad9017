"""Training, retraining with a fixed mask, and evaluation (the paper's protocol, Section 5)."""

import os
import pathlib
import time
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lapnb.chain import prunable_layers
from lapnb.data import Data, augment
from lapnb.masks import apply_masks
from lapnb.store import CorruptFile, load_tensors, save_tensors

CHUNK = 25  # steps between two fresh random streams; checkpoints fall on its multiples
CHECKPOINT_SECONDS = 60.0


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

    Raises ValueError for a batch larger than the training set, and FloatingPointError when the
    loss is no longer finite.
    """
    if steps < 0 or not 0 < batch_size <= len(data.train_labels):
        raise ValueError(
            f"steps must be at least 0 and batch_size between 1 and {len(data.train_labels)}, "
            f"the size of the training set; got steps={steps}, batch_size={batch_size}"
        )
    # Adam's moments of weights that get no gradient decay into denormal numbers, which are slow
    torch.set_flush_denormal(True)
    weights, kept = [], []
    if masks is not None:
        apply_masks(model, masks)
        weights = [layer.weight for layer in prunable_layers(model)]
        kept = [mask.to(weight) for mask, weight in zip(masks, weights, strict=True)]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    start = _resume(checkpoint, model, optimizer) if checkpoint else 0
    labels, device = data.train_labels, data.train_images.device
    share = torch.tensor(1 / batch_size, device=device)  # of an image in the mean over its batch
    model.train()
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in range(start, steps):
            if step % CHUNK == 0:
                rng = stream(seed, stage, step // CHUNK)
                torch.manual_seed(int(rng.integers(2**63)))  # dropout
            batch = torch.from_numpy(rng.choice(len(labels), batch_size, False, shuffle=False))
            batch = batch.to(device)
            images = data.train_images.index_select(0, batch)
            images = augment(images, data.augmentation, rng)
            logits = model(data.normalise(images))
            target = labels.index_select(0, batch).expand(logits.shape[:-1])
            # the classes' axis second, as cross_entropy wants it
            loss = F.cross_entropy(logits.movedim(-1, 1), target, reduction="sum")
            model.zero_grad()
            loss.backward(share)
            for weight, mask in zip(weights, kept, strict=True):
                weight.grad.mul_(mask)
            optimizer.step()
            done = step + 1
            if done % CHUNK == 0 or done == steps:
                if not loss.isfinite():
                    raise FloatingPointError(f"the loss was {(loss * share).item()} at step {done}")
                if progress:
                    progress(done)
                if checkpoint and done < steps and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    _save(checkpoint, model, optimizer, done)
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


def _save(path: pathlib.Path, model: nn.Module, optimizer: torch.optim.Adam, step: int) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    save_tensors(path, tensors, {"step": str(step)})


def _resume(path: pathlib.Path, model: nn.Module, optimizer: torch.optim.Adam) -> int:
    """Restore what `_save` wrote; 0 (from the beginning) when there is nothing sound to restore."""
    try:
        tensors, metadata = load_tensors(path)
    except FileNotFoundError:
        return 0
    except CorruptFile as error:
        print(f"{error}; this run starts again from its first step")
        os.unlink(path)
        return 0
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    parameters = list(model.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, number, name = key.split(".")
            if value.ndim:  # fused Adam wants its moments in the parameter's memory layout
                value = torch.empty_like(parameters[int(number)]).copy_(value)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(metadata["step"])
