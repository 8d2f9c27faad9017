"""What criteria know of the data, against Hessians and counts that are literally computed."""

import copy

import pytest
import torch
from reference import block_distortions, hessian_diagonals, largest, odd_torch, randomised, same
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.data_statistics import STATISTICS, data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.training.networks import FCN, Network


def batches(*shape, count=3):
    """(images, labels) of three classes."""
    torch.manual_seed(0)
    return [(torch.randn(10, *shape), torch.randint(3, (10,))) for _ in range(count)]


FLAT, IMAGES, SIGNALS = batches(16), batches(1, 8, 8), batches(4, 5)


def conv_net(*more):
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4), *more]
    layers += [nn.Conv2d(3, 4, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(4, 4)]
    return Network([*layers, nn.Sigmoid(), nn.Identity(), nn.Linear(4, 3)])


def batch_norm_net():
    layers = [nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(True)]
    return Network([*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)])


def curvature(model, data):
    model, data = copy.deepcopy(model).double(), [(x.double(), labels) for x, labels in data]
    return hessian_diagonals(model, [f"{x.name}.weight" for x in prunable_layers(model)], data)


@pytest.mark.parametrize(
    ("model", "data", "negative"),
    [
        (FCN((16, 5, 4, 3), "tanh"), FLAT, True),
        (FCN((16, 5, 4, 3), "none"), FLAT, False),
        (conv_net(), IMAGES, True),
    ],
    ids=["tanh", "none", "convolutions"],
)
def test_curvature_is_the_diagonal_of_the_hessian(model, data, negative):
    expected = curvature(randomised(model.double()), data)
    assert any((h < -1e-6).any() for h in expected) == negative
    for h, root in zip(expected, data_statistics(model, "curvature", data), strict=True):
        torch.testing.assert_close(root**2, h.clamp(min=0), rtol=1e-9, atol=1e-12)


class Doubled(Network):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (batch_norm_net(), r"layers\.1: BatchNorm2d"),
        (conv_net(nn.Sequential(nn.ReLU())), r"layers\.3: Sequential"),
        (
            conv_net(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")),
            r"layers\.3: .*circular",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "unlike Sequential"),
        (Doubled([nn.Flatten(), nn.Linear(64, 3)]), "unlike Doubled, whose forward does more"),
    ],
)
def test_curvature_is_refused_where_backpack_may_be_wrong(model, name):
    with pytest.raises(ValueError, match=f"obd and obd_lap serve .*{name}"):
        data_statistics(model, "curvature", IMAGES)


class Activated(nn.Module):
    """Two branches that are added, then activated in the given way, and a layer over tokens."""

    def __init__(self, activation):
        super().__init__()
        self.left, self.right = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.tokens, self.last, self.relu = nn.Linear(4, 5), nn.Linear(25, 3), nn.ReLU(True)
        self.activations = (activation,)

    def forward(self, x):
        x = self.activations[0](self, self.left(x) + self.right(x))
        return self.last(self.relu(self.tokens(x.transpose(1, 2))).flatten(1))


def test_activity_is_counted():
    model = randomised(Activated(lambda net, x: net.relu(x)))
    x = torch.cat([images for images, _ in SIGNALS])
    with torch.no_grad():
        first = (model.left(x) + model.right(x)).relu()
        second = model.tokens(first.transpose(1, 2)).relu().transpose(1, 2)
    *factors, last = data_statistics(model.train(), "activity", SIGNALS)
    for factor, active in zip(factors, (first, first, second), strict=True):
        expected = (active > 0).double().mean(0).sqrt().sum(1)  # over positions
        torch.testing.assert_close(factor.flatten().double(), expected, rtol=1e-5, atol=1e-5)
        assert len(factor.unique()) > 1
    assert last.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (lambda net, x: x.relu(), "left is: relu comes after it, which is no activation module"),
        (lambda net, x: x * torch.sigmoid(x), "left is: sigmoid comes after it"),
        (lambda net, x: x.where(x > 0, 0), "left is: gt comes after it"),
        (lambda net, x: torch.from_numpy(x.numpy().clip(0)), "tokens is: the functions that"),
        (lambda net, x: net.relu(torch.cat([x, x], 1))[:, :4], "left is: its units are rearranged"),
        (lambda net, x: net.relu(x.flip(1)), "left is: its units are rearranged"),
        (lambda net, x: net.relu(F.channel_shuffle(x, 2)), "left is: its units are rearranged"),
        (lambda net, x: net.relu(F.pad(x, (0, 0, 0, 1)))[:, :4], "left is: .* has 5 units, not 4"),
    ],
)
def test_activations_that_cannot_be_told_are_refused(activation, words):
    with pytest.raises(ValueError, match=f"cannot tell how active {words}"):
        data_statistics(Activated(activation), "activity", SIGNALS)


def test_layers_without_activation_are_always_active():
    model = nn.Sequential(nn.Conv2d(1, 2, 7), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 3))
    factors = data_statistics(model, "activity", IMAGES)
    assert [factor.unique().tolist() for factor in factors] == [[4], [1], [1]]


