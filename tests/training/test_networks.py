"""The paper's networks: sizes, initial weights, and what may be asked for."""

import math

import pytest
import torch
from torch import nn

from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import ACTIVATIONS, NETWORKS, build_model

CIFAR, TINY = {}, {"num_classes": 200, "image_size": 64, "stride": 2}


@pytest.mark.parametrize(
    ("name", "settings", "weights", "layers"),
    [
        ("fcn", CIFAR, 1_147_000, 5),
        ("conv6", CIFAR, 2_261_184, 9),
        ("vgg11", CIFAR, 9_222_848, 9),
        ("vgg16", CIFAR, 14_715_584, 14),
        ("vgg19", CIFAR, 20_024_000, 17),
        ("resnet18", CIFAR, 10_992_320, 18),
        ("vgg19", TINY, 20_121_280, 17),
        ("resnet50", TINY, 21_087_936, 50),
        ("wrn16_8", TINY, 10_885_552, 14),
    ],
)
def test_prunable_weights_are_the_papers(name, settings, weights, layers):
    with torch.device("meta"):
        prunable = prunable_layers(build_model(name, **settings))
    assert (sum(x.weight.numel() for x in prunable), len(prunable)) == (weights, layers)


@pytest.mark.parametrize(
    ("name", "head", "side"), [("vgg19", 2, 1), ("resnet50", 3, 4), ("wrn16_8", 3, 8)]
)
def test_tiny_imagenet_is_halved_as_often_as_in_the_paper(name, head, side):
    model = build_model(name, width=0.05, **TINY)
    assert model.layers[:-head](torch.zeros(2, 3, 64, 64)).shape[2:] == (side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_width_and_image_size_fit_together(name):
    with torch.device("meta"):
        full, half, least = (
            [layer.outputs for layer in prunable_layers(build_model(name, width=width))]
            for width in (1, 0.5, 1e-9)
        )
        assert half == [*(outputs // 2 for outputs in full[:-1]), 10]
        assert max(least[:-1]) == (4 if name == "resnet50" else 1)
        for size in (33, 64):
            model = build_model(name, width=0.05, num_classes=7, image_size=size, channels=2)
            assert model(torch.zeros(3, 2, size, size)).shape == (3, 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_xavier_normal_and_biases_zero(name):
    for module in build_model(name, width=0.3, seed=0).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs, inputs, *kernel = module.weight.shape
            wanted = math.sqrt(2 / ((inputs + outputs) * math.prod(kernel)))
            few = 5 / math.sqrt(module.weight.numel())
            assert module.weight.std().item() == pytest.approx(wanted, rel=few)
            assert module.weight.abs().max() > 2 * wanted  # which a uniform one never reaches
            assert module.bias is None or not module.bias.any()


def test_initial_weights_depend_on_the_seed_alone_or_on_torchs_random_state():
    state = torch.get_rng_state()
    first, same, other = (build_model("conv6", 0.1, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, values in first.items():
        assert torch.equal(values, same[name])
        assert "bias" in name or not torch.equal(values, other[name])
    free = [build_model("fcn", width=0.1).layers[0].weight for _ in range(2)]
    assert not torch.equal(*free)
    torch.set_rng_state(state)
    assert torch.equal(free[0], build_model("fcn", width=0.1).layers[0].weight)


@pytest.mark.parametrize(("name", "between"), ACTIVATIONS.items())
def test_fcn_is_linear_layers_with_the_activation_between(name, between):
    model = build_model("fcn", width=0.1, activation=name, image_size=12, channels=2)
    assert [type(m) for m in model.layers] == [nn.Linear, *[between, nn.Linear] * 4]
    assert [m.out_features for m in model.layers[::2]] == [50, 50, 50, 50, 10]


@pytest.mark.parametrize("name", ["resnet18", "wrn16_8"])
def test_residual_networks_add_their_input(name):
    """With all body convolutions zeroed, only the shortcuts carry the image to the output."""
    model = build_model(name, width=0.1, seed=0).eval()
    for layer in prunable_layers(model)[1:-1]:
        nn.init.zeros_(layer.weight)
    logits = model(torch.randn(2, 3, 32, 32))
    assert not torch.allclose(logits[0], logits[1])
