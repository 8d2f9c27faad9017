"""What to use is computed from paired rows of one dense network, each counted once."""

import pytest

from lapnb.report.advice import advice, in_short

HIGH, LOW = [60.0, 61.0, 62.0], [30.0, 31.5, 33.0]


def verdicts():
    return advice().set_index(["choice", "network"]).verdict.to_dict()


def test_nothing_recorded_is_no_advice():
    assert advice().empty and "yes: none" in in_short()


def test_verdicts_follow_the_intervals(record):
    record({"mp": HIGH, "lap": LOW, "lfp": LOW, "lbp": [29.0, 32.5, 31.0]}, "fcn_mnist", "paper")
    record({"mp": LOW, "lap": HIGH}, "fcn_mnist", "paper", nth=0)  # the densest fraction
    record({"lap_act": HIGH, "obd": HIGH[:2]}, "fcn_data_dependent", "paper")
    record({"mp": [9.0], "lap": [8.0]}, "conv6_cifar10", "reduced", source="CIFAR-10")
    tiny = "Tiny-ImageNet, 20 classes"
    record({"mp": LOW, "lap": HIGH}, "vgg19_tiny_imagenet", "reduced", source=tiny)
    found = verdicts()
    assert found == {
        ("LAP rather than MP", "FCN on MNIST"): "it depends",
        ("LAP rather than look-forward alone", "FCN on MNIST"): "open",
        ("LAP rather than look-backward alone", "FCN on MNIST"): "open",
        ("LAP rather than MP", "VGG-19 ×¼ on Tiny-ImageNet, 20 classes"): "no",
        ("with data: LAP-act", "FCN on MNIST"): "no",
    }
    row = advice().iloc[0]
    assert (row["better at"], row["speaks against it"]) == ("0.098 %", "worse at 6.25 %")
    assert (row.scale, row.n) == ("paper", 3)
    # by hand: differences −30, −29.5, −29 have mean −29.5, deviation 0.5, t(2) = 4.3027
    assert row["at the sparsest"] == (
        "0.098 %: 31.50 against 61.00, difference −29.50 [−30.74, −28.26]"
    )
    assert in_short().splitlines()[1:3] == [
        "it depends: LAP rather than MP",
        "no: with data: LAP-act",
    ]


def test_only_rows_of_one_dense_network_are_compared(record):
    record({"lap": LOW}, "fcn_mnist", "paper")
    record({"lap": [70.0, 71.0, 73.0]}, "fcn_global", "paper", dense_error=1.0)
    assert not verdicts()


@pytest.mark.parametrize("again", ["fcn_generalization", "fcn_iterative"])
def test_the_same_runs_in_two_tables_count_once(record, again):
    record({"mp": HIGH, "lap": LOW}, "fcn_mnist", "paper")
    before = advice()
    record({"mp": HIGH, "lap": LOW}, again, "paper", dense_error=3.0)  # of another machine
    after = advice()
    assert after[after.choice == "LAP rather than MP"].equals(before)
