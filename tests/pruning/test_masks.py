"""Masks: the definitions by brute force, exact counts, ties, scopes, types and refusals."""

import copy

import pytest
import torch
from reference import (
    block_distortions,
    largest,
    odd_torch,
    randomised,
    same,
    unchanged,
)
from torch import nn

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import check_method, fitting, keep_largest
from lapnb.pruning.scores import METHODS
from lapnb.training.networks import FCN

WITHOUT_DATA = [m for m, x in METHODS.items() if not x.looks_at and x.neighbours != "flow"]
KEEP = [0.5, 0.3, 0.25]  # of 56, 42 and 30 weights


@pytest.fixture
def net():
    return randomised(FCN((8, 7, 6, 5)))


def weights(model):
    return [layer.values for layer in prunable_layers(model)]


NEIGHBOURS = {  # how many layers before and after it count, where it is not one each
    "mp": (0, 0),
    "obd": (0, 0),
    "synflow": (0, 0),
    "lfp": (0, 1),
    "lbp": (1, 0),
    "lap_all": (2, 2),
}


def by_definition(method, layers, i):
    return block_distortions(layers, i, *NEIGHBOURS.get(method, (1, 1)))


@pytest.mark.parametrize("pruned", [[0, 1, 2], [0, 2], [1]])
@pytest.mark.parametrize("method", ["mp", "lfp", "lbp", "lap", "lap_all"])
def test_the_weights_whose_removal_distorts_most_are_kept(net, method, pruned):
    layers = weights(net)
    for i in {0, 1, 2} - {*pruned}:  # a dense layer is a neighbour all the same
        net.layers[2 * i].prunable = False
    for i, mask in zip(pruned, lapnb.prune_masks(net, method, 0.4), strict=True):
        score = by_definition(method, layers, i)
        assert torch.equal(mask, largest(score, round(0.4 * mask.numel())))


@pytest.mark.parametrize(
    ("method", "order"), [("lap_forward", [0, 1, 2]), ("lap_backward", [2, 1, 0])]
)
def test_sequential_lap_sees_pruned_neighbours(net, method, order):
    layers, masks = weights(net), lapnb.prune_masks(net, method, 0.5)
    for i in order:
        brute = block_distortions(layers, i)
        # weights whose whole neighbour was pruned tie at zero, up to rounding
        assert (largest(brute, round(0.5 * brute.numel())) != masks[i])[brute > 1e-5].sum() == 0
        layers[i] = layers[i] * masks[i]
    assert not same(masks, lapnb.prune_masks(net, "lap", 0.5))


def literal_scores(method, layers, data):
    if method.startswith("ria"):
        score = METHODS[method].score
        return [score(w, numbers, 1).double() for w, numbers in zip(layers, data, strict=True)]
    if method in ("lap_act", "obd", "obd_lap", "synflow"):
        layers = [w * numbers for w, numbers in zip(layers, data, strict=True)]
    inner = {"lamp": "mp", "lamp_lap": "lap"}.get(method, method)
    return [by_definition(inner, layers, i) for i in range(3)]


SQUARED = ["lfp", "lbp", "lap", "lap_all", "lap_act", "lap_flow", "obd", "obd_lap"]


def compared(method, score):
    if method == "synflow":
        return score
    if method.startswith("lamp"):
        squares = score**2
        return torch.stack([s / squares[squares >= s].sum() for s in squares.flatten()])
    score = score**2 if method in SQUARED else score
    return score / torch.linalg.norm(score)


@pytest.mark.parametrize(
    "method", [*SQUARED, "mp", "lamp", "lamp_lap", "ria", "ria_act", "synflow"]
)
@pytest.mark.filterwarnings("ignore:the global ranking leaves")
def test_global_scope_compares_layers(net, method):
    layers = weights(net)
    layers[0].pow_(3)  # heavy tails, so that the power and the norm decide
    data = [torch.linspace(0.1, 3, w.numel()).view_as(w) for w in layers]
    scores = [compared(method, score) for score in literal_scores(method, layers, data)]
    flat = torch.cat([score.flatten() for score in scores])
    more = dict(example=torch.rand(2, 8)) if method == "lap_flow" else dict(statistics=data)
    for count in range(1, len(flat), 2):
        masks = lapnb.prune_masks(net, method, count / len(flat), "global", **more)
        found = torch.cat([mask.flatten() for mask in masks])
        assert torch.equal(found, largest(flat, count)), count


def test_lamp_of_equal_and_of_pruned_weights():
    weight, one = torch.tensor([[2.0, -1, 1], [0, 0, 3]]), torch.ones(())
    expected = torch.tensor([[4 / 13, 1 / 15, 1 / 15], [0, 0, 1]])
    torch.testing.assert_close(METHODS["lamp"].score(weight, one, one), expected)
    assert not METHODS["lamp"].score(0 * weight, one, one).any()


