"""What criteria know of the data, against Hessians and counts that are literally computed."""

import copy

import pytest
import torch
from reference import block_distortions, distortions, hessian_diagonals, largest, randomised, same
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.data_statistics import STATISTICS, data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import FCN


def batches(*shape, count=3):
    """(images, labels) of three classes."""
    torch.manual_seed(0)
    return [(torch.randn(10, *shape), torch.randint(3, (10,))) for _ in range(count)]


FLAT, IMAGES = batches(16), batches(1, 8, 8)


class Handwritten(nn.Module):
    """One ReLU for all layers, functional flatten, and something of one's own after `second`."""

    def __init__(self, own):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.relu, self.last, self.functions = nn.ReLU(inplace=True), nn.Linear(64, 3), (own,)

    def forward(self, x):
        (own,), x = self.functions, self.relu(self.first(x))
        return self.last(torch.flatten(self.relu(own(self, x, self.second(x))), 1))


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4)),
        *(nn.Conv2d(3, 4, 2, bias=False), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(4, 4), nn.Sigmoid(), nn.Dropout(0.9), nn.Identity(), nn.Linear(4, 3)),
    )


def batch_norm_net():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(True)),
        *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)),
    )


def curvature(model, data):
    model, data = copy.deepcopy(model).double(), [(x.double(), labels) for x, labels in data]
    return hessian_diagonals(model, [f"{x.name}.weight" for x in prunable_layers(model)], data)


@pytest.mark.parametrize(
    ("model", "data", "negative"),
    [
        (FCN((16, 5, 4, 3), "tanh"), FLAT, True),
        (FCN((16, 5, 4, 3), "none"), FLAT, False),
        (conv_net(), IMAGES, True),
        (Handwritten(lambda net, x, y: y), IMAGES, False),
    ],
    ids=["tanh", "none", "convolutions", "shared_relu"],
)
def test_curvature_is_the_diagonal_of_the_hessian(model, data, negative):
    expected = curvature(randomised(model.double()), data)
    assert any((h < -1e-6).any() for h in expected) == negative
    for h, root in zip(expected, data_statistics(model, "curvature", data), strict=True):
        torch.testing.assert_close(root**2, h.clamp(min=0), rtol=1e-9, atol=1e-12)


def ending_in(module):
    return nn.Sequential(nn.Conv2d(1, 2, 1), module, nn.Flatten(), nn.Linear(128, 3))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (batch_norm_net(), r"unlike 1: BatchNorm2d"),
        (Handwritten(lambda net, x, y: y.add_(x)), "breaks at add_ after second"),
        (Handwritten(lambda net, x, y: F.relu(y)), r"relu\w* after second"),
        (Handwritten(lambda net, x, y: y.flatten(2)), "flatten after second"),
        (Handwritten(lambda net, x, y: net.second(y)), "second runs 2 times"),
        (Handwritten(lambda net, x, y: y if x.sum() > 0 else -y), "cannot be traced"),
        (ending_in(nn.Conv2d(2, 2, 3, padding="same")), "unlike 1"),
        (ending_in(nn.AdaptiveAvgPool2d(3)), "multiple of output shape"),
        # what BackPACK would be silently wrong about
        (ending_in(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "unlike 1: .*circular"),
        (ending_in(nn.AvgPool2d(1, divisor_override=3)), r"unlike 1: AvgPool2d"),
    ],
)
def test_what_backpack_cannot_do_is_refused(model, name):
    if "output shape" in name:
        model[3] = nn.Linear(18, 3)
    with pytest.raises(ValueError, match=f"BackPACK's DiagHessian supports.*{name}"):
        data_statistics(model, "curvature", IMAGES)


class Activated(nn.Module):
    """Two branches that are added, then activated in the given way, and a layer over tokens."""

    def __init__(self, activation):
        super().__init__()
        self.left, self.right = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1)
        self.tokens, self.last = nn.Linear(3, 5), nn.Linear(20, 3)
        self.activations = (activation,)

    def forward(self, x):
        (activation,) = self.activations
        x = activation(self.left(x) + self.right(x))
        return self.last(activation(self.tokens(x.transpose(1, 2))).flatten(1))


@pytest.mark.parametrize("activation", [nn.ReLU(), F.relu, torch.relu_])
def test_activity_is_counted(activation):
    model, data = randomised(Activated(activation)), batches(2, 4)
    x = torch.cat([images for images, _ in data])
    with torch.no_grad():
        first = (model.left(x) + model.right(x)).relu()
        second = model.tokens(first.transpose(1, 2)).relu().transpose(1, 2)
    *found, last = data_statistics(model.train(), "activity", data)
    for factor, active in zip(found, (first, first, second), strict=True):
        expected = (active > 0).double().mean(0).sqrt().sum(1)  # over positions
        torch.testing.assert_close(factor.flatten().double(), expected, rtol=1e-5, atol=1e-5)
        assert len(factor.unique()) > 1
    assert last.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (lambda x: x * torch.sigmoid(x), "left is: mul comes after it"),
        (lambda x: torch.where(x > 0, x, 0), "left is: gt comes after it"),
        (
            lambda x: torch.from_numpy(x.numpy().clip(0)),
            "tokens is: the functions that compute its input are not torch's",
        ),
        (lambda x: torch.cat([x, x[:, :1]], 1).relu()[:, :-1], "left is: its activation has 4"),
    ],
)
def test_activations_that_cannot_be_told_are_refused(activation, words):
    with pytest.raises(ValueError, match=f"cannot tell how active {words}"):
        data_statistics(Activated(activation), "activity", batches(2, 4))


