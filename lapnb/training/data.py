"""Data sets as uint8 tensors in memory, and augmentation of whole batches.

There is no DataLoader: a batch is `images[indices]`, augmented and normalised as one tensor, on
whatever device the data is. `lapnb.training.datasets` reads the files.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lapnb.checks import require, require_whole
from lapnb.progress import progress
from lapnb.surroundings import usual_torch
from lapnb.training.datasets import DATASETS, SPLITS, read_dataset, stacked

CHUNK = 25  # steps between two fresh random streams, and between looks at the loss and the clock


def stream(seed: int, stage: str, chunk: int = 0) -> np.random.Generator:
    """Return a generator that depends on (seed, stage, chunk) only, never on earlier draws."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), chunk])


@dataclass(frozen=True, eq=False)
class Data:
    """A whole data set in memory.

    Attributes:
        source: What was really read, for captions.
        train_images, test_images: uint8, (N, C, H, W).
        train_labels, test_labels: int64, (N,).
        mean, std: One float per channel, for pixels in [0, 1].
        classes: The number of classes.
        augmentation: The `kind` that `augment` takes for training batches.
    """

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
            source: What captions say.

        Raises:
            ValueError: something does not fit; the message names the argument.

        >>> images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
        >>> Data.from_tensors(images, labels, images, labels).classes
        2
        """
        train_images = _as_images("train_images", train_images)
        test_images = _as_images("test_images", test_images)
        size = tuple(test_images.shape[1:])
        allowed = f"of one size with test_images, {size}"
        require(train_images.shape[1:] == size, "train_images", allowed, (*train_images.shape,))
        train_labels = _as_labels("train_labels", train_labels, len(train_images))
        test_labels = _as_labels("test_labels", test_labels, len(test_images))
        highest = int(max(train_labels.max(), test_labels.max()))
        if classes is None:
            classes = highest + 1
        require_whole("classes", classes, highest + 1)
        pixels = train_images.float() / 255
        spread, middle = torch.std_mean(pixels, (0, 2, 3), correction=0)
        if mean is None:
            mean = tuple(middle.tolist())
        if std is None:
            std = tuple(spread.clamp(min=1 / 255).tolist())  # a channel may be constant
        for moment, values, low in (("mean", mean, -math.inf), ("std", std, 0)):
            fits = len(values) == size[0] and all(low < value < math.inf for value in values)
            allowed = f"{size[0]} finite numbers above {low}, one per channel"
            require(fits, moment, allowed, values)
        tensors = train_images, train_labels, test_images, test_labels
        return cls(source, *tensors, mean, std, classes, augmentation)

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

        >>> from torchvision.datasets import FakeData
        >>> Data.from_datasets(FakeData(20), FakeData(10)).train_images.shape
        torch.Size([20, 3, 224, 224])
        """
        tensors = [*stacked(train, "reading train"), *stacked(test, "reading test")]
        return cls.from_tensors(*tensors, **fields)

    def to(self, device) -> "Data":
        """Return the same data with its four tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in SPLITS})

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

        >>> [images.shape[0] for images, labels in load_data("mnist5k").batches(2, size=60)]
        [60, 60]
        """
        require_whole("count", count, 1)
        require_whole("size", size, 1, len(self.train_labels))
        require_whole("seed", seed, 0)

        @usual_torch()
        def draw(n: int) -> tuple[Tensor, Tensor]:
            rng = stream(seed, "statistics", n)
            batch = torch.from_numpy(rng.choice(len(self.train_labels), size, replace=False))
            images = augment(self.train_images[batch], self.augmentation, rng)
            return self.normalise(images), self.train_labels[batch]

        return map(draw, progress(range(count), "statistics of the data", "batches"))


def _as_images(name: str, values) -> Tensor:
    """Return images as uint8 (N, C, H, W), or raise a ValueError that begins with `name`."""
    images = torch.as_tensor(values)
    shape_and_type = f"{tuple(images.shape)}, {images.dtype}"
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.is_floating_point():
        low, high = images.aminmax()
        require(low >= 0 and high <= 1, name, "from 0 to 1", f"{low:g} to {high:g}")
        images = (images * 255).round_().byte()
    usual = images.dtype == torch.uint8 and images.ndim == 4 and images.numel() > 0
    channels_last = usual and images.shape[3] <= 4 < min(images.shape[1:3])
    allowed = "(N, C, H, W) or (N, H, W), uint8 or floats in [0, 1]"
    require(usual and not channels_last, name, allowed, shape_and_type)
    return images


