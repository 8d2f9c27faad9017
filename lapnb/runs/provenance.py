"""How a row was made: the commit, PyTorch and the processor."""

import importlib.metadata
import pathlib
import platform
import subprocess
from functools import cache

import torch

from lapnb.store import checkout


@cache
def provenance(device: str) -> dict[str, str]:
    """What a row says of the code and the machine that made it, in the columns of that name."""
    return {"commit": commit(), "torch": torch.__version__, "processor": processor(device)}


def commit() -> str:
    """The commit of this code, "… + changes" where it differs; the release outside a checkout."""
    folder = checkout()
    try:
        revision = _git("rev-parse", "--short=12", "HEAD", folder=folder)
        changes = _git("status", "--porcelain", "lapnb", folder=folder)
    except (OSError, subprocess.CalledProcessError):  # no checkout, no git
        return f"lapnb {importlib.metadata.version('lapnb')}"
    return f"{revision} + changes" if changes else revision


def _git(*arguments: str, folder: pathlib.Path | None) -> str:
    if folder is None or not (folder / ".git").exists():
        raise FileNotFoundError("no checkout")
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor(device: str) -> str:
    """The model of the GPU, or of the processor with the instructions that PyTorch uses."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name}, {torch.backends.cpu.get_cpu_capability()}"
