"""Exact arithmetic on rows made up for the test; the published numbers."""

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lapnb
from lapnb.paper import tables
from lapnb.report import compare, words

# Skewed, so that a mean is not a median, and in another order for each method
MP = [60.0, 62.0, 95.0, 61.0]
LAP = [33.0, 31.0, 45.0, 30.0]


def test_compare_is_arithmetic(made):
    rows = pd.concat([made({"mp": LAP, "lap": MP}, nth=0), made({"mp": MP, "lap": LAP})])
    found = lapnb.compare(rows).set_index(["method", "round"])
    lap = found.loc["lap", 10]
    printed = compare.published().query("method == 'lap' and round == 10")
    assert (lap.error, lap.n, lap["std"]) == (34.75, 4, pytest.approx(np.std(LAP, ddof=1)))
    assert lap.paper == printed.error_pct.iloc[0] == 16.45
    assert lap.difference == pytest.approx(34.75 - 16.45)
    assert lap.gain_over_mp == pytest.approx(100 * (34.75 - 69.5) / 69.5)
    assert lap.paper_gain == pytest.approx(printed.relative_to_mp_pct.iloc[0], abs=0.02)


def test_the_published_numbers_are_those_that_were_transcribed():
    """Printed gains follow from printed means. And none changes: nothing else would notice."""
    numbers = compare.published()
    mp = numbers[numbers.method == "mp"].set_index(["table", "round"]).error_pct
    printed = numbers.dropna(subset="relative_to_mp_pct")
    for row in printed.itertuples():
        base = mp[row.table, row.round]
        rounding = 0.0055 * 100 * (1 + row.error_pct / base) / base  # of both means
        gain = 100 * (row.error_pct / base - 1)
        assert gain == pytest.approx(row.relative_to_mp_pct, abs=rounding + 0.005)
    digest = hashlib.sha256(Path(tables.__file__).with_name("published.csv").read_bytes())
    pinned = "2bd4fadf757b5c1777375507ee600cb9c9dbe3e77e1c25ae3e3d47e13c0e996f"
    assert digest.hexdigest() == pinned and len(printed) == 59


@pytest.mark.parametrize(
    ("name", "scale", "source", "changed", "beside", "dense"),
    [
        ("fcn_mnist", "paper", "MNIST", "", True, "2.00 (paper 1.98, +0.02)"),
        ("fcn_mnist", "paper", "Fashion-MNIST", "", False, "2.00"),
        ("fcn_mnist", "paper", "MNIST", "lr = 1", False, "2.00 (paper 1.98, +0.02)"),
        ("conv6_cifar10", "paper", "CIFAR-10 (JPEG)", "", True, "2.00 (paper 11.97, −9.97)"),
        # half as wide
        ("conv6_cifar10", "reduced", "CIFAR-10", "", False, "2.00 (paper 11.97, −9.97)"),
    ],
)
def test_published_numbers_stand_beside_their_own_data_and_network(
    made, name, scale, source, changed, beside, dense
):
    rows = made({"mp": [1.0]}, name, scale, source=source, changed=changed)
    assert lapnb.compare(rows).paper.notna().all() == beside
    caption = lapnb.caption(rows)
    assert f"dense error (%): {dense} · n = 1" in caption
    assert ("(paper: CIFAR-10 itself)" in caption) == ("JPEG" in source)


def test_pairs_are_of_the_same_seed_however_the_rows_were_read(made, tmp_path):
    rng = np.random.default_rng(0)
    mp, lap = rng.normal(50, 20, 6), rng.normal(40, 20, 6)
    rows = made({"mp": mp, "lap": lap, "rp": mp})
    rows = rows[~((rows.method == "lap") & (rows.seed == 2))].sample(frac=1, random_state=1)
    rows.drop(columns=["commit", "torch"]).to_csv(tmp_path / "rows.csv")
    rows = pd.read_csv(tmp_path / "rows.csv")
    (pair,) = lapnb.paired(rows, "lap", "mp").to_dict("records")
    mp, lap = np.delete(mp, 2), np.delete(lap, 2)
    test = scipy.stats.ttest_rel(lap, mp)
    low, high = test.confidence_interval()
    expected = {"round": 10, "lap": lap.mean(), "mp": mp.mean(), "low": low, "high": high, "n": 5}
    expected |= {"difference": lap.mean() - mp.mean(), "p": test.pvalue}
    assert {name: pair[name] for name in expected} == pytest.approx(expected)


