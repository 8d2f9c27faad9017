"""What changes in training, in a file and back, so that a stopped run goes on where it was."""

import pathlib
import re

import torch
from torch import Tensor, nn

from lapnb.store import CorruptFile, content, fingerprint, load_tensors
from lapnb.training.data import Data


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam with its moments there from the start, so that a checkpoint can fill them in place."""
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True, capturable=parameters[0].is_cuda)
    for p in parameters:
        moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {"step": torch.zeros((), device=p.device), **moments}
    return optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All that changes in training, by name, without a copy."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, values in enumerate(optimizer.state.values()):
        state |= {f"adam.{number}.{name}": value for name, value in values.items()}
    return state


def facts_of(model: nn.Module, data: Data, masks: list[Tensor], settings: str) -> dict[str, str]:
    """What a checkpoint must agree with: the caller's choices, and the weights it began from."""
    network = re.sub(r" at 0x\w+", "", repr(model))  # addresses differ between processes
    images = content({"images": data.train_images, "labels": data.train_labels})
    read = fingerprint(f"{images} {data.mean} {data.std} {data.augmentation}")
    start = model.state_dict() | {f"mask {n}": mask for n, mask in enumerate(masks)}
    training = f"{settings}, network {fingerprint(network)}, data {read}"
    return {"training": training, "start": content(start)}


def resume(path: pathlib.Path, state: dict[str, Tensor], facts: dict, steps: int) -> int:
    """Fill `state` from a checkpoint and return its step; 0, the beginning, without one of use."""
    try:
        tensors, found = load_tensors(path)
    except FileNotFoundError:
        return 0
    except CorruptFile as error:
        print(f"{error}; this run starts again from its first step")
        return 0
    if found.get("training") != facts["training"] or found["step"] > steps:
        raise ValueError(
            f"checkpoint {path} is of another network, training or data ({found.get('training')}, "
            f"step {found.get('step')}; this one: {facts['training']}, {steps} steps); name "
            "another file, or delete it"
        )
    if found["start"] != facts["start"]:
        print(f"{path} began from other weights or masks; this run starts from its first step")
        return 0
    for name, value in state.items():
        value.copy_(tensors[name])
    return found["step"]
