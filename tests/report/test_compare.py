"""The report: exact arithmetic on rows made up for the test."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

import lapnb
from lapnb.paper.tables import table
from lapnb.pruning.scores import METHODS
from lapnb.report.compare import COLOURS, MARKERS, caption, paper

matplotlib.use("Agg")


def rows(errors, scale="paper", **more):
    """Rows of fcn_mnist, round 10: errors per method, one per seed."""
    declared = table("fcn_mnist", scale)
    base = dict(
        table="fcn_mnist", scale=scale, source="MNIST", network="fcn", activation="relu",
        schedule="oneshot", scope="layer", width=1.0, round=10, surviving=0.00122,
        dense_error=1.98, dense_steps=declared.dense_steps, retrain_steps=declared.retrain_steps,
        changed="", error_before=80.0,
    )  # fmt: skip
    return pd.DataFrame(
        [
            base | dict(method=method, seed=seed, error=error) | more
            for method, values in errors.items()
            for seed, error in enumerate(values)
        ]
    )


def test_compare_is_arithmetic():
    found = lapnb.compare(rows({"mp": [60.0, 70.0], "lap": [30.0, 36.0]})).set_index("method")
    assert found.loc["lap", "error"] == 33
    assert found.loc["lap", "std"] == pytest.approx(np.std([30, 36], ddof=1))
    assert found.loc["lap", "n"] == 2
    published = paper().query("table == 'fcn_mnist' and method == 'lap' and round == 10").iloc[0]
    assert found.loc["lap", "paper"] == published.error_pct
    assert found.loc["lap", "difference"] == pytest.approx(33 - published.error_pct)
    assert found.loc["lap", "gain_over_mp"] == pytest.approx(100 * (33 - 65) / 65)
    assert found.loc["lap", "paper_gain"] == pytest.approx(published.relative_to_mp_pct, abs=0.02)


@pytest.mark.parametrize(
    ("lap", "mp", "verdict"),
    [
        ([30, 31, 32], [60, 62, 61], "reproduced"),
        ([60, 62, 61], [30, 31, 32], "not reproduced"),
        ([30, 31], [60, 61], "open"),
        ([30, 80, 50], [60, 50, 55], "open"),
    ],
)
def test_verdicts(lap, mp, verdict):
    found = lapnb.verdicts(rows({"mp": mp, "lap": lap}))
    assert found.verdict.tolist() == [f"{verdict} (paper scale)"]
    assert found.n.tolist() == [len(lap)]


def test_verdicts_are_paired():
    """Large differences between seeds do not hide a small one that every seed shows."""
    mp = [10.0, 50.0, 90.0]
    found = lapnb.verdicts(rows({"mp": mp, "lap": [e - 1 - 0.01 * s for s, e in enumerate(mp)]}))
    assert found.verdict.tolist() == ["reproduced (paper scale)"]


def test_the_plot_shows_the_numbers(lapnb_root):
    results = pd.concat(
        [
            rows({"mp": [60.0, 70.0], "lap": [30.0, 36.0]}),
            rows({"mp": [20.0, 20.0], "lap": [9.0, 9.5]}, round=9, surviving=0.00227),
        ]
    )
    figure = lapnb.plot(results)
    axis = figure.axes[0]
    lines = {tuple(np.round(line.get_ydata(), 6)) for line in axis.lines}
    assert (round(100 - 65.0, 6), 80.0) in {t[::1] for t in lines} | {t[::-1] for t in lines}
    published = paper().query("table == 'fcn_mnist' and method == 'lap' and round in (9, 10)")
    assert tuple(100 - published.error_pct) in lines
    assert axis.xaxis_inverted()
    assert "n = 2 seeds" in caption(results)
    assert (lapnb_root / "figures" / "paper" / "fcn_mnist.png").stat().st_size > 10_000


def test_a_caption_tells_what_was_changed():
    text = caption(rows({"mp": [1.0]}, changed="retrain_steps = 7", width=0.5))
    assert "changed: retrain_steps = 7" in text
    assert "width × 0.5" in text
    assert "50,000 dense + 50,000 retraining steps" in text


def test_a_caption_tells_of_another_learning_rate_than_the_papers():
    one = rows({"mp": [1.0]}).assign(table="resnet50_tiny_imagenet", scale="quick")
    assert "learning rate 0.002" in caption(one)
    assert "learning rate" not in caption(one.assign(scale="paper"))


def test_each_method_has_a_colour_and_a_marker_of_its_own():
    assert COLOURS.keys() == MARKERS.keys() == METHODS.keys()
    assert len(set(COLOURS.values())) == len(set(MARKERS.values())) == len(METHODS)