def test_ria_adds_the_shares_of_both_units():
    weight, norms = torch.randn(3, 4, 2), torch.rand(1, 4, 1)
    size = weight.abs()
    expected = size / size.sum((0, 2), keepdim=True) + size / size.sum((1, 2), keepdim=True)
    torch.testing.assert_close(METHODS["ria"].score(weight, norms, norms), expected)
    score = METHODS["ria_act"].score(weight, norms, norms)
    torch.testing.assert_close(score, expected * norms**0.5)


@pytest.mark.parametrize("keep", [0, 0.13, 0.5, 0.77, 1])
def test_wanda_keeps_equally_many_of_each_row_and_exactly_so_many_in_all(net, keep):
    norms = [torch.rand(1, w.shape[1]) for w in weights(net)]
    masks = lapnb.prune_masks(net, "wanda", keep, statistics=norms)
    for mask, weight, norm in zip(masks, weights(net), norms, strict=True):
        score = weight.abs() * norm
        each, left = divmod(round(keep * mask.numel()), len(score))
        following = score.sort(dim=1, descending=True).values[:, each % score.shape[1]]
        counts = each + largest(following, left)
        rows = [largest(row, count) for row, count in zip(score, counts, strict=True)]
        assert torch.equal(mask, torch.stack(rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.double])
@pytest.mark.parametrize("method", WITHOUT_DATA)
def test_counts_are_exact_in_any_precision_and_the_model_is_untouched(net, method, dtype):
    with unchanged(net.to(dtype)):
        masks = lapnb.prune_masks(net, method, KEEP)
    assert [int(m.sum()) for m in masks] == [28, 13, 8]
    assert [m.shape for m in masks] == [w.shape for w in weights(net)]
    assert same(masks, lapnb.prune_masks(net.float(), method, KEEP))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 10])
def test_ties_go_to_the_lower_index(count):
    score = torch.tensor([1.0, 2, 2, 2, 0, 0, 2, 1, 0, 0])
    assert torch.equal(keep_largest(score, count, score), largest(score, count))


