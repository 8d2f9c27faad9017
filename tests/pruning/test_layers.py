"""Which layers are prunable, and the factors of chains against slopes computed by autograd."""

import pytest
import torch
import torchvision.models
from reference import randomised, unit_distortions
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lapnb.pruning.chains import chain_layers, check_chain, neighbours
from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import NETWORKS, Network, build_model

FORMS = {  # the shape of an input and the modules of a chain
    "linear": [
        (1, 5),
        nn.Linear(5, 4),
        nn.BatchNorm1d(4, 0.1),
        nn.Linear(4, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 3),
        nn.BatchNorm1d(3),
    ],
    "convolutions": [
        (1, 2, 7, 7),
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, (1, 2), dilation=2),
        nn.Conv2d(4, 2, (3, 1), padding=(2, 0), bias=False),
        nn.Flatten(),
        nn.BatchNorm1d(24),
        nn.Linear(24, 4),
        nn.Linear(4, 2),
    ],
    "grouped": [
        (1, 4, 6, 6),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 2, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(16, 3),
    ],
}


@torch.no_grad()
def scores(model):
    """|w| · before · after of every layer of a chain."""
    layers = chain_layers(model)
    weights = [layer.values for layer in layers]
    factors = [neighbours(layers, weights, i) for i in range(len(layers))]
    return [w.abs() * before * after for w, (before, after) in zip(weights, factors, strict=True)]


@pytest.mark.parametrize("form", FORMS)
def test_score_is_the_distortion_of_the_block(form):
    shape, *modules = FORMS[form]
    model = randomised(nn.Sequential(*modules).double())
    expected = unit_distortions(model, torch.rand(shape, dtype=torch.double))
    for score, literal in zip(scores(model), expected.values(), strict=True):
        torch.testing.assert_close(score, literal, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_are_chains_by_the_papers_protocol(name):
    model = build_model(name, width=0.1, seed=0, image_size=64)
    check_chain(model)  # without the shortcuts
    for score, layer in zip(scores(model), prunable_layers(model), strict=True):
        assert score.shape == layer.weight.shape and (score > 0).all()


def norms_of(model):
    """Layer name → name of its batch norm."""
    names = {module: name for name, module in model.named_modules()}
    return {layer.name: names.get(layer.batch_norm) for layer in prunable_layers(model)}


def test_a_layer_has_the_one_batch_norm_that_follows_it():
    norms = norms_of(torchvision.models.resnet18())
    assert norms["layer2.0.conv2"] == "layer2.0.bn2"
    assert norms["layer2.0.downsample.0"] == "layer2.0.downsample.1"
    assert norms["fc"] is None
    densenet = norms_of(torchvision.models.densenet121())
    assert densenet["features.denseblock1.denselayer1.conv2"] is None  # of it and others
    norms = norms_of(build_model("resnet18", width=0.05))
    assert norms["layers.7.body.3"] == "layers.7.body.4" and len(norms) == 18  # no shortcut
    norms = norms_of(build_model("wrn16_8", width=0.05))
    assert norms["layers.1.body.6"] == "layers.2.body.0"  # before activation and layer
    twice = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    assert norms_of(twice) == {"0": "1"}  # the first one


def test_a_part_of_a_network_can_stay_dense():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    names = [n for n, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert [layer.name for layer in prunable_layers(model)] == names
    model.encoder.prunable = False
    assert [layer.name for layer in prunable_layers(model)] == ["conv_proj", "heads.head"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose2d])
def test_numbers_per_unit_multiply_what_enters_or_leaves_it(kind, groups):
    module = kind(4, 6, 1, groups=groups, bias=False).double()
    (layer,), ones = prunable_layers(module), [1] * (module.weight.ndim - 2)
    image, right, left = (torch.rand(1, n, *ones, dtype=torch.double) for n in (4, 4, 6))
    expected = module(image * right) * left
    module.weight.data *= layer.per_output(left.flatten()) * layer.per_input(right.flatten())
    torch.testing.assert_close(module(image), expected)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1)), self.weight.to(x.dtype), self.bias)


def test_a_layer_has_one_name_and_may_have_a_forward_that_takes_its_weight():
    model = nn.Sequential(Same(3, 3, 3), nn.Flatten(), nn.Linear(3, 3))
    model.all = nn.ModuleList([model[2], model[0]])
    assert [layer.name for layer in prunable_layers(model)] == ["0", "2"]


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "Sequential has no linear or convolution layer"),
        (tied(), r"0 \(Linear\), 1 \(Linear\): it shares its weight"),
        (nn.Sequential(prune.identity(nn.Linear(3, 3), "weight")), r"0 .* it computes its weight"),
        (nn.Linear(3, 3, dtype=torch.cfloat), r"has a weight of torch.complex64, \(3, 3\)"),
        (nn.Sequential(nn.Linear(3, 0)), r"0 \(Linear\): it has a weight of .*, \(0, 3\)"),
        (
            nn.Sequential(nn.Linear(3, 6), Standardised(3, 3, 1), Standardised(3, 3, 1)),
            r"1 \(Standardised\), 2 \(Standardised\): it has a forward of its own",
        ),
    ],
)
def test_layers_whose_zeros_would_not_count_are_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        prunable_layers(model)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not str"):
        prunable_layers("model")


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "in Sequential"),
        (Network([nn.Linear(3, 3), nn.LayerNorm(3)]), r"around layers\.1 \(LayerNorm\)"),
        (Network([nn.ConvTranspose2d(1, 1, 3)]), r"around layers\.0 \(ConvTranspose2d\)"),
        (Network([nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)]), r"around layers\.0 \(BatchNorm2d\)"),
    ],
)
def test_what_is_not_known_to_be_a_chain_needs_an_example(model, place):
    with pytest.raises(ValueError, match=f"cannot tell the .* {place}: pass example="):
        check_chain(model)