def test_pairs_of_equal_difference_and_of_one_seed(made):
    pair = lapnb.paired(made({"mp": [1.0, 2.0], "lap": [3.0, 4.0]}), "lap", "mp").iloc[0]
    assert pair[["difference", "low", "high", "p"]].tolist() == [2, 2, 2, 0]
    assert np.isnan(lapnb.paired(made({"mp": [1.0], "lap": [3.0]}), "lap", "mp").low[0])


# ---- verdicts ------------------------------------------------------------------------------------


def test_the_endpoint_is_one_number_per_seed(made):
    mp = np.array([[9.0, 9.0, 9.0, 9.0], [20.0, 25.0, 24.0, 30.0], [60.0, 62.0, 95.0, 61.0]])
    lap = np.array([[8.0, 9.5, 8.0, 9.0], [19.0, 20.0, 15.0, 29.0], [33.0, 31.0, 45.0, 58.0]])
    parts = [made({"mp": mp[n], "lap": lap[n]}, nth=n) for n in (-3, -2, -1)]
    more = made({"mp": [1.0] * 5, "lap": [70.0] * 5}, dense_error=7.0)
    rows = pd.concat([*parts, more[more.seed == 4]])  # a seed that was run at one of the fractions
    first = lapnb.verdicts(rows.sample(frac=1, random_state=2)).iloc[0]
    seeds = (lap - mp)[1:].mean(axis=0)
    test = scipy.stats.ttest_1samp(seeds, 0)
    low, high = test.confidence_interval()
    expected = {"n": 4, "difference": seeds.mean(), "low": low, "high": high, "p": test.pvalue}
    expected |= {"method_mean": lap[1:].mean(), "baseline_mean": mp[1:].mean(), "dense": 2.0}
    # 80 % power at 5 %: (t of 0.975 + t of 0.8, 3 degrees of freedom) standard errors
    expected["detectable"] = (3.182446 + 0.978472) * seeds.std(ddof=1) / 2
    expected["area"] = (np.trapezoid(lap - mp, [0, 1, 2], axis=0) / 2).mean()
    assert first[[*expected]].to_dict() == pytest.approx(expected)
    assert (first.surviving, first.sparsity) == ("0.20 and 0.098", "99.80 and 99.902")
    assert first.found.startswith("LAP 31.25, MP 47.12, difference −15.88 [−33.93, +2.18]")
    trend = lapnb.verdicts(rows).iloc[1]
    slopes = [scipy.stats.linregress([0, 1, 2], seed).slope for seed in (lap - mp).T]
    assert (trend.difference, trend.n) == (pytest.approx(np.mean(slopes)), 4)
    assert "advantage over MP grows" in trend.claim and "each halving" in trend.found


@pytest.mark.parametrize(
    ("lap", "mp", "verdict"),
    [
        ([30, 31, 39], [60, 62, 61], "reproduced"),
        ([60, 62, 61], [30, 31, 39], "not reproduced"),
        ([30, 31], [60, 61], "undecided"),
        ([30, 80, 50], [60, 50, 55], "undecided"),
    ],
)
def test_verdicts(made, lap, mp, verdict):
    found = lapnb.verdicts(made({"mp": mp, "lap": lap})).iloc[0]
    assert (found.claim, found.verdict, found.n) == ("LAP beats MP", verdict, len(lap))
    assert found.scale == "paper" and f"MP {np.mean(mp):.2f}" in found.found
    assert found.by_fraction == f"{verdict} at 0.098 %"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.3, 0.5, 0.7, 0.6], "reproduced"),  # though the interval does not hold 0
        ([-0.9, 0.3, 0.1, 1.1], "undecided"),  # though it does
        ([0.5, 0.95, 0.7, 0.8], "reproduced"),  # by the 90 % interval, not by the 95 % one
        ([-1.9, -1.5, -1.7, -2.1], "not reproduced"),
    ],
)
def test_alike_is_judged_by_a_margin(made, gaps, verdict):
    errors = [10] * len(gaps)
    rows = made({"mp": errors, "lap": errors}, "fcn_generalization", train_error=5.0)
    rows.loc[rows.method == "lap", "train_error"] -= gaps
    found = lapnb.verdicts(rows).iloc[0]
    assert "alike" in found.claim and found.verdict == verdict
    sides = [scipy.stats.ttest_1samp(gaps, limit, alternative=side).pvalue
             for limit, side in ((-1, "greater"), (1, "less"))]  # fmt: skip
    assert found.p == pytest.approx(max(sides))


