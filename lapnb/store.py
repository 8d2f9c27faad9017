"""Tensors and text on disk: written whole or not at all, checked when read, never executed."""

import os
import pathlib
import tempfile
import zlib

import safetensors
import safetensors.torch
from torch import Tensor


def root() -> pathlib.Path:
    """The folder that holds notebooks/, figures/, build/ and runs/.

    The environment variable LAPNB_ROOT when set, else the checkout that this package was
    installed from, else the working directory.
    """
    if "LAPNB_ROOT" in os.environ:
        return pathlib.Path(os.environ["LAPNB_ROOT"]).resolve()
    checkout = pathlib.Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else pathlib.Path.cwd()


class CorruptFile(RuntimeError):
    """A file whose content is not what was written."""


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises OSError naming `path` when there is no room or no permission; the old file stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(
            error.errno, f"could not write {path} ({error.strerror}); what it held is unchanged"
        ) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def save_tensors(path: pathlib.Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Save named tensors as safetensors, with a checksum of their bytes in the metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**metadata, "crc32": _checksum(tensors)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_tensors(path: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote: the tensors and the metadata.

    Raises FileNotFoundError, or CorruptFile naming `path` when it is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CorruptFile(f"{path} is damaged ({error})") from error
    if metadata.get("crc32") != _checksum(tensors):
        raise CorruptFile(f"{path} is damaged (its checksum does not match)")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name}{tuple(tensors[name].shape)}".encode(), crc)
        crc = zlib.crc32(tensors[name].contiguous().view(-1).numpy().tobytes(), crc)
    return f"{crc:08x}"
