"""The explorer: every choice draws or says in a sentence why not."""

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.report import explore


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
    titles = [axis.get_title() for axis in figure.axes]
    one, other, apart = (
        figure.axes[titles.index(name)].collections[0].get_array()
        for name in ("MP", "LAP", "LAP − MP")
    )
    assert np.ma.allequal(apart, other - one)
    assert network in figure.get_suptitle() and "30 %" in figure.get_suptitle()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_drawn(method):
    assert len(bars(explore.panel("fcn", method), 0)) == (1 if method == "mp" else 2)


def test_the_picture_is_that_of_the_package():
    data, dense, accuracy, _ = explore._network("vgg11", None)
    figure = explore.panel("vgg11", "lap", "global", 0.2, beside="lfp")
    masks = lapnb.prune_masks(dense, "lap", 0.2, "global")
    shares = [100 * mask.double().mean().item() for mask in masks]
    assert bars(figure, 0)[1] == pytest.approx(shares)
    weight = lapnb.prunable_layers(dense)[3].weight
    alone = 100 * ((weight * ~masks[3]).norm() / weight.norm()).item()
    assert bars(figure, 1)[1][3] == pytest.approx(alone)
    pruned = lapnb.build_model("vgg11", width=0.05)
    pruned.load_state_dict(dense.state_dict())
    lapnb.apply_masks(pruned, masks)
    after = lapnb.evaluate(pruned, data)[1]
    assert f"dense {accuracy:.1f}" in figure.get_suptitle()
    assert f", LAP {after:.1f} %" in figure.get_suptitle().replace(" \n", " ")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (dict(method="best"), "method must be one of mp"),
        (dict(scope="all"), "scope must be"),
        (dict(keep=1.5), "keep must be a number in"),
        (dict(method="lap_forward", scope="global"), "no global scope"),
        (dict(network="vgg11", method="obd"), "obd and obd_lap serve"),
    ],
)
def test_what_cannot_be_done_is_said(choice, words):
    with pytest.raises(ValueError, match=words):
        explore.panel(**choice)


def test_controls_redraw_when_a_value_changes(monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(explore, "panel", lambda **choice: chosen.append(choice) or "picture")
    assert explore.controls("fcn", keep=0.07) == "picture"  # nobody looks on: no controls
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    box = explore.controls("fcn", keep=0.07)
    assert chosen[0] == chosen[1] and chosen[0]["keep"] == 0.07
    widgets = {widget.description: widget for widget in box.children[:-1]}
    stops = dict(widgets["keep"].options)
    assert stops["6.36 %, in the paper"] == 0.0636 and stops["7 %"] == 0.07
    widgets["method"].value, widgets["keep"].value = "rp", 0.0636
    assert chosen[2:] == [
        chosen[0] | {"method": "rp"},
        chosen[0] | {"method": "rp", "keep": 0.0636},
    ]

    def fail(**choice):
        raise ValueError("no\nsuch choice")

    monkeypatch.setattr(explore, "panel", fail)
    widgets["scope"].value = "global"
    assert "no such choice" in capsys.readouterr().out


def test_controls_in_a_client_without_a_browser(monkeypatch):
    """papermill and nbclient know Output widgets, and waited for ever for one in some runs."""
    monkeypatch.setenv("JPY_SESSION_NAME", "papermill started in a notebook")
    source = (
        "from lapnb.report import explore\n"
        "explore.panel = lambda **choice: 'picture'\n"
        "explore.controls()"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    (states,) = notebook.metadata.widgets.values()
    outputs = [state["state"].get("outputs") for state in states["state"].values()]
    assert [output[0]["data"]["text/plain"] for output in outputs if output] == ["'picture'"]
