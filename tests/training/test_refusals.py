"""What makes no sense is refused in one sentence of one form: NAME must be …; got …"""

import copy
import math

import numpy as np
import pytest
import torch

from lapnb import Data, build_model, load_data, train

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), "u1"))
LABELS = torch.arange(12) % 4
OWN = dict(train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)
CHANNELS_LAST = IMAGES.permute(0, 2, 3, 1)
DATA = Data.from_tensors(**OWN)
MODEL = build_model("fcn", width=0.05, image_size=16, channels=3, seed=0)
NAN = (IMAGES / 255).where(IMAGES > 9, torch.nan)

FCN = {"width": (0, math.nan), "activation": ("gelu",), "stride": (2,), "name": ("vgg12",)}
FCN |= {"num_classes": (10.0, 0, True), "seed": (-1, "x", True)}
VGG = {"activation": ("tanh",), "image_size": (0, 31), "channels": (0, 3.0)}
LOAD = {"name": ("imagenet", None), "image_size": (0, 28.0, "28"), "channels": (0, 2, "3")}
TENSORS = {
    "train_images": (IMAGES.float(), NAN, IMAGES.int(), IMAGES[0, 0], IMAGES[:0], IMAGES[..., :8]),
    "train_labels": (LABELS[:9], LABELS.float(), LABELS - 1),
    "test_labels": (LABELS[:, None],),
    "classes": (12.5, 3),
    "mean": ((0.5,),),
    "std": ([1.0] * 4,),
}
TRAIN = {"steps": (-1, 1.5, None), "lr": (0, math.nan, math.inf, True), "seed": (-1, "x")}
TRAIN |= {"batch_size": (0, 13), "masks": ("lap", 5), "precision": ("int8", None)}
REFUSED = [
    (build_model, {"name": "fcn"}, FCN),
    (build_model, {"name": "vgg11"}, VGG),
    (build_model, {"name": "vgg11", "stride": 2}, {"image_size": (62,)}),
    (load_data, {"name": "mnist5k"}, LOAD),
    (load_data, {"name": "cifar10"}, {"channels": (1,)}),  # grey of colour images
    (DATA.batches, {"count": 3, "size": 5}, {"count": (0,), "size": (0, 13), "seed": (-1,)}),
    (Data.from_tensors, OWN, TENSORS),
    (Data.from_tensors, OWN | {"test_images": CHANNELS_LAST}, {"train_images": (CHANNELS_LAST,)}),
    (train, {"model": MODEL, "data": DATA, "steps": 5, "batch_size": 5}, TRAIN),
]
CASES = [(use, good, name, bad[name]) for use, good, bad in REFUSED for name in bad]


@pytest.mark.parametrize(
    "use, good, name, values", CASES, ids=[f"{use.__name__}-{name}" for use, _, name, _ in CASES]
)
def test_what_makes_no_sense_is_refused_in_one_form(use, good, name, values):
    before = copy.deepcopy(MODEL.state_dict())
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be [^\n]*; got [^\n]*$"):
            use(**good | {name: value})
    torch.testing.assert_close(MODEL.state_dict(), before, rtol=0, atol=0)


def test_unknown_augmentation():
    with pytest.raises(ValueError, match=r"^augmentation must be one of"):
        next(Data.from_tensors(**OWN, augmentation="flip").batches(1, 5))


EXPANDED = torch.ones(1, 1).expand(25, 25)  # Adam would write beyond its memory


@pytest.mark.parametrize("weight", [EXPANDED, torch.ones(25, 25).half()])
def test_a_parameter_that_cannot_be_trained_is_named(weight):
    model = copy.deepcopy(MODEL)
    model.layers[2].weight = torch.nn.Parameter(weight)
    with pytest.raises(ValueError, match=r"^layers\.2\.weight must be real numbers of 32 or 64"):
        train(model, DATA, 5, batch_size=5)