def test_accuracy_is_kept_down_to_a_fraction_of_each_seed(made):
    """A loss that comes back does not count; the dense network of each seed is its own."""
    before = {"mp": [[2.5, 9.0, 2.0], [3.0, 3.5, 9.0]], "lap": [[2.5, 2.6, 9.0], [3.0, 3.5, 3.9]]}
    parts = []
    for nth, place in zip((10, 20, 40), range(3), strict=True):
        rows = made({"mp": [1, 1], "lap": [1, 1]}, "fcn_before_retraining", nth=nth)
        rows["error_before"] = [before[m][s][place] for m, s in zip(rows.method, rows.seed)]  # noqa: B905
        parts.append(rows.assign(dense_error=2.0 + rows.seed, surviving=[0.5, 0.3, 0.2][place]))
    found = lapnb.verdicts(pd.concat(parts)).iloc[0]
    assert (found.baseline_mean, found.method_mean) == ((50 + 30) / 2, (30 + 20) / 2)
    text = "LAP keeps accuracy within 1 point of the dense network's down to fewer weights than MP"
    assert found.claim == f"{text}, before retraining"
    assert found.found.startswith("LAP down to 25.00 % of the weights, MP down to 40.00 %, diff")


def test_claims_without_rows_are_not_run(made):
    rows = made({"mp": [1.0, 2.0], "lap": [1.0, 2.0]})
    rows = rows[(rows.method == "mp") == (rows.seed == 0)]  # no seed of both
    found = lapnb.verdicts(rows)
    assert {*found.verdict} == {"not run"} and not found.n.any()
    assert found.found[0] == "no seed of LAP and MP"
    assert lapnb.paired(rows, "lap", "mp").empty
    assert len(lapnb.plot(rows).axes) == 1  # without differences
    dense = made({"mp": MP, "lap": LAP}, nth=0)  # not at the claimed fractions
    assert lapnb.verdicts(dense).verdict[0] == "not run"


def test_a_finding_has_a_verdict_for_each_variant(made):
    three = made({"mp": MP, "lap": LAP}, "fcn_activations")
    three.loc[(three.activation == "tanh") & (three.method == "mp"), "error"] = LAP[::-1]
    found = compare.finding(compare.one_source(three))
    assert found.startswith("LAP beats MP: reproduced (sigmoid), undecided (tanh)")


def test_effects_are_compared_where_errors_are_shifted(made, checkout):
    effects = runpy.run_path(checkout / "docs" / "results.py")["compared_effects"]
    rows = made({"mp": MP, "lap": LAP})
    (row,) = effects(compare.one_source(rows)).to_dict("records")
    error = np.hypot(scipy.stats.sem(np.subtract(LAP, MP)), np.hypot(5.61, 9.91) / 5**0.5)
    assert row["paper_difference"] == pytest.approx(16.45 - 67.62)
    assert row["z"] == pytest.approx((-34.75 + 51.17) / error)


def test_p_values_are_adjusted_for_their_number():
    found = compare.holm(pd.Series([0.04, np.nan, 0.01, 0.03, 0.5]))
    assert found.tolist() == pytest.approx([0.09, np.nan, 0.04, 0.09, 0.5], nan_ok=True)


# ---- words ---------------------------------------------------------------------------------------


def test_captions(made):
    text = lapnb.caption(made({"mp": [1.0, 2.0], "lap": [1.0]}, changed="lr = 7.0", device="cuda"))
    assert "50,000 dense + 50,000 retraining steps · changed: lr = 7.0 · GPU · " in text
    assert "n = 2 (MP), 1 (LAP)" in text and text.endswith(words.BARS)
    one = lapnb.caption(made({"mp": [1.0]}, "resnet50_tiny_imagenet", "quick", retrain_steps=0))
    assert "250 dense steps · learning rate 0.002" in one and one.endswith("n = 1")
    rows = made({"mp": [1.0, 2.0]})
    rows.loc[1, "device"] = "cpu, bfloat16"
    assert "CPU, part float32, part bfloat16" in lapnb.caption(rows)


# ---- refusals ------------------------------------------------------------------------------------


def test_what_are_no_results_is_said_in_a_sentence(made):
    good = made({"mp": [1.0], "lap": [2.0]})
    bad = {
        "list without rows": [1],
        "the same run twice": pd.concat([good, good[:1]]),
        "one scale; got": pd.concat([good, made({"mp": [1.0]}, scale="quick")]),
        "one source; got": pd.concat([good, good.assign(source="Fashion")]),
        "the same settings; got": good.assign(settings=["a", "b"]),
        "one status; got": good.assign(status=["ok", "failed: x"]),
    }
    for sentence, rows in bad.items():
        with pytest.raises(ValueError, match=f"^results must be rows of .*{sentence}"):
            lapnb.verdicts(rows)