def test_random_masks_depend_on_the_seed_only(net):
    first, again, other = (lapnb.prune_masks(net, "rp", 0.5, seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("method", ["mp", "rp", "lap", "lamp"])
def test_settings_of_torch_do_not_matter(net, method):
    masks = lapnb.prune_masks(net, method, 0.5)
    with odd_torch():
        again = lapnb.prune_masks(net, method, 0.5)
        lapnb.keep_masks(net, again, torch.optim.SGD(net.parameters(), 1))
    assert same(masks, again) and not outside(net, masks)
    loss_of(net).backward(create_graph=True)
    assert not any(layer.weight.grad[~mask].any() for layer, mask in fitting(net, masks))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["mp", "rp", "lap", "lamp", "ria", "wanda"])
def test_what_is_pruned_does_not_return(net, method, scope):
    scope = "layer" if method == "wanda" else scope
    settings = dict(statistics=[torch.zeros(1, 1)] * 3)  # ties everywhere
    first = lapnb.prune_masks(net, method, 0.4, scope, **settings)
    lapnb.apply_masks(net, first)
    for keep in (0.4, 0.1):
        again = lapnb.prune_masks(net, method, keep, scope, seed=5, **settings)
        assert not any((b & ~a).any() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("factor", [1e-30, 1e15])
@pytest.mark.parametrize("method", ["mp", "lap", "lap_all", "lap_flow"])
def test_a_common_factor_does_not_matter(net, method, factor):
    example = torch.rand(2, 8) if method == "lap_flow" else None
    expected = lapnb.prune_masks(net.double(), method, 0.3, "global", example)
    for weight in weights(net):
        weight.mul_(factor)
    assert same(expected, lapnb.prune_masks(net.float(), method, 0.3, "global", example))


def test_layers_that_are_empty_or_without_scores_are_named(net):
    net.layers[2].weight.data[0] = 100
    with pytest.warns(UserWarning, match=r"ranking leaves layers\.2 empty"):
        lapnb.prune_masks(net, "lamp", 0.02, "global")
    net.layers[4].weight.data.zero_()
    with pytest.warns(UserWarning) as warned:
        masks = lapnb.prune_masks(net, "lap", 0.5)
    named = [str(w.message).partition(": all scores are 0")[0] for w in warned]
    assert named == ["layers.2", "layers.4"]
    assert [int(mask.sum()) for mask in masks] == [28, 21, 15]


def test_modules_that_no_mask_is_for_are_named():
    model = nn.Sequential(nn.Embedding(7, 4), nn.LSTM(4, 8), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="left dense: Embedding, LSTM$"):
        lapnb.prune_masks(model, "mp", 0.5)


def outside(model, masks):
    return any(w[~m].any() for w, m in zip(weights(model), masks, strict=True))


def loss_of(model):
    return (model(torch.eye(8)) - 1).square().sum()


def test_masks_are_kept_by_an_optimizer_that_has_trained_before(net):
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    masks = lapnb.prune_masks(net, "mp", 0.3)

    def stray():
        loss_of(net).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        optimizer.step()
        return outside(net, masks)

    assert stray()
    handle, before = lapnb.keep_masks(net, masks, optimizer), weights(net)[0].clone()
    assert not outside(net, masks)
    assert not any(stray() for _ in range(5))
    assert not any(layer.weight.grad[~mask].any() for layer, mask in fitting(net, masks))
    assert not torch.equal(before, weights(net)[0])
    handle.remove()
    assert stray()


def test_layers_that_an_optimizer_does_not_step_are_named(net):
    masks = lapnb.prune_masks(net, "mp", 0.3)
    optimizer = torch.optim.SGD([net.layers[0].weight], 0.01)
    with pytest.warns(UserWarning, match=r"does not step layers\.2, layers\.4, masked too"):
        lapnb.keep_masks(net, masks, optimizer)
    assert not outside(net, masks)


class Wrapper(torch.optim.Optimizer):
    def __init__(self, optimizer):
        self.param_groups = optimizer.param_groups


def test_optimizers_that_cannot_keep_masks_are_refused(net):
    masks = lapnb.prune_masks(net, "mp", 0.3)
    biases = torch.optim.SGD([p for p in net.parameters() if p.ndim == 1])
    for wrong in (biases, Wrapper(torch.optim.SGD(net.parameters()))):
        with pytest.raises(ValueError, match=r"optimizer must be a torch\.optim\.Optimizer that"):
            lapnb.keep_masks(net, masks, wrong)


def test_torch_prune_form(net):
    masks, x, pruned = lapnb.prune_masks(net, "mp", 0.5), torch.randn(4, 8), copy.deepcopy(net)
    lapnb.apply_masks(pruned, masks)
    expected = [w * m for w, m in zip(weights(net), masks, strict=True)]
    assert same(expected, weights(pruned))
    lapnb.to_torch_prune(net, masks)
    assert torch.equal(net(x), pruned(x))
    assert torch.equal(net.layers[0].weight_mask.bool(), masks[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(method="lapp"), "method must be one of mp, rp"),
        *[(dict(keep=x), "keep must be a number") for x in (1.5, float("nan"), [0.5] * 2)],
        *[(dict(seed=seed), "seed must be a whole number") for seed in (-1, 2**63)],
        (dict(scope="all"), "scope must be"),
        (dict(keep=[0.5] * 3, scope="global"), "keep must be a number"),
        (dict(method="lap_forward", scope="global"), "lap_forward has no global scope"),
        (dict(method="wanda", scope="global"), "wanda has no global scope"),
        (dict(method="lap_act"), "pass batches="),
        (dict(method="lap_flow"), "pass example="),
        (dict(method="obd", statistics=[torch.ones(1)]), "statistics must be one tensor per"),
    ],
)
def test_bad_arguments(net, arguments, words):
    with pytest.raises(ValueError, match=words):
        lapnb.prune_masks(net, **dict(method="mp", keep=0.5) | arguments)


UP = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 3, 3))


@pytest.mark.parametrize(
    ("model", "method", "words"),
    [
        (lapnb.build_model("vgg11", 0.05), "lap_all", r"norm; layers\.0 is Conv2d"),
        (lapnb.build_model("vgg11", 0.05), "obd", "which hold no BatchNorm2d"),
        (UP, "wanda", "wanda cannot rank within units of 1"),
        (UP, "lap", "in Sequential: pass example="),
    ],
)
def test_what_cannot_be_pruned_is_known_before_anything_is_trained(model, method, words):
    assert len(check_method(model.to("meta"), "mp")) == len(prunable_layers(model))
    with pytest.raises(ValueError, match=words):
        check_method(model, method)


def test_masks_and_models_that_do_not_fit(net):
    masks = lapnb.prune_masks(net, "mp", 0.5)
    with pytest.raises(ValueError, match=r"one per prunable layer \(3\); got 2"):
        lapnb.apply_masks(net, masks[:2])
    for wrong in (masks[0].float(), masks[0].T, 1):
        with pytest.raises(ValueError, match=r"layers\.0 must be"):
            lapnb.apply_masks(net, [wrong, *masks[1:]])
    net.layers[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"finite.* layers\.0"):
        lapnb.prune_masks(net, "mp", 0.5)
