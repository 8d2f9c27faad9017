"""The protocol from outside: each row against a plain loop, and every method treated alike."""

import copy
import inspect
import itertools

import pytest
import reference
import torch

import lapnb
from lapnb.pruning.scores import METHODS
from lapnb.runs import compute
from lapnb.training.datasets import DATASETS

SEED = 1
ALWAYS_LAYERWISE = {"wanda", "lap_forward", "lap_backward"}
WITH_BATCH_NORM = ("mp", "lap", "lap_flow", "lap_act", "ria_act", "synflow")


def small_table(network, scope, schedule):
    """Rounds at which networks still learn, and are so dense that none is trained in a stack."""
    settings = dict(scope=scope, schedule=schedule, rounds=[1, 2], seeds=[SEED], device="cpu")
    if network == "vgg11":
        settings |= dict(lr=3e-3, batch_size=20, dense_steps=60, retrain_steps=20)
        table = lapnb.table("vgg11_cifar10", "smoke", **settings)
        methods, variants = WITH_BATCH_NORM, ({},)
    else:
        table = lapnb.table("fcn_mnist", "smoke", **settings)
        methods = [name for name in METHODS if scope == "layer" or name not in ALWAYS_LAYERWISE]
        others = tuple(name for name in methods if name != "lap_all")
        variants = (
            {"activation": "relu", "methods": others},
            {"activation": "none", "methods": ("lap_all",)},  # which takes linear networks alone
        )
    changes = {"rates": (0.3,) * len(table.rates), "methods": methods, "variants": variants}
    return table.model_copy(update=changes)


TABLES = {
    " ".join(words): small_table(*words)
    for words in [
        *itertools.product(["fcn"], ["layer", "global"], ["oneshot", "iterative"]),
        ("vgg11", "layer", "iterative"),
        ("vgg11", "global", "oneshot"),
    ]
}
one_process_each = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in TABLES]


def run_watched(table, folder):
    """The rows of a table, and every call of `prune_masks` and `train` that made them."""
    calls = {"prune_masks": [], "train": []}

    def watch(patch, name):
        function = getattr(compute, name)

        def watched(*positional, **named):
            arguments = inspect.signature(function).bind(*positional, **named)
            arguments.apply_defaults()
            call = dict(arguments.arguments)
            call["before"] = reference.bits(call["model"])
            call["result"] = function(*positional, **named)
            call["after"] = reference.bits(call["model"])
            calls[name].append(call)
            return call["result"]

        patch.setattr(compute, name, watched)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPNB_ROOT", str(folder))
        watch(patch, "prune_masks")
        watch(patch, "train")
        return lapnb.run(table, workers=1), calls["prune_masks"], calls["train"]


@pytest.fixture(scope="module", params=one_process_each)
def made(request, tmp_path_factory):
    """A small table, its rows, and the calls that made them."""
    table = TABLES[request.param]
    return table, *run_watched(table, tmp_path_factory.mktemp("as_it_is"))


def test_a_row_is_what_a_literal_loop_finds(made):
    """Dense → scores → masks → retraining → row, each network to the bit."""
    table, rows, _, trained = made
    data = lapnb.load_data("mnist5k", table.image_size, table.channels)
    retrained = {call["after"] for call in trained if call["stage"] == "retrain"}
    for plain in table.plain():
        dense = reference.train_dense(plain, data, SEED)
        for method in plain.methods:
            model = copy.deepcopy(dense)
            for t in plain.rounds:
                if plain.schedule == "oneshot":
                    model = copy.deepcopy(dense)
                row = reference.prune_and_retrain(model, plain, method, t, data, SEED)
                of_run = (rows.activation == plain.activation) & (rows.method == method)
                found = rows[of_run & (rows["round"] == t)].iloc[0]
                assert found[[*row]].to_dict() == pytest.approx(row, abs=1e-4)
                assert found.dense_error == pytest.approx(reference.error(dense, data, "test"))
                assert reference.bits(model) in retrained, (method, t)
                assert row["error"] < 60, "of 90 % by chance: this network learns nothing"
