"""Data sets as uint8 tensors in memory, and augmentation of whole batches.

There is no DataLoader: a batch is `images[indices]`, augmented and normalised as one tensor, on
whatever device the data is. `lapnb.training.datasets` reads the files.
"""

import math
import operator
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lapnb.checks import is_plain, owns_memory, require, require_whole
from lapnb.progress import progress
from lapnb.surroundings import usual_torch
from lapnb.training.datasets import DATASETS, SPLITS, read_dataset


def stream(seed: int, stage: str, chunk: int = 0) -> np.random.Generator:
    """Random numbers that depend on (seed, stage, chunk) only, never on earlier draws."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), chunk])


@dataclass(frozen=True, eq=False)
class Data:
    """A whole data set in memory.

    Attributes:
        name: Its key in `load_data`, or a name of yours.
        source: What was really read, for captions.
        train_images, test_images: uint8, (N, C, H, W).
        train_labels, test_labels: int64, (N,).
        mean, std: One float per channel, for pixels in [0, 1].
        classes: The number of classes.
        augmentation: The `kind` that `augment` takes for training batches.
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

    @classmethod
    @usual_torch()
    def from_tensors(
        cls,
        train_images,
        train_labels,
        test_images,
        test_labels,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        classes: int | None = None,
        augmentation: str = "",
        name: str = "own",
        source: str = "own data",
    ) -> "Data":
        """Make a data set of your own tensors or arrays.

        Args:
            train_images, test_images: (N, C, H, W) or (N, H, W), uint8 or floats in [0, 1]; floats
                are rounded to uint8.
            train_labels, test_labels: Whole numbers from 0, one per image.
            mean, std: One number per channel, by default those of the training images.
            classes: By default the highest label + 1.
            augmentation: "", "crop_flip" or "resized_crop_flip", as in `augment`.
            name, source: What captions say.

        Raises:
            ValueError: something does not fit; the message names the argument.

        >>> images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
        >>> Data.from_tensors(images, labels, images, labels).classes
        2
        """
        train_images = _checked_images("train_images", train_images)
        test_images = _checked_images("test_images", test_images)
        size = tuple(test_images.shape[1:])
        allowed = f"of one size with test_images, {size}"
        require(train_images.shape[1:] == size, "train_images", allowed, (*train_images.shape,))
        if classes is not None:
            require_whole("classes", classes, 1)
        below = math.inf if classes is None else classes
        train_labels = _checked_labels("train_labels", train_labels, len(train_images), below)
        test_labels = _checked_labels("test_labels", test_labels, len(test_images), below)
        if classes is None:
            classes = 1 + int(max(train_labels.max(), test_labels.max()))
        augment(train_images[:1], augmentation, stream(0, "check"))
        measured_mean, measured_std = _moments(train_images)
        mean = measured_mean if mean is None else mean
        std = measured_std if std is None else std
        _check_per_channel("mean", mean, size[0], -math.inf)
        _check_per_channel("std", std, size[0], 0)
        tensors = train_images, train_labels, test_images, test_labels
        return cls(name, source, *tensors, mean, std, classes, augmentation)

    @classmethod
    @usual_torch()
    def from_datasets(cls, train, test, **fields) -> "Data":
        """Make a data set of two data sets in torchvision's style.

        Args:
            train, test: Each has a length, and at each index an image (PIL, or a tensor as
                `from_tensors` wants it) and a whole number. Images are of one size.
            **fields: `mean`, `std`, `classes` and so on, as in `from_tensors`.

        Raises:
            ValueError: something does not fit; the message names the argument.
        """
        return cls.from_tensors(*_stacked(train, "train"), *_stacked(test, "test"), **fields)

    def to(self, device) -> "Data":
        """The same data with its four tensors on `device`."""
        return replace(self, **{split: getattr(self, split).to(device) for split in SPLITS})

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32, (pixel / 255 - mean) / std."""
        moments = torch.tensor([self.mean, self.std], dtype=torch.float32, device="cpu")
        mean, std = moments.to(images.device, non_blocking=True).view(2, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    def batches(self, count: int, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw training batches: normalised images (float32, (size, C, H, W)) and labels.

        Each batch is augmented as in training, and depends on `seed` and its number only.

        Args:
            count: The number of batches.
            size: Images in a batch, drawn without replacement.
            seed: A whole number from 0.

        Raises:
            ValueError: a number makes no sense.
        """
        most = len(self.train_labels)
        require_whole("count", count, 1)
        require_whole("size", size, 1, most)
        require_whole("seed", seed, 0)

        @usual_torch()
        def draw(n: int) -> tuple[Tensor, Tensor]:
            rng = stream(seed, "statistics", n)
            batch = torch.from_numpy(rng.choice(most, size, replace=False))
            images = augment(self.train_images[batch], self.augmentation, rng)
            return self.normalise(images), self.train_labels[batch]

        return map(draw, progress(range(count), "statistics of the data", "batches"))