class Tied(nn.Module):
    """Uses its layer as a function too."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.functions = nn.Linear(16, 16), (function,)

    def forward(self, x):
        return self.functions[0](self.layer(x), self.layer.weight)


def test_input_norms_are_those_of_each_unit_over_all_positions_and_uses():
    layers = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 7, groups=2), nn.Flatten(), nn.Linear(6, 3)
    model, x = randomised(nn.Sequential(*layers)), torch.cat([images for images, _ in IMAGES])
    first, grouped, linear = data_statistics(model, "inputs", IMAGES)
    torch.testing.assert_close(first, x.norm().view(1, 1, 1, 1))
    norms = torch.stack([model[0](x)[:, j].norm() for j in range(4)])
    torch.testing.assert_close(grouped.flatten(1), norms.view(2, 2).repeat_interleave(3, 0))
    torch.testing.assert_close(linear, model[:3](x).norm(dim=0)[None])
    model, x = Tied(F.linear), torch.cat([images for images, _ in FLAT])
    (norms,) = data_statistics(model, "inputs", FLAT)
    torch.testing.assert_close(norms, torch.cat([x, model.layer(x)]).norm(dim=0)[None])
    with pytest.raises(ValueError, match=r"inputs of layer: its weight is used in t$"):
        data_statistics(Tied(lambda x, w: F.linear(x, w.t())), "inputs", FLAT)


class Recurrent(nn.Module):
    """A convolution in an order of its own, something recurrent and an offset."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.last = nn.Conv1d(4, 4, 1), nn.LSTM(5, 5), nn.Linear(20, 3)
        self.beta = nn.Parameter(torch.ones(20))
        self.register_buffer("order", torch.tensor([-1, 0, 2, -2]))

    def forward(self, x):
        return self.last(self.rnn(self.conv(x)[:, self.order])[0].flatten(1) + self.beta)


@pytest.mark.parametrize(
    ("model", "data"),
    [(FCN((16, 5, 4, 3)), FLAT), (batch_norm_net(), IMAGES), (Recurrent(), SIGNALS)],
)
def test_synflow_is_what_absolute_weights_give_to_the_outputs(model, data):
    slopes = data_statistics(randomised(model.double()), "ones", data)
    twin = copy.deepcopy(model)
    for name, tensor in twin.named_parameters():
        tensor.data.mul_(0 if "bias" in name or name == "beta" else tensor.sign())
    for name, tensor in twin.named_buffers():
        tensor.mul_(0 if name.endswith("running_mean") else 1)
    outputs = twin(torch.ones_like(data[0][0][:1]).double()).sum()
    layers = prunable_layers(twin)
    expected = torch.autograd.grad(outputs, [layer.weight for layer in layers])
    largest = max(slope.max() for slope in expected)
    for slope, literal in zip(slopes, expected, strict=True):
        torch.testing.assert_close(slope, literal / largest)


@pytest.mark.parametrize("kind", STATISTICS)
def test_the_model_is_untouched(kind):
    model = conv_net()
    model.layers[3].eval()
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
def test_any_iterable_precision_and_setting_of_torch(kind):
    model, data = randomised(FCN((16, 5, 3))), torch.utils.data.TensorDataset
    loader = torch.utils.data.DataLoader(data(*map(torch.cat, zip(*FLAT, strict=True))), 10)
    expected = data_statistics(model, kind, iter(FLAT))
    assert same(expected, data_statistics(model, kind, loader))
    with odd_torch():
        assert same(expected, data_statistics(model, kind, FLAT))
    assert all(x.isfinite().all() for x in data_statistics(model.bfloat16(), kind, FLAT))


PAIRS = r"batches must be pairs \(images, labels\), at least one, images normalised floats; got"


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("activity", FLAT, "how active unused is: it does not run"),
        ("curvature", FLAT, "unlike FCN"),
        ("inputs", FLAT, "inputs of unused: it does not run"),
        ("flat", FLAT, "kind must be one of activity, curvature, inputs, ones; got 'flat'"),
        ("inputs", [], PAIRS),
        ("activity", [(torch.zeros(1, 16, dtype=torch.uint8), None)], PAIRS),
        ("activity", torch.zeros(3, 16), PAIRS),
        ("inputs", 5, PAIRS),
        ("inputs", [(torch.full((1, 16), torch.nan), torch.zeros(1))], PAIRS),
        ("inputs", [(torch.zeros(1, 16), [0])], PAIRS),
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
    squares = curvature(model, FLAT)
    if method == "lap_act":
        x = torch.cat([images for images, _ in FLAT])
        squares = [(model.layers[0](x) > 0).double().mean(0)[:, None], torch.ones(3, 1)]
    scaled = [w * numbers.sqrt() for w, numbers in zip(weights, squares, strict=True)]
    for i, mask in enumerate(lapnb.prune_masks(model, method, 0.4, batches=FLAT)):
        score = scaled[i] ** 2 / 2 if method == "obd" else block_distortions(scaled, i)
        assert torch.equal(mask, largest(score, round(0.4 * mask.numel())))
