"""Data-dependent methods against their definitions: brute-force Hessians, units counted by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import lapnb
from lapnb.paper.tables import Table
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import keep_largest
from lapnb.pruning.saliency import PAPER, statistics
from lapnb.training.data import Data, augment
from lapnb.training.networks import FCN
from lapnb.training.train import stream

BATCHES, SIZE, CLASSES = 3, 10, 3


def toy(channels=1, side=4, augmentation=""):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, channels, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (40,), generator=generator)
    norm = (0.4,) * channels, (0.3,) * channels
    return Data("toy", "toy", images, labels, images, labels, *norm, CLASSES, augmentation)


def batches_of(data, seed=0):
    """Images and labels of the batches that `statistics` should draw."""
    for n in range(BATCHES):
        rng = stream(seed, "statistics", n)
        index = torch.from_numpy(rng.choice(40, SIZE, replace=False))
        images = augment(data.train_images[index], data.augmentation, rng)
        yield data.normalise(images), data.train_labels[index]


def randomised(model, seed=1):
    """Weights, biases and batch norms as after some training: nothing is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator).mul_(0.4)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return model


class Handwritten(nn.Module):
    """One ReLU for all layers, functional flatten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.first = nn.Linear(48, 4)
        self.second = nn.Linear(4, CLASSES)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout()

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.relu(self.first(torch.flatten(x, 1)))
        return self.second(self.dropout(x))


class Residual(nn.Module):
    """A residual addition, or another function that no module does."""

    def __init__(self, how):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = nn.Conv2d(1, 1, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(16, CLASSES)
        self.how = how

    def forward(self, x):
        x = self.relu(self.first(x))
        y = self.second(x)
        if self.how == "add":
            y = y + x
        elif self.how == "add in place":
            y += x
        elif self.how == "functional":
            y = F.relu(y)
        elif self.how == "twice":
            y = self.second(y)
        elif self.how == "flatten":
            y = y.flatten(2)
        y = self.last(y.flatten(1))
        return F.log_softmax(y, 1) if self.how == "output" else y


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.Sigmoid(),
        nn.Dropout(0.9),
        nn.Identity(),
        nn.Linear(4, CLASSES),
    )


def ending_in(*modules):
    return nn.Sequential(nn.Conv2d(1, 2, 1), *modules, nn.Flatten(), nn.Linear(32, CLASSES))


# OBD: the diagonal of the Hessian ------------------------------------------------------------


def brute_force_diagonals(model, data):
    """Per layer the diagonal of the whole Hessian of the mean loss, summed over the batches."""
    names = [f"{layer.name}.weight" for layer in prunable_layers(model)]
    weights = [dict(model.named_parameters())[name].detach() for name in names]
    totals = [torch.zeros_like(weight) for weight in weights]
    for images, labels in batches_of(data):

        def loss(*values, images=images, labels=labels):
            logits = functional_call(model, dict(zip(names, values, strict=True)), images.double())
            return F.cross_entropy(logits, labels)

        hessian = torch.autograd.functional.hessian(loss, tuple(weights))
        for i, weight in enumerate(weights):
            square = hessian[i][i].reshape(weight.numel(), weight.numel())
            totals[i] += square.diagonal().view(weight.shape)
    return totals


@pytest.mark.parametrize(
    ("model", "negative"),
    [
        (FCN((16, 5, 4, CLASSES), "relu"), False),
        (FCN((16, 5, 4, CLASSES), "tanh"), True),
        (FCN((16, 5, 4, CLASSES), "sigmoid"), True),
        (FCN((16, 5, 4, CLASSES), "none"), False),
        (conv_net(), True),
        (Handwritten(), False),
    ],
    ids=["relu", "tanh", "sigmoid", "none", "convolutions", "shared_relu"],
)
def test_curvature_is_the_diagonal_of_the_hessian(model, negative):
    model = randomised(model).double().eval()
    expected = brute_force_diagonals(model, toy())
    found = statistics(model, "curved", toy(), BATCHES, SIZE)
    assert any((h < -1e-6).any() for h in expected) == negative
    for h, root in zip(expected, found, strict=True):
        torch.testing.assert_close(root**2, h.clamp(min=0), rtol=1e-9, atol=1e-12)


def test_curvature_of_conv6():
    model = randomised(lapnb.build_model("conv6", width=0.04, num_classes=CLASSES, image_size=8))
    found = statistics(model, "curved", toy(3, 8, "crop_flip"), 2, SIZE)
    layers = prunable_layers(model)
    assert [root.shape for root in found] == [layer.weight.shape for layer in layers]
    assert all(root.isfinite().all() and root.any() for root in found)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (
            lapnb.build_model("vgg11", width=0.05, num_classes=CLASSES),
            r"layers\.\d+: .*BatchNorm2d",
        ),
        (lapnb.build_model("resnet18", width=0.05), r"breaks at add after layers\.3\.body\.4"),
        (lapnb.build_model("wrn16_8", width=0.05), r"breaks at layers\.1\.shortcut\.0"),
        (Residual("add"), "add after second"),
        (Residual("add in place"), "add after second"),
        (Residual("functional"), r"relu\w* after second"),
        (Residual("flatten"), "flatten after second"),
        (Residual("output"), "log_softmax after last"),
        (Residual("twice"), "second runs 2 times"),
        (ending_in(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus()), "unlike 2: .*Softplus"),
        (ending_in(nn.Conv2d(2, 2, 3, padding="same")), "unlike 1"),
        # what BackPACK would be silently wrong about
        (ending_in(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "unlike 1: .*circular"),
        (ending_in(nn.AvgPool2d(1, divisor_override=3)), r"unlike 1: AvgPool2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_backpack_cannot_do_is_refused(model, name):
    data = toy(3, 32) if isinstance(model, lapnb.models.VGG) else toy()
    with pytest.raises(ValueError, match=f"BackPACK's DiagHessian supports.*{name}"):
        statistics(model, "curved", data, 1, SIZE)


# LAP-act: how often units are active ---------------------------------------------------------


def walk_fcn(model, x):
    x = x.flatten(1)
    for linear in model.layers[:-1:2]:
        x = linear(x).relu()
        yield x


def walk_batch_norm(model, x):
    conv1, norm1, _, pool, conv2, _, norm2, _, _, linear, *_ = model
    x = norm1(conv1(x)).relu()
    yield x
    x = norm2(pool(conv2(pool(x)))).relu()
    yield x
    yield linear(x.flatten(1)).relu()


def batch_norm_net():
    pool = nn.MaxPool2d(2)
    return nn.Sequential(
        *[
            nn.Conv2d(1, 3, 3, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            pool,
        ],
        *[nn.Conv2d(3, 4, 3, padding=1), pool, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()],
        *[nn.Linear(16, 5), nn.ReLU(), nn.Sigmoid(), nn.Linear(5, CLASSES), nn.ReLU()],
    )


def walk_resnet(model, x):
    conv, norm, _, *blocks = model.layers[:-3]
    x = norm(conv(x)).relu()
    yield x
    for block in blocks[::2]:
        conv1, norm1, _, conv2, norm2 = block.body
        inside = norm1(conv1(x)).relu()
        yield inside
        x = (norm2(conv2(inside)) + block.shortcut(x)).relu()
        yield x


def walk_wrn(model, x):
    stem, *blocks, last_norm, _, _, _, _ = model.layers
    x = stem(x)
    for block in blocks:
        norm1, _, conv1, _, norm2, _, conv2 = block.body
        yield norm1(x).relu()  # the activity of the layer before the block
        inside = norm2(conv1(norm1(x).relu())).relu()
        yield inside
        x = conv2(inside) + block.shortcut(x)
    yield last_norm(x).relu()


def by_hand(model, walk, data):
    """sqrt(p) of each unit, summed over its positions, one unit and position after the other."""
    with torch.no_grad():
        outputs = [[*walk(model, images)] for images, _ in batches_of(data)]
    for layer in zip(*outputs, strict=True):
        active = (torch.cat(layer) > 0).double()
        p = active.view(*active.shape[:2], -1).mean(0)
        yield torch.tensor([sum(float(v) ** 0.5 for v in channel) for channel in p])


@pytest.mark.parametrize(
    ("model", "walk", "data"),
    [
        (FCN((16, 6, 5, CLASSES)), walk_fcn, toy()),
        (batch_norm_net(), walk_batch_norm, toy(1, 8)),
        (lapnb.build_model("resnet18", 0.06), walk_resnet, toy(3, 8, "crop_flip")),
        (lapnb.build_model("wrn16_8", 0.06), walk_wrn, toy(3, 8)),
    ],
    ids=["fcn", "batch_norm", "resnet18", "wrn16_8"],
)
def test_activity_is_counted(model, walk, data):
    model = randomised(model).eval()
    expected = [*by_hand(model, walk, data), torch.ones(len(prunable_layers(model)[-1].weight))]
    found = statistics(model.train(), "active", data, BATCHES, SIZE)
    for layer, factor, units in zip(prunable_layers(model), found, expected, strict=True):
        assert factor.shape == (len(layer.weight), *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(factor.flatten(), units, rtol=1e-5, atol=1e-5)
    assert sum(len(factor.unique()) for factor in found) > len(found)  # not trivial


def test_layers_without_activation_are_always_active():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, CLASSES)
    )
    found = statistics(model, "active", toy(), BATCHES, SIZE)
    assert [factor.unique().tolist() for factor in found] == [[4], [1], [1], [1]]
    model = FCN((16, 5, CLASSES), "none")
    assert all((factor == 1).all() for factor in statistics(model, "active", toy(), 1, SIZE))


def test_a_layer_that_does_not_run_is_named():
    model = FCN((16, 5, CLASSES))
    model.unused = nn.Linear(CLASSES, CLASSES)
    for kind in PAPER:
        with pytest.raises(ValueError, match="unused"):
            statistics(model, kind, toy(), 1, SIZE)


# Both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PAPER)
@pytest.mark.parametrize("network", ["conv", "residual"])
def test_the_model_is_untouched(kind, network):
    model = conv_net() if network == "conv" else lapnb.build_model("resnet18", 0.05)
    data = toy() if network == "conv" else toy(3, 8)
    model[3].eval() if network == "conv" else model.layers[3].eval()
    next(model.parameters()).requires_grad_(False)
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    try:
        statistics(model, kind, data, 1, SIZE)
    except ValueError:
        assert (kind, network) == ("curved", "residual")
    for (_, old), (_, new) in zip(
        before.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(old, new)
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
        assert getattr(old, "inplace", None) == getattr(new, "inplace", None)
        assert not (new._forward_hooks or new._forward_pre_hooks or new._backward_hooks)
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert new.requires_grad == old.requires_grad
        assert new.grad is None
        assert not hasattr(new, "diag_h")
    assert torch.equal(torch.random.get_rng_state(), state)
    copy.deepcopy(model)


@pytest.mark.parametrize("kind", PAPER)
def test_they_depend_on_the_seed(kind):
    model = randomised(FCN((16, 5, CLASSES)))
    first, again, other = (statistics(model, kind, toy(), 2, SIZE, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_papers_numbers_are_the_default():
    assert PAPER == {"active": (2000, 30), "curved": (1000, 60)}
    assert (Table.active_batches, Table.curved_batches) == (PAPER["active"], PAPER["curved"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flat", toy()), "kind must be one of active, curved; got 'flat'"),
        (("active", toy(), 0, SIZE), "batches must be at least 1 .* got batches=0, batch_size=10"),
        (("curved", toy(), 1, 0), "batch_size between 1 and 40"),
        (("curved", toy(), 1, 41), "batch_size between 1 and 40"),
        (("curved", toy()), "got batches=1000, batch_size=60"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        statistics(FCN((16, 5, CLASSES)), *arguments)


# Masks ---------------------------------------------------------------------------------------


def distortions_of_block(weights, i):
    """‖W_{i+1} W_i W_{i−1} − W_{i+1} W̃_i W_{i−1}‖_F, with each weight of layer i zeroed in turn."""
    before = weights[i - 1] if i > 0 else torch.eye(weights[i].shape[1])
    after = weights[i + 1] if i + 1 < len(weights) else torch.eye(len(weights[i]))
    found = torch.zeros_like(weights[i])
    for row, column in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        zeroed = weights[i].clone()
        zeroed[row, column] = 0
        found[row, column] = torch.linalg.norm(after @ (weights[i] - zeroed) @ before)
    return found


@pytest.mark.parametrize("method", ["lap_act", "obd", "obd_lap"])
def test_masks_are_those_of_the_definition(method, monkeypatch):
    for kind in PAPER:
        monkeypatch.setitem(PAPER, kind, (BATCHES, SIZE))
    model, data = randomised(FCN((16, 6, 5, CLASSES))), toy()
    masks = lapnb.prune_masks(model, method, 0.4, data=data)
    weights = [layer.weight.detach() for layer in prunable_layers(model)]
    if method == "lap_act":
        p = [
            (torch.cat(x) > 0).float().mean(0)
            for x in zip(*(walk_fcn(model, x) for x, _ in batches_of(data)), strict=True)
        ]
        scaled = [
            w * v.sqrt()[:, None] for w, v in zip(weights, [*p, torch.ones(CLASSES)], strict=True)
        ]
    else:
        h = brute_force_diagonals(copy.deepcopy(model).double(), data)
        scaled = [w.abs() * v.sqrt().float() for w, v in zip(weights, h, strict=True)]
    for i, mask in enumerate(masks):
        score = scaled[i] ** 2 / 2 if method == "obd" else distortions_of_block(scaled, i)
        assert int(mask.sum()) == round(0.4 * mask.numel())
        assert torch.equal(mask, keep_largest(score, int(mask.sum())))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(masks, lapnb.prune_masks(model, "lap", 0.4), strict=True)
    )


def test_global_obd_ranks_normalised_saliencies():
    model = randomised(conv_net())
    roots = statistics(model, "curved", toy(), BATCHES, SIZE)
    masks = lapnb.prune_masks(model, "obd", 0.5, "global", statistics=roots)
    scores = []
    for layer, root in zip(prunable_layers(model), roots, strict=True):
        score = root**2 * layer.weight.detach() ** 2 / 2
        scores.append((score / torch.linalg.vector_norm(score)).flatten())
    expected = keep_largest(torch.cat(scores), 52)  # of 103
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), expected)
