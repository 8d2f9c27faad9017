"""Neighbours along the data flow: brute force on small networks, rescaling on real ones."""

import pytest
import torch
import torchvision
from reference import (
    RandomNetwork,
    randomised,
    same,
    unchanged,
    unit_distortions,
)
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.flow import flow
from lapnb.pruning.layers import prunable_layers


class Net(nn.Module):
    """`function` of the network and its inputs; modules by name, a pair is a linear layer."""

    def __init__(self, function, shape=(1, 5), **modules):
        super().__init__()
        self.function, self.shape = function, shape
        for name, module in modules.items():
            pair = isinstance(module, tuple)
            setattr(self, name, nn.Linear(*module, bias=False) if pair else module)

    def forward(self, *inputs, **named):
        return self.function(self, *inputs, **named)


def conv(inputs, outputs, kernel=1, kind=nn.Conv2d, **settings):
    return kind(inputs, outputs, kernel, bias=False, **settings)


def factors(model, example):
    layers = prunable_layers(model)
    found = flow(model, example, layers, [layer.values for layer in layers])
    return {layer.name: pair for layer, pair in zip(layers, found, strict=True)}


def rows(layer):
    return layer.weight.detach().flatten(1).norm(dim=1)


def columns(layer):
    return layer.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)


def close(factor, expected):
    expected = torch.as_tensor(expected).to(factor).expand(factor.numel())
    torch.testing.assert_close(factor.flatten(), expected)


ONES = torch.ones(1, 5)
FORMS = {
    "branches and outputs": Net(
        lambda n, x: {"b": n.b(y := n.norm(n.a(x))), "c": [n.c(y) / 2, 3 * y]},
        a=(5, 4),
        norm=nn.BatchNorm1d(4),
        b=(4, 3),
        c=(4, 2),
    ),
    "called twice": Net(lambda n, x: n.b(n.b(n.a(x))) + n.b(x[:, :4]), a=(5, 4), b=(4, 4)),
    "groups": Net(
        lambda n, x: n.d(n.c(F.channel_shuffle(n.b(n.a(x)), 2))),
        shape=(1, 4, 1, 1),
        a=conv(4, 4),
        b=conv(4, 8, groups=4),
        c=conv(8, 4, groups=2),
        d=conv(4, 2),
    ),
    "transposed": Net(
        lambda n, x: n.c(n.b(n.a(x)).chunk(2, 1)[1]),
        shape=(1, 4, 1, 1),
        a=conv(4, 4, kind=nn.ConvTranspose2d),
        b=conv(4, 6, kind=nn.ConvTranspose2d, groups=2),
        c=conv(3, 2),
    ),
}


def scores(model, example):
    pairs = factors(model, example)
    return {
        name: model.get_submodule(name).weight.detach().abs() * pair[0] * pair[1]
        for name, pair in pairs.items()
        if pair
    }


