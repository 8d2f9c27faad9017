"""How a row was made: the commit, PyTorch, the processor and the device."""

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
    """Return what a row says about the code and the machine that made it, by column.

    The processor is the GPU, or the model of the CPU with the instructions that PyTorch uses.
    """
    if device == "cpu":
        name = platform.machine()
        with contextlib.suppress(OSError):
            cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
            name = re.search(r"^model name\s*: (.*)|\Z", cpuinfo, re.MULTILINE)[1] or name
        processor = f"{name}, {torch.backends.cpu.get_cpu_capability()}"
    else:
        processor = torch.cuda.get_device_name(device)
    return {"commit": commit(), "torch": torch.__version__, "processor": processor}


def commit() -> str:
    """Return the commit of this code, or its release where there is no git checkout.

    It ends in " + changes" where the package in the working tree differs from that commit.
    """
    folder = checkout()
    release = f"lapnb {importlib.metadata.version('lapnb')}"
    if folder is None or not (folder / ".git").exists():
        return release

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.check_output(command, cwd=folder, text=True, stderr=subprocess.DEVNULL)

    try:
        revision = git("rev-parse", "--short=12", "HEAD").strip()
        changed = git("status", "--porcelain", "lapnb")
    except (OSError, subprocess.CalledProcessError):  # there is no git, or it refuses
        return release
    return f"{revision} + changes" if changed else revision


def device_name(device: str, precision: str) -> str:
    """Return what a row says about its device: the GPU, whether it uses TF32, and the precision."""
    if device != "cpu":
        tf32 = ", TF32 convolutions" if torch.backends.cudnn.allow_tf32 else ""
        device = f"cuda ({torch.cuda.get_device_name()}{tf32})"
    return device if precision == "float32" else f"{device}, {precision}"
