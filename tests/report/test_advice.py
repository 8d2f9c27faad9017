"""What to use is computed from paired rows of one dense network, each counted once."""

import pytest

from lapnb.report.advice import advice

HIGH, LOW = [60.0, 61.0, 62.0], [30.0, 31.5, 33.0]


def verdicts():
    return advice().set_index(["choice", "network"]).verdict.to_dict()


def test_verdicts_follow_the_intervals(record):
    record(
        {"mp": HIGH, "lap": LOW, "lfp": [31.0, 30.5, 33.5], "lbp": [29.0, 32.5, 31.0]},
        "fcn_mnist",
        "paper",
    )
    record({"mp": LOW, "lap": HIGH}, "fcn_mnist", "paper", nth=0)  # the densest fraction
    record({"lap_act": HIGH, "obd": HIGH[:2]}, "fcn_data_dependent", "paper")
    tiny = "Tiny-ImageNet, 20 classes"
    record({"mp": LOW, "lap": HIGH}, "vgg19_tiny_imagenet", "reduced", source=tiny)
    assert verdicts() == {
        ("LAP rather than MP", "FCN on MNIST"): "it depends",
        ("LFP rather than LAP", "FCN on MNIST"): "undecided",
        ("LBP rather than LAP", "FCN on MNIST"): "undecided",
        ("LAP rather than MP", "VGG-19 ×¼ on Tiny-ImageNet, 20 classes"): "no",
        ("LAP-act (sees data) rather than LAP", "FCN on MNIST"): "no",
    }
    row = advice().iloc[0]
    assert (row.choice, row.scale, row.n) == ("LAP rather than MP", "paper", "3")
    # by hand: differences −30, −29.5, −29 have mean −29.5, deviation 0.5, t(2) = 4.3027
    assert row.evidence == (
        "better at 1 of 2 fractions (1 after adjustment; −29.50 [−30.74, −28.26] at 0.098 %) and "
        "worse at 1 of 2 fractions (1 after adjustment; +29.50 [+28.26, +30.74] at 6.25 %)"
    )


def test_one_interval_in_many_is_not_enough(record):
    """p = 0.03 at one of four fractions: by its own interval better, by all four not."""
    lap = [58.6, 58.6, 59.4]
    for nth in range(3):
        record({"mp": LOW, "lap": LOW[::-1]}, "fcn_mnist", "paper", nth=nth)
    record({"mp": HIGH, "lap": lap}, "fcn_mnist", "paper")
    assert verdicts() == {("LAP rather than MP", "FCN on MNIST"): "undecided"}


@pytest.mark.parametrize("other", [{}, {"dense_error": 1.0}, {"device": "cpu, bfloat16"}])
def test_only_rows_of_one_dense_network_are_compared(record, other):
    record({"lap": LOW}, "fcn_mnist", "paper")
    record({"lap": HIGH}, "fcn_global", "paper", scope="global", **other)
    assert len(verdicts()) == (not other)


def test_a_global_criterion_is_judged_beside_global_lap(record):
    record({"mp": HIGH, "lap": LOW, "lamp": HIGH}, "conv6_later_criteria", "reduced")
    found = verdicts().items()
    assert [(choice, verdict) for (choice, _), verdict in found if "LAMP" in choice] == [
        ("LAMP, global rather than LAP, global", "no")
    ]
