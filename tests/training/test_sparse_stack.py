"""A stack of sparse networks trains exactly as the dense networks with masked gradients."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F

from lapnb.training.networks import FCN
from lapnb.training.sparse_stack import LARGEST_STACK, STACK_WEIGHTS, SparseStack, fits, stacks

SIZES = (50, 40, 30, 20, 6)


def pruned(activation="relu", keep=0.15, seed=0, sizes=SIZES):
    """A random network and random masks, its pruned weights set to zero."""
    torch.manual_seed(seed)
    model = FCN(sizes, activation)
    masks = [torch.rand_like(linear.weight) < keep for linear in model.layers[::2]]
    masks[1][0] = False  # a unit without inputs is a trainable constant
    masks[1][:, 3] = False  # a unit that nothing reads
    zero(model, masks)
    return model, masks


def zero(model, masks):
    with torch.no_grad():
        for linear, mask in zip(model.layers[::2], masks, strict=True):
            linear.weight *= mask


def batches(count, batch=60):
    """Images in four noisy groups, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(SIZES[-1], 1, 5, 10, generator=generator)
    for _ in range(count):
        labels = torch.randint(SIZES[-1], (batch,), generator=generator)
        yield centres[labels] + torch.randn(batch, 1, 5, 10, generator=generator), labels


def train_stack(stack, steps, batch=60):
    """The losses of each step, (steps, K)."""
    optimizer, losses = torch.optim.Adam(stack.parameters(), lr=1.2e-3, fused=True), []
    for images, labels in batches(steps, batch):
        losses.append(torch.stack([F.cross_entropy(logits, labels) for logits in stack(images)]))
        optimizer.zero_grad()
        losses[-1].sum().backward()
        optimizer.step()
    return torch.stack(losses).detach()


def train_dense(model, masks, steps):
    """The losses of each step of masked dense training."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1.2e-3, fused=True), []
    for images, labels in batches(steps):
        losses.append(F.cross_entropy(model(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        for linear, mask in zip(model.layers[::2], masks, strict=True):
            linear.weight.grad *= mask
        optimizer.step()
    return torch.stack(losses).detach()


def stacked(pairs):
    return SparseStack([model for model, _ in pairs], [masks for _, masks in pairs])


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "none"])
def test_losses_equal_dense_masked_training(activation):
    pairs = [pruned(activation, keep, seed) for seed, keep in enumerate([0.3, 0.1, 0.03])]
    losses = train_stack(stacked(pairs), 50)
    for network, (model, masks) in enumerate(pairs):
        dense = train_dense(model, masks, 50)
        torch.testing.assert_close(losses[:, network], dense, rtol=1e-4, atol=0)
    assert losses[-5:, 0].mean() < losses[:5, 0].mean()


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_test_error_equals_dense_masked_training(activation):
    pairs = [pruned(activation, seed=seed) for seed in range(5)]
    errors = {}
    test_images, test_labels = next(batches(1, 3000))
    for way in ("sparse", "dense"):
        models = [copy.deepcopy(model) for model, _ in pairs]
        if way == "sparse":
            stack = SparseStack(models, [masks for _, masks in pairs])
            train_stack(stack, 300)
            stack.unstack(models)
        else:
            for model, (_, masks) in zip(models, pairs, strict=True):
                train_dense(model, masks, 300)
        with torch.no_grad():
            guesses = torch.stack([model(test_images).argmax(1) for model in models])
        errors[way] = (guesses != test_labels).float().mean(1) * 100
    assert errors["dense"].mean() < 60  # of 83 by chance: it has learned
    torch.testing.assert_close(errors["sparse"], errors["dense"], rtol=0, atol=1.0)


@pytest.mark.parametrize(("activation", "batch"), [("relu", 60), ("sigmoid", 16), ("tanh", 100)])
def test_network_does_not_depend_on_the_rest_of_its_stack(activation, batch):
    pairs = [pruned(activation, keep, seed) for seed, keep in enumerate([0.3, 0.1, 0.05])]
    together = stacked(pairs)
    losses = train_stack(together, 50, batch)
    models = [copy.deepcopy(model) for model, _ in pairs]
    together.unstack(models)
    for network, (model, masks) in enumerate(pairs):
        alone = SparseStack([model], [masks])
        assert torch.equal(train_stack(alone, 50, batch)[:, 0], losses[:, network])
        alone.unstack([model])
        for name, value in model.state_dict().items():
            assert torch.equal(value, models[network].state_dict()[name])


@pytest.mark.parametrize("empty", range(4))
def test_layer_without_weights(empty):
    model, masks = pruned()
    masks[empty][:] = False
    zero(model, masks)
    losses = train_stack(SparseStack([model], [masks]), 50)[:, 0]
    torch.testing.assert_close(losses, train_dense(model, masks, 50), rtol=1e-4, atol=0)


def test_dead_units_keep_their_weights_and_biases():
    model, masks = pruned()
    masks[2][:, 5] = False  # unit 5 of the second layer is dead, and with it what only it reads
    masks[1][:, 7] = False
    masks[1][5, 7] = True
    zero(model, masks)
    before, dense = copy.deepcopy(model), copy.deepcopy(model)
    stack = SparseStack([model], [masks])
    train_stack(stack, 20)
    stack.unstack([model])
    train_dense(dense, masks, 20)
    for layer, unit in [(0, 3), (0, 7), (2, 5)]:
        for trained in (model, dense):
            linear, old = trained.layers[layer], before.layers[layer]
            assert torch.equal(linear.weight[unit], old.weight[unit])
            assert torch.equal(linear.bias[unit], old.bias[unit])
    assert not torch.equal(model.layers[0].bias[4], before.layers[0].bias[4])


def test_unstack_writes_zeros_outside_the_masks():
    model, masks = pruned()
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for linear, mask in zip(model.layers[::2], masks, strict=True):
            linear.weight[~mask] = 1.0  # counts as zero in the stack
    stack = SparseStack([model], [masks])
    images, _ = next(batches(1))
    torch.testing.assert_close(stack(images)[0], zeroed(images))
    stack.unstack([model])
    for name, value in model.state_dict().items():
        assert torch.equal(value, zeroed.state_dict()[name])


def test_any_batch_and_a_restored_state():
    pairs = [pruned(seed=seed) for seed in range(2)]
    trained, restored = stacked(pairs), stacked(pairs)
    train_stack(trained, 5)
    restored.load_state_dict(trained.state_dict())
    for size in (1, 16, 33):
        images, _ = next(batches(1, size))
        assert torch.equal(trained(images), restored(images))
        assert trained(images).shape == (2, size, SIZES[-1])


def test_fits():
    dense = [torch.ones(o, i, dtype=torch.bool) for i, o in itertools.pairwise(SIZES)]
    model, masks = pruned()
    assert fits(model, masks) and not fits(model, dense)
    assert not fits(torch.nn.Linear(3, 2), [dense[0]])


def test_stacks_hold_every_network_once_and_are_not_too_large():
    size, surviving = 1_000_000, [0.5, 0.3, 0.2, 0.1, 0.5, 0.1, 0.1] + [0.001] * 50
    found = stacks(surviving, size)
    assert [n for stack in found for n in stack] == list(range(len(surviving)))
    assert found[:5] == [[0], [1], [2, 3], [4], [*range(5, 25)]]
    for stack in found:
        weights = sum(surviving[n] * size for n in stack)
        assert len(stack) == 1 or (weights <= STACK_WEIGHTS and len(stack) <= LARGEST_STACK)
    assert stacks([], size) == []
    assert stacks([0.1, 0.1], 10 * STACK_WEIGHTS) == [[0], [1]]
