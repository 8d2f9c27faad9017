"""Your own weights in one of the networks; nothing in the file is executed."""

import re
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lapnb.checks import owns_memory
from lapnb.training.data import Data
from lapnb.training.networks import build_model

PREFIXES = r"^((module|_orig_mod)\.)+"  # of torch.nn.DataParallel and torch.compile
UNUSUAL = ", sparse, quantised, an expanded view or without memory of its own"


def load_checkpoint(path: Path, network: str, data: Data) -> nn.Module:
    """A state_dict in one of our networks, at whatever width it has; nothing in it is executed.

    `path` is a safetensors file, or what `torch.save(model.state_dict(), path)` writes; the
    state_dict may lie under the key "state_dict", and its names may begin with "module." or
    "_orig_mod.". Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle's version
            safe = path.suffix.lower() == ".safetensors"
            tensors = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
        tensors = tensors.get("state_dict", tensors)
        names = [re.sub(PREFIXES, "", name) for name in tensors]
        tensors = dict(zip(names, tensors.values(), strict=True))
        found = {
            name: _form(t) + ("" if t.is_cpu and owns_memory(t) else UNUSUAL)
            for name, t in tensors.items()
        }
    except Exception as error:  # whatever an unpickler stumbles over
        raise ValueError(
            f"{path} is neither safetensors nor a state_dict as written by "
            "torch.save(model.state_dict(), path)"
        ) from error
    if len(names) > len(tensors):
        raise ValueError(f"{path} names a tensor twice, with and without a prefix")
    channels, _, side = data.test_images.shape[1:]
    shape = dict(num_classes=data.classes, image_size=side, channels=channels)
    with torch.device("meta"):  # no memory before all is known to fit
        model = build_model(network, **shape)
        # the widest layer tells the width best, as numbers of units are rounded
        widest, weight = max(model.named_parameters(), key=lambda named: len(named[1]))
        if UNUSUAL not in found.get(widest, UNUSUAL) and (units := sum(tensors[widest].shape[:1])):
            model = build_model(network, width=units / len(weight), **shape)
    wanted = {name: _form(tensor) for name, tensor in model.state_dict().items()}
    for name in wanted | found:
        ours, theirs = wanted.get(name, "absent"), found.get(name, "absent")
        if ours != theirs:
            raise ValueError(f"{path} does not fit {network}: {name} is {theirs}, not {ours}")
    model.to_empty(device="cpu").load_state_dict(tensors)
    return model.eval()


def _form(tensor: Tensor) -> str:
    """Shape and, unless it is a floating-point one, type."""
    kind = "" if tensor.is_floating_point() else f" of {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"