def _checked_images(name: str, images) -> Tensor:
    """Return images as uint8 (N, C, H, W); raise ValueError naming them unless they are such."""
    images = _as_tensor(name, images)
    allowed = "(N, C, H, W) or (N, H, W), uint8 or floats in [0, 1]"
    shape_and_type = (*images.shape, images.dtype)
    usual = owns_memory(images) and not images.is_meta and images.numel() > 0
    require(usual and images.ndim in (3, 4), name, allowed, shape_and_type)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    channels_last = images.shape[3] in (1, 3, 4) and min(images.shape[1:3]) > 4
    reordered = "channels before height and width, as permute(0, 3, 1, 2) puts them"
    require(not channels_last, name, reordered, shape_and_type)
    if is_plain(images):
        low, high = images.aminmax()
        require(low >= 0 and high <= 1, name, allowed, f"values from {low:g} to {high:g}")
        parts = [(part * 255).round().byte() for part in images.split(1000)]  # to save memory
        images = torch.cat(parts)
    require(images.dtype == torch.uint8, name, allowed, shape_and_type)
    return images


def _checked_labels(name: str, labels, count: int, below: float) -> Tensor:
    """Return labels as int64 (N,); raise ValueError naming them unless they are such."""
    labels = _as_tensor(name, labels)
    allowed = f"{count} whole numbers from 0, one per image, below classes"
    whole = torch.can_cast(labels.dtype, torch.int64)
    require(whole and labels.shape == (count,), name, allowed, (*labels.shape, labels.dtype))
    low, high = labels.long().aminmax()
    require(low >= 0 and high < below, name, allowed, f"{low} to {high}")
    return labels.long()


def _as_tensor(name: str, values) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        allowed = "a tensor or an array that torch can read"
        raise ValueError(
            f"{name} must be {allowed}; got {type(values).__name__} ({error})"
        ) from error


def _moments(images: Tensor) -> tuple[tuple, tuple]:
    """Mean and standard deviation per channel of uint8 images, for pixels in [0, 1]."""
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    share = torch.stack(counts).double().cpu()
    share /= share[0].sum()
    values = torch.arange(256).double() / 255
    mean = share @ values
    variance = share @ values.square() - mean.square()
    std = variance.clamp(min=255**-2).sqrt()  # a channel may be constant
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_per_channel(name: str, values: tuple[float, ...], channels: int, above: float) -> None:
    """Raise ValueError naming `values` unless it is one finite number above `above` per channel."""
    allowed = f"a tuple of {channels} numbers above {above}"
    require(isinstance(values, tuple) and len(values) == channels, name, allowed, values)
    finite = all(isinstance(value, Real) and above < value < math.inf for value in values)
    require(finite, name, allowed, values)


