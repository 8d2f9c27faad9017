"""Data-set files as people have them, bad ones, downloads and caches."""

import gzip
import hashlib
import os
import pickle
import shutil
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST
from torchvision.transforms.v2.functional import rgb_to_grayscale

from lapnb.training import datasets
from lapnb.training.data import data_folder, load_data

REAL = os.environ.get("LAPNB_DATA")
WNIDS, TINY_SOURCE = ("n03", "n01", "n02"), "Tiny-ImageNet, 3 classes (6 + 3 images)"
PLACES = {
    ("mnist", "t10k-labels-idx1-ubyte.gz"): "MNIST/raw",
    ("fashion_mnist", "t10k-labels-idx1-ubyte.gz"): "FashionMNIST/raw",
    ("cifar10", "cifar-10-python.tar.gz"): "cifar-10-batches-py",
    ("tiny_imagenet", "tiny-imagenet-200.zip"): "tiny-imagenet-200",
}
SWAPPED = "val_0.JPEG\tn01\nval_1.JPEG\tn03\nval_2.JPEG\tn02\n"


@pytest.fixture(autouse=True)
def web(tmp_path, monkeypatch):
    """A folder, empty at first, that stands for the network."""
    place, opener = tmp_path / "web", urllib.request.urlopen
    place.mkdir()

    def urlopen(request, **_):
        response = opener(request)
        response.length = int(response.headers["Content-Length"])  # as over HTTP
        return response

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(MNIST, "mirrors", [f"{place.as_uri()}/"])
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"{place.as_uri()}/"])
    monkeypatch.setattr(CIFAR10, "url", f"{place.as_uri()}/{CIFAR10.filename}")
    monkeypatch.setattr(datasets, "TINY", (f"{place.as_uri()}/tiny-imagenet-200.zip", "md5"))
    return place


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty data folder, and another cache folder."""
    monkeypatch.setenv("LAPNB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def opened(monkeypatch):
    """The image files that were opened so far."""
    paths, opener = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **_: paths.append(path) or opener(path))
    return paths


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_idx(raw, ending="-idx", train=30, side=(28, 28)):
    rng = np.random.default_rng(1)
    for split, count in (("train", train), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (count, *side)), np.arange(count) % 10
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
            content, name = header + array.astype("u1").tobytes(), kind.replace("-idx", ending[:4])
            content = gzip.compress(content) if ending.endswith(".gz") else content
            write(raw / f"{split}-{name}{ending[4:]}", content)
    return raw


def make_image(path, colour=0, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def make_cifar(folder, suffix=".png"):
    """Two training images and one test image of each class; red is ten times the label."""
    for label, name in enumerate(datasets.CLASSES):
        for file in (f"train/{name}/0", f"train/{name}/1", f"test/{name}/0"):
            make_image(folder / "cifar10" / (file + suffix), (10 * label, 100, 200))
    return folder / "cifar10"


def make_batches(folder, monkeypatch):
    """CIFAR-10 in its official form, with the md5 sums that torchvision expects set to match."""
    sums, rng = {}, np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": list(range(10)), "label_names": datasets.CLASSES}
        path = write(folder / "cifar-10-batches-py" / name, pickle.dumps(batch))
        sums[name] = hashlib.md5(path.read_bytes()).hexdigest()
    meta = {**CIFAR10.meta, "md5": sums.pop("batches.meta")}
    train, test = list(sums.items())[:2], list(sums.items())[2:]
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(CIFAR10, name, value)
    return path.parent


def make_tiny(folder, val="val/images"):
    """Three classes with two training images, one of them grey, and one validation image each."""
    root, lines = folder / "tiny-imagenet-200", ""
    for i, wnid in enumerate(WNIDS):
        make_image(root / f"train/{wnid}/images/0.JPEG", (50, 100, 10 * i), (64, 64))
        make_image(root / f"train/{wnid}/images/1.JPEG", 70 + i, (64, 64), "L")
        make_image(root / val.format(wnid) / f"val_{i}.JPEG", (10 * i, 20, 30), (64, 64))
        lines += f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n"
    write(root / "val/val_annotations.txt", lines.encode())
    return root


MAKE = {
    "mnist": lambda folder: make_idx(folder / "MNIST/raw"),
    "cifar10": make_cifar,
    "tiny_imagenet": make_tiny,
}


FILES = [
    ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte"),
    ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
    ("cifar10", "cifar-10-batches-py/data_batch_2"),
    ("cifar10", "cifar10/test/frog/0.png"),
    ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt"),
    ("tiny_imagenet", "tiny-imagenet-200/val/images/val_1.JPEG"),
]
DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "page": lambda path: path.write_bytes(b"<html>not found</html>"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "dangling": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


def content(data):
    return b"".join(getattr(data, split).numpy().tobytes() for split in datasets.SPLITS)


def refused(name, *texts, error=(ValueError, OSError)):
    """One sentence, soon, that has all `texts`."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        load_data(name)
    assert time.monotonic() - start < 5 and "\n" not in str(caught.value)
    for text in texts:
        assert str(text) in str(caught.value)


