"""All tables together: the arithmetic, on rows made up for the test."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from lapnb.paper.tables import TABLES
from lapnb.report import summary

MP = [60.0, 62.0, 95.0, 61.0]
LAP = [33.0, 31.0, 45.0, 30.0]
BOTH = {"mp": MP, "lap": LAP}


def test_each_claim_is_judged_on_its_largest_scale_and_each_run_counted_once(record):
    record({m: [9.0, 9.1, 9.2] for m in ("mp", "lap", "lfp")}, "fcn_mnist", "smoke")
    for name in ("fcn_mnist", "fcn_global", "fcn_generalization"):
        record(BOTH, name, "quick")
    # The same seeds on another machine, which start from other dense networks
    record({"mp": MP, "lap": LAP[::-1]}, "fcn_iterative", "quick", dense_error=2.5)
    record({"rp": [90.0]}, "fcn_mnist", "paper")  # nothing to compare it with
    found = summary.summary().set_index(["table", "claim"])
    assert len(found) == sum(len(declared["claims"]) for declared in TABLES.values())
    judged = found[["scale", "n", "verdict"]].apply(tuple, axis=1).to_dict()
    assert judged["fcn_mnist", "LAP beats MP"] == ("quick", 4, "reproduced")
    assert judged["fcn_mnist", "LAP beats LFP"] == ("smoke", 3, "undecided")
    assert judged["vgg11_cifar10", "LAP beats MP"] == ("–", 0, "not run")
    repeated = [(name, "LAP beats MP") for name in ("fcn_global", "fcn_generalization")]
    assert [*found[found.repeats].index] == repeated
    # The first claims of three tables: LAP beats MP, the same on another machine, alike in the gap
    p = found[found.p_holm.notna()].sort_values("p")
    holm = np.maximum.accumulate(p.p.to_numpy() * [3, 2, 1]).clip(max=1)
    assert p.p_holm.tolist() == pytest.approx([*holm])


def test_networks_are_summed_up_in_a_row_each(record):
    record({"mp": MP[:2], "lap": LAP[:2]}, "fcn_mnist", "paper", nth=-2)
    record({"mp": MP, "lap": LAP}, "fcn_mnist", "paper")
    record({"mp": LAP, "lap": MP}, "vgg19_cifar10", "reduced", source="CIFAR-10 (JPEG)")
    record(BOTH, "vgg11_cifar10", "quick")  # is not looked at
    rows = summary.networks().set_index("table")
    fcn, vgg = rows.loc["fcn_mnist"], rows.loc["vgg19_cifar10"]
    assert (fcn.mp, fcn.lap, fcn.n, fcn.verdict) == (61, 32, 2, "undecided")
    assert (fcn.published_mp, fcn.published) == pytest.approx((43.735, -32.15))
    assert (fcn.dense, fcn.published_dense) == (2, pytest.approx(1.98))
    assert (vgg.network, vgg.verdict) == ("VGG-19 ×¼ on CIFAR-10 (JPEG)", "no")
    assert rows.verdict["vgg11_cifar10"] == "not run"


def test_all_comparisons_in_one_sentence(record):
    record(BOTH, "fcn_mnist", "paper")
    record(BOTH, "fcn_generalization", "paper")  # the same runs
    record({"mp": [9.0, 9.1, 9.2], "lap": [9.3, 9.5, 9.6]}, "fcn_mnist", "paper", nth=0)
    record({"mp": MP, "lap": MP[::-1]}, "fcn_global", "paper")
    record({"mp": [1.0, 2.0], "lap": [0.5, 1.4]}, "conv6_cifar10", "reduced")  # too few
    assert summary.comparisons().n.max() == len(MP)
    text = summary.sentence()
    assert "LAP is significantly better in 1 of 3 comparisons (by up to 34.8 points), MP in" in text
    assert "MP in 1 (by up to 0.4 points); 1 are undecided. In practice: take LAP." in text


def test_runs_of_another_machine_are_seeds_of_their_own(record):
    record(BOTH, "fcn_mnist", "paper")
    record({"mp": MP[::-1], "lap": LAP}, "fcn_iterative", "paper", dense_error=2.5)
    comparisons = summary.comparisons()
    assert [*comparisons.schedule] == ["oneshot"]  # the iterative runs are the same ones
    rows = comparisons.iloc[0]
    apart = np.subtract(LAP + LAP, MP + MP[::-1])
    low, high = scipy.stats.ttest_1samp(apart, 0).confidence_interval()
    assert (rows.n, rows.low, rows.high) == (8, pytest.approx(low), pytest.approx(high))


def test_networks_are_put_together():
    apart = {"a": [-1.0, -2.0, -9.0, 1.0], "b": [-4.0, -3.0, 0.5]}
    parts = [pd.DataFrame({"table": name, "difference": x}) for name, x in apart.items()]
    found = summary.together(pd.concat(parts))
    values = np.array(apart["a"] + apart["b"])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    p = (np.abs(values @ signs) >= abs(values.sum())).mean()
    assert (found["seeds"], found["better"], found["p"]) == (7, 5, pytest.approx(p))
    assert found["probability"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["iqm"] == np.mean([-4, -3, -2, -1, 0.5])  # a quarter of 7 cut from each end
    assert -6 < found["low"] < found["iqm"] < found["high"] < 1


def test_collapse_is_judged_by_ranks():
    """2 of 3 and 3 of 4 runs of MP are worse than the worst of LAP."""
    mp = [9.0, 8.0, 2.0, 9.0, 8.0, 7.0, 2.0]
    lap = [1.0, 3.0, 2.5, 1.0, 3.0, 2.5, 4.0]
    seeds = pd.DataFrame({"table": [*"aaabbbb"], "method_mean": lap, "baseline_mean": mp})
    found = summary.collapse(seeds)
    assert found["collapsed"] == 5 and found["collapse"] == "reproduced"
    # Of 20 orders 6, 3 and 1 have 1, 2 and 3 such runs; of 70 orders 10, 4 and 1 have 2, 3 and 4
    orders = 6 * 1 + 3 * (4 + 1) + 1 * (10 + 4 + 1)  # with 5 or more
    assert found["p_collapse"] == pytest.approx(orders / (20 * 70))


def test_the_cost_of_masks():
    lap = [2.1, 2.3, 2.2]
    times = [("fcn", "mp", 1.0)] * 3 + [("fcn", "lap", seconds) for seconds in lap]
    times = pd.DataFrame(times, columns=["network", "method", "seconds"])
    for most, verdict in ((1.5, "not reproduced"), (2.2, "undecided"), (3, "reproduced")):
        (row,) = summary.cost_of_masks(times, most).to_dict("records")
        assert row["ratio"] == pytest.approx(scipy.stats.gmean(lap)) and row["verdict"] == verdict


def test_index_shows_a_line_of_result(record, checkout):
    record(BOTH, "conv6_global", "quick", source="MNIST, 5,000 digits")
    page = summary.index(summary.summary("['quick']"))
    assert "[FCN on MNIST](fcn_mnist.ipynb)" in page and "MP: not run" in page
    title = "Conv-6 ×⅛ on 5,000 MNIST digits, global pruning, standing in for CIFAR-10"
    assert f"{title}: LAP beats MP: reproduced at " in page
    linked = {*re.findall(r"\]\((.*?)\)", page)}
    assert linked < {path.name for path in (checkout / "notebooks").glob("*.ipynb")}
