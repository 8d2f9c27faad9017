"""Lookahead factors against brute force: zero one weight, measure how far its block moves."""

import itertools

import pytest
import torch
import torchvision.models
from torch import nn

from lapnb.pruning.layers import neighbours, prunable_layers
from lapnb.training.networks import NETWORKS, build_model


def norm2d(width, **settings):
    return nn.BatchNorm2d(width, eps=0.3, **settings)


def norm1d(width, **settings):
    return nn.BatchNorm1d(width, eps=0.07, **settings)


FORMS = {
    "one layer": lambda: [nn.Linear(5, 4)],
    "linear": lambda: [nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)],
    "linear, batch norm": lambda: [
        *(nn.Linear(5, 4), norm1d(4), nn.ReLU(), nn.Linear(4, 6), norm1d(6, affine=False)),
        *(nn.PReLU(), nn.Linear(6, 3), norm1d(3)),
    ],
    "convolutions": lambda: [
        *(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(3, 4, (1, 2), dilation=2)),
        *(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 2, (3, 1), padding=(2, 0), bias=False)),
    ],
    "convolutions, batch norm": lambda: [
        *(nn.Conv2d(2, 3, 3, padding=1), norm2d(3), nn.ELU(), nn.Conv2d(3, 4, 2)),
        *(norm2d(4, affine=False), nn.Conv2d(4, 2, 2), norm2d(2)),
    ],
    "convolution, flatten, linear": lambda: [
        *(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d((2, 3))),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(18, 4), nn.Linear(4, 2), nn.LogSoftmax(1)),
    ],
    "convolution, batch norm, flatten, linear": lambda: [
        *(nn.Conv2d(1, 2, 3), norm2d(2), nn.Conv2d(2, 3, 2), norm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(12, 4), norm1d(4), nn.Linear(4, 2)),
    ],
    "convolution, flatten, batch norm, linear": lambda: [
        *(nn.Conv2d(2, 3, 2), nn.Conv2d(3, 2, 2), nn.Flatten(), norm1d(8), nn.Linear(8, 4)),
        nn.Linear(4, 2),
    ],
    "convolution, average, linear": lambda: [
        *(nn.Conv2d(1, 3, 2), norm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
    ],
    "grouped": lambda: [
        *(nn.Conv2d(4, 6, 2, groups=2), norm2d(6), nn.Conv2d(6, 4, 2, groups=2)),
        *(nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 4, 2, groups=2), nn.Flatten()),
        nn.Linear(8, 3),
    ],
    "depthwise": lambda: [
        *(nn.Conv2d(3, 4, 1), norm2d(4), nn.Conv2d(4, 4, 3, groups=4), norm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 2, groups=4), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 3, 2, groups=3)),
    ],
}


def randomise(model):
    """Double precision; batch norms as after training, gammas of either sign."""
    torch.manual_seed(0)
    for module in model.double().eval().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


@torch.no_grad()
def scores(model):
    """|w| · before · after of every layer."""
    layers = prunable_layers(model)
    weights = [layer.weight for layer in layers]
    factors = [neighbours(layers, weights, i) for i in range(len(layers))]
    return [w.abs() * before * after for w, (before, after) in zip(weights, factors, strict=True)]


def dense_kernel(module):
    """Weight as (outputs, inputs, kernel positions), zero between the groups."""
    weight = module.weight.detach()
    weight = weight.reshape(*weight.shape[:2], -1)
    groups = getattr(module, "groups", 1)
    outputs, inputs, positions = weight.shape
    kernel = weight.new_zeros(outputs, inputs * groups, positions)
    for k in range(outputs):
        group = k // (outputs // groups)
        kernel[k, group * inputs : (group + 1) * inputs] = weight[k]
    return kernel


def parts(model):
    """Per layer: its dense kernel, what a batch norm between flatten and layer makes of its columns
    (in the kernel's shape) and the diagonal matrix of the batch norm after it, signs included.

    The linear layer after a flatten sees each channel at S positions: its kernel has the shape
    (outputs, channels, S).
    """
    kernels, columns, diagonals = [], [], []
    flattened = None
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            kernel = dense_kernel(module)
            scale = torch.ones_like(kernel) if flattened is None else flattened[None, :, None]
            flattened = None
            channels = len(kernels[-1]) if kernels else kernel.shape[1]
            kernels.append(kernel.reshape(len(kernel), channels, -1))
            columns.append(scale.expand_as(kernel).reshape(kernels[-1].shape))
            diagonals.append(torch.eye(len(kernel), dtype=torch.double))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            gamma = module.weight.detach() if module.affine else torch.ones(module.num_features)
            scale = gamma / (module.running_var + module.eps) ** 0.5
            if len(scale) == len(kernels[-1]):
                diagonals[-1] = torch.diag(scale)
            else:
                flattened = scale
    return kernels, columns, diagonals


