"""Tables: the paper's protocol and surviving fractions; parameters as papermill hands them over."""

import pandas as pd
import pytest
import reference
import torch

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


# "What is pruned" of the paper: surviving weights (%) round by round
SURVIVING = {
    "fcn_mnist": "6.36 3.21 1.63 0.84 0.43 0.23 0.12",
    "conv6_cifar10": "10.62 8.86 7.39 6.18 5.17 4.32 3.62",
    "vgg19_cifar10": "12.09 8.74 6.31 4.56 3.30 2.38 1.72 1.24",
    "resnet18_cifar10": "10.30 6.33 3.89 2.40 1.48 0.92 0.57 0.36",
    "vgg19_tiny_imagenet": "12.16 10.34 8.80 7.48 6.36 5.41 4.61 3.92",
    "resnet50_tiny_imagenet": "6.52 4.74 3.45 2.51 1.83 1.34 0.98 0.72",
    "wrn16_8_tiny_imagenet": "12.22 8.85 6.41 4.65 3.37 2.45 1.78 1.29",
}


@pytest.mark.parametrize("name", SURVIVING)
def test_surviving_percentages_are_the_published_ones(name):
    assert reference.fractions(table(name, "paper")) == SURVIVING[name].split()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("seeds", "3", (0, 1, 2)),
        ("seeds", "[100, 101]", (100, 101)),
        ("seeds", None, (0, 1, 2)),
        ("rounds", "8 4", (4, 8)),
        ("methods", "mp,lap", ("mp", "lap")),
        ("methods", '["lap", "mp"]', ("lap", "mp")),
        ("lr", "1e-3", 1e-3),
        ("dense_steps", "30", 30),
        ("device", "auto", "cuda" if torch.cuda.is_available() else "cpu"),
        ("scale", "'smoke'", "smoke"),
    ],
)
def test_parameters_as_papermill_hands_them_over(name, text, expected):
    assert getattr(table("fcn_mnist", **{name: text}), name) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seeds", "two", "seeds must be a valid integer; got 'two'"),
        ("seeds", 0, "seeds must be a number of seeds from 1 to 10000, or a list"),
        ("rounds", [0], "rounds must be greater than or equal to 1; got 0"),
        ("rounds", [], r"rounds must have at least 1 item .*; got \(\)"),
        ("rounds", [3, 3], r"rounds must not repeat an entry; got \[3, 3\]"),
        ("methods", "magnitude", "methods must be 'mp', 'rp', .*; got 'magnitude'"),
        ("lr", "nan", "lr must be .*; got"),
        ("dense_steps", 1e400, "dense_steps must be .*; got inf"),
        ("precision", "int8", "precision must be 'float32' or 'bfloat16'; got 'int8'"),
        ("dataset", "imagenet", "dataset must be 'mnist5k', .*; got 'imagenet'"),
        ("step", 3, "setting must be .methods., .*; got 'step'"),
        ("name", "fcn", "table must be .fcn_mnist., .*; got 'fcn'"),
        ("scale", "huge", "scale must be 'smoke', 'quick', 'reduced' or 'paper'; got 'huge'"),
    ],
)
def test_what_makes_no_sense_is_named(name, value, words):
    with pytest.raises(ValueError, match=words) as error:
        table(**{"name": "fcn_mnist", name: value})
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
