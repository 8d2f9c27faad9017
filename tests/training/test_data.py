"""Your own data, adapted images, random streams and augmentation."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from lapnb.training.data import Data, augment, load_data, stream

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (12, 3, 16, 16), dtype=np.uint8))
LABELS = torch.arange(12) % 4
OWN = IMAGES, LABELS, IMAGES[:5], LABELS[:5]


# Your own data


def test_own_tensors():
    data = Data.from_tensors(*OWN)
    assert (data.source, data.classes, data.augmentation) == ("own data", 4, "")
    assert torch.equal(data.train_images, IMAGES) and torch.equal(data.test_labels, LABELS[:5])
    pixels = data.normalise(data.train_images)
    torch.testing.assert_close(pixels, TF.normalize(IMAGES / 255, data.mean, data.std))
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3), correction=0), torch.ones(3))
    black = Data.from_tensors(IMAGES * 0, *OWN[1:], mean=(0, 0, 0), classes=9)
    assert black.mean == (0, 0, 0) and black.classes == 9
    assert black.normalise(black.test_images).isfinite().all()
    moved = data.to("meta")
    assert moved.test_images.is_meta and moved.train_labels.is_meta


def test_own_data_in_other_forms_is_the_same():
    floats = Data.from_tensors(IMAGES / 255, LABELS.int(), IMAGES[:5].double() / 255, LABELS[:5])
    assert torch.equal(floats.train_images, IMAGES) and torch.equal(floats.train_labels, LABELS)
    grey = IMAGES[:, 0].numpy(), LABELS.numpy(), IMAGES[:5, 0].numpy(), LABELS[:5].tolist()
    assert torch.equal(Data.from_tensors(*grey).train_images, IMAGES[:, :1])
    for convert in (TF.to_pil_image, lambda image: image / 255):
        pairs = [(convert(image), int(y)) for image, y in zip(IMAGES, LABELS, strict=True)]
        same = Data.from_datasets(pairs, pairs[:5], augmentation="crop_flip")
        assert torch.equal(same.train_images, IMAGES) and torch.equal(same.test_labels, LABELS[:5])


def test_batches_are_drawn_as_the_recorded_ones_were():
    data = Data.from_tensors(*OWN, augmentation="crop_flip")
    batches = list(data.batches(3, 5, seed=2))
    assert len(batches) == 3
    for n, (images, labels) in enumerate(batches):
        rng = stream(2, "statistics", n)
        drawn = rng.choice(12, 5, replace=False)
        assert torch.equal(images, data.normalise(augment(IMAGES[drawn], "crop_flip", rng)))
        assert torch.equal(labels, LABELS[drawn])


# Images adapted to a network


@pytest.mark.parametrize("size", [28, 29, 36, 37, 20])
def test_images_are_padded_or_resized_and_grey_is_repeated(size):
    images, adapted = load_data("mnist5k").test_images, load_data("mnist5k", size, 3).test_images
    first, rest = (size - 28) // 2, (size - 27) // 2
    wanted = TF.resize(images, [size, size])
    if 28 <= size <= 36:
        wanted = TF.pad(images, [first, first, rest, rest])
    assert torch.equal(adapted, wanted.repeat(1, 3, 1, 1))


# Augmentation


def test_crop_flip_literally():
    rng = np.random.default_rng(7)
    (top, left), mirrored = rng.integers(9, size=(2, 12)), rng.integers(2, size=12)
    crops = augment(IMAGES, "crop_flip", np.random.default_rng(7))
    for n, (image, crop) in enumerate(zip(IMAGES, crops, strict=True)):
        wanted = TF.crop(TF.pad(image, [4]), top[n], left[n], 16, 16)
        assert torch.equal(crop, wanted.flip(-1) if mirrored[n] else wanted)


def test_resized_crops_are_torchvisions_and_leave_its_random_state():
    rng = np.random.default_rng(7)
    mirrored = rng.random(12) < 0.5
    before, state = IMAGES.clone(), torch.get_rng_state()
    crops = augment(IMAGES, "resized_crop_flip", np.random.default_rng(7))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(IMAGES, before)
    torch.manual_seed(int(rng.integers(2**63)))
    for n, (image, crop) in enumerate(zip(IMAGES, crops, strict=True)):
        expected = RandomResizedCrop(16)(image)
        assert torch.equal(crop, expected.flip(-1) if mirrored[n] else expected)
