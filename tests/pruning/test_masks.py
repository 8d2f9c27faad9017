"""Masks: exact counts, ties, scopes, sequential order, and nothing done to the model."""

import copy

import pytest
import torch

import lapnb
from lapnb.paper.tables import table
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import keep_largest, surviving
from lapnb.pruning.scores import METHODS
from lapnb.training.networks import FCN

WITHOUT_DATA = [m for m, method in METHODS.items() if method.weights in ("dense", "random")]


@pytest.fixture
def net():
    torch.manual_seed(3)
    model = FCN((8, 7, 6, 5))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def weights(model):
    return [layer.weight.detach() for layer in prunable_layers(model)]


def distortion_of_block(layers, i, row, column):
    """‖W_{i+1} W_i W_{i−1} − W_{i+1} W̃_i W_{i−1}‖_F with one weight of layer i zeroed."""

    def block(w):
        out = w if i == 0 else w @ layers[i - 1].double()
        return out if i + 1 == len(layers) else layers[i + 1].double() @ out

    whole = layers[i].double()
    zeroed = whole.clone()
    zeroed[row, column] = 0
    return torch.linalg.norm(block(whole) - block(zeroed))


def test_lap_keeps_the_weights_of_largest_brute_force_distortion(net):
    layers = weights(net)
    for i, mask in enumerate(lapnb.prune_masks(net, "lap", 0.4)):
        brute = torch.tensor(
            [
                [distortion_of_block(layers, i, r, c) for c in range(mask.shape[1])]
                for r in range(mask.shape[0])
            ]
        )
        assert brute[mask].min() > brute[~mask].max()


@pytest.mark.parametrize(
    ("method", "order"), [("lap_forward", [0, 1, 2]), ("lap_backward", [2, 1, 0])]
)
def test_sequential_lap_sees_pruned_neighbours(net, method, order):
    layers = weights(net)
    masks = lapnb.prune_masks(net, method, 0.5)
    for i in order:
        brute = torch.tensor(
            [
                [distortion_of_block(layers, i, r, c) for c in range(masks[i].shape[1])]
                for r in range(masks[i].shape[0])
            ]
        )
        expected = keep_largest(brute, round(0.5 * brute.numel()))
        # weights whose whole neighbour was pruned tie at zero, up to rounding
        assert (expected != masks[i])[brute > 1e-5].sum() == 0
        layers[i] = layers[i] * masks[i]
    assert any(
        not torch.equal(a, b)
        for a, b in zip(masks, lapnb.prune_masks(net, "lap", 0.5), strict=True)
    )


@pytest.mark.parametrize("method", WITHOUT_DATA)
def test_counts_are_exact_and_the_model_is_untouched(net, method):
    before = copy.deepcopy(net.state_dict())
    masks = lapnb.prune_masks(net, method, [0.5, 0.3, 0.25])
    assert [int(m.sum()) for m in masks] == [28, 13, 8]
    assert [m.shape for m in masks] == [w.shape for w in weights(net)]
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    for mask in masks:
        mask.fill_(False)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_counts_of_the_fcn_table():
    model = lapnb.build_model("fcn", seed=0)
    counts = []
    for t in table("fcn_mnist", scale="paper").rounds:
        masks = lapnb.prune_masks(model, "mp", table("fcn_mnist", scale="paper").keep(t))
        counts.append(sum(int(m.sum()) for m in masks))
    assert counts == [72957, 36873, 18733, 9588, 4963, 2605, 1397]
    assert sum(m.numel() for m in masks) == 1_147_000


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 10])
def test_ties_go_to_the_lower_index(count):
    score = torch.tensor([1.0, 2, 2, 2, 0, 0, 2, 1, 0, 0])
    expected = torch.zeros(10, dtype=torch.bool)
    expected[torch.argsort(score, descending=True, stable=True)[:count]] = True
    assert torch.equal(keep_largest(score, count), expected)