def contraction(model, i):
    """T[o,p,q,r,c] of layers i-1, i, i+1, contracted over channels, kernel positions kept.

    Batch norms between the three layers and after the last layer of the model count, one before
    layer i-1 does not.
    """
    kernels, columns, diagonals = parts(model)
    kernel = torch.einsum("ak,kjq->ajq", diagonals[i], kernels[i] * columns[i])
    outputs, inputs = kernel.shape[:2]
    first, last = (torch.eye(n, dtype=torch.double)[:, :, None] for n in (inputs, outputs))
    if i > 0:
        first = torch.einsum("aj,jcr->acr", diagonals[i - 1], kernels[i - 1])
    if i + 1 < len(kernels):
        last = kernels[i + 1] * columns[i + 1]
    return torch.einsum("okp,kjq,jcr->opqrc", last, kernel, first)


def distortions(module, function):
    """‖function() − function with w = 0‖_F for every weight w of a module, one after the other."""
    reference, weight = function(), module.weight.data
    result = torch.empty_like(weight)
    for index in itertools.product(*map(range, weight.shape)):
        kept = weight[index].item()
        weight[index] = 0
        result[index] = (function() - reference).square().sum().sqrt()
        weight[index] = kept
    return result


@pytest.mark.parametrize("form", FORMS)
def test_score_is_the_distortion_of_the_block(form):
    model = randomise(nn.Sequential(*FORMS[form]()))
    layers = prunable_layers(model)
    for i, score in enumerate(scores(model)):
        expected = distortions(layers[i].module, lambda i=i: contraction(model, i))
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-12)


BLOCKS = {  # with 1×1 kernels the block is what torch computes, here on images of 2×3 pixels
    "flatten ahead": lambda: [
        *(nn.Conv2d(2, 3, 1), norm2d(3), nn.Conv2d(3, 2, 1), norm2d(2), nn.Flatten()),
        nn.Linear(12, 4),
    ],
    "flatten behind": lambda: [
        *(nn.Conv2d(2, 3, 1), norm2d(3), nn.Flatten(), nn.Linear(18, 4), nn.Linear(4, 3)),
    ],
    "flatten, batch norm ahead": lambda: [
        *(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), nn.Flatten(), norm1d(12), nn.Linear(12, 4)),
    ],
    "flatten, batch norm behind": lambda: [
        *(nn.Conv2d(2, 3, 1), nn.Flatten(), norm1d(18), nn.Linear(18, 4), nn.Linear(4, 3)),
    ],
    "last layer": lambda: [nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(18, 4), norm1d(4)],
    "grouped": lambda: [
        *(nn.Conv2d(4, 6, 1, groups=2), norm2d(6), nn.Conv2d(6, 4, 1, groups=2), norm2d(4)),
        *(nn.Flatten(), nn.Linear(24, 3)),
    ],
    "depthwise": lambda: [
        *(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 6, 1, groups=3), nn.Flatten(), nn.Linear(36, 3)),
    ],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_score_is_the_distortion_of_what_torch_computes(name):
    model = randomise(nn.Sequential(*BLOCKS[name]()))
    image = torch.zeros(1, model[0].in_channels, 2, 3, dtype=torch.double)

    def jacobian():
        return torch.autograd.functional.jacobian(model, image)

    expected = distortions(prunable_layers(model)[1].module, jacobian)
    torch.testing.assert_close(scores(model)[1], expected, rtol=1e-9, atol=1e-12)


def test_factors_come_from_the_weights_handed_over():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    layers = prunable_layers(model)
    pruned = [layer.weight * (torch.rand_like(layer.weight) > 0.5) for layer in layers]
    before, after = neighbours(layers, pruned, 1)
    torch.testing.assert_close(before, pruned[0].norm(dim=1)[None, :])
    torch.testing.assert_close(after, pruned[2].norm(dim=0)[:, None])
    assert not before.requires_grad and not after.requires_grad


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_of_every_network_fit_its_weights(name):
    model = build_model(name, width=0.1, seed=0, image_size=64)
    layers = prunable_layers(model)
    weights = [layer.weight for layer in layers]
    for i, weight in enumerate(weights):
        score = weight.abs() * torch.mul(*neighbours(layers, weights, i))
        assert score.shape == weight.shape
        assert (score > 0).all()


