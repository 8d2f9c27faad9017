"""What is recorded: how many weights survive, which rows are one run, and that none changes."""

from pathlib import Path

import pandas as pd
import pytest
import reference

CHECKOUT = Path(__file__).parents[1]
FILES = reference.committed("csv")
NUMBERS = ["surviving", "error_before", "error", "train_error", "distortion", "empty_layers"]
# Its one-shot rows were computed a second time, on another machine, from other dense networks
SECOND_RUN = "fcn_iterative"


@pytest.fixture(scope="module")
def rows():
    """All committed rows; `machine` tells apart what may differ in the last digits."""
    found = pd.concat([pd.read_csv(path) for path in FILES], ignore_index=True)
    machines = (
        found[["device", *({"torch", "processor"} & {*found})]].fillna("").agg(" ".join, axis=1)
    )
    return found.assign(machine=machines + (found.table == SECOND_RUN).map(str))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_surviving_is_what_each_layer_keeps_of_its_weights(path):
    reference.assert_surviving(pd.read_csv(path))


def test_equal_runs_have_equal_numbers_in_all_tables(rows):
    run = ["source", "settings", "method", "round", "seed", "machine"]
    different = rows.groupby(run)[NUMBERS].nunique(dropna=False).gt(1)
    assert not different.any(axis=None), different[different.any(axis=1)]


def test_a_seed_has_one_dense_network_in_all_tables(rows):
    network = ["source", "network", "width", "activation", "dense_steps", "seed", "machine"]
    errors = rows.groupby(network).dense_error.unique()
    assert (errors.map(len) == 1).all(), errors[errors.map(len) > 1]


def test_no_committed_row_changes_unnoticed():
    """Renewed by `sha256sum figures/paper/*.csv figures/reduced/*.csv > figures/rows.sha256`."""
    lines = (CHECKOUT / "figures" / "rows.sha256").read_text().splitlines()
    pinned = {name: digest for digest, name in map(str.split, lines)}
    found = {f"{path.relative_to(CHECKOUT)}": reference.digest(path) for path in FILES}
    assert found == pinned
