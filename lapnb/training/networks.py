"""The paper's networks as plain `nn.Module`s, one class per family.

The docstring of a family says where it differs from the authors' code; what is not named there
(layers, strides, batch norms, dropout, initial weights) is the same.
"""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from lapnb.checks import require, require_whole
from lapnb.surroundings import usual_torch

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity}


class Network(nn.Module):
    """`layers`, one after the other; weights start Xavier-normal, biases at zero.

    `definition_order` declares that modules are defined in the order in which they are called,
    additions of a residual block ignored. A layer's neighbours are then the layers defined just
    before and after it, which is the paper's protocol.
    """

    definition_order = True

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.layers(x)


class FCN(Network):
    """Fully-connected network; `sizes` are its inputs, hidden units and classes.

    `layers` is Linear, activation, Linear, …, Linear. `forward` flattens its input. The
    network does not differ from the authors'.
    """

    def __init__(self, sizes, activation="relu"):
        super().__init__(linear_layers(sizes, ACTIVATIONS[activation]))

    def forward(self, x):
        return self.layers(x.flatten(1))


class VGG(Network):
    """3×3 convolutions in stages, `convolutions` in each, and a max-pooling after every stage.

    VGG-11, -16 and -19 have batch norm and one linear layer. Their convolutions have no bias,
    unlike the authors': batch norm cancels it.
    Conv-6 is as the authors': no batch norm, and `hidden` linear layers before the last.
    """

    def __init__(self, convolutions, num_classes, image_size, channels, width, stride, hidden=0):
        side = math.ceil(image_size / stride) // 2 ** len(convolutions)
        require(side > 0, "image_size", "larger for this network and stride", image_size)
        layers = []
        for stage, count in enumerate(convolutions):
            planes = scaled(min(64 * 2**stage, 512), width)
            for _ in range(count):
                layers += conv_norm(channels, planes, 3, stride, norm=not hidden)
                layers.append(nn.ReLU())
                channels, stride = planes, 1
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
        sizes = [channels * side**2, *[channels] * hidden, num_classes]
        super().__init__([*layers, *linear_layers(sizes, nn.ReLU)])


class Residual(nn.Module):
    """body(x) + shortcut(x); a shortcut without modules is the identity.

    Its attribute `prunable` = False keeps the shortcut dense, as in the paper's tables.
    """

    def __init__(self, body: list[nn.Module], shortcut: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = nn.Sequential(*shortcut)
        self.shortcut.prunable = False
        self.shortcut.definition_order = False  # no neighbour of other layers

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class ResNet(Network):
    """Residual blocks in stages, `blocks` in each; a stage halves the image, the first does not.

    ResNet-18 and -50 have a 3×3 stem and no max-pooling. The shortcuts' convolutions start
    Xavier-normal; in the authors' code they start as PyTorch makes them.
    WRN-16-8 has batch norm before convolution, dropout 0.3, and convolutions with bias. Its
    shortcuts start Xavier-normal with biases at zero; in the authors' code they start as PyTorch
    makes them. Its last batch norm has PyTorch's momentum of 0.1; theirs has 0.9.
    They end in a global average: any `image_size` fits.
    """

    def __init__(
        self,
        body_of,
        blocks,
        num_classes,
        image_size,
        channels,
        width,
        stride,
        stem=64,
        first=64,
        expansion=1,
    ):
        norm_after = body_of is not wide
        inputs = scaled(stem, width)
        layers = conv_norm(channels, inputs, 3, stride, norm_after)
        if norm_after:
            layers.append(nn.ReLU())
        for stage, count in enumerate(blocks):
            planes = scaled(first * 2**stage, width)
            for block in range(count):
                step = 2 if stage > 0 and block == 0 else 1
                body = body_of(inputs, planes, step)
                outputs = planes * expansion
                shortcut = []
                if step > 1 or inputs != outputs:
                    shortcut = conv_norm(inputs, outputs, 1, step, norm_after)
                layers.append(Residual(body, shortcut))
                if norm_after:
                    layers.append(nn.ReLU())
                inputs = outputs
        if not norm_after:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
        super().__init__(layers)


def basic(inputs, planes, stride):
    """Return the body of a block of ResNet-18."""
    first = conv_norm(inputs, planes, 3, stride)
    return [*first, nn.ReLU(), *conv_norm(planes, planes, 3)]


def bottleneck(inputs, planes, stride):
    """Return the body of a block of ResNet-50."""
    first = [*conv_norm(inputs, planes, 1), nn.ReLU()]
    second = [*conv_norm(planes, planes, 3, stride), nn.ReLU()]
    return [*first, *second, *conv_norm(planes, 4 * planes, 1)]


def wide(inputs, planes, stride):
    """Return the body of a block of WRN-16-8."""
    first = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, planes, 3, padding=1)]
    second = [nn.Dropout(0.3), nn.BatchNorm2d(planes), nn.ReLU()]
    # strided here, as in the authors' code
    return [*first, *second, nn.Conv2d(planes, planes, 3, stride, padding=1)]


