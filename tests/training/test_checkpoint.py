"""Your own weights: files that fit are loaded at their width, others refused in one sentence."""

import os
import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

import lapnb
from lapnb.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def data():
    return lapnb.load_data("mnist5k")


@pytest.mark.parametrize("ending", ["pt", "safetensors", "SAFETENSORS"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_is_loaded_at_its_width(tmp_path, ending, prefix):
    path = tmp_path / f"my $own$ net.{ending}"
    state = lapnb.build_model("vgg11", width=0.1, seed=5).half().state_dict()
    named = {prefix + name: tensor for name, tensor in state.items()}
    if ending == "pt":
        torch.save({"state_dict": named, "epoch": 3} if prefix else named, str(path))
    else:
        save_file(named, path)
    loaded = load_checkpoint(path, "vgg11", lapnb.load_data("mnist5k", 32, 3))
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(state[name].to(tensor.dtype), tensor)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("executed",)


NEITHER = "neither safetensors nor a state_dict"
BAD = {
    "absent": (None, r"layers.0.weight is absent, not \(500, 784\)"),
    "shape": (lambda w: w[:, 1:], r"does not fit fcn: layers.0.weight is \(50, 783\), not \(50, 7"),
    "no units": (lambda w: w[:0], r"layers.0.weight is \(0, 784\), not \(500, 784\)"),
    "a number": (lambda w: w.sum(), r"layers.0.weight is \(\), not \(500, 784\)"),
    "int8": (torch.Tensor.char, r"layers.0.weight is \(50, 784\) of torch.int8, not \(50, 784\)"),
    "complex": (lambda w: w + 0j, r"layers.0.weight is \(50, 784\) of torch.complex64, not"),
    "list": (torch.Tensor.tolist, NEITHER),
    "attack": (lambda w: Attack(), NEITHER),
}
BAD |= {
    name: (
        spoil,
        r"layers.0.weight is \(.*, sparse, quantised, an expanded view or .*, not \(500, ",
    )
    for name, spoil in {
        "expanded": lambda w: w[:1].expand(60_000, 784),
        "huge": lambda w: w[:1, :1].expand(10**9, 10**9),
        "sparse": torch.Tensor.to_sparse,
        "csr": torch.Tensor.to_sparse_csr,
        "meta": lambda w: w.to("meta"),
        "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    }.items()
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_state_dict_is_refused_in_one_sentence_within_a_second(
    data, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    state, path = lapnb.build_model("fcn", width=0.1).state_dict(), tmp_path / "bad.pt"
    spoil, words = BAD[name]
    weight = state.pop("layers.0.weight")
    torch.save(state | ({"layers.0.weight": spoil(weight)} if spoil else {}), path)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=words) as error:
        load_checkpoint(path, "fcn", data)
    assert time.monotonic() - begun < 1
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_other_files_are_refused_in_one_sentence(data, tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 9)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "attack.pt").write_bytes(pickle.dumps(Attack()))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for path in [*tmp_path.iterdir(), tmp_path / "absent.pt", tmp_path]:
        sentence = f"there is no file|{NEITHER}"
        with pytest.raises((ValueError, FileNotFoundError), match=sentence) as error:
            load_checkpoint(path, "fcn", data)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