def _stacked(dataset, name: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of a data set in torchvision's style."""
    from torchvision.transforms.v2.functional import to_image

    images = []
    labels = []
    try:
        for index in progress(range(len(dataset)), f"reading {name}", "images"):
            image, label = dataset[index]
            if getattr(image, "mode", "") == "P":  # its pixels are places in a palette
                image = image.convert("RGB")
            images.append(to_image(image))
            labels.append(operator.index(label))  # refuses 0.5
        return torch.stack(images), torch.tensor(labels)
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        content = f"{name} must hold pairs of an image, all of one size, and a whole number"
        raise ValueError(f"{content}; it does not ({error})") from error


@usual_torch()
def load_data(name: str, image_size: int | None = None, channels: int | None = None) -> Data:
    """Load a data set, downloading it where it is absent and can be downloaded.

    Args:
        name: "mnist5k" (needs no download), "mnist", "fashion_mnist", "cifar10" or
            "tiny_imagenet".
        image_size: Pixels per side. Up to 8 more than the images have are padded with black; to
            other sizes images are resized (bilinear, antialiased).
        channels: 3 repeats a grey image. By default, and in colour, images keep their own.

    Raises:
        ValueError: an argument makes no sense.
        FileNotFoundError: files are absent or damaged; the message says what to place where.

    >>> load_data("mnist5k", image_size=32, channels=3).test_images.shape
    torch.Size([1000, 3, 32, 32])
    """
    require(name in [*DATASETS], "name", f"one of {', '.join(DATASETS)}", name)
    if image_size is not None:
        require_whole("image_size", image_size, 1, 1024)
    dataset = DATASETS[name]
    stored = len(dataset.mean)
    if channels is None:
        channels = stored
    possible = type(channels) is int and channels in (stored, 3)
    allowed = "1 (grey) or 3" if stored == 1 else f"3, as {name} has colours"
    require(possible, "channels", allowed, channels)
    copies = channels // stored
    fields = read_dataset(name)
    for split in ("train_images", "test_images"):
        if image_size is not None:
            fields[split] = _resized(fields[split], image_size)
        if copies > 1:
            fields[split] = fields[split].repeat(1, copies, 1, 1)
    fields["mean"] = dataset.mean * copies
    fields["std"] = dataset.std * copies
    return Data(name=name, augmentation=dataset.augmentation, **fields)


def _resized(images: Tensor, size: int) -> Tensor:
    """Square images (N, C, H, H) -> (N, C, size, size), still uint8."""
    more = size - images.shape[-1]
    if more == 0:
        return images
    if 0 < more <= 8:
        before = more // 2
        after = more - before
        return F.pad(images, (before, after, before, after))
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def augment(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Augment a whole uint8 batch (B, C, H, H), on its device, with random draws from `rng` only.

    Args:
        images: The batch, which stays as it is.
        kind: "" (nothing), "crop_flip" (a random crop after zero padding of 4 pixels) or
            "resized_crop_flip" (torchvision's RandomResizedCrop(H), bilinear). Both mirror each
            image with probability 1/2.
        rng: What random numbers are drawn from.

    Raises:
        ValueError: any other kind.
    """
    require(kind in [*AUGMENTATIONS], "augmentation", f"one of {[*AUGMENTATIONS]}", kind)
    return AUGMENTATIONS[kind](images, rng)


def _crop_flip(images: Tensor, rng: np.random.Generator, padding: int = 4) -> Tensor:
    batch, _, height, width = images.shape
    corners = rng.integers(2 * padding + 1, size=(2, batch))
    mirrors = rng.integers(2, size=batch)
    draws = torch.from_numpy(np.stack([*corners, mirrors]))
    top, left, mirrored = draws.to(images.device, non_blocking=True)
    padded = F.pad(images, (padding,) * 4)
    # a view of all crops of each image, (B, C, top, left, H, W), of which one gather takes B
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    crops = crops[torch.arange(batch, device=images.device), :, top, left]
    return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(-1), crops)


def _resized_crop_flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.v2.functional import resized_crop

    crops = []
    mirrored = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would set the generators of GPUs too
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        for image in images:
            box = RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3))
            crops.append(resized_crop(image, *box, image.shape[-2:], antialias=True))
    crops = torch.stack(crops)
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(-1), crops)


AUGMENTATIONS = {
    "": lambda images, rng: images,
    "crop_flip": _crop_flip,
    "resized_crop_flip": _resized_crop_flip,
}
