"""The explorer: every choice draws or says in a sentence why not."""

import os

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.report import explore


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Dense networks as narrow and as little trained as can be."""
    for name in explore.NETWORKS.values():
        small = TABLES[name]["smoke"] | {"dense_steps": 2}
        monkeypatch.setitem(TABLES, name, TABLES[name] | {"quick": small})


def heights(axis):
    return [[bar.get_height() for bar in bars] for bars in axis.containers]


@pytest.mark.parametrize("network", explore.NETWORKS)
def test_each_network_is_drawn_by_two_methods(network):
    figure = explore.panel(network, "lap", keep=0.3)
    accuracy, *masks, surviving, alone, lookahead = figure.axes[:6]
    count = len(lapnb.prunable_layers(lapnb.build_model(network, width=0.1)))
    assert heights(surviving) == [pytest.approx([30] * count, abs=2)] * 2  # rounded counts
    for mp, lap in zip(*heights(alone), strict=True):
        assert 0 < mp <= lap + 1e-3 < 100  # each makes its own distortion smallest
    for mp, lap in zip(*heights(lookahead), strict=True):
        assert 0 < lap <= mp + 1e-3 < 100
    assert [len(axis.collections) for axis in masks] == [1, 1]
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == ["dense", "MP", "LAP"]
    assert network in figure.get_suptitle() and "30" in figure.get_suptitle()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_drawn(method):
    figure = explore.panel("fcn", method)
    assert len(heights(figure.axes[3])) == (1 if method == "mp" else 2)


def test_the_picture_is_that_of_the_package_on_your_own_weights(tmp_path):
    dense, data = lapnb.build_model("vgg11", width=0.1, seed=5), lapnb.load_data("mnist5k", 32, 3)
    torch.save(lapnb.build_model("vgg11", width=0.2).state_dict(), tmp_path / "own.pt")
    wider = explore.panel("vgg11", "mp", checkpoint=str(tmp_path / "own.pt"))
    torch.save(dense.state_dict(), tmp_path / "own.pt")  # another network in the same file
    os.utime(tmp_path / "own.pt", ns=(1, 1))
    figure = explore.panel("vgg11", "lap", "global", 0.2, str(tmp_path / "own.pt"), beside="lfp")
    assert "own.pt" in figure.get_suptitle() and figure.get_suptitle() != wider.get_suptitle()
    shown = [bar.get_width() for bar in figure.axes[0].patches]
    assert shown[0] == pytest.approx(lapnb.evaluate(dense, data)[1])
    masks = lapnb.prune_masks(dense, "lap", 0.2, "global")
    shares = [100 * mask.double().mean().item() for mask in masks]
    assert heights(figure.axes[3])[1] == pytest.approx(shares)
    assert all(np.isfinite(bar.get_window_extent().height) for bar in figure.axes[3].patches)
    weight = lapnb.prunable_layers(dense)[3].weight
    alone = 100 * ((weight * ~masks[3]).norm() / weight.norm()).item()
    assert heights(figure.axes[4])[1][3] == pytest.approx(alone)
    lapnb.apply_masks(dense, masks)
    assert shown[2] == pytest.approx(lapnb.evaluate(dense, data)[1])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (dict(network="lenet"), "network must be one of fcn, conv6"),
        (dict(method="best"), "method must be one of mp"),
        (dict(beside="best"), "beside must be one of mp"),
        (dict(scope="all"), "scope must be"),
        (dict(keep=1.5), "keep must be a number in"),
        (dict(method="lap_forward", scope="global"), "no global scope"),
        (dict(network="vgg11", method="lap_all"), "linear layers"),
        (dict(network="vgg11", method="obd"), "BackPACK"),
        (dict(network=["fcn"]), "network must be one of fcn"),
        (dict(keep="x"), "keep must be a number in"),
        (dict(checkpoint=3), "checkpoint must be a string"),
        (dict(checkpoint="absent.pt"), "there is no file absent.pt"),
    ],
)
def test_what_cannot_be_done_is_said(choice, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        explore.panel(**choice)


def test_controls_redraw_when_a_value_changes(monkeypatch):
    drawn, shown = [], []
    monkeypatch.setattr(explore, "panel", lambda **choice: drawn.append(choice) or "picture")
    monkeypatch.setattr("ipywidgets.Output.append_display_data", lambda _, data: shown.append(data))
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.delenv("TQDM_DISABLE")
    box = explore.controls("mnist", network="fcn", keep=0.07)
    widgets = {widget.description: widget for widget in box.children[:-1]}
    start = dict(network="fcn", beside="mp", method="lap", scope="layer", keep=0.07, checkpoint="")
    assert drawn == [start | {"dataset": "mnist"}] and shown == ["picture"]
    stops = dict(widgets["keep"].options)
    assert stops["6.36 %, in the paper"] == 0.0636 and stops["7 %"] == 0.07
    widgets["method"].value, widgets["keep"].value = "rp", 0.0636
    assert drawn[1:] == [drawn[0] | {"method": "rp"}, drawn[0] | {"method": "rp", "keep": 0.0636}]

    def fail(**choice):
        raise FileNotFoundError("there is no\nfile x")

    monkeypatch.setattr(explore, "panel", fail)
    widgets["checkpoint"].value = "x"
    assert shown[-1].data == "there is no file x"


def test_controls_in_a_client_without_a_browser(tmp_path, monkeypatch):
    """papermill and nbclient know Output widgets, and waited for ever for one in some runs."""
    monkeypatch.delenv("TQDM_DISABLE")
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


def test_controls_without_a_browser(monkeypatch, capsys):
    monkeypatch.setattr(explore, "panel", lambda **choice: pytest.fail("nobody would see it"))
    assert explore.controls() is None
    assert "open this notebook in JupyterLab" in capsys.readouterr().out
