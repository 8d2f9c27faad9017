"""The explorer: every choice draws or says in a sentence why not."""

import numpy as np
import pytest
import torch

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.report import explore
from lapnb.runs import compute


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Dense networks as narrow and as little trained as can be, and nobody who looks on."""
    for name in explore.NETWORKS.values():
        small = TABLES[name]["smoke"] | {"dense_steps": 2}
        monkeypatch.setitem(TABLES, name, TABLES[name] | {"quick": small})
    for name in explore.BROWSERS:
        monkeypatch.delenv(name, raising=False)


def bars(figure, column):
    """The heights of a panel's bars, by method."""
    (axis,) = [axis for axis in figure.axes if axis.get_title() == explore.EFFECTS[column]]
    return [[bar.get_height() for bar in method] for method in axis.containers]


@pytest.mark.parametrize("network", explore.NETWORKS)
def test_each_network_is_drawn_by_two_methods(network):
    figure = explore.panel(network, "lap", keep=0.3)
    count = len(lapnb.prunable_layers(lapnb.build_model(network, width=0.1)))
    assert bars(figure, 0) == [pytest.approx([30] * count, abs=2)] * 2  # rounded counts
    for mp, lap in zip(*bars(figure, 1), strict=True):
        assert 0 < mp <= lap + 1e-3 < 100  # each makes its own distortion smallest
    for mp, lap in zip(*bars(figure, 2), strict=True):
        assert 0 < lap <= mp + 1e-3 < 100
    pictures = {axis.get_title(): axis.images for axis in figure.axes}
    one, other, apart = (pictures[name][0].get_array() for name in ("MP", "LAP", "LAP − MP"))
    assert np.ma.allequal(apart, other - one)
    assert network in figure.get_suptitle() and "30 %" in figure.get_suptitle()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_drawn(method):
    assert len(bars(explore.panel("fcn", method), 0)) == (1 if method == "mp" else 2)


def test_the_picture_is_that_of_the_package():
    data, dense, accuracy = explore._dense("vgg11", None)
    figure = explore.panel("vgg11", "lap", "global", 0.2, beside="lfp")
    masks = lapnb.prune_masks(dense, "lap", 0.2, "global")
    assert bars(figure, 0)[1] == pytest.approx([100 * m.double().mean().item() for m in masks])
    assert f"dense {accuracy:.1f}" in figure.get_suptitle()
    lapnb.apply_masks(dense, masks)
    assert f", LAP {lapnb.evaluate(dense, data)[1]:.1f} %" in figure.get_suptitle()
    explore._dense.cache_clear()


def test_its_network_is_trained_on_one_thread_as_that_of_the_table(monkeypatch, lapnb_root):
    threads = []
    monkeypatch.setattr(compute, "train", lambda *_, **__: threads.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    explore._dense.__wrapped__("fcn", None)
    assert threads == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network must be one of fcn"):
        explore.panel("mine")


def test_controls_redraw_when_a_value_changes(monkeypatch):
    chosen = []
    monkeypatch.setattr(
        explore, "panel", lambda *start, **choice: chosen.append(choice) or "picture"
    )
    assert explore.controls("fcn", keep=0.07) == "picture"  # nobody looks on: no controls
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    box = explore.controls("fcn", keep=0.07)
    assert chosen[1]["keep"] == 0.07
    widgets = {widget.description: widget for widget in box.children[:-1]}
    widgets["method"].value, widgets["keep"].value = "rp", 0.0636
    assert chosen[-1] == chosen[1] | {"method": "rp", "keep": 0.0636}