def linear_layers(sizes: list[int], activation: type[nn.Module]) -> list[nn.Module]:
    """Return the layers Linear, activation, Linear, …, Linear."""
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers[:-1]


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def conv_norm(inputs: int, outputs: int, kernel: int, stride=1, norm=True) -> list[nn.Module]:
    """Return a convolution and, with `norm`, its batch norm, which would cancel a bias."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    return layers


NETWORKS = {
    "fcn": FCN,
    "conv6": partial(VGG, (2, 2, 2), hidden=2),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "resnet18": partial(ResNet, basic, (2, 2, 2, 2)),
    "resnet50": partial(ResNet, bottleneck, (3, 4, 6, 3), expansion=4),
    "wrn16_8": partial(ResNet, wide, (2, 2, 2), stem=16, first=8 * 16),
}


def build_model(
    name: str,
    width: float = 1.0,
    activation: str = "relu",
    num_classes: int = 10,
    image_size: int | None = None,
    channels: int | None = None,
    stride: int = 1,
    seed: int | None = None,
) -> nn.Module:
    """Build a network of the paper.

    Args:
        name: One of `NETWORKS`.
        width: Scales channel counts and hidden units.
        activation: "relu", "sigmoid", "tanh" or "none", a choice for "fcn" only.
        num_classes: The number of outputs.
        image_size: Pixels per side: by default 28 for "fcn", 32 for the others.
        channels: By default 1 for "fcn", 3 for the others.
        stride: That of the first convolution: 1 for CIFAR-10, 2 for Tiny-ImageNet's 64 pixels.
        seed: The initial weights, float32 on the CPU, depend on it alone, and torch's random state
            stays as it was. Without it they depend on that state, and on the default type and
            device, as those of any module do.

    Returns:
        A plain module that declares `definition_order`.

    Raises:
        ValueError: an argument makes no sense.

    >>> build_model("fcn", width=0.1, seed=0).layers[0]
    Linear(in_features=784, out_features=50, bias=True)
    """
    if seed is not None:
        require_whole("seed", seed, 0)
        with usual_torch(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # a GPU's random state is not touched
            return build_model(name, width, activation, num_classes, image_size, channels, stride)
    require(name in NETWORKS, "name", f"one of {', '.join(NETWORKS)}", name)
    is_fcn = name == "fcn"
    if image_size is None:
        image_size = 28 if is_fcn else 32
    if channels is None:
        channels = 1 if is_fcn else 3
    sizes = dict(num_classes=num_classes, image_size=image_size, channels=channels, stride=stride)
    for size, value in sizes.items():
        require_whole(size, value, 1)
    require(0 < width < math.inf, "width", "a number above 0", width)
    activations = [*ACTIVATIONS] if is_fcn else ["relu"]
    allowed = f"one of {activations} for {name}"
    require(activation in activations, "activation", allowed, activation)
    if is_fcn:
        require(stride == 1, "stride", "1 for fcn, which has no convolution", stride)
        hidden = [scaled(500, width)] * 4
        return FCN([channels * image_size**2, *hidden, num_classes], activation)
    return NETWORKS[name](**sizes, width=width)
