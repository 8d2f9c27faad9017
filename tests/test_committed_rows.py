"""What is recorded: how many weights survive, which rows are one run, and that none changes."""

import os
from pathlib import Path

import pandas as pd
import pytest
import reference

import lapnb

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


def test_comparison_verdict_and_picture_are_arithmetic_on_rows(monkeypatch):
    """Real ones: skewed, of several rounds, and with another dense network for each seed."""
    monkeypatch.setenv("LAPNB_ROOT", str(CHECKOUT))
    rows = lapnb.recorded("fcn_generalization", "paper")
    mean = rows.groupby(["method", "round"]).error.mean()
    gain = lapnb.compare(rows).set_index(["method", "round"]).gain_over_mp
    assert gain["lap"].to_dict() == pytest.approx((100 * (mean["lap"] / mean["mp"] - 1)).to_dict())

    gap = (rows.error - rows.train_error).groupby(rows.method).mean()
    verdict = lapnb.verdicts(rows).set_index("claim").filter(like="gap", axis=0).iloc[0]
    assert verdict.difference == pytest.approx(gap["lap"] - gap["mp"])

    dense = rows.drop_duplicates("seed").dense_error.mean()
    lines = lapnb.plot(rows).axes[0].lines
    assert any(line.get_ydata() == pytest.approx([dense, dense]) for line in lines)


def test_two_transcriptions_of_the_paper_agree():
    beside = CHECKOUT.parent / "shared" / "paper" / "reported.csv"
    other = Path(os.environ.get("LAPNB_TRANSCRIPTION", beside))
    if not other.exists():
        pytest.skip("LAPNB_TRANSCRIPTION names no second transcription")
    run = ["table", "method", "round"]
    ours = pd.read_csv(CHECKOUT / "lapnb" / "paper" / "published.csv").set_index(run)
    theirs = pd.read_csv(other).set_index(run)
    pd.testing.assert_frame_equal(ours.sort_index(), theirs[[*ours]].sort_index())
