"""What makes no sense is refused at once, in one sentence of one form: NAME must be …; got …"""

import copy
import math

import numpy as np
import pytest
import torch

from lapnb import Data, build_model, evaluate, load_data, train

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), "u1"))
LABELS = torch.arange(12) % 4
OWN = dict(train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)
CHANNELS_LAST = IMAGES.permute(0, 2, 3, 1)
DATA = Data.from_tensors(**OWN)
MODEL = build_model("fcn", width=0.05, image_size=16, channels=3, seed=0)


class Detached(torch.nn.Linear):
    """Its logits do not depend on its parameters."""

    def __init__(self):
        super().__init__(3, 4)

    def forward(self, x):
        return super().forward(x.mean((2, 3))).detach()


BOTH = {"model": ("fcn", None), "data": ("mnist", [(IMAGES[0], 0)], IMAGES)}
SEEDS = (-1, "x", True, 0.0)
FCN = {"width": (0, -1.0, math.nan, "1"), "activation": ("gelu", None), "stride": (2, 0)}
FCN |= {"num_classes": (10.0, 0, True), "seed": SEEDS, "name": ("vgg12", None, ["fcn"])}
VGG = {"activation": ("tanh",), "image_size": (0, 31), "channels": (0, 3.0)}
LOAD = {"name": ("imagenet", "", None, 3, ["mnist"]), "image_size": (0, -1, 28.0, "28", True)}
LOAD |= {"channels": (0, 2, 4, "3", True, 3.0)}
BATCHES = {"count": (0, 1.5, None), "size": (0, 13, "5"), "seed": SEEDS}
TENSORS = {
    "train_images": (
        *(IMAGES.float(), IMAGES / 255 - 0.5, (IMAGES / 255).where(IMAGES > 9, torch.nan)),
        *(IMAGES.int(), IMAGES[0, 0], IMAGES[:0], IMAGES[:, :, :8], IMAGES.to("meta"), "x", None),
        *(IMAGES.numpy()[::-1], (IMAGES / 255).to(torch.float8_e5m2)),
    ),
    "train_labels": (LABELS[:9], LABELS.float(), LABELS - 1, ["cat"] * 12),
    "test_labels": (LABELS[:, None],),
    "augmentation": ("flip", ["flip"]),
    "classes": (12.5, "4", 0),
    "mean": ("x", 0.5, (0.5,), [0.5] * 3),
    "std": ((0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (math.nan,) * 3),
}
TRAIN = {"steps": (-1, 1.5, None, True), "lr": (0, -1.0, math.nan, math.inf, "0.1"), "seed": SEEDS}
TRAIN |= {"batch_size": ("2", 0, 13), "masks": ("lap", 5), "precision": ("int8", None)}
TRAIN |= {"checkpoint": (".", 5, __file__), "stage": (3, None), "progress": (5, "x")} | BOTH
TRAIN["model"] += (torch.nn.ReLU(), copy.deepcopy(MODEL).requires_grad_(False), Detached())
REFUSED = [
    (build_model, {"name": "fcn"}, FCN),
    (build_model, {"name": "vgg11"}, VGG),
    (build_model, {"name": "vgg11", "stride": 2}, {"image_size": (62,)}),
    (load_data, {"name": "mnist5k"}, LOAD),
    (load_data, {"name": "cifar10"}, {"channels": (1,)}),  # grey of colour images
    (DATA.batches, {"count": 3, "size": 5}, BATCHES),
    (Data.from_tensors, OWN, TENSORS),
    (Data.from_tensors, OWN | {"classes": 3}, {"train_labels": (LABELS,)}),
    (Data.from_tensors, OWN | {"test_images": CHANNELS_LAST}, {"train_images": (CHANNELS_LAST,)}),
    (train, {"model": MODEL, "data": DATA, "steps": 5, "batch_size": 5}, TRAIN),
    (evaluate, {"model": MODEL, "data": DATA}, BOTH | {"split": ("val", None)}),
]
CASES = [(use, good, name, bad[name]) for use, good, bad in REFUSED for name in bad]


@pytest.mark.parametrize(
    "use, good, name, values", CASES, ids=[f"{use.__name__}-{name}" for use, _, name, _ in CASES]
)
def test_what_makes_no_sense_is_refused_in_one_form(tmp_path, use, good, name, values):
    before = copy.deepcopy(MODEL.state_dict())
    if use is train:
        good = good | {"checkpoint": tmp_path / "a" / "b"}
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be [^\n]*; got [^\n]*$"):
            use(**good | {name: value})
    assert all(
        torch.equal(a, b) for a, b in zip(MODEL.state_dict().values(), before.values(), strict=True)
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "dataset",
    [
        *(3, [], {"a": 1}, [IMAGES[0]], [(IMAGES[0], 0), (IMAGES[0, :, :8], 0)]),
        *([(IMAGES[0], label)] for label in ("cat", 0.5, -0.5, torch.tensor(1.0))),
    ],
)
def test_own_datasets_that_do_not_fit(dataset):
    with pytest.raises(ValueError, match=r"^test must hold pairs"):
        Data.from_datasets([(IMAGES[0], 0)], dataset)


def odd(weight):
    model = build_model("fcn", width=0.05, image_size=16, channels=3)
    model.layers[2].weight = torch.nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return model


WEIGHTS = [
    torch.ones(1, 1).expand(25, 25),  # which Adam would write beyond
    torch.ones(25, 25, device="meta"),
    torch.ones(25, 25).to_sparse(),
    torch.ones(25, 25, dtype=torch.cfloat),
    torch.ones(25, 25, dtype=torch.float8_e5m2),
]


@pytest.mark.parametrize("weight", [*WEIGHTS, torch.ones(25, 25).half()])
def test_a_parameter_that_cannot_be_trained_is_named(weight):
    with pytest.raises(ValueError, match=r"^layers\.2\.weight must be "):
        train(odd(weight), DATA, 5, batch_size=5)
    if any(weight is other for other in WEIGHTS):
        with pytest.raises(ValueError, match=r"^layers\.2\.weight must be a plain, initialised"):
            evaluate(odd(weight), DATA)


def test_a_model_made_in_inference_mode_cannot_be_trained():
    with torch.inference_mode():
        model = build_model("fcn", width=0.05, image_size=16, channels=3)
    with pytest.raises(ValueError, match=r"^layers\.0\.weight must be made outside inference"):
        train(model, DATA, 5, batch_size=5)


@pytest.mark.parametrize(
    "model", [build_model("fcn", width=0.05), build_model("fcn", 0.05, num_classes=3, channels=3)]
)
def test_a_model_that_does_not_fit_the_data(model):
    data = DATA if model.layers[0].in_features == 784 else load_data("mnist5k", 28, 3)
    for use in (lambda: train(model, data, 5, batch_size=5), lambda: evaluate(model, data)):
        with pytest.raises(ValueError, match=r"^model cannot compute the loss of data, images of"):
            use()
