"""Training: streams, masks that hold, several networks at once, precisions, resuming."""

import contextlib
import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import reference
import torch
from reference import same_networks
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.store import save_tensors
from lapnb.training.networks import FCN

DIGITS = lapnb.load_data("mnist5k")
AUGMENTED = replace(DIGITS, augmentation="crop_flip")


@pytest.fixture
def hasty(monkeypatch):
    """Checkpoints are written every 25 steps, not every minute."""
    monkeypatch.setattr(sys.modules["lapnb.training.checkpoints"], "CHECKPOINT_SECONDS", 0)


def small(seed=0):
    return lapnb.build_model("fcn", width=0.05, seed=seed)


def normed():
    layers = nn.Linear(784, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
    return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["conv6", "wrn16_8"])  # the latter has dropout
def test_the_graph_of_a_step_on_a_gpu_changes_no_bit(monkeypatch, network, precision):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    data = lapnb.load_data("mnist5k", 32, 3).to("cuda")
    trained = []
    for _ in range(2):
        model = lapnb.build_model(network, width=0.25, seed=0).to("cuda")
        masks = lapnb.prune_masks(model, "mp", 0.2)
        trained.append(lapnb.train(model, data, 40, masks=masks, precision=precision))
        monkeypatch.setattr(sys.modules["lapnb.training.train"], "CapturedStep", lambda step: step)
    assert same_networks(*trained)


def test_it_is_adam_on_augmented_images_with_masked_gradients_to_the_last_bit():
    model = FCN((784, 20, 20, 10))
    model.layers[2].weight.requires_grad_(False)
    model.spare = nn.Parameter(torch.ones(3))  # which gets no gradient
    masks = lapnb.prune_masks(model, "mp", 0.2)
    lapnb.apply_masks(model, masks)
    literal, random = copy.deepcopy(model), torch.get_rng_state()
    lapnb.train(model, AUGMENTED, 30, 3e-3, masks=masks, seed=4, stage="some")
    assert torch.equal(random, torch.get_rng_state())
    assert torch.tensor(1e-40).item() > 0, "denormal numbers are the caller's again"
    reference.train(literal, AUGMENTED, 30, 3e-3, 60, 4, "some", masks)
    assert same_networks(model, literal)
    for layer, mask in zip(prunable_layers(model), masks, strict=True):
        assert not layer.weight[~mask].any()


def test_evaluate_is_the_mean_over_the_split_without_augmentation():
    model = lapnb.train(small(), DIGITS, 50)
    with torch.no_grad():
        logits = model(DIGITS.normalise(DIGITS.train_images))
    right = (logits.argmax(1) == DIGITS.train_labels).double().mean().item()
    wanted = F.cross_entropy(logits, DIGITS.train_labels).item(), 100 * right
    assert lapnb.evaluate(model, AUGMENTED, "train") == pytest.approx(wanted, rel=1e-5)


class Wrapped(nn.Module):
    """Networks that see the same images; `wrap` makes one output of their logits."""

    def __init__(self, wrap, *networks):
        super().__init__()
        self.wrap, self.networks = wrap, nn.ModuleList(networks)

    def forward(self, images):
        return self.wrap([network(images) for network in self.networks])


def test_several_networks_train_as_if_alone_even_beside_one_that_diverges():
    bad = small(1)
    nn.init.constant_(bad.layers[0].weight, 1e38)
    together = lapnb.train(Wrapped(torch.stack, small(), copy.deepcopy(bad), small(2)), DIGITS, 40)
    losses, accuracies = lapnb.evaluate(together, DIGITS)
    assert losses.isfinite().tolist() == [True, False, True]
    for number, seed in ((0, 0), (2, 2)):
        alone = lapnb.evaluate(lapnb.train(small(seed), DIGITS, 40), DIGITS)
        assert (losses[number].item(), accuracies[number].item()) == pytest.approx(alone, rel=1e-3)
    with pytest.raises(FloatingPointError, match="the loss was nan at step 25"):
        lapnb.train(Wrapped(torch.stack, bad, copy.deepcopy(bad)), DIGITS, 50)


def test_frozen_modules_stay_frozen():
    model = normed()
    model[2].eval()
    lapnb.evaluate(model, DIGITS)
    assert model.training and not model[2].training
    lapnb.train(model, DIGITS, 5)
    assert not model[2].running_mean.any() and not model.training
    lapnb.train(model, DIGITS, 5)  # all of it was in evaluation mode
    assert model[2].running_mean.any()


