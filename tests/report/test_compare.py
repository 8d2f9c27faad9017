"""Exact arithmetic on rows made up for the test; the published numbers."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import lapnb
from lapnb.paper import tables
from lapnb.report import compare

PUBLISHED = sorted(set(compare.published().table))


def test_compare_is_arithmetic(made):
    found = lapnb.compare(made({"mp": [60.0, 70.0], "lap": [30.0, 36.0]})).set_index("method")
    lap, printed = found.loc["lap"], compare.published().query("method == 'lap' and round == 10")
    assert (lap.error, lap.n, lap["std"]) == (33, 2, pytest.approx(np.std([30, 36], ddof=1)))
    assert lap.paper == printed.error_pct.iloc[0] == 16.45
    assert lap.difference == pytest.approx(33 - 16.45)
    assert lap.gain_over_mp == pytest.approx(100 * (33 - 65) / 65)
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
    ("name", "scale", "source", "more", "beside"),
    [
        ("fcn_mnist", "paper", "MNIST", {}, True),
        *((name, "quick", "MNIST, 5,000 digits", {}, False) for name in PUBLISHED),
        ("fcn_mnist", "paper", "Fashion-MNIST", {}, False),
        ("fcn_mnist", "paper", "MNIST", {"activation": "tanh"}, False),
        ("conv6_cifar10", "paper", "CIFAR-10 (JPEG)", {}, True),
        ("conv6_cifar10", "paper", "CIFAR-10 (JPEG, 5 + 5 images)", {}, False),
        ("conv6_cifar10", "reduced", "CIFAR-10", {}, False),  # half as wide
        ("conv6_cifar10", "quick", "CIFAR-10", {"width": 1.0}, False),  # smaller images
    ],
)
def test_published_numbers_stand_beside_their_own_data_and_network(
    made, name, scale, source, more, beside
):
    rows = made({"mp": [1.0]}, name, scale, source=source, **more)
    declared = lapnb.table(name, "paper")
    rows["round"] = declared.rounds[-1]
    assert lapnb.compare(rows).paper.notna().all() == beside
    assert ("on CIFAR-10 itself" in lapnb.caption(rows)) == (beside and "JPEG" in source)


def test_pairs_are_of_the_same_seed_whatever_the_order(made):
    rng = np.random.default_rng(0)
    mp, lap = rng.normal(50, 20, 6), rng.normal(40, 20, 6)
    rows = made({"mp": mp, "lap": lap, "rp": mp})
    rows = rows[~((rows.method == "lap") & (rows.seed == 2))].sample(frac=1, random_state=1)
    (pair,) = lapnb.paired(rows, "lap", "mp").to_dict("records")
    mp, lap = np.delete(mp, 2), np.delete(lap, 2)
    low, high = scipy.stats.ttest_rel(lap, mp).confidence_interval()
    expected = {"round": 10, "lap": lap.mean(), "mp": mp.mean(), "low": low, "high": high, "n": 5}
    expected["difference"] = lap.mean() - mp.mean()
    assert {name: pair[name] for name in expected} == pytest.approx(expected)


def test_pairs_of_equal_difference_and_of_one_seed(made):
    pair = lapnb.paired(made({"mp": [1.0, 2.0], "lap": [3.0, 4.0]}), "lap", "mp").iloc[0]
    assert pair[["difference", "low", "high"]].tolist() == [2, 2, 2]
    assert np.isnan(lapnb.paired(made({"mp": [1.0], "lap": [3.0]}), "lap", "mp").low[0])


@pytest.mark.parametrize(
    ("lap", "mp", "verdict"),
    [
        ([30, 31, 32], [60, 62, 61], "reproduced"),
        ([60, 62, 61], [30, 31, 32], "not reproduced"),
        ([30, 31], [60, 61], "open"),
        ([30, 80, 50], [60, 50, 55], "open"),
        ([9, 48.99, 88.98], [10, 50, 90], "reproduced"),  # a small difference of every seed
    ],
)
def test_verdicts(made, lap, mp, verdict):
    found = lapnb.verdicts(made({"mp": mp, "lap": lap})).iloc[0]
    assert (found.claim, found.verdict, found.n) == ("LAP beats MP", verdict, len(lap))
    assert (found.better, found.worse) == pytest.approx((np.mean(lap), np.mean(mp)))
    assert found.scale == "paper" and f"{np.mean(mp):.2f}" in found.found


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [([1, -1, 0.1], "reproduced"), ([-1, -1.1, -1], "not reproduced"), ([1, -1], "open")],
)
def test_a_claim_that_two_are_alike(made, gaps, verdict):
    rows = made({"mp": [10] * len(gaps), "lap": 10 + np.array(gaps)}, "fcn_generalization")
    found = lapnb.verdicts(rows).set_index("claim").verdict
    (alike,) = found[found.index.str.contains("alike in the gap")]
    assert alike == verdict


def test_claims_without_rows_say_why(made):
    rows = made({"lap": [1.0] * 3, "rp": [2.0] * 3})
    found = lapnb.verdicts(rows)
    assert set(found.verdict) == {"not run"} and not found.n.any()
    assert found.found[0] == "no rows of MP"


@pytest.mark.parametrize(
    ("name", "scale", "source", "title"),
    [
        ("fcn_mnist", "paper", "Fashion-MNIST", "FCN on Fashion-MNIST, standing in for MNIST"),
        ("fcn_linear", "quick", "MNIST, …", "Linear FCN ×⅖ on 5,000 MNIST digits"),
        ("vgg19_cifar10", "reduced", "CIFAR-10 (JPEG)", "VGG-19 ×¼ on CIFAR-10 (JPEG)"),
        *(
            (name, "paper", compare.NAMES[declared["dataset"]], declared["title"])
            for name, declared in tables.TABLES.items()
        ),
    ],
)
def test_the_title_says_what_was_run(made, name, scale, source, title):
    assert compare.title(made({"mp": [1.0]}, name, scale, source=source)) == title


def test_captions(made):
    text = lapnb.caption(made({"mp": [1.0, 2.0], "lap": [1.0]}, changed="lr = 7.0", device="cuda"))
    assert "50,000 dense + 50,000 retraining steps · changed: lr = 7.0 · cuda" in text
    assert "n = 2 (MP), 1 (LAP)" in text or "n = 1 (LAP), 2 (MP)" in text
    one = lapnb.caption(made({"mp": [1.0]}, "resnet50_tiny_imagenet", "quick", retrain_steps=0))
    assert "400 dense steps · learning rate 0.002" in one and "n = 1" in one
    assert "retraining" not in one and "deviation" not in one
    assert "bfloat16" in lapnb.caption(made({"mp": [1.0]}, device="cuda, bfloat16"))


@pytest.mark.parametrize("call", ["caption", "compare", "plot", "show", "verdicts"])
def test_what_are_no_results_is_said_in_a_sentence(made, call):
    good = made({"mp": [1.0], "lap": [2.0]})
    bad = {
        "DataFrame without rows": good[:0],
        "no column table": pd.DataFrame({"a": [1]}),
        "list without rows": [1],
        "1 repeated runs": pd.concat([good, good[:1]]),
        "quick": pd.concat([good, made({"mp": [1.0]}, scale="quick", source="MNIST")]),
        "MNIST and .* Fashion": pd.concat([good, good.assign(source="Fashion")]),
        "zoo": good.assign(table="zoo"),
        "row 1 is invalid": good.assign(status=["ok", "failed: x"]),
        "row 0 is invalid": good.assign(source=None),
        "could not convert": good.assign(error="high"),
        "its method is 'lapp'": good.replace("lap", "lapp"),
        "its activation is 'nan'": good.assign(activation=float("nan")),
        "surviving -1 is not a number": good.assign(surviving=-1.0),
    }
    for words, rows in bad.items():
        with pytest.raises(ValueError, match=f"^results must be rows of one table.*{words}"):
            getattr(lapnb, call)(rows)


def test_bad_names_are_said_in_a_sentence(made):
    rows = made({"mp": [1.0], "lap": [2.0]})
    for column in ("nope", "distortion"):
        with pytest.raises(ValueError, match=f"column must be one of error, .*; got '{column}'"):
            lapnb.plot(rows, column=column)
    with pytest.raises(ValueError, match="worse must be one of mp, lap; got 'nope'"):
        lapnb.paired(rows, "lap", "nope")
