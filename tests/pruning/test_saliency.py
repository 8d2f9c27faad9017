"""What criteria know of the data, against Hessians and counts that are literally computed."""

import copy

import pytest
import torch
from reference import block_distortions, distortions, hessian_diagonals, largest, randomised, same
from torch import nn
from torch.nn import functional as F

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.saliency import SALIENCY, saliency
from lapnb.training.networks import FCN

CLASSES = 3


def batches(*shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(10, *(shape or (1, 4, 4)), generator=generator),
            torch.randint(CLASSES, (10,), generator=generator),
        )
        for _ in range(count)
    ]


class Handwritten(nn.Module):
    """One ReLU for all layers and functional flatten; or what breaks a chain."""

    def __init__(self, how=""):
        super().__init__()
        self.conv, self.second = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout()
        self.last, self.how = nn.Linear(16, CLASSES), how

    def forward(self, x):
        x = self.relu(self.conv(x))
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
        elif self.how == "control flow" and x.sum() > 0:
            y = -y
        y = self.last(self.dropout(torch.flatten(self.relu(y), 1)))
        return F.log_softmax(y, 1) if self.how == "output" else y


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 2, bias=False), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(4, 4), nn.Sigmoid(), nn.Dropout(0.9), nn.Identity(), nn.Linear(4, CLASSES)),
    )


def ending_in(*modules):
    return nn.Sequential(nn.Conv2d(1, 2, 1), *modules, nn.Flatten(), nn.Linear(32, CLASSES))


# OBD: the diagonal of the Hessian ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "negative"),
    [
        *[
            (FCN((16, 5, 4, CLASSES), name), name in ("tanh", "sigmoid"))
            for name in ("relu", "tanh", "sigmoid", "none")
        ],
        (conv_net(), True),
        (Handwritten(), False),
    ],
    ids=["relu", "tanh", "sigmoid", "none", "convolutions", "shared_relu"],
)
def test_curvature_is_the_diagonal_of_the_hessian(model, negative):
    model = randomised(model).double()
    names = [f"{layer.name}.weight" for layer in prunable_layers(model)]
    data = [(images.double(), labels) for images, labels in batches()]
    expected = hessian_diagonals(model, names, data)
    assert any((h < -1e-6).any() for h in expected) == negative
    for h, root in zip(expected, saliency(model, "curvature", batches()), strict=True):
        torch.testing.assert_close(root**2, h.clamp(min=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lapnb.build_model("vgg11", width=0.05), r"unlike layers\.1: BatchNorm2d"),
        (lapnb.build_model("wrn16_8", width=0.05), r"breaks at layers\.1\.shortcut\.0|BatchNorm2d"),
        (Handwritten("add"), "breaks at add after second"),
        (Handwritten("add in place"), "add after second"),
        (Handwritten("functional"), r"relu\w* after second"),
        (Handwritten("flatten"), "flatten after second"),
        (Handwritten("output"), "log_softmax after last"),
        (Handwritten("twice"), "second runs 2 times"),
        (Handwritten("control flow"), "cannot be traced|after relu"),
        (ending_in(nn.Conv2d(2, 2, 3, padding=1), nn.Softplus()), "unlike 2: Softplus"),
        (ending_in(nn.Conv2d(2, 2, 3, padding="same")), "unlike 1"),
        (ending_in(nn.AdaptiveAvgPool2d(3), nn.Upsample((4, 4))), "unlike 2: Upsample"),
        # what BackPACK would be silently wrong about
        (ending_in(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "unlike 1: .*circular"),
        (ending_in(nn.AvgPool2d(1, divisor_override=3)), r"unlike 1: AvgPool2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_backpack_cannot_do_is_refused(model, name):
    with pytest.raises(ValueError, match=f"BackPACK's DiagHessian supports.*({name})"):
        saliency(model, "curvature", batches())


# LAP-act: how often units are active -------------------------------------------------------------


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
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(True), pool),
        *(nn.Conv2d(3, 4, 3, padding=1), pool, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16, 5), nn.ReLU(), nn.Sigmoid(), nn.Linear(5, CLASSES), nn.ReLU()),
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
        outputs = [[*walk(model, images)] for images, _ in data]
    for layer in zip(*outputs, strict=True):
        active = (torch.cat(layer) > 0).double()
        p = active.view(*active.shape[:2], -1).mean(0)
        yield torch.tensor([sum(float(v) ** 0.5 for v in channel) for channel in p])


@pytest.mark.parametrize(
    ("model", "walk", "data"),
    [
        (FCN((16, 6, 5, CLASSES)), walk_fcn, batches()),
        (batch_norm_net(), walk_batch_norm, batches(1, 8, 8)),
        (lapnb.build_model("resnet18", 0.06), walk_resnet, batches(3, 8, 8)),
        (lapnb.build_model("wrn16_8", 0.06), walk_wrn, batches(3, 8, 8)),
    ],
    ids=["fcn", "batch_norm", "resnet18", "wrn16_8"],
)
def test_activity_is_counted(model, walk, data):
    model = randomised(model)
    expected = [*by_hand(model, walk, data), torch.ones(len(prunable_layers(model)[-1].weight))]
    found = saliency(model.train(), "activity", data)
    for layer, factor, units in zip(prunable_layers(model), found, expected, strict=True):
        assert factor.shape == (len(layer.weight), *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(factor.flatten(), units, rtol=1e-5, atol=1e-5)
    assert sum(len(factor.unique()) for factor in found) > len(found)  # not trivial


class Activated(nn.Module):
    """Two branches that are added, then activated in the given way, and a layer over tokens."""

    def __init__(self, activation):
        super().__init__()
        self.left, self.right = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1)
        self.tokens, self.last = nn.Linear(3, 5), nn.Linear(20, CLASSES)
        self.activations = (activation,)

    def forward(self, x):
        (activation,) = self.activations
        x = activation(self.left(x) + self.right(x))
        return self.last(activation(self.tokens(x.transpose(1, 2))).flatten(1))


class Own(nn.Module):
    def forward(self, x):
        return torch.relu(x)


@torch.jit.script
def scripted(x):
    return torch.relu(x)


def test_activations_are_known_by_what_they_compute():
    data = batches(2, 4)
    model = randomised(Activated(nn.ReLU()))
    x = torch.cat([images for images, _ in data])
    with torch.no_grad():
        first = (model.left(x) + model.right(x)).relu()
        active = [first, first, model.tokens(first.transpose(1, 2)).relu().transpose(1, 2)]
    expected = [(a > 0).float().mean(0).sqrt().sum(1) for a in active]
    for activation in (nn.ReLU(), F.relu, Own(), torch.relu_, torch.relu):
        model.activations = (activation,)
        found = saliency(model, "activity", data)
        for factor, units in zip(found, expected, strict=False):
            torch.testing.assert_close(factor.flatten(), units)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (lambda x: x * torch.sigmoid(x), "left is: mul comes after it"),
        (lambda x: torch.maximum(x, torch.zeros(())), "left is: maximum comes after it"),
        (lambda x: torch.where(x > 0, x, 0), "left is: gt comes after it"),
        (lambda x: scripted(x), "tokens is: the functions that compute its input are not torch's"),
        (lambda x: torch.cat([x, x[:, :1]], 1).relu()[:, :-1], "left is: its activation has 4"),
    ],
)
def test_activations_that_cannot_be_told_are_refused(activation, words):
    with pytest.raises(ValueError, match=f"cannot tell how active {words}"):
        saliency(Activated(activation), "activity", batches(2, 4))


