"""Tables: the paper's surviving fractions, and parameters as papermill hands them over."""

import pytest
import torch

import lapnb
from lapnb.report import paper
from lapnb.tables import SCALES, TABLES, table


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
    iterative = lapnb.table("fcn_mnist", schedule="iterative")
    skipping = lapnb.table("fcn_mnist", schedule="iterative", rounds=[4, 6])
    assert iterative.settings("mp", 4) == skipping.settings("mp", 4)
    assert iterative.settings("mp", 6) != skipping.settings("mp", 6)
