"""What is drawn are the numbers, in the looks of their methods; a file only when asked for."""

import itertools
import re

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import lapnb
from lapnb.pruning.scores import METHODS, Method, mp
from lapnb.report import plots
from lapnb.report import show as page

TOGETHER = ["mp rp lfp lbp lap", "mp lap obd obd_lap lap_act"]  # in the paper's tables
DEUTERANOPIA = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]  # Machado
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB, in which a distance of 20 is plain to see."""
    x, y, z = np.cbrt(XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_every_method_is_told_from_white_and_from_the_others():
    colours = {method: plots.look(method)["color"] for method in METHODS}
    looks = {(*plots.look(method).values(),) for method in METHODS}
    assert len(looks) == len(set(colours.values())) == len(METHODS)
    for method, colour in colours.items():
        assert 1.05 / (XYZ[1] @ linear(colour) + 0.05) >= 3, method
    for methods in TOGETHER:
        for one, other in itertools.combinations(methods.split(), 2):
            for eye in (np.eye(3), np.array(DEUTERANOPIA)):
                seen = [lab(eye @ linear(colours[method])) for method in (one, other)]
                assert np.linalg.norm(seen[0] - seen[1]) > 20, (one, other)
            assert plots.look(one)["marker"] != plots.look(other)["marker"]


@pytest.mark.parametrize("more", [1, 40])
def test_a_further_method_needs_no_look_of_its_own(made, monkeypatch, more):
    before = {method: plots.look(method) for method in METHODS}
    for n in range(more):
        monkeypatch.setitem(METHODS, f"mine{n}", Method(f"mine ({n})", mp))
    (legend,) = lapnb.plot(made({"mp": [5, 6], f"mine{more - 1}": [3, 4]})).legends
    assert f"mine ({more - 1})" in [text.get_text() for text in legend.get_texts()]
    looks = [plots.look(method) for method in METHODS]
    assert looks[: len(before)] == [*before.values()] and (more > 1 or looks[-1] not in looks[:-1])


@pytest.fixture
def results(made):
    """Three seeds at two surviving fractions; one of LBP is missing."""
    errors = {"mp": [60, 70, 80], "lbp": [50, 53], "lap": [30, 36, 33]}
    return pd.concat(
        [made(errors, nth=n).assign(error=lambda x: x.error + x["round"]) for n in (0, 6)]
    )


def drawn(axis):
    """x, y, colour and marker of each line that has a label; the length of its bars."""
    lines = {}
    for bars in axis.containers:
        line, _, (segments,) = bars
        spans = [np.ptp(segment[:, 1]) for segment in segments.get_segments()]
        x, y = line.get_data()
        lines[bars.get_label()] = (list(x), list(y), line.get_color(), line.get_marker(), spans)
    return lines


def test_lines_carry_their_methods_numbers_and_looks(results, lapnb_root):
    figure = lapnb.plot(results)
    left, right = figure.axes
    means, apart = drawn(left), drawn(right)
    for method, rows in results.groupby("method"):
        groups, look = rows.groupby("round").error, plots.look(method)
        x, y, colour, marker, spans = means[METHODS[method].title]
        assert (colour, marker) == (look["color"], look["marker"])
        assert x == pytest.approx(100 * rows.groupby("round").surviving.mean(), rel=0.1)
        assert y == list(groups.mean()) and spans == pytest.approx(list(2 * groups.std()))
    assert means.keys() - apart.keys() == {METHODS["mp"].title}
    for method in ("lap", "lbp"):
        pairs = lapnb.paired(results, method, "mp")
        _, y, colour, _, spans = apart[METHODS[method].title]
        assert y == list(pairs.difference) and colour == plots.look(method)["color"]
        assert spans == pytest.approx(list(pairs.high - pairs.low))
    published = {tuple(line.get_ydata()) for line in left.lines if line.get_markersize() == 9}
    assert (1.75, 67.62) in published and len(published) == 3
    assert any(list(line.get_ydata()) == [2, 2] for line in left.lines)  # the dense network
    assert left.get_yscale() == left.get_xscale() == "log" and left.xaxis_inverted()
    assert [t.get_text() for t in left.get_yticklabels()] == ["2", "5", "10", "20", "50", "90"]
    assert len({x[0] for x, *_ in means.values()}) == 3  # none hides another
    assert "FCN on MNIST" in figure.get_suptitle() and not list(lapnb_root.rglob("*.png"))
    assert "n = 3 (MP, LAP), 2 (LBP)" in figure.get_label()
    (legend,) = figure.legends
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        if text.get_text() in means:
            shown = matplotlib.colors.to_rgba_array(handle.get_color())[0]
            assert matplotlib.colors.to_hex(shown) == means[text.get_text()][2]


def test_many_rounds_are_lines_without_markers(made):
    parts = [made({"mp": [5, 6]}, "fcn_before_retraining", nth=n) for n in range(30)]
    (axis,) = lapnb.plot(pd.concat(parts)).axes
    assert not axis.containers and {line.get_marker() for line in axis.lines} == {"None"}


def test_variants_are_below_each_other(made):
    axes = lapnb.plot(made({"mp": [5, 6], "lap": [4, 5]}, "fcn_activations")).axes
    assert [axis.get_title() for axis in axes[::2]] == ["sigmoid", "tanh", "relu"]
    assert all("difference to MP" in axis.get_ylabel() for axis in axes[1::2])


def test_the_gap_stands_beside_what_it_is_the_difference_of(results):
    axes = lapnb.plot(results, column="gap").axes
    y = [drawn(axis)["lookahead (LAP)"][1][0] for axis in axes]
    gap = 33 + 4 - 0.5
    assert y == pytest.approx([0.5, 37, gap, lapnb.paired(results, "lap", "mp").difference[0]])


def test_scatter_draws_every_run(made):
    rows = made({"mp": [5, 6], "lap": [4, 3]}, "fcn_linear", distortion=0.5)
    (axis,) = lapnb.scatter(rows, "distortion").axes
    assert sorted(y for line in axis.lines for y in line.get_ydata()) == [3, 4, 5, 6]
    assert axis.get_xlabel().startswith("relative distortion")


def test_a_file_is_written_only_when_asked_for(results, lapnb_root):
    lapnb.plot(results, save=True)
    with Image.open(lapnb_root / "figures" / "paper" / "fcn_mnist.png") as image:
        assert image.text["Description"] == lapnb.caption(results)
    lapnb.plot(results, column="error_before", save=True)
    lapnb.plot(results.assign(changed="lr = 1"), save=True)
    names = {f"{file.parent.name}/{file.name}" for file in lapnb_root.rglob("*.png")}
    changed = "paper-changed/fcn_mnist.png"
    assert names == {"paper/fcn_mnist.png", "paper/fcn_mnist-error_before.png", changed}


def test_side_by_side_is_a_table_as_in_a_paper(made, results):
    table = page.side_by_side(results)
    assert table.columns.tolist() == ["surviving (%)", "MP", "LBP", "LAP"]
    assert table["surviving (%)"].tolist() == ["6.25", "0.098"]
    assert table.LAP[1] == "**43.00 ± 3.00** | 16.45 ± 5.61"
    assert page.side_by_side(made({"mp": [1.0]}, "fcn_global")).MP[0] == "1.00"
    parts = [made({"mp": [5]}, "fcn_before_retraining", nth=n) for n in range(90)]
    many = page.side_by_side(pd.concat(parts))
    assert len(many) <= 12 and many["surviving (%)"].is_unique


def test_show_gives_everything_as_text_and_for_a_notebook(results, capsys, monkeypatch):
    lapnb.show(results)
    text = capsys.readouterr().out
    for words in ("FCN on MNIST", "LAP beats MP: reproduced at 2 of 2", lapnb.caption(results)):
        assert words in text
    assert "verdict (paper scale)" in text and "no rows of LFP" in text

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    lapnb.show(results.assign(source="<b>"))
    bundles = [output._repr_mimebundle_() for output in shown]
    kinds = [sorted(bundle) for bundle in bundles]
    assert kinds[2] == ["image/png", "text/plain"] and kinds[0] == ["text/html", "text/plain"]
    assert "<b>43.00&nbsp;±&nbsp;3.00</b>" in bundles[1]["text/html"]
    assert "on &lt;b&gt;" in bundles[0]["text/html"]
    again, shown[:] = bundles, []
    lapnb.show(results.assign(source="<b>"))
    assert again == [output._repr_mimebundle_() for output in shown]


def test_a_name_shows_each_recorded_scale_the_largest_first(record, capsys):
    record({"mp": [60.0], "lap": [30.0]}, "fcn_mnist", "reduced")
    record({"mp": [50.0], "lap": [20.0]}, "fcn_mnist", "paper")
    record({"mp": [70.0], "lap": [40.0]}, "fcn_mnist", "quick")
    lapnb.show("fcn_mnist")
    found = re.findall(r"verdict \((\w+) scale\)", capsys.readouterr().out)
    assert found == ["paper", "reduced"]


def test_result_without_claims_says_how_far_pruning_goes(made):
    def part(n):
        rows = made({"mp": [0], "lap": [0]}, "fcn_before_retraining", nth=n)
        return rows.assign(error_before=[2.0 + n, 2.0 + n / 2])

    rows = pd.concat(map(part, range(4)))
    assert page.kept(rows, 1).to_dict() == {"mp": 25, "lap": 12.5}
    assert "lost down to MP 25 %, LAP 12.5 %" in page.result(rows)


@pytest.mark.parametrize("name", ["fcn_later_criteria", "conv6_later_criteria"])
def test_every_mark_is_nearer_to_its_fraction_than_to_the_next(made, name):
    table = lapnb.table(name, "reduced")
    fractions = [table.keep(round)[1] for round in table.rounds]
    errors = {method: [5, 5 + n] for n, method in enumerate(table.methods)}
    parts = [made(errors, name, "reduced", n, surviving=x) for n, x in enumerate(fractions)]
    for axis in lapnb.plot(pd.concat(parts)).axes:
        for x, *_ in drawn(axis).values():
            near = np.abs(np.log(np.divide.outer(x, fractions) / 100)).argmin(1)
            assert list(near) == [*range(len(fractions))]


def test_result_of_variants_names_the_one_that_is_ahead(made):
    rows = made({"lap": [5]}, "fcn_later_criteria")
    rows.loc[rows.scope == "global", "error"] = 4
    assert "LAP global 4.00" in page.result(rows)