def test_layers_without_activation_are_always_active():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, CLASSES)
    )
    found = saliency(model, "activity", batches())
    assert [factor.unique().tolist() for factor in found] == [[4], [1], [1], [1]]


# Wanda, RIA and SynFlow --------------------------------------------------------------------------


def test_input_norms_are_those_of_each_unit_over_all_positions():
    model = randomised(
        nn.Sequential(
            *(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(54, CLASSES)),
        )
    )
    data = batches(2, 4, 4)
    x = torch.cat([images for images, _ in data])
    hidden = model[:2](x)
    last = model[:5](x)
    first, grouped, linear = saliency(model, "inputs", data)
    torch.testing.assert_close(
        first, torch.stack([x[:, j].norm() for j in range(2)]).view(1, 2, 1, 1)
    )
    norms = torch.stack([hidden[:, j].norm() for j in range(4)])
    torch.testing.assert_close(grouped.flatten(1), norms.view(2, 2).repeat_interleave(3, 0))
    torch.testing.assert_close(linear, last.norm(dim=0)[None])


def test_synflow_is_what_each_weight_adds_to_the_output_for_ones():
    model = randomised(batch_norm_net()[:-1].double())
    roots = saliency(model, "ones", batches(1, 8, 8))
    twin = copy.deepcopy(model)
    for name, tensor in twin.state_dict().items():
        tensor.zero_() if name.endswith(("bias", "running_mean")) else tensor.abs_()
    ones, ratios = torch.ones(1, 1, 8, 8, dtype=torch.double), []
    twin[11] = nn.Identity()  # R is linear in each weight but for the sigmoid
    model[11] = nn.Identity()
    roots = saliency(model, "ones", batches(1, 8, 8))
    for layer, other, root in zip(
        prunable_layers(model), prunable_layers(twin), roots, strict=True
    ):
        removed = distortions(other.weight, lambda: twin(ones).sum())
        ratios.append((layer.values.abs() * root / removed).flatten())
    ratios = torch.cat(ratios)  # scaled by one factor for all
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios))


