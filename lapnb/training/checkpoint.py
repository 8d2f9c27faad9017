"""Your own weights in one of the networks; nothing in the file is executed."""

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from lapnb.training.data import Data
from lapnb.training.networks import build_model


def load_checkpoint(path: Path, network: str, data: Data) -> nn.Module:
    """A state_dict in one of our networks, at whatever width it has; nothing in it is executed.

    `path` is a safetensors file, or what `torch.save(model.state_dict(), path)` writes. Raises
    FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle's version
            safe = path.suffix == ".safetensors"
            tensors = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except Exception as error:  # whatever an unpickler stumbles over
        raise ValueError(
            f"{path} is neither safetensors nor a state_dict as written by "
            "torch.save(model.state_dict(), path)"
        ) from error
    channels, _, side = data.test_images.shape[1:]
    shape = dict(num_classes=data.classes, image_size=side, channels=channels)
    model = build_model(network, **shape)
    widest, weight = max(model.named_parameters(), key=lambda named: len(named[1]))
    if found.get(widest):  # it tells the width best, as numbers of units are rounded
        model = build_model(network, width=found[widest][0] / len(weight), **shape)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            ours, theirs = wanted.get(name, "absent"), found.get(name, "absent")
            raise ValueError(f"{path} does not fit {network}: {name} is {theirs}, not {ours}")
    model.load_state_dict(tensors)
    return model.eval()
