"""Data sets as uint8 tensors in memory, and augmentation of whole batches.

There is no DataLoader: a batch is `images[indices]`, augmented and normalised as one tensor, on
whatever device the data is. `lapnb.training.datasets` reads the files.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lapnb.checks import require, require_whole
from lapnb.progress import progress
from lapnb.training.datasets import DATASETS, SPLITS, data_folder

GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as in torchvision and Pillow


def stream(seed: int, stage: str, chunk: int = 0) -> np.random.Generator:
    """Random numbers that depend on (seed, stage, chunk) only, never on earlier draws."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), chunk])


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

    @classmethod
    def from_tensors(cls, train_images, train_labels, test_images, test_labels, **fields) -> "Data":
        """Your own data, as tensors or arrays.

        Images are (N, C, H, W) or (N, H, W), uint8, or floats in [0, 1], which are rounded to
        uint8; labels are whole numbers from 0. `fields` set the rest of Data: `mean` and `std` (by
        default those of the training images), `classes` (the highest label + 1), `augmentation`,
        `name`, `source` ("own data"). Raises ValueError naming what does not fit.
        """
        splits = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
        if "classes" in fields:
            require_whole("classes", fields["classes"], 1)
        for split, (images, labels) in splits.items():
            try:
                images, labels = torch.as_tensor(images), torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{split} images and labels must be tensors: {error}") from error
            plain = images.layout == torch.strided and not images.is_meta and 0 not in images.shape
            if plain and images.is_floating_point() and ((images >= 0) & (images <= 1)).all():
                images = (images * 255).round().byte()
            images = images.unsqueeze(1) if images.ndim == 3 else images
            right = plain and images.dtype == torch.uint8 and images.ndim == 4
            allowed = "(N, C, H, W) or (N, H, W), uint8 or floats in [0, 1]"
            require(right, f"{split}_images", allowed, (*images.shape, images.dtype))
            whole = torch.can_cast(labels.dtype, torch.int64) and labels.shape == images.shape[:1]
            labels = labels.long() if whole else labels
            right = whole and labels.min() >= 0 and labels.max() < fields.get("classes", math.inf)
            allowed = f"whole numbers from 0, below classes, for each of {len(images)} images"
            require(right, f"{split}_labels", allowed, (*labels.shape, labels.dtype))
            fields |= {f"{split}_images": images, f"{split}_labels": labels}
        train, (_, *size) = fields["train_images"], fields["test_images"].shape
        allowed = f"of one size with test_images, {size}"
        require([*train.shape[1:]] == size, "train_images", allowed, (*train.shape,))
        augment(train[:1], fields.get("augmentation", ""), stream(0, "check"))
        std, mean = torch.std_mean(train.float() / 255, (0, 2, 3), correction=0)
        std = std.clamp(min=1 / 255)  # of a constant channel
        classes = 1 + int(max(fields[f"{split}_labels"].max() for split in splits))
        defaults = dict(name="own", source="own data", classes=classes)
        data = cls(**defaults | {"mean": (*mean.tolist(),), "std": (*std.tolist(),)} | fields)
        for name, least in {"mean": -math.inf, "std": 0}.items():
            given = getattr(data, name)
            right = isinstance(given, tuple) and len(given) == size[0]
            right = right and all(isinstance(x, Real) and least < x < math.inf for x in given)
            allowed = f"a tuple of {size[0]} numbers" + ", above 0" * (name == "std")
            require(right, name, allowed, given)
        return data

    @classmethod
    def from_datasets(cls, train, test, **fields) -> "Data":
        """Your own data, as data sets in torchvision's style.

        `train` and `test` have a length, and at each index an image (PIL, or a tensor as
        `from_tensors` wants it) and a label; images are of one size. `fields` as there.
        """
        return cls.from_tensors(*_stacked(train, "train"), *_stacked(test, "test"), **fields)

    def to(self, device) -> "Data":
        """The same data with its four tensors on `device`."""
        return replace(self, **{split: getattr(self, split).to(device) for split in SPLITS})

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (pixel / 255 - mean) / std, on the images' device."""
        mean_std = torch.tensor([self.mean, self.std]).to(images.device, non_blocking=True)
        mean, std = mean_std.view(2, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    def batches(self, count: int, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` training batches: normalised images (float32, (size, C, H, W)) and labels.

        Each draws `size` images without replacement from a stream of its own, and augments them
        as in training. Raises ValueError for numbers that make no sense.
        """
        most = len(self.train_labels)
        require_whole("count", count, 1)
        require_whole("size", size, 1, most)
        require_whole("seed", seed, 0)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            rng = stream(seed, "statistics", n)
            batch = torch.from_numpy(rng.choice(most, size, replace=False))
            images = augment(self.train_images[batch], self.augmentation, rng)
            return self.normalise(images), self.train_labels[batch]

        return map(draw, progress(range(count), "statistics of the data", "batches"))


def _stacked(dataset, name: str) -> tuple[Tensor, Tensor]:
    from torchvision.transforms.v2.functional import to_image

    images, labels = [], []
    try:
        for index in progress(range(len(dataset)), f"reading {name}", "images"):
            image, label = dataset[index]
            image = image.convert("RGB") if getattr(image, "mode", "") == "P" else image
            images.append(to_image(image))
            labels.append(int(label))
        return torch.stack(images), torch.tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"{name} must hold pairs of an image, all of one size, and a whole number"
        raise ValueError(f"{what}; it does not ({error})") from error


def load_data(name: str, image_size: int | None = None, channels: int | None = None) -> Data:
    """A data set of `DATASETS`, downloaded where it is absent and can be.

    `image_size` (pixels per side) and `channels` (1 or 3) adapt the images to any network:
    up to 4 pixels more per side are padded with black, other sizes are resized (bilinear,
    antialiased); grey is repeated, colour becomes ITU grey. Raises ValueError for a parameter or
    file that makes no sense, FileNotFoundError for a missing one (it says what to place where).
    """
    require(name in [*DATASETS], "name", f"one of {', '.join(DATASETS)}", name)
    if image_size is not None:
        require_whole("image_size", image_size, 1, 1024)
    right = channels is None or (type(channels) is int and channels in (1, 3))
    require(right, "channels", "1 (grey) or 3 (colour)", channels)
    read, mean, std, augmentation = DATASETS[name]
    found = {"classes": 10, **read(data_folder())}
    change = None
    if channels == 3 and len(mean) == 1:
        change, mean, std = (lambda x: x.expand(-1, 3, -1, -1).contiguous()), mean * 3, std * 3
    elif channels == 1 and len(mean) == 3:
        change = _to_grey
        mean, std = ((float(np.dot(GREY, values)),) for values in (mean, std))
    for split in ("train_images", "test_images"):
        if image_size is not None:
            found[split] = _resize(found[split], image_size)
        if change:
            found[split] = change(found[split])
    return Data(name=name, mean=mean, std=std, augmentation=augmentation, **found)


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


def augment(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Augment a whole uint8 batch (B, C, H, H), on its device, with random draws from `rng` only.

    `kind` is "" (nothing), "crop_flip" (a random crop after zero padding of 4 pixels) or
    "resized_crop_flip" (torchvision's RandomResizedCrop(H), bilinear); both mirror each image
    with probability 1/2. Raises ValueError for any other kind.
    """
    require(kind in AUGMENTATIONS, "augmentation", f"one of {[*AUGMENTATIONS]}", kind)
    return AUGMENTATIONS[kind](images, rng)


def _crop_flip(images: Tensor, rng: np.random.Generator, padding: int = 4) -> Tensor:
    batch, _, height, width = images.shape
    draws = np.stack([*rng.integers(2 * padding + 1, size=(2, batch)), rng.integers(2, size=batch)])
    top, left, mirrored = torch.from_numpy(draws).to(images.device, non_blocking=True)
    # a view of all crops of each image, (B, C, top, left, H, W), of which one gather takes B
    crops = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    crops = crops[torch.arange(batch, device=images.device), :, top, left]
    return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(-1), crops)


def _resized_crop_flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.v2.functional import resized_crop

    crops, mirrored = [], torch.from_numpy(rng.random(len(images)) < 0.5).to(images.device)
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