# What is read


def test_mnist5k_is_always_the_same():
    data = load_data("mnist5k")
    assert data.source == "MNIST, 5,000 digits" and data.train_images.shape == (4000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [400] * 10
    assert torch.bincount(data.test_labels).tolist() == [100] * 10
    # recorded rows depend on it
    assert hashlib.sha256(content(data)).hexdigest()[:16] == "1efa5808cf0d478f"
    assert content(data) == content(load_data("mnist5k"))


@pytest.mark.parametrize("ending", ["-idx", "-idx.gz", ".idx", ".idx.gz"])
@pytest.mark.parametrize("title", ["MNIST", "Fashion-MNIST"])
def test_idx_files_are_called_official_only_if_they_are(folder, title, ending, monkeypatch):
    name, product = title.lower().replace("-", "_"), title.replace("-", "")
    raw = make_idx(folder / product / "raw", ending)
    data = load_data(name)
    assert data.source.startswith(f"{title} (not the official files: ")
    pixels = np.random.default_rng(1).integers(0, 256, (30, 28, 28))
    assert np.array_equal(data.train_images[:, 0], pixels)
    assert data.test_labels.tolist() == [i % 10 for i in range(20)] and data.classes == 10
    monkeypatch.setitem(datasets.OFFICIAL, product, hashlib.sha256(content(data)).hexdigest())
    write(raw / "new", b"so that they are read again")
    assert load_data(name).source == title


def test_cifar10_official_batches(folder, monkeypatch):
    pixels = pickle.loads((make_batches(folder, monkeypatch) / "test_batch").read_bytes())["data"]
    data = load_data("cifar10")
    assert data.source == "CIFAR-10" and data.train_labels.tolist() == [*range(10)] * 2
    assert np.array_equal(data.test_images.flatten(1), pixels)


@pytest.mark.parametrize("suffix, kind", [(".png", "PNG folder"), (".JPEG", "JPEG")])
def test_cifar10_image_folder(folder, suffix, kind):
    make_cifar(folder, suffix)
    data = load_data("cifar10")
    assert data.source == f"CIFAR-10 ({kind}, 20 + 10 images)"
    assert data.train_images.shape == (20, 3, 32, 32) and data.augmentation == "crop_flip"
    assert data.train_labels.tolist() == [i // 2 for i in range(20)]
    red = data.test_images[:, 0].float().mean((1, 2))
    assert (red - 10 * data.test_labels).abs().max() <= (0 if suffix == ".png" else 3)


def test_colour_becomes_grey(folder):
    make_cifar(folder)
    data, grey = load_data("cifar10"), load_data("cifar10", image_size=64, channels=1)
    assert grey.train_images.shape == (20, 1, 64, 64) and len(grey.mean) == len(grey.std) == 1
    wanted = rgb_to_grayscale(data.train_images)[:, :, :1, :1]  # one colour per image
    assert (grey.train_images.int() - wanted.int()).abs().max() <= 1  # torchvision rounds down


@pytest.mark.parametrize("val", ["val/images", "val/{}", "val/{}/images"])
def test_tiny_imagenet_in_each_layout(folder, val):
    root = make_tiny(folder, val)
    write(root / "train/n01/images/._0.JPEG", b"left by macOS")
    write(root / "val/images/._val_0.JPEG", b"left by macOS")
    data = load_data("tiny_imagenet")
    assert data.source == TINY_SOURCE and data.classes == 3
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test_labels.tolist() == [2, 0, 1]  # n03 n01 n02, by sorted wnids
    assert data.train_images[1].unique().tolist() == [71]  # the grey file of n01
    assert (data.test_images[:, 0].float().mean((1, 2)) / 10).round().tolist() == [0, 1, 2]


@pytest.mark.skipif(not REAL, reason="needs LAPNB_DATA")
def test_real_data(monkeypatch):
    monkeypatch.setenv("LAPNB_DATA", REAL)
    mnist, cifar = load_data("mnist"), load_data("cifar10")
    assert mnist.source == "MNIST" and mnist.train_images.shape == (60_000, 1, 28, 28)
    pixels = mnist.normalise(mnist.train_images)
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
    assert cifar.source in ("CIFAR-10", "CIFAR-10 (JPEG)", "CIFAR-10 (PNG folder)")
    assert torch.bincount(cifar.train_labels).tolist() == [5000] * 10


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LAPNB_DATA")
    assert data_folder() == tmp_path / "cache/lapnb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache/lapnb"
    monkeypatch.setenv("LAPNB_DATA", "~/digits")
    assert data_folder() == Path.home() / "digits"
    for place in (tmp_path, "/"):  # resolved once
        monkeypatch.setenv("LAPNB_DATA", "digits") if place == tmp_path else None
        monkeypatch.chdir(place)
        assert data_folder() == tmp_path / "digits"


# Bad files


@pytest.mark.parametrize("name, file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named(folder, monkeypatch, name, file, damage):
    path = folder / file
    make_batches(folder, monkeypatch) if "batch" in file else MAKE[name](folder)
    if path.suffix == ".gz":
        make_idx(path.parent, "-idx.gz").joinpath(path.stem).unlink()
    DAMAGES[damage](path)
    refused(name, path.parent if path.suffix == ".txt" else path)
    assert not list(folder.glob("*.safetensors*"))


@pytest.mark.parametrize("size", [(33, 32), (20_000, 9_100)])
def test_image_of_another_size_is_named(folder, size):
    path = make_cifar(folder) / "test/frog/0.png"
    make_image(path, size=size, mode="1")
    refused("cifar10", path, "32 x 32")


def test_idx_files_of_something_else(folder):
    raw = make_idx(folder / "MNIST/raw", side=(14, 56))
    refused("mnist", raw, "train", "(30, 14, 56)", error=ValueError)
    path = make_idx(raw) / "train-labels-idx1-ubyte"
    whole = path.read_bytes()
    other = raw.joinpath("t10k-labels-idx1-ubyte").read_bytes()
    for content, text in (
        (whole + b"\0", path),
        (whole[:-1] + b"\n", "30 labels up to 10"),
        (other, "(30, 28, 28), 20 labels"),
    ):
        path.write_bytes(content)
        refused("mnist", raw, "train", text, error=ValueError)


@pytest.mark.parametrize(
    "name, path, content, text",
    [
        ("mnist", "t10k-labels-idx1-ubyte", None, "MNIST/raw/t10k-labels-idx1-ubyte"),
        ("cifar10", "test/cat", None, "/test must have images of each class and of no other (cat)"),
        ("cifar10", "train", None, "/train must have"),
        ("cifar10", "train/dog", b"a file", "(dog)"),
        ("tiny_imagenet", "train", None, "/train must have"),
        ("tiny_imagenet", "train/n01", None, "(n01)"),
        ("tiny_imagenet", "val", None, "/val must have"),
        ("tiny_imagenet", "val/images/val_2.JPEG", None, "(n02)"),
        ("tiny_imagenet", "val/val_annotations.txt", None, "/val must have"),
        ("tiny_imagenet", "val/val_annotations.txt", b"val_0.JPEG\tn99", "/val must have"),
    ],
)
def test_half_unpacked_folder(folder, name, path, content, text):
    path = MAKE[name](folder) / path
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.write_bytes(content) if content else None
    refused(name, text)


# Downloads


@pytest.mark.parametrize("name, file", PLACES)
@pytest.mark.parametrize("there", ["nothing", "empty folder", "file", "file above"])
def test_without_network_the_message_says_what_to_place_where(folder, name, file, there):
    place = folder / PLACES[name, file]
    if there == "empty folder":
        place.mkdir(parents=True)
    elif there == "file":
        write(place, b"no folder")
    elif there == "file above":
        folder.rmdir()
        folder.write_bytes(b"no folder")
    refused(name, place, "file://", file, error=FileNotFoundError)


@pytest.mark.parametrize("name", ["cifar10", "tiny_imagenet"])
def test_archives(folder, tmp_path, monkeypatch, web, name):
    root = make_batches(tmp_path, monkeypatch) if name == "cifar10" else make_tiny(tmp_path)
    url, kind = (CIFAR10.url, "gztar") if name == "cifar10" else (datasets.TINY[0], "zip")
    packed = Path(shutil.make_archive(tmp_path / "packed", kind, tmp_path, root.name)).read_bytes()
    md5 = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5)
    monkeypatch.setattr(datasets, "TINY", (datasets.TINY[0], md5))
    for place in (web, folder):
        archive = write(place / url.split("/")[-1], packed[:-20])
        make_cifar(folder) if place is folder else None  # the archive goes before it
        damaged = ValueError, ["damaged", md5]
        error, texts = damaged if place is folder else (FileNotFoundError, [url])
        refused(name, *texts, error=error)
        archive.write_bytes(packed)
        write(folder / f".download-{root.name}/new/{root.name}/test_batch", b"of a killed process")
        assert load_data(name).source == {"cifar10": "CIFAR-10"}.get(name, TINY_SOURCE)
        archive.unlink()
        assert not list(folder.glob(".download-*"))
        shutil.rmtree(folder / root.name)


def test_idx_files_are_downloaded_all_or_none(folder, tmp_path, monkeypatch, web):
    files = sorted(make_idx(tmp_path / "mirror", "-idx.gz").iterdir())
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
    monkeypatch.setattr(MNIST, "resources", sums)
    for file in files:
        refused("mnist", folder / "MNIST/raw", error=FileNotFoundError)
        shutil.copy(file, web)
    assert load_data("mnist").train_images.shape == (30, 1, 28, 28)


# The cache


def test_images_are_decoded_once_and_again_when_they_change(folder, opened):
    root = make_cifar(folder)
    assert content(load_data("cifar10")) == content(load_data("cifar10")) and len(opened) == 30
    make_image(root / "train/cat/new.png", (1, 2, 3))
    assert len(load_data("cifar10").train_images) == 21 and len(opened) == 61
    (root / "train/cat/new.png").rename(root / "train/dog/new.png")
    assert torch.bincount(load_data("cifar10").train_labels)[5] == 3 and len(opened) == 92
    assert len(list(folder.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "name, file, change",
    [
        ("mnist", "t10k-images-idx3-ubyte", lambda path, c: path.write_bytes(c[:16] + c[:15:-1])),
        ("cifar10", "test/cat/0.png", lambda path, _: make_image(path, 9)),
        ("tiny_imagenet", "val/val_annotations.txt", lambda path, _: path.write_text(SWAPPED)),
    ],
)
def test_other_content_of_the_same_size_and_date_is_seen(folder, name, file, change):
    path = MAKE[name](folder) / file
    first, times = content(load_data(name)), path.stat()
    change(path, path.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content(load_data(name)) != first


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-9], lambda c: c[:-1] + b"?"])
def test_damaged_cache_is_named_and_made_again(folder, opened, capsys, damage):
    make_cifar(folder)
    whole = content(load_data("cifar10"))
    (cache,) = folder.glob("*.safetensors")
    cache.write_bytes(damage(cache.read_bytes()))
    assert content(load_data("cifar10")) == whole and len(opened) == 60
    assert f"{cache} is damaged" in capsys.readouterr().out


def test_read_only_data_folder_uses_the_users_cache(folder, tmp_path, opened, monkeypatch):
    make_cifar(folder)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)  # we may be root
    assert content(load_data("cifar10")) == content(load_data("cifar10")) and len(opened) == 30
    assert list((tmp_path / "cache/lapnb").glob("cifar10*.safetensors"))


def test_without_room_or_a_home_folder_images_are_read_anew(folder, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    make_cifar(folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match=r"cifar10 is read anew each time.*No space left"):
        assert len(load_data("cifar10").train_images) == 20
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.warns(UserWarning, match=r"cifar10 is read anew each time.*home"):
        assert len(load_data("cifar10").train_images) == 20
