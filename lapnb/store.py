"""Files: written whole or not at all, checked when read, never executed."""

import contextlib
import hashlib
import json
import os
import pathlib
import uuid
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # named tensors and plain facts


def root() -> pathlib.Path:
    """Return the folder of the results: figures/, build/ and runs/ are below it.

    It is the environment variable LAPNB_ROOT when that is set, else the checkout that this package
    was installed from, else the working directory.
    """
    folder = os.environ.get("LAPNB_ROOT")
    if folder:
        return absolute(folder)
    return checkout() or pathlib.Path.cwd()


@cache
def absolute(folder: str) -> pathlib.Path:
    """Return a folder's full path, which stays the same when the working directory changes."""
    return pathlib.Path(folder).expanduser().resolve()


def checkout() -> pathlib.Path | None:
    """Return the folder of the checkout that this package was installed from, or None."""
    folder = pathlib.Path(__file__).resolve().parents[1]
    return folder if (folder / "notebooks").is_dir() else None


def fingerprint(settings: Any) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


class CorruptFile(RuntimeError):
    """A file whose content is not what was written."""


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Raises:
        OSError: There is no room or no permission. It names `path`, whose old content stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        message = f"could not write {path} ({error.strerror}); what it held is unchanged"
        raise OSError(error.errno, message) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(lock: pathlib.Path, path: pathlib.Path) -> Iterator[None]:
    """Hold a lock for writing `path`, and remove what a killed writer has left beside it.

    Raises:
        PermissionError: Nothing can be locked there.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        # without flock a soft lock would wait for ever for the lock file that a killed run left
        lock_file = FileLock(lock, fallback_to_soft=False).acquire()
    except (OSError, NotImplementedError) as error:
        raise PermissionError(
            f"{lock} cannot be locked ({error}): make it writable, "
            "or set LAPNB_ROOT and LAPNB_DATA to folders on a file system that has locks"
        ) from error
    with lock_file:
        remove_leftovers(path)
        yield


def remove_leftovers(path: pathlib.Path) -> None:
    """Remove the temporary files of `path`, which a killed `write_whole` leaves behind."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        leftover.unlink(missing_ok=True)


def save_tensors(path: pathlib.Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Save named tensors and plain `facts` as safetensors, with a checksum of all of it."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    metadata = {"facts": text, "crc32": content(tensors, text)}
    write_whole(path, safetensors.torch.save(tensors, metadata))


def load_tensors(path: pathlib.Path) -> Saved:
    """Read the tensors and the facts that `save_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptFile: The file is damaged, or `save_tensors` did not write it.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CorruptFile(f"{path} is damaged ({error})") from error
    text = metadata.get("facts", "")
    if metadata.get("crc32") != content(tensors, text):
        raise CorruptFile(f"{path} is damaged (its checksum does not match)")
    return tensors, json.loads(text)


def cached(path: pathlib.Path, compute: Callable[[], Saved]) -> Saved:
    """Return the tensors and facts in `path`; compute and save them where it is absent or damaged.

    One of several processes computes, and the others wait for it.
    """
    with locked(path.with_suffix(".lock"), path):
        try:
            return load_tensors(path)
        except FileNotFoundError:
            pass
        except CorruptFile as error:
            print(f"{error}; it is computed again")
        tensors, facts = compute()
        save_tensors(path, tensors, facts)
        return tensors, facts


def content(tensors: dict[str, Tensor], text: str = "") -> str:
    """Return a short checksum of named tensors and a text."""
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name}{tuple(tensor.shape)}".encode(), crc)
        flat = tensor.detach().cpu().contiguous().view(-1)
        crc = zlib.crc32(flat.view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"