def test_layers_without_activation_are_always_active():
    model = nn.Sequential(nn.Conv2d(1, 2, 7), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 3))
    found = data_statistics(model, "activity", IMAGES)
    assert [factor.unique().tolist() for factor in found] == [[4], [1], [1]]


def test_input_norms_are_those_of_each_unit_over_all_positions():
    layers = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 7, groups=2), nn.Flatten(), nn.Linear(6, 3)
    model, x = randomised(nn.Sequential(*layers)), torch.cat([images for images, _ in IMAGES])
    first, grouped, linear = data_statistics(model, "inputs", IMAGES)
    torch.testing.assert_close(first, x.norm().view(1, 1, 1, 1))
    norms = torch.stack([model[0](x)[:, j].norm() for j in range(4)])
    torch.testing.assert_close(grouped.flatten(1), norms.view(2, 2).repeat_interleave(3, 0))
    torch.testing.assert_close(linear, model[:3](x).norm(dim=0)[None])


@pytest.mark.parametrize(
    ("model", "data"), [(FCN((16, 5, 4, 3)), FLAT), (batch_norm_net(), IMAGES)]
)
def test_synflow_is_what_removing_an_absolute_weight_takes_from_the_outputs(model, data):
    slopes = data_statistics(randomised(model.double()), "ones", data)
    twin = copy.deepcopy(model)
    for name, tensor in twin.state_dict().items():
        tensor.zero_() if name.endswith(("bias", "running_mean")) else tensor.abs_()
    ones, ratios = torch.ones_like(data[0][0][:1]).double(), []
    for layer, slope in zip(prunable_layers(twin), slopes, strict=True):
        removed = distortions(layer.weight, lambda: twin(ones).sum())
        ratios.append((layer.values * slope / removed).flatten())
    ratios = torch.cat(ratios)
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))  # one factor for all


@pytest.mark.parametrize("kind", STATISTICS)
def test_the_model_is_untouched(kind):
    model = conv_net()
    model[3].eval()
    next(model.parameters()).requires_grad_(False)
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    data_statistics(model, kind, IMAGES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(before.state_dict().values(), model.state_dict().values())
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert vars(old).keys() == vars(new).keys() and old.training == new.training
        assert repr(old) == repr(new)  # in place or not
        assert not (new._forward_hooks or new._forward_pre_hooks or new._backward_hooks)
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert not any(hasattr(p, "diag_h") or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", STATISTICS)
def test_any_iterable_and_any_precision(kind):
    model, data = randomised(FCN((16, 5, 3))), torch.utils.data.TensorDataset
    loader = torch.utils.data.DataLoader(data(*map(torch.cat, zip(*FLAT, strict=True))), 10)
    assert same(data_statistics(model, kind, iter(FLAT)), data_statistics(model, kind, loader))
    assert all(x.isfinite().all() for x in data_statistics(model.bfloat16(), kind, FLAT))


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("activity", FLAT, "how active unused is: it does not run"),
        ("curvature", FLAT, "each once: unused runs 0 times"),
        ("inputs", FLAT, "inputs of unused: it does not run"),
        ("flat", FLAT, "kind must be one of activity, curvature, inputs, ones; got 'flat'"),
        ("inputs", [], "batches must hold at least one pair"),
        ("activity", [(torch.zeros(1, 16, dtype=torch.uint8), None)], "images normalised floats"),
        ("activity", torch.zeros(3, 16), r"batches must hold pairs \(images, labels\)"),
    ],
)
def test_bad_arguments_and_layers_that_do_not_run_are_named(kind, data, words):
    model = FCN((16, 5, 3))
    model.unused = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=words):
        data_statistics(model, kind, data)


@pytest.mark.parametrize("method", ["lap_act", "obd", "obd_lap"])
def test_masks_are_those_of_the_definition(method):
    model = randomised(FCN((16, 6, 3)))
    weights = [layer.values for layer in prunable_layers(model)]
    known = curvature(model, FLAT)
    if method == "lap_act":
        x = torch.cat([images for images, _ in FLAT])
        known = [(model.layers[0](x) > 0).double().mean(0)[:, None], torch.ones(3, 1)]
    scaled = [w * known.sqrt() for w, known in zip(weights, known, strict=True)]
    for i, mask in enumerate(lapnb.prune_masks(model, method, 0.4, batches=FLAT)):
        score = scaled[i] ** 2 / 2 if method == "obd" else block_distortions(scaled, i)
        assert torch.equal(mask, largest(score, round(0.4 * mask.numel())))