def check_distortions(model, example):
    literal = unit_distortions(model, example)
    found = scores(model, example)
    assert found.keys() == literal.keys()
    for name, score in found.items():
        torch.testing.assert_close(score, literal[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_the_product_is_the_distortion_of_the_block(form):
    check_distortions(randomised(FORMS[form]), torch.rand(FORMS[form].shape))


@pytest.mark.filterwarnings("ignore:left dense")
@pytest.mark.parametrize("seed", range(200))
def test_random_networks_have_the_distortions_of_their_blocks(seed):
    model = RandomNetwork(seed)
    check_distortions(model, model.example)


@pytest.mark.parametrize("name", ["fcn", "conv6", "vgg11", "vgg16"])
def test_on_chains_masks_are_those_of_the_order_of_definition(name):
    model = randomised(lapnb.build_model(name, width=0.25, image_size=32, channels=3))
    for method in ("lap", "lap_flow", "lap_forward", "lap_backward", "lamp_lap"):
        masks = lapnb.prune_masks(model, method, 0.1, example=torch.rand(2, 3, 32, 32))
        assert same(masks, lapnb.prune_masks(model, method.removesuffix("_flow"), 0.1))


def test_additions_count_in_our_residual_networks():
    model = randomised(lapnb.build_model("resnet18", width=0.05))
    by_flow = lapnb.prune_masks(model, "lap_flow", 0.5, example=torch.rand(1, 3, 32, 32))
    assert not same(by_flow, lapnb.prune_masks(model, "lap", 0.5))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.dropout(F.hardswish(x.clone(), inplace=True)),
        lambda x: x * torch.sigmoid(x),
        lambda x: x.mul(F.relu6(x + 3) / 6) - 1,
        lambda x: F.avg_pool2d(F.pad(x, (1, 2, 0, 1)), 3, 2, padding=1)[:, :, 1:],
        lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 3), scale_factor=2, mode="bilinear"),
        lambda x: x.mean((2, 3), keepdim=True) + torch.rand(4, 1, 1),
        lambda x: x.abs().amax((2, 3), keepdim=True).square().sqrt(),
        lambda x: x.std((2, 3), keepdim=True),
        lambda x: x.norm(dim=(2, 3), keepdim=True) / 8,
        lambda x: x.permute(0, 2, 3, 1).roll(1, 1).reshape(1, 16, 4, 4).permute(0, 3, 1, 2),
        lambda x: F.group_norm(F.layer_norm(F.instance_norm(x), (8, 8)), 2),
        lambda x: x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt(),
        lambda x: x.masked_fill(torch.rand(8) > 2, 0).to(x.dtype),
        lambda x: None if x.requires_grad else x.data.detach().float(),
    ],
)
def test_these_are_the_identity_of_each_unit(between):
    model = Net(lambda n, x: n.b(between(n.a(x))), a=conv(3, 4, 3, padding=1), b=conv(4, 2))
    found = factors(model, torch.rand(2, 3, 8, 8))
    close(found["a"][1], columns(model.b))
    close(found["b"][0], rows(model.a))


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4)])
def test_a_scale_of_the_data_counts_as_one(norm):
    model = randomised(nn.Sequential(nn.Linear(5, 4), norm, nn.Linear(4, 3)))
    gamma = norm.weight.detach().abs()
    found = factors(model, torch.rand(4, 5))
    close(found["0"][1], columns(model[2]) * gamma)
    close(found["2"][0], rows(model[0]) * gamma)


@pytest.mark.parametrize(
    "gated",
    [
        lambda x, g: x * torch.sigmoid(g),
        lambda x, g: F.hardsigmoid(g).expand_as(x) * F.relu(x),
        lambda x, g: F.glu(torch.cat([x, g.expand_as(x)], 1), 1),
        lambda x, g: F.silu(g) * x,
    ],
)
def test_a_gate_counts_as_one_and_what_it_is_made_of_sees_what_it_gates(gated):
    model = Net(
        lambda n, x: n.c(gated(y := n.a(x), n.g2(n.g1(y)))),
        a=conv(3, 4, 3),
        g1=conv(4, 2),
        g2=conv(2, 4),
        c=conv(4, 3, 3),
    )
    found = factors(model, torch.rand(1, 3, 8, 8))
    close(found["c"][0], rows(model.a))
    close(found["g2"][1], rows(model.a) * columns(model.c))
    close(found["g1"][0], rows(model.a))
    close(found["a"][1], (columns(model.c) ** 2 + columns(model.g1) ** 2).sqrt())


@pytest.mark.parametrize(
    "product",
    [
        lambda x, y: x.relu() * y,
        lambda x, y: F.leaky_relu(x) * y.clamp(min=0),
        lambda x, y: x * y.mean(1, keepdim=True),
    ],
)
def test_without_a_gate_both_factors_of_a_product_count(product):
    model = Net(lambda n, x: n.c(product(n.a(x), n.b(x))), a=(5, 4), b=(5, 4), c=(4, 2))
    found = factors(model, torch.rand(1, 3, 5))
    close(found["c"][0], rows(model.a) * rows(model.b))
    close(found["a"][1], rows(model.b) * columns(model.c))