def norms_of(model):
    """Layer name → name of its batch norm."""
    names = {module: name for name, module in model.named_modules()}
    return {layer.name: names.get(layer.batch_norm) for layer in prunable_layers(model)}


def test_a_residual_blocks_layers_have_the_blocks_own_batch_norms():
    norms = norms_of(build_model("resnet18", width=0.05))
    *bodies, _ = norms.items()
    for layer, norm in bodies:
        parent, _, position = layer.rpartition(".")
        assert norm == f"{parent}.{int(position) + 1}"
    norms = norms_of(torchvision.models.resnet18())
    assert norms["layer2.0.conv2"] == "layer2.0.bn2"  # and not layer2.0.downsample.1
    assert norms["fc"] is None


def test_a_pre_activation_layer_has_the_batch_norm_that_follows_it():
    norms = norms_of(build_model("wrn16_8", width=0.05))
    assert norms["layers.0"] == "layers.1.body.0"
    assert norms["layers.1.body.2"] == "layers.1.body.4"
    assert norms["layers.1.body.6"] == "layers.2.body.0"
    assert norms["layers.6.body.6"] == "layers.7"


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn"),
        *("vgg19_bn", "resnet18", "resnet34", "resnet50", "mobilenet_v2", "resnext50_32x4d"),
    ],
)
def test_torchvision_networks_work_as_they_are(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    layers = prunable_layers(model)
    weights = [layer.weight for layer in layers]
    assert sum(w.numel() for w in weights) == sum(
        p.numel() for n, p in model.named_parameters() if p.ndim > 1 and "downsample" not in n
    )
    assert sum(layer.batch_norm is not None for layer in layers) == sum(
        isinstance(m, nn.BatchNorm2d) and "downsample" not in n for n, m in model.named_modules()
    )
    for i, weight in enumerate(weights):
        assert (weight * torch.mul(*neighbours(layers, weights, i))).shape == weight.shape


class OutOfOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))


def tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "Sequential has no Conv2d or Linear layer"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), r"cannot prune around 1 \(LayerNorm\)"),
        (
            nn.Sequential(nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3)),  # has no parameters
            r"cannot prune around 1 \(InstanceNorm2d\)",
        ),
        (nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), r"around 0 \(ConvTranspose2d\)"),
        (nn.Sequential(nn.Conv1d(1, 1, 3)), r"around 0 \(Conv1d\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), r"around 1 \(LSTM\)"),
        (nn.Sequential(nn.Embedding(2, 2)), r"around 0 \(Embedding\)"),
        (nn.Sequential(nn.MultiheadAttention(2, 1)), r"around 0 \(MultiheadAttention\)"),
        (Scaled(), r"around the model itself \(Scaled\)"),
        (nn.Sequential(Scaled()), r"around 0 \(Scaled\)"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), "batch norm 0 is: no layer"),
        (
            OutOfOrder(),
            "batch norm bn2 is: conv2 has one already .* order in which they are called",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(3)), r"norm 1 \(3\) does not fit 0 \(4\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(8)), r"norm 1 \(8\) does not fit 0 \(4\)"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8)),
            r"batch norm 1 \(8\) does not fit 0 \(4\)",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm1d(4), nn.Linear(8, 2)),
            r"2 \(8 inputs\) does not fit 0 \(2 outputs\)",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)),
            "batch norm 1 has no running variance",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), nn.Linear(6, 2)),  # only an image has several pixels
            r"1 \(6 inputs\) does not fit 0 \(3 outputs\)",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(13, 2)),
            r"2 \(13 inputs\) does not fit 0 \(3 outputs\)",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(6, 3, 1)),
            r"1 \(6 inputs\) does not fit 0 \(3 outputs\)",
        ),
        (tied(), "1 shares its weight with an earlier layer"),
        (nn.Sequential(*[nn.Linear(3, 3)] * 2), "1 shares its weight with an earlier layer"),
    ],
)
def test_what_cannot_be_handled_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        prunable_layers(model)


def test_a_container_may_be_called_norm():
    class ConvNorm(nn.Sequential):
        pass

    model = nn.Sequential(ConvNorm(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d(2, 1, 3))
    assert norms_of(model) == {"0.0": "0.1", "1": None}


def test_only_modules_have_layers():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not dict"):
        prunable_layers({})
