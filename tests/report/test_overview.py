"""The overview reads rows and nothing else; the picture's numbers are those of the package."""

import re

import matplotlib
import nbformat
import pandas as pd
import pytest
import torch

from lapnb.paper.tables import TABLES, table
from lapnb.pruning.layers import prunable_layers
from lapnb.report import idea, overview
from lapnb.runs.cell import Task, starting_row
from lapnb.runs.run import COLUMNS, figures, read

matplotlib.use("Agg")


def record(name, scale, errors, surviving=0.001, nth=-1):
    """Rows of a table's nth round as `run` records them: errors per method, one per seed."""
    declared = table(name, scale)
    round = declared.rounds[nth]
    rows = [
        starting_row(Task(plain, "MNIST", seed), method, round)
        | {"surviving": surviving, "error": error, "error_before": 80.0, "dense_error": 2.0}
        | {"status": "ok"}
        for plain in declared.expand()
        for method, values in errors.items()
        for seed, error in enumerate(values)
    ]
    path = figures(scale) / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([*read(path).to_dict("records"), *rows], columns=COLUMNS).to_csv(path, index=False)


def notebook(root, name, title):
    (root / "notebooks").mkdir(exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nText")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_nothing_is_recorded(lapnb_root):
    notebook(lapnb_root, "fcn_mnist", "FCN: a & b")
    notebook(lapnb_root, "pruning_cost", "Cost")
    found = overview.summary()
    assert len(found) == sum(len(declared["claims"]) for declared in TABLES.values())
    assert set(found.verdict) == {"not run"}
    assert set(found.n) == {0}
    page = overview.index().data
    assert '<a href="fcn_mnist.ipynb">FCN: a &amp; b</a>' in page
    assert page.count("not run") == 2
    assert "<img" not in page


def test_each_claim_is_judged_on_its_largest_scale(lapnb_root):
    record("fcn_mnist", "smoke", {m: [9.0, 9.1, 9.2] for m in ("mp", "lap", "lfp", "lbp")})
    record("fcn_mnist", "quick", {"mp": [60.0, 61.0, 62.0], "lap": [30.0, 31.0, 33.0]})
    record("fcn_mnist", "paper", {"rp": [90.0]})  # nothing to compare it with
    found = overview.summary().query("table == 'fcn_mnist'").set_index("claim")
    judged = found[["scale", "n", "verdict"]].apply(tuple, axis=1).to_dict()
    assert judged["lap < mp, error"] == ("quick", 3, "reproduced")
    assert judged["lap < lfp, error"] == ("smoke", 3, "open")


def test_index_shows_the_result_and_a_plot_and_changes_no_file(lapnb_root):
    notebook(lapnb_root, "fcn_mnist", "FCN")
    notebook(lapnb_root, "fcn_activations", "Activations")
    notebook(lapnb_root, "fcn_before_retraining", "Before")
    notebook(lapnb_root, "00_start_here", "Start")
    notebook(lapnb_root, "zoo", "Animals")
    record("fcn_mnist", "quick", {"mp": [60.0, 61.0, 62.0], "lap": [30.0, 31.0, 33.0]})
    record("fcn_activations", "quick", {"mp": [60.0], "lap": [30.0]})
    record("fcn_before_retraining", "quick", {"mp": [2.5], "lap": [2.1]}, 0.5, 0)
    record("fcn_before_retraining", "quick", {"mp": [3.5], "lap": [2.7]}, 0.25, 1)
    before = files(lapnb_root)
    page = overview.index(thumbnail_width=99).data
    assert files(lapnb_root) == before
    rows = re.findall("<tr>.*?</tr>", page)
    assert [re.search(r'href="(\w+)', row)[1] for row in rows[1:]] == [
        *("fcn_mnist", "fcn_activations", "fcn_before_retraining", "zoo"),
    ]
    assert "lap &lt; mp, error, at 0.1 %: 31.33 against 61" in rows[1]
    assert "reproduced (quick scale), n = 3" in rows[1]
    assert "within 1 point of the dense network down to lap 25 %, mp 50 % (quick" in rows[3]
    assert [row.count('width="99"') for row in rows] == [0, 1, 1, 1, 0]
    assert "<img" not in overview.index(thumbnail_width=0).data


def test_cost_line(lapnb_root):
    notebook(lapnb_root, "pruning_cost", "Cost")
    path = figures("quick") / "pruning_cost.csv"
    path.parent.mkdir(parents=True)
    path.write_text("device,network,method,seconds\ncpu,fcn,mp,2\ncpu,fcn,lap,3\n")
    assert "LAP masks: 1.5 to 1.5 times" in overview.index().data


def test_the_example_is_what_brute_force_says():
    first, middle, last = (torch.tensor(weight) for weight in idea.WEIGHTS)
    whole = last @ middle @ first
    distortion = {}
    for k in range(3):
        for j in range(3):
            zeroed = middle.clone()
            zeroed[k, j] = 0
            distortion[k, j] = torch.linalg.norm(last @ zeroed @ first - whole).item()
    found = idea.example()
    for name, place in {"w": idea.W, "v": idea.V}.items():
        assert found.lookahead[name] == pytest.approx(distortion[place])
        assert found.distortion[name] == pytest.approx(distortion[place])
    assert min(distortion, key=distortion.get) == idea.V
    assert middle.abs().flatten().argmin() == 3 * idea.W[0] + idea.W[1]
    assert found.removed_by.to_dict() == {"w": "magnitude (MP)", "v": "lookahead (LAP)"}


def test_the_picture_is_saved(lapnb_root):
    figure = idea.draw_idea()
    shown = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert shown.count("$w$") == shown.count("$v$") == 2
    crosses = [[line for line in axis.lines if line.get_marker() == "x"] for axis in figure.axes]
    assert [[line.get_ydata()[0] for line in lines] for lines in crosses] == [[2], [0]]
    assert (lapnb_root / "figures" / "idea.png").stat().st_size > 10_000
    assert len(prunable_layers(idea.example_network())) == 3
