"""The explorer: every choice draws or says in a sentence why not; loading executes nothing."""

import os
import pickle

import matplotlib
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import save_file

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.report import explore
from lapnb.training.checkpoint import load_checkpoint

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Dense networks as narrow and as little trained as can be."""
    for name in explore.NETWORKS.values():
        small = TABLES[name]["smoke"] | {"dense_steps": 2}
        monkeypatch.setitem(TABLES, name, TABLES[name] | {"quick": small})
    explore._network.cache_clear()
    explore._statistics.cache_clear()


@pytest.fixture
def own(tmp_path):
    """A network of a width of its own, and its state_dict in two formats."""
    model = lapnb.build_model("vgg11", width=0.1, seed=5)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    return model, tmp_path


def heights(axis):
    return [bar.get_height() for bar in axis.patches]


@pytest.mark.parametrize("network", explore.NETWORKS)
def test_each_network_is_drawn(network):
    figure = explore.panel(network, "lap", keep=0.3)
    accuracy, mask, surviving, distortion = figure.axes[:4]
    count = len(lapnb.prunable_layers(lapnb.build_model(network, width=0.1)))
    assert heights(surviving) == pytest.approx([30] * count, abs=2)  # rounded counts
    assert len(distortion.patches) == 2 * count
    assert all(0 < height < 100 for height in heights(distortion))
    assert mask.images and len(accuracy.patches) == 2
    assert network in figure.get_suptitle() and "30" in figure.get_suptitle()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_drawn(method):
    assert METHODS[method].title in explore.panel("fcn", method).get_suptitle()


def test_the_mask_is_that_of_the_package():
    data, dense, _ = explore._network("fcn", "mnist5k", None, 0)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    figure = explore.panel("fcn", "lap", "global", 0.2)
    masks = lapnb.prune_masks(dense, "lap", 0.2, "global")
    image = torch.from_numpy(figure.axes[1].images[0].get_array().data)
    assert torch.equal(image.long().flatten(), masks[0].sum(0))
    shares = [100 * mask.double().mean().item() for mask in masks]
    assert heights(figure.axes[2]) == pytest.approx(shares)
    lapnb.apply_masks(dense, masks)
    shown = [bar.get_width() for bar in figure.axes[0].patches]
    assert shown[0] == pytest.approx(lapnb.evaluate(dense, data)[1])
    dense.load_state_dict(before)
    assert shown[1] == pytest.approx(lapnb.evaluate(dense, data)[1])


def test_mp_and_lap_each_minimise_their_distortion():
    model = lapnb.build_model("conv6", width=0.1, seed=0)
    masks = {method: lapnb.prune_masks(model, method, 0.2) for method in ("mp", "lap", "rp")}
    found = {method: explore.effects(model, mask) for method, mask in masks.items()}
    for column, best in (("alone", "mp"), ("lookahead", "lap")):
        for other in found.values():
            assert (found[best][column] <= other[column] + 1e-4).all()
    weight, mask = lapnb.prunable_layers(model)[3].weight, masks["rp"][3]
    by_hand = 100 * (weight - weight * mask).norm() / weight.norm()
    assert found["rp"].alone[4] == pytest.approx(by_hand.item())


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_an_own_checkpoint_is_loaded_at_its_width(own, ending):
    model, folder = own
    data = lapnb.load_data("mnist5k", 32, 3)
    loaded = load_checkpoint(folder / f"own.{ending}", "vgg11", data)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert (
        f"own.{ending}"
        in explore.panel("vgg11", checkpoint=f"{folder}/own.{ending}").get_suptitle()
    )


def test_a_checkpoint_that_is_written_again_is_read_again(own):
    folder = own[1]
    before = explore.panel("vgg11", "mp", checkpoint=str(folder / "own.pt"))
    torch.save(lapnb.build_model("vgg11", width=0.2, seed=1).state_dict(), folder / "own.pt")
    os.utime(folder / "own.pt", ns=(1, 1))
    after = explore.panel("vgg11", "mp", checkpoint=str(folder / "own.pt"))
    assert before.get_suptitle() != after.get_suptitle()


def test_loading_executes_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Attack()))
    torch.save({"weight": Attack()}, tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(ValueError, match="neither safetensors nor a state_dict"):
            explore.panel("fcn", checkpoint=str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def bad_files(folder):
    (folder / "noise.safetensors").write_bytes(b"noise" * 9)
    (folder / "empty.pt").write_bytes(b"")
    torch.save(torch.zeros(3), folder / "tensor.pt")
    model = lapnb.build_model("fcn", width=0.1, seed=0).state_dict()
    torch.save({"state_dict": model}, folder / "nested.pt")
    torch.save(model | {"layers.2.weight": torch.zeros(50, 49)}, folder / "shape.pt")
    torch.save({k: v for k, v in model.items() if k != "layers.4.bias"}, folder / "fewer.pt")
    torch.save(model | {"more": torch.zeros(1)}, folder / "more.pt")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.pt", "there is no file"),
        ("noise.safetensors", "neither safetensors nor a state_dict"),
        ("empty.pt", "neither safetensors nor a state_dict"),
        ("tensor.pt", "neither safetensors nor a state_dict"),
        ("nested.pt", "neither safetensors nor a state_dict"),
        ("shape.pt", r"does not fit fcn: layers.2.weight is \(50, 49\), not \(50, 50\)"),
        ("fewer.pt", r"does not fit fcn: layers.4.bias is absent, not \(50,\)"),
        ("more.pt", r"does not fit fcn: more is \(1,\), not absent"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(tmp_path, name, words):
    bad_files(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        explore.panel("fcn", checkpoint=str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (dict(network="lenet"), "network must be one of fcn, conv6"),
        (dict(method="best"), "method must be one of mp"),
        (dict(scope="all"), "scope must be"),
        (dict(keep=1.5), "keep must lie in"),
        (dict(method="lap_forward", scope="global"), "no global scope"),
        (dict(network="vgg11", method="lap_all"), "linear layers"),
        (dict(network="vgg11", method="obd"), "BackPACK"),
    ],
)
def test_what_cannot_be_done_is_said(choice, words):
    with pytest.raises(ValueError, match=words):
        explore.panel(**choice)


def test_controls_redraw_when_a_value_changes(monkeypatch):
    drawn, shown = [], []
    monkeypatch.setattr(explore, "panel", lambda **choice: drawn.append(choice) or "picture")
    monkeypatch.setattr("ipywidgets.Output.append_display_data", lambda _, data: shown.append(data))
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.delenv("TQDM_DISABLE")
    box = explore.controls("mnist", network="fcn", keep=0.05)
    _, method, _, keep, checkpoint, _ = box.children
    start = dict(network="fcn", method="lap", scope="layer", keep=0.05, checkpoint="")
    assert drawn == [start | {"dataset": "mnist"}] and shown == ["picture"]
    assert not keep.continuous_update and not checkpoint.continuous_update
    method.value, keep.value, keep.value = "mp", 0.5, 0.5
    assert [(choice["method"], choice["keep"]) for choice in drawn[1:]] == [
        ("mp", 0.05),
        ("mp", 0.5),
    ]

    def fail(**choice):
        raise FileNotFoundError("there is no\nfile x")

    monkeypatch.setattr(explore, "panel", fail)
    checkpoint.value = "x"
    assert shown[-1].data == "there is no file x"


def test_controls_in_a_client_without_a_browser(tmp_path, monkeypatch):
    """papermill and nbclient know Output widgets, and waited for ever for one in some runs."""
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setenv("LAPNB_ROOT", str(tmp_path))
    source = (
        "from lapnb import explore\nexplore.panel = lambda **choice: 'picture'\nexplore.controls()"
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
