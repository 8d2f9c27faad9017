"""What criteria know of the data, against Hessians and counts that are literally computed."""

import pytest
import torch
from reference import hessian_diagonals, odd_torch, randomised, same, unchanged
from torch import nn

import lapnb
from lapnb.pruning.data_statistics import STATISTICS, data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import FCN, Network, Residual


def batches(*shape, count=3):
    """(images, labels) of three classes."""
    torch.manual_seed(0)
    return [(torch.randn(10, *shape), torch.randint(3, (10,))) for _ in range(count)]


FLAT, IMAGES = batches(16), batches(1, 8, 8)


def conv_net():
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4)]
    layers += [nn.Conv2d(3, 4, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 4)]
    return Network([*layers, nn.Sigmoid(), nn.Identity(), nn.Linear(4, 3)])


def residual_net():
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [Residual([nn.Conv2d(3, 3, 1)], []), nn.ReLU(True), nn.Flatten()]
    return Network([*layers, nn.Linear(27, 5), nn.Linear(5, 3)])


@pytest.mark.parametrize(
    ("model", "data"),
    [(FCN((16, 5, 4, 3), "tanh"), FLAT), (conv_net(), IMAGES)],
    ids=["linear", "convolutions"],
)
def test_curvature_is_the_diagonal_of_the_hessian(model, data):
    expected = hessian_diagonals(randomised(model.double()), data)
    assert any((h < -1e-6).any() for h in expected)
    for h, root in zip(expected, data_statistics(model, "curvature", data), strict=True):
        torch.testing.assert_close(root**2, h.clamp(min=0), rtol=1e-9, atol=1e-12)


def test_activity_in_a_sequence_of_modules_is_that_in_a_network_of_ours():
    inside = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()]
    ours = randomised(Network([*inside, nn.Linear(144, 3)]))
    foreign = nn.Sequential(nn.Sequential(*inside), ours.layers[-1])
    assert same(*(data_statistics(model, "activity", IMAGES) for model in (ours, foreign)))


def test_activity_is_counted():
    model = randomised(residual_net())
    model.layers[4].body[0].bias.data.copy_(torch.tensor([-2.0, -0.5, 0]))
    model.layers[0].prunable = False  # stays dense, and is followed by its own activation
    x = torch.cat([images for images, _ in IMAGES])
    with torch.no_grad():
        first = model.layers[:4](x)
        second = model.layers[4:6](first)
    factor, always, last = data_statistics(model.train(), "activity", IMAGES)
    expected = (second > 0).double().mean(0).sqrt().sum((1, 2))  # over positions
    torch.testing.assert_close(factor.flatten().double(), expected, rtol=1e-5, atol=1e-5)
    assert len(factor.unique()) > 1
    assert always.unique().tolist() == last.unique().tolist() == [1]  # no activation in between


def test_input_norms_are_those_of_each_unit_over_all_positions():
    layers = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 7, groups=2), nn.Flatten(), nn.Linear(6, 3)
    model, x = randomised(nn.Sequential(*layers)), torch.cat([images for images, _ in IMAGES])
    first, grouped, linear = data_statistics(model, "inputs", IMAGES)
    torch.testing.assert_close(first, x.norm().view(1, 1, 1, 1))
    norms = torch.stack([model[0](x)[:, j].norm() for j in range(4)])
    torch.testing.assert_close(grouped.flatten(1), norms.view(2, 2).repeat_interleave(3, 0))
    torch.testing.assert_close(linear, model[:3](x).norm(dim=0)[None])
    tokens = torch.randn(2, 5, 4)  # units come last
    (norm,) = data_statistics(nn.Sequential(nn.Linear(4, 3)), "inputs", [(tokens, None)])
    torch.testing.assert_close(norm, tokens.flatten(0, 1).norm(dim=0)[None])


def test_synflow_is_what_absolute_weights_give_to_the_outputs():
    model = randomised(residual_net().double())
    slopes = data_statistics(model, "ones", IMAGES)
    for name, tensor in model.named_parameters():
        tensor.data.mul_(0 if "bias" in name else tensor.sign())
    for name, tensor in model.named_buffers():
        tensor.mul_(0 if name.endswith("running_mean") else 1)
    outputs = model(torch.ones(1, 1, 8, 8).double()).sum()
    expected = torch.autograd.grad(outputs, [layer.weight for layer in prunable_layers(model)])
    largest = max(slope.max() for slope in expected)
    for slope, literal in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope, literal / largest)


@pytest.mark.parametrize("kind", STATISTICS)
def test_the_model_is_untouched(kind):
    model = conv_net()
    next(model.parameters()).requires_grad_(False)
    with unchanged(model):
        data_statistics(model, kind, IMAGES)


@pytest.mark.parametrize("kind", STATISTICS)
def test_any_iterable_precision_and_setting_of_torch(kind):
    model = randomised(FCN((16, 5, 3)))
    expected = data_statistics(model, kind, iter(FLAT))
    with odd_torch():
        assert same(expected, data_statistics(model, kind, FLAT))
    assert all(x.isfinite().all() for x in data_statistics(model.bfloat16(), kind, FLAT))


RELU, UNUSED = nn.ReLU(), FCN((16, 5, 3))
UNUSED.unused = nn.Linear(3, 3)
PAIRS = r"batches must be pairs \(images, labels\), at least one, images normalised floats; got"


@pytest.mark.parametrize(
    ("kind", "model", "data", "words"),
    [
        ("curvature", nn.Sequential(nn.Linear(16, 3)), FLAT, "obd and obd_lap .*unlike Sequential"),
        ("activity", nn.Sequential(nn.Linear(16, 3), nn.GELU()), FLAT, "lap_act serves"),
        ("activity", nn.Sequential(nn.Linear(16, 16), RELU, nn.Linear(16, 3), RELU), FLAT, "once"),
        ("activity", nn.Sequential(nn.Linear(8, 3)), IMAGES, "inputs of two dimensions in 0"),
        ("inputs", UNUSED, FLAT, "inputs of unused: it does not run"),
        ("flat", UNUSED, FLAT, "kind must be one of activity, curvature, inputs, ones; got 'flat'"),
        ("inputs", UNUSED, [], PAIRS),
        ("activity", UNUSED, [(torch.zeros(1, 16, dtype=torch.uint8), None)], PAIRS),
    ],
)
def test_what_cannot_be_computed_is_refused(kind, model, data, words):
    with pytest.raises(ValueError, match=words):
        data_statistics(model, kind, data)


LOOKS = {"lap_act": "activity", "obd": "curvature", "obd_lap": "curvature"}
LOOKS |= {"wanda": "inputs", "ria_act": "inputs", "synflow": "ones"}


@pytest.mark.parametrize(("method", "kind"), LOOKS.items())
def test_masks_follow_from_what_the_method_looks_at(method, kind):
    model = randomised(FCN((16, 6, 3)))
    statistics = data_statistics(model, kind, FLAT)
    masks = lapnb.prune_masks(model, method, 0.4, statistics=statistics)
    assert same(masks, lapnb.prune_masks(model, method, 0.4, batches=FLAT))