def test_models_of_64_bits_train_as_in_float32():
    double = lapnb.train(small().double(), DIGITS, 20)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    short = lapnb.train(small(), DIGITS, 20)
    exact = [p.float() for p in double.parameters()]
    torch.testing.assert_close(exact, [*short.parameters()], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrap", [tuple, lambda logits: {"out": logits[0], "aux": None}])
def test_the_first_of_several_outputs_counts(wrap):
    plain = lapnb.train(small(), DIGITS, 10)
    model = lapnb.train(Wrapped(wrap, small(), small(1)), DIGITS, 10)
    assert same_networks(model.networks[0], plain)
    assert lapnb.evaluate(model, DIGITS) == lapnb.evaluate(plain, DIGITS)


# The caller's settings of PyTorch


@contextlib.contextmanager
def fast():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


def everything():
    """What public functions give, as tensors."""
    data = lapnb.load_data("mnist5k", 20, 3)
    images, labels = data.test_images[:60], data.test_labels[:60]
    own = lapnb.Data.from_tensors(images, labels, images, labels, augmentation="crop_flip")
    model = lapnb.build_model("fcn", width=0.05, image_size=20, channels=3, seed=0)
    lapnb.train(model, own, 30)
    first, _ = next(own.batches(1, 5))
    numbers = [*lapnb.evaluate(model, own), *own.mean, *own.std]
    return [first, own.normalise(own.test_images), *model.parameters()], numbers


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("settings", [reference.odd_torch, fast, autocast])
def test_the_callers_settings_of_pytorch_change_nothing_and_stay(settings):
    tensors, numbers = everything()
    with settings():
        under, same_numbers = everything()
    assert numbers == same_numbers
    torch.testing.assert_close(tensors, under, rtol=0, atol=0)


def test_bfloat16_keeps_weights_in_float32():
    model = lapnb.train(small(), DIGITS, 100, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same_networks(model, lapnb.train(small(), DIGITS, 100))
    assert lapnb.evaluate(model, DIGITS)[1] > 60


# Checkpoints


def test_a_resumed_run_ends_as_an_uninterrupted_one(hasty, tmp_path):
    def stop(step):
        if step == 75:
            raise KeyboardInterrupt

    file, steps = str(tmp_path / "folder" / "run.safetensors"), []
    model = normed()
    whole = lapnb.train(copy.deepcopy(model), DIGITS, 110)
    with pytest.raises(KeyboardInterrupt):
        lapnb.train(copy.deepcopy(model), DIGITS, 110, checkpoint=file, progress=stop)
    again = copy.deepcopy(model)
    lapnb.train(again, DIGITS, 110, checkpoint=file, progress=steps.append)
    assert same_networks(whole, again) and steps[0] == 75
    lapnb.train(copy.deepcopy(model), DIGITS, 60, checkpoint=tmp_path / "shorter")
    assert same_networks(whole, lapnb.train(model, DIGITS, 110, checkpoint=tmp_path / "shorter"))


def test_a_run_with_other_masks_begins_anew_and_says_so(hasty, tmp_path, capsys):
    file, model = tmp_path / "run.safetensors", small()
    masks = lapnb.prune_masks(model, "lap", 0.2)
    lapnb.apply_masks(model, masks)
    lapnb.train(copy.deepcopy(model), DIGITS, 60, masks=masks, checkpoint=file)
    whole = lapnb.train(copy.deepcopy(model), DIGITS, 60)
    again = lapnb.train(model, DIGITS, 60, checkpoint=file)
    assert f"{file} began from other weights or masks" in capsys.readouterr().out
    assert same_networks(again, whole)


CHANGES = [{"seed": 1}, {"stage": "retrain"}, {"lr": 1e-2}, {"batch_size": 30}, {"steps": 20}]
CHANGES += [{"precision": "bfloat16"}, {"model": FCN((784, 10))}]
CHANGES += [{"data": AUGMENTED}, {"data": replace(DIGITS, mean=(0,))}]
CHANGES += [{"data": replace(DIGITS, train_images=1 - DIGITS.train_images)}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_training_is_refused(hasty, tmp_path, change):
    file = tmp_path / "run.safetensors"
    settings = {"model": small(), "data": DIGITS, "steps": 30, "checkpoint": file}
    lapnb.train(**settings)
    content = file.read_bytes()
    with pytest.raises(ValueError, match=f"{file} is of another network, training or data"):
        lapnb.train(**settings | change)
    assert file.read_bytes() == content


def test_a_file_that_is_no_checkpoint_is_refused_and_stays(tmp_path):
    file = tmp_path / "mine.safetensors"
    save_tensors(file, small().state_dict(), {"error": 3.5})
    content = file.read_bytes()
    with pytest.raises(ValueError, match=str(file)):
        lapnb.train(small(), DIGITS, 60, checkpoint=file)
    assert content == file.read_bytes()


SHORTCUT = """
import torch, lapnb
from lapnb.pruning.data_statistics import data_statistics as statistics
from torch import nn
torch.set_num_threads(1)
pointwise = nn.Conv2d(3, 6, 1, 2, bias=False), nn.AdaptiveAvgPool2d(2), nn.Flatten()
model = nn.Sequential(*pointwise, nn.Linear(24, 10)).to(memory_format=torch.channels_last)
data = lapnb.load_data("mnist5k", 32, 3)
lapnb.prune_masks(model, "synflow", 0.5, statistics=statistics(model, "ones", data.batches(1, 60)))
print(lapnb.evaluate(lapnb.train(model, data, 50), data)[0] < 2.3, torch.backends.mkldnn.enabled)
"""


def test_narrow_shortcuts_train_on_a_processor_with_avx2_only():
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-c", SHORTCUT]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True True\n"), ended.stderr
