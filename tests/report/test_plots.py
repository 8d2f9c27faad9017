"""What is drawn are the numbers, on axes that do not mislead; a file only when asked for."""

import hashlib
import itertools

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lapnb
from lapnb.pruning.scores import METHODS, Method, mp
from lapnb.report import plots

TOGETHER = [  # in one panel
    "mp rp lfp lbp lap lap_forward lap_backward",
    "mp lap obd obd_lap lap_act",
    "mp lap wanda ria ria_act synflow",
    "mp lap lamp lamp_lap synflow",
]
DEUTERANOPIA = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]  # Machado
PROTANOPIA = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
EYES = np.array([np.eye(3), DEUTERANOPIA, PROTANOPIA])
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light, dark = sorted((XYZ[1] @ linear(colour) + 0.05 for colour in (one, other)), reverse=True)
    return light / dark


def lab(rgb):
    """CIELAB of linear RGB, in which a distance of 20 is plain to see."""
    x, y, z = np.cbrt(XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_text_and_lines_are_legible_on_white_and_on_dark_pages():
    assert contrast(plots.INK, "white") >= 4.5 and contrast(plots.INK, "#0d1117") >= 4
    for method, colour in plots.COLOURS.items():
        assert min(contrast(colour, ground) for ground in ("white", "#0d1117")) >= 3, method


def test_methods_in_one_panel_are_told_apart_by_all_readers():
    for methods in TOGETHER:
        for one, other in itertools.combinations(methods.split(), 2):
            first, second = plots.COLOURS[one], plots.COLOURS[other]
            seen = [np.linalg.norm(lab(e @ linear(first)) - lab(e @ linear(second))) for e in EYES]
            least = 24 if "lap" in (one, other) else 18
            assert min(seen) > least, (one, other)
            assert plots.MARKERS[one] != plots.MARKERS[other], (one, other)


def test_further_methods_need_no_look_of_their_own(made, monkeypatch):
    for n in range(40):
        monkeypatch.setitem(METHODS, f"mine{n}", Method(f"mine ({n})", mp))
    (legend,) = lapnb.plot(made({"mp": [5, 6], "mine39": [3, 4]})).legends
    assert "mine (39)" in [text.get_text() for text in legend.get_texts()]


@pytest.fixture
def results(made):
    """Three seeds at two surviving fractions; one of LBP is missing; random pruning is far off."""
    errors = {"mp": [60, 61, 80], "rp": [90, 90, 90], "lbp": [50, 53], "lap": [30, 31, 38]}
    rows = pd.concat([made(errors, nth=n) for n in (0, 6)])
    return rows.assign(error=rows.error + rows["round"], dense_error=1.0 + rows.seed)


def drawn(axis):
    """By label of a line: its x and y, and the length of its bars."""
    lines = {}
    for bars in axis.containers:
        line, _, (segments,) = bars
        spans = [np.ptp(segment[:, 1]) for segment in segments.get_segments()]
        lines[bars.get_label()] = (*map(list, line.get_data()), spans)
    return lines


def texts(labels):
    return [label.get_text() for label in labels]


def test_lines_are_the_methods_numbers(results):
    above, below = lapnb.plot(results).axes
    means, apart = drawn(above), drawn(below)
    assert apart.keys() == {"look-backward (LBP)", "lookahead (LAP)"}  # no RP
    for method, rows in results.groupby("method"):
        groups = rows.groupby("round")
        x, y, spans = means[METHODS[method].title]
        assert x == pytest.approx(100 * groups.surviving.mean(), rel=0.11)
        assert y == [*groups.error.mean()] and spans == pytest.approx([*2 * groups.error.std()])
    for method in ("lap", "lbp"):
        pairs = lapnb.paired(results, method, "mp")
        _, y, spans = apart[METHODS[method].title]
        assert y == [*pairs.difference] and spans == pytest.approx([*(pairs.high - pairs.low)])
    assert len({x[0] for x, *_ in means.values()}) == 4  # none hides another
    assert any([*line.get_ydata()] == [2, 2] for line in above.lines)  # the dense network
    hollow = [line for line in above.lines if line.get_markerfacecolor() == "none"]
    assert (1.75, 67.62) in [tuple(line.get_ydata()) for line in hollow]


def test_error_and_accuracy_surviving_weights_and_sparsity(results, made):
    above, below = lapnb.plot(results).axes
    top, right = sorted(above.child_axes, key=lambda axis: axis.get_ylabel())
    assert above.get_yscale() == "log" and below.get_yscale() == "linear"
    assert texts(above.get_yticklabels()) == ["2", "5", "10", "20", "50", "90"]
    assert texts(right.get_yticklabels()) == ["98", "95", "90", "80", "50", "10"]
    assert texts(below.get_xticklabels()) == ["0.098", "6.25"] and below.xaxis_inverted()
    assert texts(top.get_xticklabels()) == ["99.902", "93.75"]
    close = lapnb.plot(made({"mp": [60, 70], "lap": [58, 66]}, "fcn_global", dense_error=40)).axes[
        0
    ]
    assert close.get_yscale() == "linear"  # all within a factor of 2


def test_an_arrow_shows_where_a_method_leaves_the_differences(made):
    rows = made({"mp": [10, 11, 12], "lap": [8, 10, 9], "synflow": [80, 81, 82]}, "fcn_global")
    below = lapnb.plot(rows).axes[1]
    low, high = below.get_ylim()
    assert -8 < low < -1 and 0 < high < 8
    (arrow,) = [line for line in below.lines if line.get_marker() == "^" and not line.get_clip_on()]
    assert arrow.get_ydata() == [high] and arrow.get_color() == plots.COLOURS["synflow"]


def test_headings_say_what_was_found(made, results):
    assert plots.finding(results) == "LAP beats MP at 2 of 2 surviving fractions"
    worse = results.assign(error=100 - results.error)
    assert plots.finding(worse) == "LAP beats MP at none of 2 surviving fractions, MP at 2"
    gap = results.assign(gap=results.error / 1000)
    assert plots.finding(gap, "gap") == "LAP's gap is within 1 point of MP's at 2 of 2 " + (
        "surviving fractions"
    )
    later = made({"mp": [9], "lap": [8], "synflow": [7]}, "fcn_later_criteria")
    assert plots.finding(later).startswith("Lowest at 0.098 %: SynFlow")
    assert "FCN on MNIST" in lapnb.plot(results).get_suptitle()


def test_a_choice_of_methods(results, lapnb_root):
    (legend,) = lapnb.plot(results, methods=["mp", "lap"], save=True).legends
    assert texts(legend.get_texts()) == ["magnitude (MP)", "lookahead (LAP)", "published"]
    assert (lapnb_root / "figures" / "paper" / "fcn_mnist-mp-lap.png").exists()
    with pytest.raises(ValueError, match=r"methods must be some of mp, rp, lbp, lap; got \['best'"):
        lapnb.plot(results, methods=["best"])


def test_many_rounds_are_lines_with_bands(made):
    errors = {"mp": [5, 6], "lap": [4, 5]}
    parts = [made(errors, "fcn_before_retraining", nth=n) for n in range(30)]
    figure = lapnb.plot(pd.concat(parts))
    assert not figure.axes[0].containers and "bands: ±" in figure.get_label()


def test_variants_are_named_in_words_below_each_other(made):
    rows = made({"mp": [5, 6, 5], "lap": [4, 5, 5]}, "fcn_activations")
    axes = lapnb.plot(rows).axes
    assert [axis.get_title("left") for axis in axes[::2]] == ["sigmoid", "tanh", "ReLU"]
    assert all("difference to MP" in axis.get_ylabel() for axis in axes[1::2])


def test_the_gap_alone_is_drawn(results):
    above = lapnb.plot(results, column="gap").axes[0]
    assert drawn(above)["lookahead (LAP)"][1][0] == pytest.approx(33 + 4 - 0.5)
    assert above.get_yscale() == "linear"


def test_scatter_draws_every_run_on_a_linear_axis(made):
    rows = made({"mp": [5, 6], "lap": [4, 3]}, "fcn_linear", distortion=0.5)
    (axis,) = lapnb.scatter(rows, "distortion").axes
    assert sorted(y for line in axis.lines for y in line.get_ydata()) == [3, 4, 5, 6]
    assert axis.get_xscale() == "linear"


def test_a_saved_picture_carries_what_it_shows(results, record, lapnb_root):
    record({"mp": [60.0], "lap": [30.0]}, "fcn_mnist", "paper")
    lapnb.plot(results, save=True)
    lapnb.plot(results, column="error_before", save=True)
    folder = lapnb_root / "figures" / "paper"
    rows = hashlib.sha256((folder / "fcn_mnist.csv").read_bytes()).hexdigest()
    for name, column in (("fcn_mnist", "error"), ("fcn_mnist-error_before", "error_before")):
        with Image.open(folder / f"{name}.png") as image:
            assert image.text["Description"] == lapnb.caption(results)
            about = [image.text[key] for key in ("Table", "Column", "Rows")]
            assert about == ["paper/fcn_mnist", column, rows]
            assert plots.finding(results, column) in image.text["Title"]
            assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0  # no plate
    assert len([*lapnb_root.rglob("*.png")]) == 2
    lapnb.plot(results)
    assert len([*lapnb_root.rglob("*.png")]) == 2


def test_captions_wrap_between_their_parts():
    lines = plots.wrapped("one part · the second part · third", 18).splitlines()
    assert lines == ["one part", "the second part", "third"]


def test_all_networks_with_every_seed_in_one_picture():
    about = {"scale": "paper", "n": 2, "dense": 1.5, "published": -4.0}
    names = ["FCN on MNIST", "VGG-11 on CIFAR-10", "VGG-16 on CIFAR-10"]
    networks = pd.DataFrame([about | {"network": name} for name in names])
    networks = networks.assign(
        difference=[-40.0, -2.0, 1.0], low=[-50.0, -3, -1], high=[-30.0, -1, 3]
    )
    seeds = networks.loc[[0, 0, 1, 1, 2, 2], ["network", "scale"]]
    seeds = seeds.assign(difference=[-39, -41, -1.5, -2.5, 0, 2])
    figure = plots.plot_networks(networks, seeds)
    axis = figure.axes[0]
    dots = axis.collections[0]  # before the lines at 0
    assert sorted(dots.get_offsets()[:, 0]) == sorted(seeds.difference)
    assert axis.get_xscale() == "linear" and axis.get_xlim()[0] > -10
    assert "−40.0 [−50.0, −30.0]" in " ".join(texts(axis.texts))  # which leaves the axis
    assert [*axis.lines[-2].get_xdata()] == [-1, 3] and "−4.0" in texts(figure.axes[1].texts)
    assert "LAP beats MP on 2 of 3 networks, MP on none" in figure.get_suptitle()


@pytest.mark.parametrize("name", ["fcn_later_criteria", "conv6_later_criteria"])
def test_every_mark_is_nearer_to_its_fraction_than_to_the_next(made, name):
    table = lapnb.table(name, "reduced")
    fractions = [table.keep(t)[1] for t in table.rounds]
    errors = {method: [5, 5 + n] for n, method in enumerate(table.methods)}
    parts = [made(errors, name, "reduced", n, surviving=x) for n, x in enumerate(fractions)]
    for axis in lapnb.plot(pd.concat(parts)).axes:
        for x, *_ in drawn(axis).values():
            near = np.abs(np.log(np.divide.outer(x, fractions) / 100)).argmin(1)
            assert [*near] == [*range(len(fractions))]


def test_methods_without_a_seed_in_common_are_drawn_all_the_same(made):
    rows = made({"mp": [1.0, 2.0], "lap": [1.0, 3.0]})
    apart = rows[(rows.method == "mp") == (rows.seed == 0)]
    words = [text for axis in lapnb.plot(apart).axes for text in texts(axis.texts)]
    assert "no seed in common with MP" in words