def _as_labels(name: str, values, count: int) -> Tensor:
    """Return labels as int64 (N,), or raise a ValueError that begins with `name`."""
    labels = torch.as_tensor(values)
    whole = torch.can_cast(labels.dtype, torch.int64) and labels.shape == (count,)
    allowed = f"{count} whole numbers from 0, one per image"
    require(whole, name, allowed, f"{tuple(labels.shape)}, {labels.dtype}")
    labels = labels.long()
    require(labels.min() >= 0, name, allowed, int(labels.min()))
    return labels


@usual_torch()
def load_data(name: str, image_size: int | None = None, channels: int | None = None) -> Data:
    """Load a data set; download it where it is absent and can be downloaded.

    Args:
        name: "mnist5k" (needs no download), "mnist", "fashion_mnist", "cifar10" or
            "tiny_imagenet".
        image_size: Pixels per side. Images are padded with black where this is up to 8 more than
            they have, and resized to any other size (bilinear, antialiased).
        channels: 3 repeats a grey image. By default images stay as they are.

    Returns:
        The data set in memory.

    Raises:
        ValueError: an argument makes no sense.
        FileNotFoundError: files are absent or damaged; the message says what to place where.

    >>> load_data("mnist5k", image_size=32, channels=3).test_images.shape
    torch.Size([1000, 3, 32, 32])
    """
    require(name in DATASETS, "name", f"one of {', '.join(DATASETS)}", name)
    dataset = DATASETS[name]
    stored = len(dataset.mean)
    allowed = f"{stored} or 3 for {name}"
    require(channels in (None, stored, 3), "channels", allowed, channels)
    copies = 1 if channels is None else channels // stored
    if image_size is not None:
        require_whole("image_size", image_size, 1, 1024)
    fields = read_dataset(name)
    for split in ("train_images", "test_images"):
        if image_size is not None:
            fields[split] = _resized(fields[split], image_size)
        if copies > 1:
            fields[split] = fields[split].repeat(1, copies, 1, 1)
    fields["mean"] = dataset.mean * copies
    fields["std"] = dataset.std * copies
    return Data(augmentation=dataset.augmentation, **fields)


def _resized(images: Tensor, size: int) -> Tensor:
    """Return square images (N, C, H, H) as (N, C, size, size), still uint8."""
    growth = size - images.shape[-1]
    if growth == 0:
        return images
    if 0 < growth <= 8:
        before = growth // 2
        after = growth - before
        return F.pad(images, (before, after, before, after))
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def augment(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Augment a whole uint8 batch (B, C, H, H), on its device, with random draws from `rng` only.

    Args:
        images: The batch, which stays as it is.
        kind: "" (nothing), "crop_flip" (a random crop after zero padding of 4 pixels) or
            "resized_crop_flip" (torchvision's RandomResizedCrop(H), bilinear). Both mirror each
            image with probability 1/2.
        rng: The generator that all random numbers are drawn from.

    Raises:
        ValueError: any other kind.
    """
    kinds = {"": None, "crop_flip": _crops, "resized_crop_flip": _resized_crops}
    require(kind in kinds, "augmentation", f"one of {[*kinds]}", kind)
    if not kind:
        return images
    crops, mirrored = kinds[kind](images, rng)
    return torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(-1), crops)


def _crops(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    batch, _, height, width = images.shape
    corners = rng.integers(9, size=(2, batch))
    mirrors = rng.integers(2, size=(1, batch))
    draws = torch.from_numpy(np.concatenate([corners, mirrors]))
    top, left, mirrored = draws.to(images.device, non_blocking=True)
    padded = F.pad(images, (4, 4, 4, 4))
    # this view holds all crops of each image, (B, C, top, left, H, W); one gather takes B of them
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    crops = crops[torch.arange(batch, device=images.device), :, top, left]
    return crops, mirrored.bool()


def _resized_crops(images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    from torchvision.transforms.v2 import RandomResizedCrop

    mirrored = torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
    crop = RandomResizedCrop(images.shape[2:])
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would set the generators of GPUs too
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        crops = torch.stack([crop(image) for image in images])
    return crops, mirrored
