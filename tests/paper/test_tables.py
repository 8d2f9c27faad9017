"""Tables: the paper's surviving fractions, and parameters as papermill hands them over."""

import pytest
import torch

import lapnb
from lapnb.paper.tables import SCALES, TABLES, table
from lapnb.report.compare import paper


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_table_has_every_scale(name, scale):
    declared = table(name, scale)
    assert declared.scale == scale
    assert declared.changed == ""
    assert declared.methods and declared.rounds and declared.seeds > 0


def test_the_paper_scale_is_the_published_protocol():
    fcn = table("fcn_mnist", "paper")
    assert (fcn.dataset, fcn.dense_steps, fcn.retrain_steps) == ("mnist", 50_000, 50_000)
    assert (fcn.lr, fcn.batch_size, fcn.seeds, fcn.width) == (1.2e-3, 60, 5, 1)


@pytest.mark.parametrize("name", sorted(set(paper().table)))
def test_published_rows_name_runs_of_the_table(name):
    declared, rows = table(name, "paper"), paper()[paper().table == name]
    assert set(rows.method) <= set(declared.methods)
    assert set(rows["round"]) <= set(declared.rounds)


# "What is pruned" of the paper: surviving weights (%) round by round, and prunable weights
SURVIVING = {
    "fcn_mnist": (1_147_000, "6.36 3.21 1.63 0.84 0.43 0.23 0.12"),
    "conv6_cifar10": (2_261_184, "10.62 8.86 7.39 6.18 5.17 4.32 3.62"),
    "vgg19_cifar10": (20_024_000, "12.09 8.74 6.31 4.56 3.30 2.38 1.72 1.24"),
    "resnet18_cifar10": (10_992_320, "10.30 6.33 3.89 2.40 1.48 0.92 0.57 0.36"),
    "vgg19_tiny_imagenet": (20_121_280, "12.16 10.34 8.80 7.48 6.36 5.41 4.61 3.92"),
    "resnet50_tiny_imagenet": (21_087_936, "6.52 4.74 3.45 2.51 1.83 1.34 0.98 0.72"),
    "wrn16_8_tiny_imagenet": (10_885_552, "12.22 8.85 6.41 4.65 3.37 2.45 1.78 1.29"),
}


@pytest.mark.parametrize("name", SURVIVING)
def test_surviving_percentages_are_the_published_ones(name):
    declared = table(name, "paper")
    model = lapnb.build_model(
        declared.network,
        num_classes=200 if "tiny" in name else 10,
        image_size=declared.image_size,
        channels=declared.channels,
        stride=declared.stride,
        seed=0,
    )
    sizes = [layer.weight.numel() for layer in lapnb.prunable_layers(model)]
    weights, published = SURVIVING[name]
    assert sum(sizes) == weights
    found = [
        sum(round(keep * n) for keep, n in zip(declared.keep(t), sizes, strict=True))
        for t in declared.rounds
    ]
    assert " ".join(f"{100 * kept / weights:.2f}" for kept in found) == published


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dict(seeds="3"), ("seeds", 3)),
        (dict(rounds="[4, 6]"), ("rounds", (4, 6))),
        (dict(rounds=7), ("rounds", (7,))),
        (dict(rounds="8 4"), ("rounds", (4, 8))),
        (dict(methods="mp,lap"), ("methods", ("mp", "lap"))),
        (dict(methods='["lap", "mp"]'), ("methods", ("lap", "mp"))),
        (dict(methods="lap"), ("methods", ("lap",))),
        (dict(lr="1e-3"), ("lr", 1e-3)),
        (dict(dense_steps="30"), ("dense_steps", 30)),
        (dict(device="auto"), ("device", "cuda" if torch.cuda.is_available() else "cpu")),
        (dict(methods=None, seeds=None), ("seeds", 3)),
    ],
)
def test_parameters_are_coerced(change, expected):
    name, value = expected
    assert getattr(lapnb.table("fcn_mnist", **change), name) == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(name="fcn"), "table must be one of fcn_mnist"),
        (dict(scale="full"), "scale must be one of smoke, quick, reduced, paper; got 'full'"),
        (dict(methods=["map"]), "methods must be one of mp, rp"),
        (dict(methods=[]), "methods must not be empty"),
        (dict(methods="[]"), "methods must not be empty"),
        (dict(methods=""), "methods must not be empty"),
        (dict(methods=["mp", "mp"]), "methods must not repeat"),
        (dict(rounds=[0]), "rounds must be a whole number of at least 1; got 0"),
        (dict(rounds="[0, 1]"), "rounds must be a whole number"),
        (dict(rounds=[4.5]), "rounds must be a whole number"),
        (dict(rounds="true"), "rounds must be a whole number"),
        (dict(rounds=[True]), "rounds must be a whole number"),
        (dict(seeds=0), "seeds must be a whole number of at least 1; got 0"),
        (dict(seeds=-2), "seeds must be"),
        (dict(seeds="[0, 1]"), "seeds must be"),
        (dict(seeds="true"), "seeds must be"),
        (dict(seeds=1.5), "seeds must be"),
        (dict(dataset="imagenet"), "dataset must be one of mnist5k"),
        (dict(device="tpu"), "device must be one of auto, cpu, cuda"),
        (dict(device=0), "device must be"),
        (dict(lr="fast"), "lr must be a number above 0"),
        (dict(lr=0), "lr must be"),
        (dict(lr=float("nan")), "lr must be"),
        (dict(dense_steps="1e3"), "dense_steps must be a whole number"),
        (dict(step=3), "setting must be one of methods"),
    ],
)
def test_bad_parameters(change, words):
    with pytest.raises(ValueError, match=words):
        lapnb.table(**{"name": "fcn_mnist", **change})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(ValueError, match="no usable CUDA GPU"):
        lapnb.table("fcn_mnist", device="cuda")


def test_settings_tell_runs_apart():
    quick = lapnb.table("fcn_mnist")
    changed = lapnb.table("fcn_mnist", retrain_steps=7)
    assert changed.changed == "retrain_steps = 7"
    assert quick.settings("mp", 4) != changed.settings("mp", 4)
    assert quick.settings("mp", 4) == lapnb.table("fcn_mnist", seeds=1).settings("mp", 4)
    iterative = lapnb.table("fcn_mnist", schedule="iterative", rounds=[4, 5, 6])
    skipping = lapnb.table("fcn_mnist", schedule="iterative", rounds=[4, 6])
    assert iterative.settings("mp", 4) == skipping.settings("mp", 4)
    assert iterative.settings("mp", 6) != skipping.settings("mp", 6)
