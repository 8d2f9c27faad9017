"""Training: streams, masks that hold, several networks at once, precisions, resuming."""

import contextlib
import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.store import CorruptFile, load_tensors, save_tensors
from lapnb.training.data import stream
from lapnb.training.networks import FCN
from lapnb.training.stacks import SparseStack
from lapnb.training.train import CHUNK


@pytest.fixture(scope="module")
def digits():
    return lapnb.load_data("mnist5k")


@pytest.fixture
def hasty(monkeypatch):
    """Checkpoints are written every 25 steps, not every minute."""
    monkeypatch.setattr(sys.modules["lapnb.training.checkpoints"], "CHECKPOINT_SECONDS", 0)


def small(seed=0):
    return lapnb.build_model("fcn", width=0.05, seed=seed)


def convolutional():
    model = lapnb.build_model("conv6", width=0.05, image_size=8, seed=0)
    return model.to(memory_format=torch.channels_last)


def stack():
    models = [small(), small()]
    return SparseStack(models, [lapnb.prune_masks(models[0], m, 0.1) for m in ("mp", "lap")])


def with_norm():
    layers = nn.Linear(784, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def same(first, second):
    states = first.state_dict().values(), second.state_dict().values()
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_it_learns_and_depends_on_seed_and_stage_alone(digits):
    first = lapnb.train(small(), digits, 150)
    loss, accuracy = lapnb.evaluate(first, digits)
    assert 0 < loss < 1 and 70 < accuracy <= 100
    torch.rand(1000)
    state = torch.get_rng_state()
    assert same(first, lapnb.train(small(), digits, 150))
    assert torch.equal(state, torch.get_rng_state())
    for other in (dict(seed=2), dict(stage="retrain")):
        assert not same(first, lapnb.train(small(), digits, 150, **other))


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
    assert same(*trained)
    for layer, mask in zip(prunable_layers(model), masks, strict=True):
        assert not layer.weight[~mask].any()


def test_it_is_adam_on_the_mean_loss_to_the_last_bit(digits):
    model = FCN((784, 20, 10))
    model.layers[0].weight.requires_grad_(False)
    model.spare = nn.Parameter(torch.ones(3))  # which gets no gradient
    reference = copy.deepcopy(model)
    lapnb.train(model, digits, 30, lr=3e-3, seed=4, stage="some")
    optimizer = torch.optim.Adam(reference.parameters(), lr=3e-3, fused=True)
    for step in range(30):
        if step % CHUNK == 0:
            rng = stream(4, "some", step // CHUNK)
            rng.integers(2**63)
        batch = rng.choice(len(digits.train_labels), 60, replace=False, shuffle=False)
        logits = reference(digits.normalise(digits.train_images[batch]))
        loss = F.cross_entropy(logits, digits.train_labels[batch], reduction="sum") / 60
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert same(model, reference)


def test_evaluate_is_the_mean_over_the_split(digits):
    model = lapnb.train(small(), digits, 50)
    with torch.no_grad():
        logits = model(digits.normalise(digits.train_images))
    right = (logits.argmax(1) == digits.train_labels).double().mean().item()
    wanted = F.cross_entropy(logits, digits.train_labels).item(), 100 * right
    assert lapnb.evaluate(model, digits, "train") == pytest.approx(wanted, rel=1e-5)


def test_pruned_weights_stay_exactly_zero_and_survivors_train(digits):
    model = small()
    model.layers[2].requires_grad_(False)  # frozen
    masks = lapnb.prune_masks(model, "lap", 0.2)
    before = prunable_layers(copy.deepcopy(model))
    lapnb.train(model, digits, 60, masks=masks)
    for layer, old, mask in zip(prunable_layers(model), before, masks, strict=True):
        assert not layer.weight[~mask].any()
        assert torch.equal(layer.weight[mask], old.weight[mask]) == (layer.name == "layers.2")


class Together(nn.Module):
    """Several networks that see the same images."""

    def __init__(self, *networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x):
        return torch.stack([network(x) for network in self.networks])


def test_several_networks_train_as_if_alone_even_beside_one_that_diverges(digits):
    bad = small(1)
    nn.init.constant_(bad.layers[0].weight, 1e38)
    together = lapnb.train(Together(small(), copy.deepcopy(bad), small(2)), digits, 40)
    losses, accuracies = lapnb.evaluate(together, digits)
    assert losses.isfinite().tolist() == [True, False, True]
    for number, seed in ((0, 0), (2, 2)):
        alone = lapnb.evaluate(lapnb.train(small(seed), digits, 40), digits)
        assert (losses[number].item(), accuracies[number].item()) == pytest.approx(alone, rel=1e-3)
    with pytest.raises(FloatingPointError, match="the loss was nan at step 25"):
        lapnb.train(Together(bad, copy.deepcopy(bad)), digits, 50)


def test_frozen_modules_stay_frozen(digits):
    model = with_norm()
    model[2].eval()
    lapnb.evaluate(model, digits)
    assert model.training and not model[2].training
    lapnb.train(model, digits, 5)
    assert not model[2].running_mean.any() and not model.training
    lapnb.train(model, digits, 5)  # all of it was in evaluation mode
    assert model[2].running_mean.any()


def test_training_leaves_denormal_numbers_as_they_were(digits):
    lapnb.train(small(), digits, 2)
    assert torch.tensor(1e-40).item() > 0


def test_models_of_64_bits_train_as_in_float32(digits):
    double = lapnb.train(small().double(), digits, 20)
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    short = lapnb.train(small(), digits, 20)
    exact = [p.float() for p in double.parameters()]
    torch.testing.assert_close(exact, [*short.parameters()], rtol=1e-3, atol=1e-4)


class Returning(nn.Module):
    """A network that hides its logits, as torchvision's GoogLeNet does in training."""

    def __init__(self, wrap):
        super().__init__()
        self.network, self.wrap = small(), wrap

    def forward(self, images):
        return self.wrap(self.network(images))


WRAPS = [lambda logits: (logits, logits * 2), lambda logits: {"out": logits, "aux": None}]


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_first_of_several_outputs_counts(digits, wrap):
    plain = lapnb.train(small(), digits, 10)
    model = lapnb.train(Returning(wrap), digits, 10)
    assert same(model.network, plain)
    assert lapnb.evaluate(model, digits) == lapnb.evaluate(plain, digits)


# The caller's settings of PyTorch


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def fast():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


def meta():
    return torch.device("meta")


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


@pytest.mark.parametrize("settings", [float64, fast, meta, torch.no_grad, torch.inference_mode])
def test_the_callers_settings_of_pytorch_change_nothing_and_stay(settings):
    tensors, numbers = everything()
    with settings():
        grad, device = torch.is_grad_enabled(), torch.get_default_device()
        under, same_numbers = everything()
        assert (torch.is_grad_enabled(), torch.get_default_device()) == (grad, device)
    assert numbers == same_numbers
    torch.testing.assert_close(tensors, under, rtol=0, atol=0)


def test_bfloat16_keeps_weights_in_float32_and_the_callers_autocast_changes_nothing(digits):
    model = lapnb.train(small(), digits, 100, precision="bfloat16")
    exact = lapnb.train(small(), digits, 100)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same(model, exact) and lapnb.evaluate(model, digits)[1] > 60
    with torch.autocast("cpu", torch.bfloat16):
        assert same(model, lapnb.train(small(), digits, 100, precision="bfloat16"))
        again = lapnb.train(small(), digits, 100)
        found = lapnb.evaluate(again, digits)
    assert same(exact, again) and found == lapnb.evaluate(exact, digits)


# Checkpoints


def interrupted(model, data, file, **settings):
    def stop(done):
        if done >= 75:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lapnb.train(model, data, 110, checkpoint=file, progress=stop, **settings)
    assert int(load_tensors(file)[1]["step"]) == 50


@pytest.mark.parametrize("build", [small, convolutional, stack])
def test_a_resumed_run_ends_as_an_uninterrupted_one(digits, hasty, tmp_path, build):
    settings, file, steps = {}, str(tmp_path / "folder" / "run.safetensors"), []
    if build is convolutional:
        digits = lapnb.load_data("mnist5k", image_size=8, channels=3)
    if build is not stack:
        settings = dict(masks=lapnb.prune_masks(build(), "lap", 0.2))
    whole = lapnb.train(build(), digits, 110, **settings)
    interrupted(build(), digits, file, **settings)
    again = lapnb.train(build(), digits, 110, checkpoint=file, progress=steps.append, **settings)
    assert same(whole, again) and steps[0] == 75


@pytest.mark.parametrize("other", ["weights", "masks"])
def test_a_run_from_another_start_begins_anew_and_says_so(digits, hasty, tmp_path, capsys, other):
    file = tmp_path / "run.safetensors"
    masks = lapnb.prune_masks(small(), "lap", 0.2)
    pruned, again, whole = small(int(other == "weights")), small(), small()
    for model in (pruned, again, whole):
        lapnb.apply_masks(model, masks)
    interrupted(pruned, digits, file, masks=masks if other == "masks" else None)
    lapnb.train(again, digits, 110, checkpoint=file)
    assert f"{file} began from other weights" in capsys.readouterr().out
    assert same(again, lapnb.train(whole, digits, 110))


CHANGES = [{"seed": 1}, {"stage": "retrain"}, {"lr": 1e-2}, {"batch_size": 30}, {"steps": 20}]
CHANGES += [{"precision": "bfloat16"}, {"mean": (0,)}, {"sizes": (784, 10)}]
CHANGES += [{"train_images": torch.zeros(4000, 1, 28, 28).byte()}]


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_a_checkpoint_of_another_training_is_refused(digits, hasty, tmp_path, change):
    file, model = tmp_path / "run.safetensors", small()
    settings = {"model": model, "data": digits, "steps": 30, "checkpoint": file}
    lapnb.train(**settings)
    content = file.read_bytes()
    if "sizes" in change:
        change = {"model": FCN(change["sizes"])}
    elif hasattr(digits, next(iter(change))):
        change = {"data": replace(digits, **change)}
    with pytest.raises(ValueError, match=f"{file} is of another network, training or data"):
        lapnb.train(**settings | change)
    assert file.read_bytes() == content


NO_CHECKPOINTS = {
    "half of one": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a network": lambda file: save_file(small().state_dict(), file, {"format": "pt"}),
    "a cached network": lambda file: save_tensors(file, small().state_dict(), {"error": 3.5}),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused_and_stays(digits, hasty, tmp_path, kind):
    file = tmp_path / "mine.safetensors"
    interrupted(small(), digits, file)
    NO_CHECKPOINTS[kind](file)
    content = file.read_bytes()
    with pytest.raises((ValueError, CorruptFile), match=str(file)):
        lapnb.train(small(), digits, 60, checkpoint=file)
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


def test_no_steps_and_batches_of_one_image(digits):
    model = lapnb.train(small(), digits, 0)
    assert same(model, small()) and not model.training
    assert not same(lapnb.train(small(), digits, 1, batch_size=1), small())
