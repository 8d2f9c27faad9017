"""Tables: the paper's protocol and surviving fractions; parameters as papermill hands them over."""

import pandas as pd
import pytest
import torch

import lapnb
from lapnb.paper.protocol import SCALES
from lapnb.paper.tables import ADVANTAGE_GROWS, LAP_BEATS_MP, TABLES, table
from lapnb.report.compare import published


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", SCALES)
def test_every_table_has_every_scale(name, scale):
    declared = table(name, scale)
    assert (declared.scale, declared.changed) == (scale, "")
    runs = [*declared.runs()]
    assert runs and len({*runs}) == len(runs)


def test_the_paper_scale_is_the_published_protocol():
    fcn = table("fcn_mnist", "paper")
    assert (fcn.dataset, fcn.dense_steps, fcn.retrain_steps) == ("mnist", 50_000, 50_000)
    assert (fcn.lr, fcn.batch_size, len(fcn.seeds), fcn.width) == (1.2e-3, 60, 5, 1)
    vgg = table("vgg19_cifar10", "paper")
    assert (vgg.lr, vgg.dense_steps, vgg.retrain_steps) == (3e-4, 60_000, 40_000)
    assert vgg.seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("network", ["fcn", "conv6"])
def test_later_criteria_see_the_images_that_lap_act_sees(network, scale):
    later, earlier = (f"{network}_{what}" for what in ("later_criteria", "data_dependent"))
    assert table(later, scale).looks["inputs"] == table(earlier, scale).looks["activity"]


@pytest.mark.parametrize("name", sorted(set(published().table)))
def test_published_rows_name_runs_of_the_table(name):
    declared, rows = table(name, "paper"), published()[published().table == name]
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
    with torch.device("meta"):
        model = lapnb.build_model(
            declared.network,
            num_classes=200 if "tiny" in name else 10,
            image_size=declared.image_size,
            channels=declared.channels,
            stride=declared.stride,
        )
    sizes = [layer.weight.numel() for layer in lapnb.prunable_layers(model)]
    weights, percentages = SURVIVING[name]
    assert sum(sizes) == weights
    found = [
        sum(round(keep * n) for keep, n in zip(declared.keep(t), sizes, strict=True))
        for t in declared.rounds
    ]
    assert " ".join(f"{100 * kept / weights:.2f}" for kept in found) == percentages


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dict(seeds="3"), ("seeds", (0, 1, 2))),
        (dict(seeds="[100, 101]"), ("seeds", (100, 101))),
        (dict(rounds="[4, 6]"), ("rounds", (4, 6))),
        (dict(rounds="8 4"), ("rounds", (4, 8))),
        (dict(methods="mp,lap"), ("methods", ("mp", "lap"))),
        (dict(methods='["lap", "mp"]'), ("methods", ("lap", "mp"))),
        (dict(lr="1e-3"), ("lr", 1e-3)),
        (dict(dense_steps="30"), ("dense_steps", 30)),
        (dict(device="auto"), ("device", "cuda" if torch.cuda.is_available() else "cpu")),
        (dict(methods=None, seeds=None), ("seeds", (0, 1, 2))),
        (dict(scale="'smoke'"), ("scale", "smoke")),
    ],
)
def test_parameters_as_papermill_hands_them_over(change, expected):
    assert getattr(table("fcn_mnist", **change), expected[0]) == expected[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(seeds="two"), "seeds must be a valid integer; got 'two'"),
        (dict(seeds=0), "seeds must be a number of seeds from 1 to 10000, or a list"),
        (dict(rounds=[0]), "rounds must be greater than or equal to 1; got 0"),
        (dict(rounds=[]), r"rounds must have at least 1 item .*; got \(\)"),
        (dict(rounds=[3, 3]), r"rounds must not repeat an entry; got \[3, 3\]"),
        (dict(methods="magnitude"), "methods must be 'mp', 'rp', .*; got 'magnitude'"),
        (dict(lr="nan"), "lr must be .*; got"),
        (dict(dense_steps=1e400), "dense_steps must be .*; got inf"),
        (dict(precision="int8"), "precision must be 'float32' or 'bfloat16'; got 'int8'"),
        (dict(dataset="imagenet"), "dataset must be 'mnist5k', .*; got 'imagenet'"),
        (dict(step=3), "setting must be .methods., .*; got 'step'"),
        (dict(name="fcn"), "table must be .fcn_mnist., .*; got 'fcn'"),
        (dict(scale="huge"), "scale must be 'smoke', 'quick', 'reduced' or 'paper'; got 'huge'"),
    ],
)
def test_what_makes_no_sense_is_named(change, words):
    with pytest.raises(ValueError, match=words) as error:
        table(**{"name": "fcn_mnist"} | change)
    assert "\n" not in str(error.value)


def test_changes_are_told_but_for_what_does_not_change_a_row():
    assert table("fcn_mnist", seeds=1, rounds=[4], device="cpu", precision="bfloat16").changed == ""
    assert table("fcn_mnist", lr=1.2e-3, width=0.4).changed == ""
    assert table("fcn_mnist", lr=1e-3, width=0.5).changed == "lr = 0.001, width = 0.5"
    [variant] = table("fcn_activations", activation="tanh").split()
    assert variant.activation == "tanh"


def test_variants_have_the_methods_that_were_chosen():
    declared = table("fcn_later_criteria", methods=["lap", "lamp"])
    assert [(p.scope, p.methods) for p in declared.split()] == [
        ("layer", ("lap",)),
        ("global", ("lap", "lamp")),
    ]


def test_the_endpoint_of_the_pilot_moves_that_claim_alone():
    vgg16 = table("vgg16_cifar10", "reduced")
    assert vgg16.rounds_of(LAP_BEATS_MP) == (13, 15)
    assert vgg16.rounds_of(ADVANTAGE_GROWS) == (13, 21, 25, 27)
    assert table("vgg16_cifar10", "paper").rounds_of(LAP_BEATS_MP) == (25, 27)


def test_committed_rows_belong_to_their_tables(checkout):
    """An incidental change of the settings' hash would orphan them all."""
    for path in checkout.glob("figures/*/*.csv"):
        if path.stem in TABLES and path.parent.name in ("paper", "reduced"):
            runs = table(path.stem, path.parent.name).runs()
            expected = {(settings, method) for settings, method, _, _ in runs}
            rows = pd.read_csv(path)
            assert {*zip(rows.settings, rows.method, strict=True)} <= expected, path
