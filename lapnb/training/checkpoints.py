"""Checkpoints of training: a stopped run goes on from the state that it saved last."""

import pathlib
import time

import torch
from torch import Tensor, nn

from lapnb.store import content, fingerprint, load_tensors, save_tensors
from lapnb.training.data import CHUNK, Data

CHECKPOINT_SECONDS = 60.0


class Checkpoint:
    """Saves the state of a training once a minute, and gives it back.

    Attributes:
        path: The file.
        begun: When this training began. For a resumed one it is earlier, by the time that its
            earlier parts took.
        facts: What the file must agree with: the caller's choices, and the weights it began from.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.begun = self.saved = time.monotonic()

    def resume(
        self,
        model: nn.Module,
        optimizer: torch.optim.Adam,
        masks: list[Tensor],
        data: Data,
        settings: str,
        steps: int,
    ) -> int:
        """Fill the model and the optimizer from the file.

        Args:
            model, optimizer, masks: What is trained, as it begins.
            data, settings: How it is trained.
            steps: The last step of this training.

        Returns:
            The step after which the file was saved; 0 where it is absent, or began from other
            weights or masks.

        Raises:
            ValueError: the file is of another network, other settings or other data.
            CorruptFile: the file is damaged, or no checkpoint.
        """
        self.model, self.optimizer = model, optimizer
        for p in model.parameters():
            optimizer.state[p] = {  # as Adam's first step makes it
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        images = content({"images": data.train_images, "labels": data.train_labels})
        inputs = fingerprint([repr(model), images, data.mean, data.std, data.augmentation])
        start = content(self._state() | {f"mask {n}": mask for n, mask in enumerate(masks)})
        self.facts = {"training": f"{settings}, network and data {inputs}", "start": start}
        if not self.path.exists():
            return 0
        tensors, stored = load_tensors(self.path)
        if stored.get("training") != self.facts["training"] or stored["step"] > steps:
            raise ValueError(
                f"checkpoint {self.path} is of another network, training or data ({stored}; this "
                f"one: {self.facts}, {steps} steps); name another file, or delete it"
            )
        if stored["start"] != start:
            print(f"{self.path} began from other weights or masks; this run starts anew")
            return 0
        for name, value in self._state().items():
            value.copy_(tensors[name])
        self.begun -= stored["seconds"]
        return stored["step"]

    def save(self, step: int) -> None:
        """Save the state after `step` where a random stream ends, at most once a minute."""
        now = time.monotonic()
        if step % CHUNK or now - self.saved <= CHECKPOINT_SECONDS:
            return
        progress = {"step": step, "seconds": now - self.begun}
        save_tensors(self.path, self._state(), self.facts | progress)
        self.saved = now

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors that change in training, by name; they are not copied."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, values in enumerate(self.optimizer.state.values()):
            state |= {f"adam.{number}.{name}": value for name, value in values.items()}
        return state
