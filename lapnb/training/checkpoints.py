"""What changes in training, in a file and back, so that a stopped run goes on where it was."""

import json
import pathlib
import re
import time

import torch
from torch import Tensor, nn

from lapnb.checks import require
from lapnb.store import CorruptFile, content, fingerprint, load_tensors, save_tensors
from lapnb.training.data import Data

CHECKPOINT_SECONDS = 60.0


class Checkpoint:
    """A callback of `train` that saves its state once a minute, and gives it back.

    Attributes:
        path: The file, which is overwritten whatever it is: see `checkpoint_of_user`.
        earlier_seconds: What those parts of a resumed run took that came before this one.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.earlier_seconds = 0.0

    def resume(self, model: nn.Module, optimizer: torch.optim.Adam, facts: dict, steps: int) -> int:
        """Fill model and optimizer from the file; return its step, or 0 where it is of no use.

        Args:
            model, optimizer: What is trained, as it begins.
            facts: What the file must agree with, from `facts_of`.
            steps: The last step of this training.

        Raises:
            ValueError: the file is of another network, other settings or other data.
        """
        self.model, self.optimizer, self.facts, self.steps = model, optimizer, facts, steps
        self.begun = self.saved = time.monotonic()
        try:
            tensors, saved = load_tensors(self.path)
        except FileNotFoundError:
            return 0
        except CorruptFile as error:
            print(f"{error}; this run starts again from its first step")
            return 0
        if saved["training"] != facts["training"] or saved["step"] > steps:
            raise ValueError(
                f"checkpoint {self.path} is of another network, training or data "
                f"({saved['training']}, step {saved['step']}; this one: {facts['training']}, "
                f"{steps} steps); name another file, or delete it"
            )
        if saved["start"] != facts["start"]:
            origin = f"{self.path} began from other weights or masks"
            print(f"{origin}; this run starts again from its first step")
            return 0
        for name, value in _state_of(model, optimizer).items():
            value.copy_(tensors[name])
        self.earlier_seconds = saved.get("seconds", 0.0)
        return saved["step"]

    def __call__(self, step: int, losses: Tensor) -> None:
        """Save the state after `step`, unless it was saved a moment ago or training is over."""
        now = time.monotonic()
        if step == self.steps or now - self.saved <= CHECKPOINT_SECONDS:
            return
        seconds = self.earlier_seconds + now - self.begun
        facts = self.facts | {"step": step, "seconds": seconds}
        save_tensors(self.path, _state_of(self.model, self.optimizer), facts)
        self.saved = now


def facts_of(model: nn.Module, data: Data, masks: list[Tensor], settings: str) -> dict[str, str]:
    """What a checkpoint must agree with: the caller's choices, and the weights it began from."""
    network = re.sub(r" at 0x\w+", "", repr(model))  # addresses differ between processes
    images = content({"images": data.train_images, "labels": data.train_labels})
    pixels = fingerprint(f"{images} {data.mean} {data.std} {data.augmentation}")
    start = model.state_dict() | {f"mask {n}": mask for n, mask in enumerate(masks)}
    training = f"{settings}, network {fingerprint(network)}, data {pixels}"
    return {"training": training, "start": content(start)}


def _state_of(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All that changes in training, by name, without a copy."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in enumerate(optimizer.state.values()):
        state |= {f"adam.{number}.{name}": value for name, value in values.items()}
    return state


def checkpoint_of_user(path: str | pathlib.Path) -> Checkpoint:
    """Return the checkpoint at a path, or refuse a file that `train` has not written."""
    require(isinstance(path, str | pathlib.Path), "checkpoint", "a path", path)
    path = pathlib.Path(path)
    allowed = "the name of a new file, or of a checkpoint that train wrote"
    free = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    require(free or _is_checkpoint(path), "checkpoint", allowed, str(path))
    return Checkpoint(path)


def _is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a file, even if it is damaged behind its safetensors header, is a checkpoint."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:  # it is no safetensors file, and may be a large one
            return False
        header = file.read(length)
    try:
        facts = json.loads(json.loads(header)["__metadata__"]["facts"])
        return facts.keys() >= {"training", "start", "step"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