def test_synflow_is_whole_network_lap_with_sums_of_absolute_values():
    model = randomised(FCN((6, 5, 4, CLASSES)))
    layers = [layer.values.double().abs() for layer in prunable_layers(model)]
    before = [torch.ones(6).double(), layers[0].sum(1), layers[1] @ layers[0].sum(1)]
    after = [layers[1].T @ layers[2].sum(0), layers[2].sum(0), torch.ones(CLASSES).double()]
    scores = [w * b[None] * a[:, None] for w, b, a in zip(layers, before, after, strict=True)]
    for scope in ("layer", "global"):
        masks = lapnb.prune_masks(model, "synflow", 0.4, scope, batches=batches(6))
        if scope == "layer":
            expected = [largest(s, round(0.4 * s.numel())) for s in scores]
        else:
            flat = largest(torch.cat([s.flatten() for s in scores]), round(0.4 * 62))
            expected = [x.view_as(s) for x, s in zip(flat.split([30, 20, 12]), scores, strict=True)]
        assert same(masks, expected)


# All ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SALIENCY)
def test_the_model_is_untouched(kind):
    model = conv_net()
    model[3].eval()
    next(model.parameters()).requires_grad_(False)
    before, state = copy.deepcopy(model), torch.random.get_rng_state()
    saliency(model, kind, batches())
    assert same(before.state_dict().values(), model.state_dict().values())
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
        assert getattr(old, "inplace", None) == getattr(new, "inplace", None)
        assert vars(old).keys() == vars(new).keys()
        assert not (new._forward_hooks or new._forward_pre_hooks or new._backward_hooks)
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        assert new.requires_grad == old.requires_grad
        assert new.grad is None and not hasattr(new, "diag_h")
    assert torch.equal(torch.random.get_rng_state(), state)
    copy.deepcopy(model)


@pytest.mark.parametrize("kind", SALIENCY)
def test_any_iterable_and_any_precision(kind):
    model = randomised(FCN((16, 5, CLASSES)))
    once = saliency(model, kind, iter(batches()))
    loader = torch.utils.data.DataLoader(
        [pair for images, labels in batches() for pair in zip(images, labels, strict=True)], 10
    )
    assert same(once, saliency(model, kind, loader))
    assert all(x.isfinite().all() for x in saliency(model.bfloat16(), kind, batches()))


@pytest.mark.parametrize("kind", SALIENCY)
def test_a_layer_that_does_not_run_is_named(kind):
    model = FCN((16, 5, CLASSES))
    model.unused = nn.Linear(CLASSES, CLASSES)
    if kind == "ones":
        assert not saliency(model, kind, batches())[-1].any()
    else:
        with pytest.raises(ValueError, match="unused"):
            saliency(model, kind, batches())


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("flat", batches(), "kind must be one of activity, curvature, inputs, ones; got 'flat'"),
        ("inputs", [], "batches must hold at least one batch"),
        ("activity", [(torch.zeros(1, 16, dtype=torch.uint8), None)], "float images, got torch.ui"),
    ],
)
def test_bad_arguments(kind, data, words):
    with pytest.raises(ValueError, match=words):
        saliency(FCN((16, 5, CLASSES)), kind, data)


@pytest.mark.parametrize("method", ["lap_act", "obd", "obd_lap"])
def test_masks_are_those_of_the_definition(method):
    model = randomised(FCN((16, 6, 5, CLASSES)))
    masks = lapnb.prune_masks(model, method, 0.4, batches=batches())
    layers = prunable_layers(model)
    if method == "lap_act":
        outputs = zip(*(walk_fcn(model, x) for x, _ in batches()), strict=True)
        p = [*((torch.cat(x) > 0).float().mean(0) for x in outputs), torch.ones(CLASSES)]
        scaled = [x.values * v.sqrt()[:, None] for x, v in zip(layers, p, strict=True)]
    else:
        names = [f"{layer.name}.weight" for layer in layers]
        data = [(images.double(), labels) for images, labels in batches()]
        h = hessian_diagonals(copy.deepcopy(model).double(), names, data)
        scaled = [x.values.abs() * v.sqrt() for x, v in zip(layers, h, strict=True)]
    for i, mask in enumerate(masks):
        score = scaled[i] ** 2 / 2 if method == "obd" else block_distortions(scaled, i)
        assert torch.equal(mask, largest(score, round(0.4 * mask.numel())))
    assert not same(masks, lapnb.prune_masks(model, "lap", 0.4))


def test_global_obd_ranks_normalised_saliencies():
    model = randomised(conv_net())
    roots = saliency(model, "curvature", batches())
    masks = lapnb.prune_masks(model, "obd", 0.5, "global", saliency=roots)
    scores = [r**2 * x.values**2 / 2 for r, x in zip(roots, prunable_layers(model), strict=True)]
    flat = torch.cat([(s / torch.linalg.norm(s)).flatten() for s in scores])
    assert torch.equal(torch.cat([mask.flatten() for mask in masks]), largest(flat, 52))  # of 103