@pytest.mark.parametrize(("method", "power"), [("mp", 1), ("lap", 2)])
def test_global_scope_ranks_normalised_scores(net, method, power):
    masks = lapnb.prune_masks(net, method, 0.4, scope="global")
    layers = weights(net)
    scores = []
    for i, w in enumerate(layers):
        score = w.abs().double()
        if method == "lap":
            score = torch.tensor(
                [
                    [distortion_of_block(layers, i, r, c) for c in range(w.shape[1])]
                    for r in range(w.shape[0])
                ]
            )
        scores.append(score**power / torch.linalg.norm(score**power))
    kept = torch.cat([s[m] for s, m in zip(scores, masks, strict=True)])
    pruned = torch.cat([s[~m] for s, m in zip(scores, masks, strict=True)])
    assert len(kept) == round(0.4 * (len(kept) + len(pruned)))
    assert kept.min() > pruned.max()


def test_random_masks_depend_on_the_seed_only(net):
    first, again = (lapnb.prune_masks(net, "rp", 0.5, seed=1) for _ in range(2))
    other = lapnb.prune_masks(net, "rp", 0.5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["mp", "rp", "lap"])
def test_what_is_pruned_does_not_return(net, method, scope):
    first = lapnb.prune_masks(net, method, 0.4, scope)
    lapnb.apply_masks(net, first)
    for keep in (0.4, 0.1):
        again = lapnb.prune_masks(net, method, keep, scope, seed=5)
        assert not any((b & ~a).any() for a, b in zip(first, again, strict=True))


def test_whole_network_lap_is_the_end_to_end_distortion(net):
    layers = [w.double() for w in weights(net)]
    whole = torch.linalg.multi_dot(layers[::-1])
    for i, mask in enumerate(lapnb.prune_masks(net, "lap_all", 0.5)):
        brute = torch.zeros_like(layers[i])
        for r in range(brute.shape[0]):
            for c in range(brute.shape[1]):
                changed = [w.clone() for w in layers]
                changed[i][r, c] = 0
                brute[r, c] = torch.linalg.norm(torch.linalg.multi_dot(changed[::-1]) - whole)
        assert brute[mask].min() > brute[~mask].max()


def test_apply_and_count(net):
    masks = lapnb.prune_masks(net, "lap", 0.5)
    kept = [w[m].clone() for w, m in zip(weights(net), masks, strict=True)]
    lapnb.apply_masks(net, masks)
    for w, m, k in zip(weights(net), masks, kept, strict=True):
        assert torch.equal(w[m], k)
        assert not w[~m].any()
    assert surviving(masks) == sum(int(m.sum()) for m in masks) / 128


def test_torch_prune_form(net):
    from torch.nn.utils import prune

    masks = lapnb.prune_masks(net, "mp", 0.5)
    x = torch.randn(4, 8)
    pruned = copy.deepcopy(net)
    lapnb.apply_masks(pruned, masks)
    converted = lapnb.to_torch_prune(copy.deepcopy(net), masks)
    assert prune.is_pruned(converted)
    assert torch.equal(converted(x), pruned(x))
    assert torch.equal(converted.layers[0].weight_mask.bool(), masks[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(method="lapp", keep=0.5), "method must be one of mp, rp"),
        (dict(method="mp", keep=1.5), r"keep must lie in \[0, 1\], got 1.5"),
        (dict(method="mp", keep=-0.1), "keep must lie in"),
        (dict(method="mp", keep=float("nan")), "keep must lie in"),
        (dict(method="mp", keep=[0.5, 0.5]), "one fraction or 3"),
        (dict(method="mp", keep="half"), "keep must"),
        (dict(method="mp", keep=0.5, scope="all"), "scope must be"),
        (dict(method="mp", keep=[0.5, 0.5, 0.5], scope="global"), "one fraction when scope"),
        (dict(method="lap_forward", keep=0.5, scope="global"), "no global scope"),
        (dict(method="lap_act", keep=0.5), "pass data="),
        (dict(method="obd", keep=0.5), "pass data="),
    ],
)
def test_bad_arguments(net, arguments, words):
    with pytest.raises(ValueError, match=words):
        lapnb.prune_masks(net, **arguments)


def test_masks_that_do_not_fit(net):
    masks = lapnb.prune_masks(net, "mp", 0.5)
    with pytest.raises(ValueError, match="one per prunable layer"):
        lapnb.apply_masks(net, masks[:2])
    with pytest.raises(ValueError, match=r"layers\.0 must be boolean"):
        lapnb.apply_masks(net, [masks[0].float(), *masks[1:]])
    net.layers[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        lapnb.prune_masks(net, "mp", 0.5)
