"""How a row was made: the commit, PyTorch and the processor."""

import contextlib
import importlib.metadata
import pathlib
import platform
import re
import subprocess
from functools import cache

import torch

from lapnb.store import checkout


@cache
def provenance(device: str) -> dict[str, str]:
    """Return what a row says of the code and the machine that made it, by column."""
    return {"commit": commit(), "torch": torch.__version__, "processor": processor(device)}


def commit() -> str:
    """Return the commit of this code, or its release where there is no git checkout.

    A commit whose package differs from what is in the working tree ends in " + changes".
    """
    folder = checkout()
    release = f"lapnb {importlib.metadata.version('lapnb')}"
    if folder is None or not (folder / ".git").exists():
        return release
    command = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
    changes = ["git", "-C", str(folder), "status", "--porcelain", "lapnb"]
    try:
        revision = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
        changed = subprocess.check_output(changes, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):  # there is no git, or it refuses
        return release
    return f"{revision} + changes" if changed else revision


def processor(device: str) -> str:
    """Return the model of the GPU, or of the processor with the instructions that PyTorch uses."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    name = platform.machine()
    with contextlib.suppress(OSError):
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
        name = re.search(r"^model name\s*: (.*)|\Z", cpuinfo, re.MULTILINE)[1] or name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
