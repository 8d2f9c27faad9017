"""The protocol from outside: each row against a plain loop, and every method treated alike."""

import copy
import dataclasses
import functools
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
LAYER_BY_LAYER = {"wanda", "lap_forward", "lap_backward"}  # which have no global scope
WITH_BATCH_NORM = ("mp", "lap", "lap_flow", "lap_act", "ria_act")
DIGITS = DATASETS["mnist5k"]


def small_table(network, scope, schedule):
    """A table at rounds where networks still learn."""
    settings = dict(scope=scope, schedule=schedule, seeds=[SEED], device="cpu")
    settings["rounds"] = [1, 2] if schedule == "iterative" else [2]
    if network == "stack":  # of networks that are as sparse as in the paper
        return lapnb.table("fcn_mnist", "smoke", width=0.2, methods=["mp", "lap"], **settings)
    if network == "vgg11":
        settings |= dict(lr=3e-3, batch_size=20, dense_steps=50, retrain_steps=20)
        table = lapnb.table("vgg11_cifar10", "smoke", **settings)
        methods, variants = WITH_BATCH_NORM, ({},)
    else:
        table = lapnb.table("fcn_mnist", "smoke", **settings)
        methods = [name for name in METHODS if scope == "layer" or name not in LAYER_BY_LAYER]
        others = tuple(name for name in methods if name != "lap_all")
        variants = (
            {"activation": "relu", "methods": others},
            {"activation": "none", "methods": ("lap_all",)},  # which takes linear networks alone
        )
    changes = {"rates": (0.3,) * len(table.rates), "methods": methods, "variants": variants}
    return table.model_copy(update=changes)


WORDS = [
    *itertools.product(["fcn"], ["layer", "global"], ["oneshot", "iterative"]),
    ("vgg11", "layer", "iterative"),
    ("vgg11", "global", "oneshot"),
    ("stack", "layer", "iterative"),
    ("stack", "global", "oneshot"),
]
TABLES = {" ".join(words): small_table(*words) for words in WORDS}


def on_one_worker(names):
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]


def fewer_digits(folder, noise=False):
    """A third of the bundled digits; with `noise`, the test split is noise with other labels."""
    tensors, note = DIGITS.read(folder)
    data = {name: tensor[::3] for name, tensor in tensors.items()}
    if noise:
        chance = torch.Generator().manual_seed(0)
        data["test_images"] = torch.randint_like(data["test_images"], 256, generator=chance)
        data["test_labels"] = data["test_labels"].roll(1)
    return data, note


def run_watched(table, folder, noise=False):
    """The rows of a table, and every call of `prune_masks` and of `train` that made them."""
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
        reader = functools.partial(fewer_digits, noise=noise)
        patch.setitem(DATASETS, "mnist5k", dataclasses.replace(DIGITS, read=reader))
        watch(patch, "prune_masks")
        watch(patch, "train")
        data = lapnb.load_data("mnist5k", table.image_size, table.channels)
        return data, lapnb.run(table, workers=1), calls["prune_masks"], calls["train"]


@pytest.fixture(scope="module", params=on_one_worker(TABLES))
def made(request, tmp_path_factory):
    """A small table, its data and rows, and the calls that made them."""
    table = TABLES[request.param]
    return table, *run_watched(table, tmp_path_factory.mktemp("made"))


def test_a_row_is_what_a_literal_loop_finds(made):
    """Dense → scores → masks → retraining → row, to the bit but for networks in a stack."""
    table, data, rows, _, trained = made
    stacked = table.rates[0] == 0.5  # adds up in another order
    near = 0.7 if stacked else 1e-4
    networks = {call["after"] for call in trained}
    for variant in table.split():
        dense = reference.train_dense(variant, data, SEED)
        for method in variant.methods:
            model = copy.deepcopy(dense)
            for t in variant.rounds:
                expected = reference.prune_and_retrain(model, dense, variant, method, t, data, SEED)
                expected["dense_error"] = reference.error(dense, data, "test")
                row = rows[(rows.method == method) & (rows["round"] == t)].iloc[0]
                assert row.surviving == expected.pop("surviving")
                assert row[[*expected]].to_dict() == pytest.approx(expected, abs=near)
                assert stacked or reference.bits(model) in networks
                assert expected["error"] < 60, "chance is 90 %: it learns nothing"


def test_all_methods_are_treated_alike(made):
    """The same dense network, fractions, batches, steps and learning rate for each."""
    table, _, _, pruned, trained = made
    dense = [call for call in trained if call["stage"] == "dense"]
    retrained = [call for call in trained if call["stage"] == "retrain"]
    for calls, steps in ((dense, table.dense_steps), (retrained, table.retrain_steps)):
        settings = set_of(calls, "steps", "lr", "batch_size", "seed", "precision")
        assert settings == {f"{[steps, table.lr, table.batch_size, SEED, 'float32']}"}
    assert set_of(pruned, "scope", "seed") == {f"{[table.scope, SEED]}"}
    assert len(set_of(pruned, "keep")) == len(table.rounds)
    first_round = [call for call in pruned if call["keep"] == pruned[0]["keep"]]
    assert set_of(first_round, "before") == set_of(dense, "after")


def set_of(calls, *names):
    return {f"{[call[name] for name in names]}" for call in calls}


WITH_NOISE = "fcn layer iterative", "fcn global oneshot", "vgg11 layer iterative"


@pytest.mark.parametrize(
    "made", on_one_worker([*WITH_NOISE, "stack global oneshot"]), indirect=True
)
def test_the_test_split_is_looked_at_for_its_error_alone(made, tmp_path):
    """With noise in its place, masks, networks and training errors stay as they are."""
    table, _, rows, pruned, trained = made
    _, other_rows, other_pruned, other_trained = run_watched(table, tmp_path, noise=True)
    for call, other in zip(pruned, other_pruned, strict=True):
        assert reference.same(call["result"], other["result"]), call["method"]
    for call, other in zip(trained, other_trained, strict=True):
        assert call["after"] == other["after"]
    unmoved = ["method", "round", "surviving", "train_error"]
    assert rows[unmoved].equals(other_rows[unmoved])
    assert (rows.error != other_rows.error).mean() > 0.9
