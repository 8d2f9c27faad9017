"""The overview reads rows and nothing else; the picture's numbers are those of the package."""

import re

import nbformat
import pytest

from lapnb.paper.tables import TABLES
from lapnb.report import summary
from lapnb.runs.rows import results_file

THREE = {"mp": [60.0, 61.0, 62.0], "lap": [30.0, 31.0, 33.0]}


def notebook(root, name, title):
    (root / "notebooks").mkdir(exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nText")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


def test_nothing_is_recorded(lapnb_root):
    notebook(lapnb_root, "fcn_mnist", "FCN: a & b")
    notebook(lapnb_root, 'x"><script>', "Odd")
    found = summary.summary()
    assert len(found) == sum(len(declared["claims"]) for declared in TABLES.values())
    assert set(found.verdict) == {"not run"} and not found.n.any()
    assert summary.inventory().empty
    page = summary.index().data
    assert '<a href="fcn_mnist.ipynb">FCN: a &amp; b</a>' in page
    assert page.count("not run") == 1 and "<script>" not in page and "<img" not in page
    for width in ('9" onload="x', -1, 2.5):
        with pytest.raises(ValueError, match="thumbnail_width must be a number of pixels"):
            summary.index(width)


def test_each_claim_is_judged_on_its_largest_scale_and_each_run_counted_once(record):
    record({m: [9.0, 9.1, 9.2] for m in ("mp", "lap", "lfp", "lbp")}, "fcn_mnist", "smoke")
    for name in ("fcn_mnist", "fcn_iterative"):  # one-shot runs of the one are those of the other
        record(THREE, name, "quick")
    record({"rp": [90.0]}, "fcn_mnist", "paper")  # nothing to compare it with
    record({"obd": [1.0, 2.0, 3.0], "obd_lap": [4.0, 6.0, 5.0]}, "fcn_data_dependent", "paper")
    found = summary.summary().set_index(["table", "claim"])
    judged = found[["scale", "n", "verdict"]].apply(tuple, axis=1).to_dict()
    assert judged["fcn_mnist", "LAP beats MP"] == ("quick", 3, "reproduced")
    assert judged["fcn_mnist", "LAP beats LFP"] == ("smoke", 3, "open")
    against = judged["fcn_data_dependent", "OBD with LAP beats OBD"]
    assert against == ("paper", 3, "not reproduced")
    repeats = found.repeats.dropna().to_dict()
    assert repeats == {("fcn_iterative", "LAP beats MP, oneshot"): "fcn_mnist"}
    score = summary.score().set_index("table")
    assert score.loc["all tables"].tolist()[1:3] == [2, 1]
    assert score.loc["fcn_iterative", "reproduced"] == 1


def test_inventory_says_what_is_recorded_and_where(record, lapnb_root):
    record(THREE, "fcn_mnist", "quick")
    (row,) = summary.inventory().to_dict("records")
    assert (row["methods"], row["rounds"], row["seeds"], row["rows"]) == (2, 1, 3, 6)
    assert lapnb_root / row["path"] == results_file("fcn_mnist", "quick")


def test_index_shows_result_and_plot_and_changes_no_file(lapnb_root, record):
    for name in ("fcn_mnist", "fcn_activations", "conv6_global", "00_start_here", "zoo"):
        notebook(lapnb_root, name, "Title")
    notebook(lapnb_root, "pruning_cost", "Cost")
    record(THREE, "fcn_mnist", "quick")
    record({"mp": [60.0], "lap": [30.0]}, "fcn_activations", "quick")
    record(THREE, "conv6_global", "quick", source="MNIST, 5,000 digits")
    path = results_file("pruning_cost", "quick")
    path.write_text("device,network,method,seconds\ncpu,fcn,mp,2\ncpu,fcn,lap,3\n")
    (lapnb_root / "notebooks" / "torn.ipynb").write_text("{")
    (path.parent / "mine.csv").write_text("status,a\n")
    assert set(summary.inventory().table) == {"fcn_mnist", "fcn_activations", "conv6_global"}
    before = {path: path.stat().st_mtime_ns for path in lapnb_root.rglob("*")}
    page = summary.index(thumbnail_width=99).data
    assert {path: path.stat().st_mtime_ns for path in lapnb_root.rglob("*")} == before
    rows = re.findall("<tr>.*?</tr>", page, re.DOTALL)
    names = [re.search(r'href="(\w+)', row)[1] for row in rows]
    assert names == [
        "fcn_mnist",
        "fcn_activations",
        "conv6_global",
        "pruning_cost",
        "torn",
        "zoo",
    ]
    assert "5,000 MNIST digits: LAP beats MP: reproduced at 1 of 1" in rows[0]
    assert "standing in for CIFAR-10" in rows[2] and ">not run on CIFAR-10<" in rows[2]
    assert "LAP masks: 1.5 to 1.5 times" in rows[3]
    assert [row.count('width="99"') for row in rows] == [1, 1, 0, 0, 0, 0]
    assert "<img" not in summary.index(thumbnail_width=0).data
