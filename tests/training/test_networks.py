import copy
import math

import pytest
import torch
from torch import nn

from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import ACTIVATIONS, FCN, NETWORKS, build_model

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
    assert sum(layer.weight.numel() for layer in prunable) == weights
    assert len(prunable) == layers


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "fcn"])
def test_every_network_at_every_size(name, size):
    if name.startswith("vgg") and size < 32:
        with pytest.raises(ValueError, match=f"image_size 28 is too small for {name}.* 32 pixels"):
            build_model(name, width=0.05, image_size=size)
        return
    model = build_model(name, width=0.05, num_classes=7, image_size=size, channels=2)
    assert model(torch.zeros(3, 2, size, size)).shape == (3, 7)


def test_fcn_flattens_images_of_any_size():
    model = build_model("fcn", width=0.1, num_classes=7, image_size=12, channels=2)
    assert [m.out_features for m in model.layers[::2]] == [50, 50, 50, 50, 7]
    assert model(torch.zeros(3, 2, 12, 12)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "head", "side"), [("vgg19", 2, 1), ("resnet50", 3, 4), ("wrn16_8", 3, 8)]
)
def test_tiny_imagenet_is_halved_as_often_as_in_the_paper(name, head, side):
    model = build_model(name, width=0.05, **TINY)
    assert model.layers[:-head](torch.zeros(2, 3, 64, 64)).shape[2:] == (side, side)


def test_vgg_grows_its_last_layer_with_the_image():
    model = build_model("vgg11", width=0.05, image_size=64)
    assert model.layers[-1].in_features == 4 * round(0.05 * 512)


@pytest.mark.parametrize("name", NETWORKS)
def test_width_scales_every_layer_but_inputs_and_classes(name):
    with torch.device("meta"):
        full, half, least = (
            [layer.weight.shape[0] for layer in prunable_layers(build_model(name, width=width))]
            for width in (1, 0.5, 1e-9)
        )
    assert half == [*(outputs // 2 for outputs in full[:-1]), 10]
    assert max(least[:-1]) == (4 if name == "resnet50" else 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_xavier_normal_and_biases_zero(name):
    model = build_model(name, width=0.3, seed=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            outputs, inputs, *kernel = module.weight.shape
            std = math.sqrt(2 / ((inputs + outputs) * math.prod(kernel)))
            assert module.weight.std().item() == pytest.approx(
                std, rel=5 / math.sqrt(module.weight.numel())
            )
            assert module.bias is None or not module.bias.any()


def test_initial_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = build_model("conv6", width=0.1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    same, other = (build_model("conv6", width=0.1, seed=seed) for seed in (1, 2))
    for a, b, c in zip(first.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_without_a_seed_weights_follow_torchs_random_state():
    torch.manual_seed(3)
    first, second = build_model("fcn", width=0.1), build_model("fcn", width=0.1)
    assert not torch.equal(first.layers[0].weight, second.layers[0].weight)
    torch.manual_seed(3)
    assert torch.equal(first.layers[0].weight, build_model("fcn", width=0.1).layers[0].weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fcn_is_linear_layers_with_the_activation_between(activation):
    model = FCN([6, 5, 4, 3], activation)
    linear, between = nn.Linear, ACTIVATIONS[activation]
    assert [type(m) for m in model.layers] == [linear, between, linear, between, linear]


def test_fcn_without_activation_is_linear():
    model = build_model("fcn", width=0.1, activation="none", seed=0)
    x, y = torch.randn(2, 5, 784)
    torch.testing.assert_close(model(x) + model(y), model(x + y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "wrn16_8"])
def test_residual_networks_add_their_input(name):
    """With all body convolutions zeroed, only the shortcuts carry the image to the output."""
    model = build_model(name, width=0.1, seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    for layer in prunable_layers(model)[1:-1]:
        nn.init.zeros_(layer.weight)
    logits = model(x)
    assert not torch.allclose(logits[0], logits[1])


def test_models_copy_and_reload():
    model = build_model("resnet18", width=0.05, seed=0)
    other = build_model("resnet18", width=0.05, seed=1)
    other.load_state_dict(copy.deepcopy(model).state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg12"}, "unknown network 'vgg12'; choose from fcn, conv6"),
        ({"name": "fcn", "activation": "gelu"}, "unknown activation 'gelu' for fcn"),
        ({"name": "vgg11", "activation": "tanh"}, "unknown activation 'tanh' for vgg11"),
        ({"name": "fcn", "width": 0}, "width must be a number above 0, not 0"),
        ({"name": "fcn", "width": -1.0}, "width must be a number above 0, not -1.0"),
        ({"name": "fcn", "width": math.nan}, "width must be a number above 0, not nan"),
        ({"name": "fcn", "width": "1"}, "width must be a number above 0, not '1'"),
        ({"name": "fcn", "num_classes": 10.0}, "num_classes must be a whole number .* not 10.0"),
        ({"name": "vgg11", "image_size": 0}, "image_size must be a whole number above 0, not 0"),
        ({"name": "vgg11", "channels": -3}, "channels must be a whole number above 0, not -3"),
        ({"name": "vgg11", "stride": 0}, "stride must be a whole number above 0, not 0"),
        ({"name": "fcn", "stride": 2}, "stride must be 1 for fcn"),
        ({"name": "vgg11", "stride": 2}, "image_size 32 is too small for vgg11.* 63 pixels"),
        ({"name": "conv6", "image_size": 7}, "image_size 7 is too small for conv6.* 8 pixels"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_model(**settings)
