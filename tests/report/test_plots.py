"""What is drawn are the numbers, on axes that do not mislead; a file only when asked for."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lapnb
from lapnb.pruning.scores import METHODS, Method, mp
from lapnb.report import compare, plots

TOGETHER = [  # in one panel
    "mp rp lfp lbp lap lap_forward lap_backward",
    "mp lap obd obd_lap lap_act",
    "mp lap wanda ria ria_act synflow",
    "mp lap lamp lamp_lap synflow",
]


@pytest.mark.parametrize("methods", TOGETHER)
def test_methods_in_one_panel_look_different(methods):
    names = methods.split()
    for looks in (plots.COLOURS, plots.MARKERS):
        assert len({looks[name] for name in names}) == len(names)


def test_further_methods_need_no_look_of_their_own(made, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method("mine", mp))
    (legend,) = lapnb.plot(made({"mp": [5, 6], "mine": [3, 4]})).legends
    assert "Mine" in texts(legend.get_texts())


@pytest.fixture
def results(made):
    """Three seeds at two surviving fractions; one of LBP is missing; random pruning is far off."""
    errors = {"mp": [60, 61, 80], "rp": [90, 90, 90], "lbp": [50, 53], "lap": [30, 31, 38]}
    rows = pd.concat([made(errors, nth=n) for n in (0, 6)])
    return rows.assign(error=rows.error + rows["round"], dense_error=1.0 + rows.seed**2)


def drawn(axis):
    """By label of a line: its x and y, and the length of its bars."""
    lines = {}
    for bars in axis.containers:
        line, _, *spans = bars
        spans = [
            np.ptp(segment[:, 1])
            for part in spans
            for end in part
            for segment in end.get_segments()
        ]
        lines[bars.get_label()] = (*map(list, line.get_data()), spans)
    return lines


def texts(labels):
    return [label.get_text() for label in labels]


def test_lines_are_the_methods_numbers(results):
    above, below = lapnb.plot(results).axes
    means, apart = drawn(above), drawn(below)
    names = {"mp": "Magnitude (MP)", "rp": "Random (RP)"}
    names |= {"lbp": "Look-backward (LBP)", "lap": "Lookahead (LAP)"}
    assert apart.keys() == {names["lbp"], names["lap"]}  # no RP
    for method, rows in results.groupby("method"):
        groups = rows.groupby("round")
        x, y, spans = means[names[method]]
        assert x == pytest.approx([*100 * groups.surviving.mean()], rel=0.1)  # a little aside
        assert y == [*groups.error.mean()] and spans == pytest.approx([*2 * groups.error.std()])
    pairs = lapnb.paired(results, "lap", "mp")
    _, y, spans = apart["Lookahead (LAP)"]
    assert y == [*pairs.difference] and spans == pytest.approx([*(pairs.high - pairs.low)])
    assert len({x[0] for x, *_ in means.values() if x}) == 4  # none is hidden
    assert any([*line.get_ydata()] == [8 / 3, 8 / 3] for line in above.lines)  # the dense network
    hollow = [line for line in above.lines if line.get_markerfacecolor() == "none"]
    assert (1.75, 67.62) in [tuple(line.get_ydata()) for line in hollow]


def test_error_and_accuracy_surviving_weights_and_sparsity(results, made):
    above, below = lapnb.plot(results).axes
    top, right = sorted(above.child_axes, key=lambda axis: axis.get_ylabel())
    assert above.get_yscale() == "log" and below.get_yscale() == "linear"
    errors = [float(text) for text in texts(above.get_yticklabels())]
    assert errors == [*above.get_yticks()] and {2, 5, 10, 20, 50, 90} <= {*errors}
    assert texts(right.get_yticklabels()) == [f"{100 - error:g}" for error in errors]
    assert texts(below.get_xticklabels()) == ["0.098", "6.25"] and below.xaxis_inverted()
    assert texts(top.get_xticklabels()) == ["99.902", "93.75"]
    near = made({"mp": [60, 70], "lap": [58, 66]}, "fcn_global", dense_error=40)
    assert lapnb.plot(near).axes[0].get_yscale() == "linear"  # all within a factor of 2
    assert lapnb.plot(near.assign(dense_error=20)).axes[0].get_yscale() == "log"
    gap = lapnb.plot(results, column="gap").axes[0]
    assert drawn(gap)["Lookahead (LAP)"][1][0] == pytest.approx(33 + 4 - 0.5)
    assert gap.get_yscale() == "linear"


def test_fractions_without_room_for_a_label_have_it_further_out(made):
    parts = [
        made({"mp": [5], "lap": [4]}, nth=n, surviving=x) for n, x in enumerate((0.1, 0.02, 0.018))
    ]
    axis = lapnb.plot(pd.concat(parts)).axes[1]
    assert texts(axis.get_xticklabels()) == ["1.80", "10.00"]
    assert texts(axis.get_xticklabels(minor=True)) == ["2.00"]


def test_differences_are_clipped_to_what_is_not_far_worse(made):
    errors = {"mp": [10, 11, 12], "lap": [8, 10, 9], "synflow": [80, 81, 82]}
    low, high = lapnb.plot(made(errors, "fcn_global")).axes[1].get_ylim()
    assert -8 < low < -1 and 0 < high < 8


def test_headings_say_what_was_found(results):
    assert lapnb.plot(results).get_suptitle() == "LAP beats MP: reproduced\nFCN on MNIST"


def test_of_many_rounds_some_have_marker_and_bar(made):
    errors = {"mp": [5, 6], "lap": [4, 5]}
    parts = [made(errors, "fcn_before_retraining", nth=n) for n in range(30)]
    axis = lapnb.plot(pd.concat(parts)).axes[0]
    for _, y, spans in drawn(axis).values():
        assert len(y) == 30 and len(spans) == 15


def test_variants_are_named_in_words_and_have_the_same_axis(made):
    rows = made({"mp": [5, 6], "lap": [4, 5]}, "fcn_activations")
    rows.loc[rows.activation == "tanh", "error"] *= 4
    axes = lapnb.plot(rows).axes
    assert [axis.get_title("left") for axis in axes[::2]] == ["sigmoid", "tanh", "ReLU"]
    assert len({axis.get_ylim() for axis in axes[::2]}) == 1
    assert all("to MP" in axis.get_ylabel() for axis in axes[1::2])


def test_scatter_draws_every_run_on_a_linear_axis(made):
    rows = made({"mp": [5, 6], "lap": [4, 3]}, "fcn_linear", distortion=0.5)
    (axis,) = lapnb.scatter(rows, "distortion").axes
    assert sorted(y for line in axis.lines for y in line.get_ydata()) == [3, 4, 5, 6]
    assert axis.get_xscale() == "linear"


def test_a_saved_picture_carries_what_it_shows(results, record, lapnb_root):
    record({"mp": [60.0], "lap": [30.0]}, "fcn_mnist", "paper")
    lapnb.plot(results)
    assert not [*lapnb_root.rglob("*.png")]
    chosen = lapnb.plot(results, "error_before", save=True, methods=["mp", "lap"])
    assert texts(chosen.legends[0].get_texts()) == ["Magnitude (MP)", "Lookahead (LAP)"]
    folder = lapnb_root / "figures" / "paper"
    rows = hashlib.sha256((folder / "fcn_mnist.csv").read_bytes()).hexdigest()
    with Image.open(folder / "fcn_mnist-error_before-mp-lap.png") as image:
        about = {"Table": "paper/fcn_mnist", "Column": "error_before", "Rows": rows}
        assert about.items() <= image.text.items() and "n = " in image.text["Description"]
        assert compare.finding(compare.one_source(results), "error_before") in image.text["Title"]
    with pytest.raises(ValueError, match="methods must be some of mp, rp, lbp, lap"):
        lapnb.plot(results, methods=["best"])


def test_all_networks_with_every_seed_in_one_picture():
    networks = pd.DataFrame({"network": ["FCN", "VGG-11", "VGG-16"], "low": [-50.0, -3, -1]})
    networks = networks.assign(high=[-30.0, -1, 3], difference=[-40.0, -2, 1], published=-4.0)
    networks = networks.assign(scale="paper", n=2, dense=1.5)
    seeds = networks.loc[[0, 0, 1, 1, 2, 2], ["network", "scale"]]
    seeds = seeds.assign(difference=[-39, -41, -1.5, -2.5, 0, 2])
    elsewhere = seeds.assign(scale="reduced", difference=9)
    figure = plots.plot_networks(networks, pd.concat([seeds, elsewhere]))
    (axis,) = figure.axes
    dots = [x for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()]
    assert dots == [*seeds.difference]
    (spans,) = zip(*[bars.lines[2][0].get_segments() for bars in axis.containers], strict=True)
    assert [[*span[:, 0]] for span in spans] == networks[["low", "high"]].to_numpy().tolist()
    diamonds = [line.get_color() for line in axis.lines if line.get_marker() == "D"]
    assert diamonds == [plots.COLOURS["lap"]] * 2 + [plots.INK]  # grey: undecided
    assert "−4.0" in texts(axis.texts) and axis.get_xscale() == "linear"
    assert figure.get_suptitle() == "LAP beats MP on 2 of 3 networks, MP beats LAP on none"
