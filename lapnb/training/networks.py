"""The paper's networks as plain `nn.Module`s, one class per family.

Modules are defined in the order in which they are called: `chain.prunable_layers` relies on it.
"""

import math
from functools import partial
from itertools import pairwise
from numbers import Integral

import torch
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity}
VGG_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # per stage
RESNET_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # per stage


class Network(nn.Module):
    """`layers`, one after the other; weights start Xavier-normal, biases at zero."""

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

    `layers` is Linear, activation, Linear, …, Linear. `forward` flattens its input.
    """

    def __init__(self, sizes, activation="relu"):
        layers = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        super().__init__(layers[:-1])

    def forward(self, x):
        return self.layers(x.flatten(1))


class Conv6(Network):
    """Six 3×3 convolutions, max-pooling after every second one, and three linear layers."""

    def __init__(self, num_classes=10, image_size=32, channels=3, width=1.0, stride=1):
        columns = pixels_left("conv6", image_size, stride, poolings=3)
        layers = []
        for planes in (scaled(c, width) for c in (64, 128, 256)):
            layers += [nn.Conv2d(channels, planes, 3, stride, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(planes, planes, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, stride = planes, 1
        layers += [nn.Flatten(), nn.Linear(channels * columns, channels), nn.ReLU()]
        layers += [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, num_classes)]
        super().__init__(layers)


class VGG(Network):
    """VGG-11, -16 or -19 with batch norm and a single linear layer."""

    def __init__(self, depth, num_classes=10, image_size=32, channels=3, width=1.0, stride=1):
        columns = pixels_left(f"vgg{depth}", image_size, stride, poolings=5)
        layers = []
        for stage, convolutions in enumerate(VGG_CONVOLUTIONS[depth]):
            planes = scaled(min(64 * 2**stage, 512), width)
            for _ in range(convolutions):
                layers += [*conv_norm(channels, planes, 3, stride), nn.ReLU()]
                channels, stride = planes, 1
            layers.append(nn.MaxPool2d(2))
        super().__init__([*layers, nn.Flatten(), nn.Linear(channels * columns, num_classes)])


class Residual(nn.Module):
    """body(x) + shortcut(x); a shortcut without modules is the identity."""

    def __init__(self, body: list[nn.Module], shortcut: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class ResNet(Network):
    """ResNet-18 (basic blocks) or -50 (bottlenecks) with a 3×3 stem and no max-pooling.

    Ends in a global average: any `image_size` fits.
    """

    def __init__(self, depth, num_classes=10, image_size=32, channels=3, width=1.0, stride=1):
        inputs = scaled(64, width)
        layers = [*conv_norm(channels, inputs, 3, stride), nn.ReLU()]
        for stage, blocks in enumerate(RESNET_BLOCKS[depth]):
            planes = scaled(64 * 2**stage, width)
            for block in range(blocks):
                step = 2 if stage > 0 and block == 0 else 1
                if depth == 50:
                    outputs = 4 * planes
                    body = [*conv_norm(inputs, planes, 1), nn.ReLU()]
                    body += [*conv_norm(planes, planes, 3, step), nn.ReLU()]
                    body += conv_norm(planes, outputs, 1)
                else:
                    outputs = planes
                    body = [*conv_norm(inputs, planes, 3, step), nn.ReLU()]
                    body += conv_norm(planes, outputs, 3)
                same = step == 1 and inputs == outputs
                shortcut = [] if same else conv_norm(inputs, outputs, 1, step)
                layers += [Residual(body, shortcut), nn.ReLU()]
                inputs = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
        super().__init__(layers)


class WideResNet(Network):
    """WRN-`depth`-`widen`: batch norm before convolution, dropout 0.3, convolutions with bias.

    `width` scales its channels further. Ends in a global average: any `image_size` fits.
    """

    def __init__(
        self, depth, widen, num_classes=10, image_size=32, channels=3, width=1.0, stride=1
    ):
        inputs = scaled(16, width)
        layers = [nn.Conv2d(channels, inputs, 3, stride, padding=1)]
        for stage in range(3):
            planes = scaled(16 * 2**stage * widen, width)
            for block in range((depth - 4) // 6):
                step = 2 if stage > 0 and block == 0 else 1
                body = [nn.BatchNorm2d(inputs), nn.ReLU()]
                body += [nn.Conv2d(inputs, planes, 3, padding=1), nn.Dropout(0.3)]
                body += [nn.BatchNorm2d(planes), nn.ReLU()]
                body += [nn.Conv2d(planes, planes, 3, step, padding=1)]  # as in the authors' code
                same = step == 1 and inputs == planes
                layers.append(Residual(body, [] if same else [nn.Conv2d(inputs, planes, 1, step)]))
                inputs = planes
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__([*layers, nn.Flatten(), nn.Linear(inputs, num_classes)])


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm, which would cancel a bias."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def pixels_left(name: str, image_size: int, stride: int, poolings: int) -> int:
    """Pixels per channel after a first convolution of that stride and that many 2×2 poolings."""
    side = math.ceil(image_size / stride) // 2**poolings
    if side == 0:
        least = (2**poolings - 1) * stride + 1
        raise ValueError(
            f"image_size {image_size} is too small for {name}, which needs at least {least} pixels "
            f"with stride {stride}"
        )
    return side**2


NETWORKS = {
    "fcn": FCN,
    "conv6": Conv6,
    "vgg11": partial(VGG, 11),
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
    "resnet18": partial(ResNet, 18),
    "resnet50": partial(ResNet, 50),
    "wrn16_8": partial(WideResNet, 16, 8),
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
    """A network of the paper, on the CPU.

    `width` scales channel counts and hidden units; `activation` is a choice for "fcn" only.
    `image_size` (pixels) and `channels` are 28 and 1 for "fcn" unless given, 32 and 3 otherwise.
    `stride` is the first convolution's: 1 for CIFAR-10, 2 for Tiny-ImageNet's 64 pixels.
    With `seed` the initial weights depend on it alone and torch's random state stays as it was.
    Raises ValueError for a name or setting outside these.
    """
    is_fcn = name == "fcn"
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; choose from {', '.join(NETWORKS)}")
    known = list(ACTIVATIONS) if is_fcn else ["relu"]
    if activation not in known:
        raise ValueError(f"unknown activation {activation!r} for {name}; choose from {known}")
    if not (isinstance(width, int | float) and 0 < width < math.inf):
        raise ValueError(f"width must be a number above 0, not {width!r}")
    settings = {
        "num_classes": num_classes,
        "image_size": (28 if is_fcn else 32) if image_size is None else image_size,
        "channels": (1 if is_fcn else 3) if channels is None else channels,
        "stride": stride,
    }
    for key, value in settings.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{key} must be a whole number above 0, not {value!r}")
    if is_fcn and stride != 1:
        raise ValueError(f"stride must be 1 for fcn, which has no convolution, not {stride}")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # a GPU's random state is not touched
        if is_fcn:
            sizes = [settings["channels"] * settings["image_size"] ** 2, *[scaled(500, width)] * 4]
            return FCN([*sizes, num_classes], activation)
        return NETWORKS[name](**settings, width=width)
