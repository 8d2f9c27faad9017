"""Training: streams, masks that hold, resuming."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.store import CorruptFile, load_tensors, save_tensors
from lapnb.training.networks import FCN
from lapnb.training.train import CHUNK, stream


@pytest.fixture(scope="module")
def digits():
    return lapnb.load_data("mnist5k")


def small(seed=0):
    return lapnb.build_model("fcn", width=0.05, seed=seed)


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_it_learns_and_the_same_seed_gives_the_same_network(digits):
    first, second, other = (lapnb.train(small(), digits, 150, seed=seed) for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)
    loss, accuracy = lapnb.evaluate(first, digits)
    assert 0 < loss < 1
    assert 70 < accuracy <= 100


def test_it_is_adam_on_the_mean_loss_to_the_last_bit(digits):
    class WithSpare(FCN):
        """Its last parameter gets no gradient, and its first is not trained."""

        def __init__(self):
            super().__init__((784, 20, 10))
            self.spare = nn.Parameter(torch.ones(3))
            self.layers[0].weight.requires_grad_(False)

    torch.manual_seed(0)
    model = WithSpare()
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


def test_evaluate_counts_the_right_answers(digits):
    model = lapnb.train(small(), digits, 50)
    with torch.no_grad():
        logits = model(digits.normalise(digits.test_images))
    right = (logits.argmax(1) == digits.test_labels).double().mean()
    assert lapnb.evaluate(model, digits)[1] == pytest.approx(100 * right)
    with pytest.raises(ValueError, match="split"):
        lapnb.evaluate(model, digits, "validation")


def test_batches_do_not_depend_on_what_was_drawn_before(digits):
    torch.manual_seed(0)
    first = lapnb.train(small(), digits, 30)
    torch.rand(1000)
    assert same(first, lapnb.train(small(), digits, 30))
    state = torch.get_rng_state()
    lapnb.train(small(), digits, 30)
    assert torch.equal(state, torch.get_rng_state())
    retrained = lapnb.train(small(), digits, 30, stage="retrain")
    assert not same(first, retrained)


def test_pruned_weights_stay_exactly_zero_and_survivors_train(digits):
    model = small()
    masks = lapnb.prune_masks(model, "lap", 0.2)
    before = copy.deepcopy(model)
    lapnb.train(model, digits, 60, masks=masks)
    for layer, old, mask in zip(
        prunable_layers(model), prunable_layers(before), masks, strict=True
    ):
        assert not layer.weight[~mask].any()
        assert (layer.weight != old.weight)[mask].any()


def test_a_checkpointed_run_ends_as_an_uninterrupted_one(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["lapnb.training.train"], "CHECKPOINT_SECONDS", 0)
    masks = lapnb.prune_masks(small(), "lap", 0.2)
    whole = lapnb.train(small(), digits, 110, masks=masks)
    file = tmp_path / "run.safetensors"

    class Stop(Exception):
        pass

    def stop(done):
        if done >= 75:
            raise Stop

    with pytest.raises(Stop):
        lapnb.train(small(), digits, 110, masks=masks, checkpoint=file, progress=stop)
    assert load_tensors(file)[1]["step"] == "50"
    steps = []
    resumed = small(seed=9)
    lapnb.train(resumed, digits, 110, masks=masks, checkpoint=file, progress=steps.append)
    assert steps[0] == 75
    assert same(whole, resumed)


def test_a_convolutional_network_resumes_in_its_memory_layout(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["lapnb.training.train"], "CHECKPOINT_SECONDS", 0)
    data = lapnb.load_data("mnist5k", image_size=8, channels=3)
    file = tmp_path / "run.safetensors"

    def build(seed):
        model = lapnb.build_model("conv6", width=0.05, image_size=8, seed=seed)
        return model.to(memory_format=torch.channels_last)

    whole = lapnb.train(build(0), data, 55, checkpoint=file)
    assert load_tensors(file)[1]["step"] == "50"
    assert same(whole, lapnb.train(build(1), data, 55, checkpoint=file))


def test_a_damaged_checkpoint_is_named_and_not_used(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["lapnb.training.train"], "CHECKPOINT_SECONDS", 0)
    file = tmp_path / "run.safetensors"
    whole = lapnb.train(small(), digits, 60, checkpoint=file)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptFile, match=str(file)):
        load_tensors(file)
    again = lapnb.train(small(), digits, 60, checkpoint=file)
    assert str(file) in capsys.readouterr().out
    assert same(whole, again)


def test_a_checkpoint_of_another_network_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["lapnb.training.train"], "CHECKPOINT_SECONDS", 0)
    file = tmp_path / "run.safetensors"
    lapnb.train(small(), digits, 30, checkpoint=file)
    for sizes in ((784, 20, 10), (784, 20, 20, 20, 20, 10)):
        other = FCN(sizes)
        before = copy.deepcopy(other)
        with pytest.raises(ValueError, match=f"{file} is of another network"):
            lapnb.train(other, digits, 30, checkpoint=file)
        assert same(other, before)


@pytest.mark.parametrize(
    "change",
    [
        dict(seed=1),
        dict(stage="retrain"),
        dict(lr=1e-2),
        dict(batch_size=30),
        dict(steps=20),
        "masks",
    ],
)
def test_a_checkpoint_of_another_training_is_refused(digits, tmp_path, monkeypatch, change):
    monkeypatch.setattr(sys.modules["lapnb.training.train"], "CHECKPOINT_SECONDS", 0)
    file = tmp_path / "folder" / "run.safetensors"
    lapnb.train(small(), digits, 30, checkpoint=str(file))
    if change == "masks":
        change = dict(masks=lapnb.prune_masks(small(), "lap", 0.2))
    with pytest.raises(ValueError, match=f"{file} is of another network or training"):
        lapnb.train(small(), digits, **{"steps": 30, "checkpoint": file, **change})


def test_a_file_that_is_no_checkpoint_stays(digits, tmp_path):
    file = tmp_path / "mine.pt"
    torch.save({"my": "only copy"}, file)
    content = file.read_bytes()
    lapnb.train(small(), digits, 5, checkpoint=file)
    assert file.read_bytes() == content
    with pytest.raises(ValueError, match="checkpoint must name a file"):
        lapnb.train(small(), digits, 5, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", -1), ("steps", 1.5), ("batch_size", "2"), ("seed", -1)]
    + [("lr", value) for value in (0, -1.0, float("nan"), float("inf"), "0.1")]
    + [("masks", value) for value in ("lap", [None] * 5, 5)],
)
def test_what_makes_no_sense_is_named_before_training(digits, name, value):
    model, before = small(), small()
    with pytest.raises(ValueError, match=f"{name} must be"):
        lapnb.train(model, digits, **{"steps": 5, name: value})
    assert same(model, before)


def test_a_frozen_layer_keeps_its_surviving_weights(digits):
    model = small()
    model.layers[0].requires_grad_(False)
    masks = lapnb.prune_masks(model, "lap", 0.2)
    first, last = (layer.weight.detach().clone() for layer in (model.layers[0], model.layers[-1]))
    lapnb.train(model, digits, 5, masks=masks)
    assert torch.equal(model.layers[0].weight, first * masks[0])
    assert not torch.equal(model.layers[-1].weight, last * masks[-1])


def test_truncated_and_foreign_files_are_refused(tmp_path):
    file = tmp_path / "tensors.safetensors"
    save_tensors(file, {"a": torch.ones(3)}, {"step": "1"})
    assert torch.equal(load_tensors(file)[0]["a"], torch.ones(3))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptFile):
        load_tensors(file)
    torch.save({"a": torch.ones(3)}, file)  # a pickle: it must not be executed
    with pytest.raises(CorruptFile):
        load_tensors(file)


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    model = small()
    nn.init.constant_(prunable_layers(model)[0].weight, 1e38)
    with pytest.raises(FloatingPointError, match="at step"):
        lapnb.train(model, digits, 50)


@pytest.mark.parametrize("arguments", [dict(batch_size=0), dict(batch_size=5000)])
def test_bad_arguments(digits, arguments):
    with pytest.raises(ValueError, match="batch_size"):
        lapnb.train(small(), digits, **{"steps": 1, **arguments})


def test_several_networks_in_one_train_as_if_alone(digits):
    class Two(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.both = nn.ModuleList([first, second])

        def forward(self, x):
            return torch.stack([model(x) for model in self.both])

    first, second = FCN((784, 20, 10)), FCN((784, 20, 10))
    alone = [lapnb.train(copy.deepcopy(m), digits, 40) for m in (first, second)]
    together = Two(first, second)
    lapnb.train(together, digits, 40)
    losses, accuracies = lapnb.evaluate(together, digits)
    for model, loss, accuracy in zip(alone, losses, accuracies, strict=True):
        assert lapnb.evaluate(model, digits) == pytest.approx(
            (loss.item(), accuracy.item()), rel=1e-4
        )


def test_bfloat16_learns_and_keeps_weights_in_float32(digits):
    model = lapnb.train(small(), digits, 100, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same(model, lapnb.train(small(), digits, 100))
    assert lapnb.evaluate(model, digits)[1] > 60
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own
        within = lapnb.train(small(), digits, 100, precision="bfloat16")
        exact = lapnb.train(small(), digits, 100)
    assert same(model, within)
    assert same(exact, lapnb.train(small(), digits, 100))
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16; got 'int8'"):
        lapnb.train(small(), digits, 100, precision="int8")