def test_a_block_ends_at_attention():
    model = randomised(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    found = factors(model, torch.rand(2, 5, 8))
    first, second = (norm.weight.detach().abs() for norm in (model.norm1, model.norm2))
    close(found["self_attn.out_proj"][0], 1)
    both = (columns(model.linear1) ** 2 + second**2).sqrt()  # the model's output is a consumer
    close(found["self_attn.out_proj"][1], first * both)
    scores = Net(lambda n, x: n.v(x.softmax(1) @ n.q(x).mT), q=(4, 4), v=(3, 2))
    found = factors(scores, torch.rand(1, 3, 4))
    close(found["q"][1], 1)
    close(found["v"][0], 1)
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
    cross = Net(lambda n, x: n.m(n.q(x), k := n.k(x), k)[0], q=(4, 8), k=(4, 6), m=attention)
    projections = torch.cat([attention.k_proj_weight, attention.v_proj_weight])
    close(factors(cross, torch.rand(5, 1, 4))["k"][1], projections.detach().norm(dim=0))


@pytest.mark.parametrize(
    ("function", "before"),
    [
        (lambda x: torch.cat([x, torch.zeros(1, 1, 4, 4)], 1), [1, 1, 1, 0]),
        (lambda x: torch.cat([x, torch.linspace(-1, 1, 4).expand(1, 1, 4, 4)], 1), [1, 1, 1, 1]),
        (lambda x: F.max_pool3d(x, (3, 1, 1)), [1]),  # maxout
        (lambda x: torch.sub(x, x.clone(), alpha=2), [5**0.5] * 3),
        (lambda x: F.conv2d(x, torch.full((3, 1, 2, 2), 0.5), groups=3), [2] * 3),
        (lambda x: x[:, :1].expand_as(x).clone().mul_(0).add_(x).mean(1, True), [3**-0.5]),
    ],
)
def test_what_arrives_from_an_input_of_three_channels(function, before):
    model = Net(lambda n, x: n.a(function(x)), a=conv(len(before), 2))
    close(factors(model, torch.rand(1, 3, 4, 4))["a"][0], before)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_layers_that_the_input_does_not_reach_stay_dense(scope):
    model = Net(
        lambda n, x: (n.a(x) + n.table(torch.ones(1, 2)), n.dropped(x))[0],
        **{name: nn.Linear(2, 2) for name in ("a", "table", "dropped", "unused")},
    )
    with pytest.warns(UserWarning, match="dense.*: table, dropped, unused"):
        masks = lapnb.prune_masks(model, "lap", 0.5, scope, torch.rand(1, 2))
    assert [int(mask.sum()) for mask in masks] == [2, 4, 4, 4]


def test_a_parameter_that_is_a_weight_is_a_layer():
    p = nn.Parameter(torch.rand(6, 4))
    model = Net(lambda n, x: n.b(F.linear(n.a(x), n.p)), a=(5, 4), p=p, b=(6, 3))
    found = factors(model, torch.rand(1, 2, 5))
    close(found["a"][1], p.detach().norm(dim=0))
    close(found["b"][0], p.detach().norm(dim=1))


def test_several_inputs_and_whole_numbers():
    model = Net(
        lambda n, words, scale: n.out(n.embed(words) * torch.sigmoid(n.gate(scale))),
        embed=nn.Embedding(7, 4),
        gate=(3, 4),
        out=(4, 2),
    )
    inputs = {"words": torch.tensor([[1, 2]]), "scale": torch.rand(1, 2, 3)}
    for example in (inputs, tuple(inputs.values())):
        found = factors(model, example)
        close(found["out"][0], columns(model.embed))
        close(found["gate"][1], columns(model.embed) * columns(model.out))


DENSE = "features.denseblock1.denselayer1"
RESCALED = {  # network → what is multiplied, and the layer that it feeds
    "resnet18": ("layer1.0.bn1", "layer1.0.conv2"),
    "densenet121": (f"{DENSE}.norm2", f"{DENSE}.conv2"),
    "convnext_tiny": ("features.1.0.block.2", "features.1.0.block.3"),
    "swin_t": ("features.1.1.norm1", "features.1.1.attn.qkv"),
}


@pytest.mark.parametrize("network", RESCALED)
@torch.no_grad()
def test_rescaled_units_keep_the_masks_of_the_layer_that_they_feed(network):
    """γ and β times c, the weights of the consumer divided by c: the function stays as it is."""
    model = randomised(torchvision.models.get_model(network))
    norm, layer = map(model.get_submodule, RESCALED[network])
    place = [each.module for each in prunable_layers(model)].index(layer)

    def mask(method):
        return lapnb.prune_masks(model, method, 0.1, example=torch.rand(1, 3, 64, 64))[place]

    by_size, by_lap = mask("mp"), mask("lap")
    c = 2.0 ** torch.randint(-3, 4, norm.weight.shape)  # exact
    norm.weight.mul_(c)
    norm.bias.mul_(c)
    layer.weight.div_(c.view(-1, *[1] * (layer.weight.ndim - 2)))
    assert torch.equal(by_lap, mask("lap"))
    assert not torch.equal(by_size, mask("mp"))


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda n, x: torch.fft.fft(x).real, r"in odd \(Net\): fft_fft has no rule"),
        (lambda n, x: x * float(x.norm()), r"in odd \(Net\): float has no rule for these arg"),
        (lambda n, x: torch.div(x, 2, rounding_mode="floor"), "div has no rule for these arg"),
        (lambda n, x: F.avg_pool1d(x, 2), "it averages over units"),
        (lambda n, x: x @ torch.rand(4, 4), "a factor is a matrix"),
        (lambda n, x: torch.zeros(1, 4).add_(x), "it writes into a constant"),
        (lambda n, x: F.linear(x, x.mT @ x), "weight .* is computed from the data"),
        (lambda n, x: F.linear(x, n.fc.weight.t()), r"t computes with the weight of odd.fc"),
        (lambda n, x: n.fc.weight.data.clamp_(0), r"data computes with the weight of odd.fc"),
        (lambda n, x: F.linear(x, n.fc.weight.chunk(2)[0]), "chunk computes with the weight of"),
        (lambda n, x: {}["features"], r"odd \(Net\) ends in KeyError: 'features'"),
        (lambda n, x: torch.jit.script(nn.ReLU())(x), "scripted, compiled"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_cannot_be_followed_is_refused_by_name(function, sentence):
    odd = Net(function, fc=(4, 4))
    model = Net(lambda n, x: n.b(n.odd(n.a(x))), a=(5, 4), odd=odd, b=(4, 3))
    with pytest.raises(ValueError, match=sentence):
        factors(model, torch.rand(1, 5))


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        ("mnist", "example must be a batch of inputs, got str"),
        (torch.rand(1, 4), "cannot run a copy of the model on example"),
        (ONES.long(), "example reaches no layer"),
        ((torch.rand(1, 5), ONES.long()), "whole numbers, and b may be reached by"),
    ],
)
def test_bad_examples(example, sentence):
    with pytest.raises(ValueError, match=sentence):
        factors(
            Net(lambda n, x, y=ONES: n.a(x.float()) + n.b(y.float()), a=(5, 4), b=(5, 4)), example
        )


def test_the_model_is_not_changed_and_its_hooks_do_not_run():
    halved = Net(lambda n, x: x * n.scale.mul_(0.5), scale=nn.Parameter(torch.ones(1), False))
    model, features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), halved), []
    model.register_forward_hook(lambda *_: features.append(1))
    with unchanged(model), torch.inference_mode():
        factors(model, torch.ones(1, 3, 8, 8))
    assert not features
