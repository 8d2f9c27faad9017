"""What changes in training, in a file and back, so that a stopped run goes on where it was."""

import pathlib
import time

import torch
from torch import Tensor, nn

from lapnb.store import content, fingerprint, load_tensors, save_tensors
from lapnb.training.data import Data

CHECKPOINT_SECONDS = 60.0


class Checkpoint:
    """Saves the state of a training once a minute, and gives it back.

    Attributes:
        path: The file.
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
            CorruptFile: the file is damaged, or no checkpoint.
        """
        self.model, self.optimizer, self.facts, self.steps = model, optimizer, facts, steps
        self.begun = self.saved = time.monotonic()
        if not self.path.exists():
            return 0
        tensors, saved = load_tensors(self.path)
        if saved.get("training") != facts["training"] or saved["step"] > steps:
            raise ValueError(
                f"checkpoint {self.path} is of another network, training or data ({saved}; this "
                f"one: {facts}, {steps} steps); name another file, or delete it"
            )
        if saved["start"] != facts["start"]:
            print(f"{self.path} began from other weights or masks; this run starts anew")
            return 0
        for name, value in _state_of(model, optimizer).items():
            value.copy_(tensors[name])
        self.earlier_seconds = saved.get("seconds", 0.0)
        return saved["step"]

    def save(self, step: int) -> None:
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
    images = content({"images": data.train_images, "labels": data.train_labels})
    pixels = fingerprint(f"{images} {data.mean} {data.std} {data.augmentation}")
    start = model.state_dict() | {f"mask {n}": mask for n, mask in enumerate(masks)}
    training = f"{settings}, network {fingerprint(repr(model))}, data {pixels}"
    return {"training": training, "start": content(start)}


def _state_of(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All that changes in training, by name, without a copy."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in enumerate(optimizer.state.values()):
        state |= {f"adam.{number}.{name}": value for name, value in values.items()}
    return state
