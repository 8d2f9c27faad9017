"""What is timed, how often, and what is written; not how long it takes."""

import math

import pandas as pd
import pytest

from lapnb.report.cost import GLOBAL, LIBRARY, cost, plot


def test_one_row_for_each_way_to_compute_masks(lapnb_root):
    networks = "fcn, resnet18"  # as from papermill
    rows = cost(networks=networks, scale="smoke", device="cpu", repeats="3")
    cheap = ["mp", LIBRARY, "lap", GLOBAL]
    assert list(rows[rows.network == "fcn"].method) == [*cheap, "obd", "lap_act"]
    assert list(rows[rows.network == "resnet18"].method) == [*cheap, "lap_act"]  # no BackPACK
    by_data = rows.method.isin(["obd", "lap_act"])
    assert (rows[~by_data].n == 3).all() and not rows[~by_data].batches.any()
    assert (rows[by_data].n == 1).all() and (rows[by_data].batches == 1).all()
    assert rows[by_data].batch_size.tolist() == [60, 30, 30]  # the paper's
    assert (rows["min"] > 0).all() and rows.seconds.between(rows["min"], rows["max"]).all()
    path = lapnb_root / "figures" / "smoke" / "pruning_cost.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), rows)

    figure = plot(rows)
    (axis,) = figure.axes
    bars = [bar for bars in axis.containers for bar in bars]
    assert all(math.isfinite(bar.get_window_extent().height) for bar in bars)  # else none is seen
    heights = [bar.get_height() for bar in bars]
    assert sorted(h for h in heights if h > 0) == pytest.approx(sorted(rows.seconds))
    assert axis.get_yscale() == "log" and "smoke scale" in figure.get_label()
    assert not path.with_suffix(".png").exists()
    plot(rows, save=True)
    assert path.with_suffix(".png").stat().st_size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(networks=["vgg20"]), "networks must be 'fcn', .*'vgg20'"),
        (dict(methods=["lapp"]), "methods must be .*'lapp'"),
        (dict(scale="full"), "scale must be .*'full'"),
        (dict(device="gpu"), "device must be .*'gpu'"),
        (dict(repeats=0), "repeats must be greater than or equal to 1; got 0"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        cost(**settings)
