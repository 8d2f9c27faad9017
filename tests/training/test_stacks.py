"""A stack of sparse networks trains exactly as the dense networks with masked gradients."""

import copy

import pytest
import torch
from reference import same_networks
from torch import nn
from torch.nn import functional as F

from lapnb.training.networks import FCN
from lapnb.training.stacks import SparseStack

SIZES = (50, 40, 30, 20, 6)


def pruned(activation="relu", keep=0.15, seed=0):
    """A random network and random masks, its pruned weights set to zero."""
    torch.manual_seed(seed)
    model = FCN(SIZES, activation)
    masks = [torch.rand_like(linear.weight) < keep for linear in model.layers[::2]]
    masks[1][0] = False  # a unit without inputs is a trainable constant
    masks[1][:, 3] = False  # a unit that nothing reads
    zero(model, masks)
    return model, masks


@torch.no_grad()
def zero(model, masks):
    for linear, mask in zip(model.layers[::2], masks, strict=True):
        linear.weight *= mask


def batches(count, batch=60):
    """Images in noisy groups, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(SIZES[-1], 1, 5, 10, generator=generator)
    for _ in range(count):
        labels = torch.randint(SIZES[-1], (batch,), generator=generator)
        yield centres[labels] + torch.randn(batch, 1, 5, 10, generator=generator), labels


def trained(network, steps, masks=(), batch=60):
    """The losses of each step, (steps, K), of a stack, or of one network with its masks."""
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=1.2e-3, fused=True), []
    for images, labels in batches(steps, batch):
        logits = network(images)[None] if masks else network(images)
        losses.append(torch.stack([F.cross_entropy(one, labels) for one in logits]))
        optimizer.zero_grad()
        losses[-1].sum().backward()
        for n, mask in enumerate(masks):
            network.layers[2 * n].weight.grad *= mask
        optimizer.step()
    return torch.stack(losses).detach()


def stacked(pairs):
    return SparseStack(*(list(part) for part in zip(*pairs, strict=True)))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "none"])
def test_losses_and_errors_equal_dense_masked_training(activation):
    pairs = [pruned(activation, keep, seed) for seed, keep in enumerate([0.3, 0.1, 0.03])]
    stack = stacked(pairs)
    losses = trained(stack, 300)
    dense = torch.cat([trained(copy.deepcopy(m), 300, masks) for m, masks in pairs], 1)
    torch.testing.assert_close(losses[:50], dense[:50], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses[-50:].mean(0), dense[-50:].mean(0), rtol=1e-2, atol=0)
    assert losses[-5:, 0].mean() < losses[:5, 0].mean()


@pytest.mark.parametrize(("activation", "batch"), [("relu", 60), ("sigmoid", 16), ("tanh", 100)])
def test_network_does_not_depend_on_the_rest_of_its_stack(activation, batch):
    pairs = [pruned(activation, keep, seed) for seed, keep in enumerate([0.3, 0.1, 0.05])]
    nn.init.constant_(pairs[1][0].layers[-1].bias, torch.nan)  # this one diverges
    together, models = stacked(pairs), [copy.deepcopy(model) for model, _ in pairs]
    losses = trained(together, 50, batch=batch)
    together.unstack(models)
    assert losses[-1].isfinite().tolist() == [True, False, True]
    for network in (0, 2):
        alone = stacked([pairs[network]])
        assert torch.equal(trained(alone, 50, batch=batch)[:, 0], losses[:, network])
        alone.unstack([pairs[network][0]])
        assert same_networks(pairs[network][0], models[network])


@pytest.mark.parametrize("empty", range(4))
def test_layer_without_weights(empty):
    model, masks = pruned()
    masks[empty][:] = False
    zero(model, masks)
    losses = trained(stacked([(model, masks)]), 50)
    torch.testing.assert_close(losses, trained(model, 50, masks), rtol=1e-4, atol=0)


def test_dead_units_keep_their_weights_and_biases():
    model, masks = pruned()
    masks[2][:, 5] = False  # unit 5 of the second layer is dead, and with it what only it reads
    masks[1][:, 7] = False
    masks[1][5, 7] = True
    zero(model, masks)
    before, stack = copy.deepcopy(model), stacked([(model, masks)])
    trained(stack, 20)
    stack.unstack([model])
    for layer, unit in [(0, 3), (0, 7), (2, 5)]:
        linear, old = model.layers[layer], before.layers[layer]
        assert torch.equal(linear.weight[unit], old.weight[unit])
        assert torch.equal(linear.bias[unit], old.bias[unit])
    assert not torch.equal(model.layers[0].bias[4], before.layers[0].bias[4])


def test_weights_outside_the_masks_count_as_zero_and_become_zero():
    model, masks = pruned()
    zeroed = copy.deepcopy(model)
    for linear, mask in zip(model.layers[::2], masks, strict=True):
        linear.weight.data[~mask] = 1.0
    stack = stacked([(model, masks)])
    for size in (1, 16, 33):
        images, _ = next(batches(1, size))
        torch.testing.assert_close(stack(images), zeroed(images)[None])
    stack.unstack([model])
    assert same_networks(model, zeroed)
