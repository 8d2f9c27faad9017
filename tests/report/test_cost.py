"""What is timed, how often, and what is written; not how long it takes."""

import pandas as pd
import pytest

import lapnb
from lapnb.report.cost import GLOBAL, KEEP, LIBRARY, _looks, _seconds, cost, plot


@pytest.fixture
def rows():
    return cost(networks=["fcn", "resnet18"], scale="smoke", device="cpu", repeats=3)


def test_one_row_for_each_way_to_compute_masks(rows, lapnb_root):
    cheap = ["mp", LIBRARY, "lap", GLOBAL]
    assert list(rows[rows.network == "fcn"].method) == [*cheap, "obd", "lap_act"]
    assert list(rows[rows.network == "resnet18"].method) == [*cheap, "lap_act"]  # no BackPACK
    by_data = rows.method.isin(["obd", "lap_act"])
    assert (rows[~by_data].n == 3).all() and not rows[~by_data].batches.any()
    assert (rows[by_data].n == 1).all() and (rows[by_data].batches == 1).all()
    assert (rows["min"] > 0).all()
    assert rows.seconds.between(rows["min"], rows["max"]).all()

    written = pd.read_csv(lapnb_root / "figures" / "smoke" / "pruning_cost.csv")
    pd.testing.assert_frame_equal(written, rows)


def test_the_plot_has_a_bar_for_each_row(rows, lapnb_root):
    figure = plot(rows)
    [axis] = figure.axes
    assert axis.get_yscale() == "log"
    heights = [bar.get_height() for bars in axis.containers for bar in bars]
    assert sorted(h for h in heights if h > 0) == pytest.approx(sorted(rows.seconds))
    assert (lapnb_root / "figures" / "smoke" / "pruning_cost.png").stat().st_size


def test_the_paper_scale_looks_at_the_papers_batches():
    assert _looks("fcn", ["obd", "lap_act"], None) == {"obd": (1000, 60), "lap_act": (2000, 30)}
    assert _looks("conv6", ["obd", "lap_act"], None) == {"obd": (2000, 25), "lap_act": (2000, 30)}
    assert _looks("vgg19", ["lap_act", "obd"], 2) == {"lap_act": (2, 30)}


def test_the_library_keeps_the_weights_that_mp_keeps(monkeypatch):
    """Both sides of the comparison do the same work."""
    model = lapnb.build_model("resnet18", width=0.1, seed=0)
    masks = lapnb.prune_masks(model, "mp", KEEP)
    monkeypatch.setattr("copy.deepcopy", lambda model: model)
    _seconds(model, LIBRARY, lapnb.load_data("mnist5k"), (0, 0))
    for layer, mask in zip(lapnb.prunable_layers(model), masks, strict=True):
        assert layer.module.weight_mask.bool().equal(mask)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(networks=["vgg20"]), "networks must be one of fcn, .*'vgg20'"),
        (dict(methods=["lapp"]), "methods must be one of mp, .*'lapp'"),
        (dict(scale="full"), "scale must be one of smoke, .*'full'"),
        (dict(device="gpu"), "device must be one of auto, cpu, cuda; got 'gpu'"),
        (dict(repeats=0), "repeats must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        cost(**settings)
