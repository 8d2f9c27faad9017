"""What a criterion may have to know of the data: numbers per weight or unit of every layer."""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lapnb.checks import require
from lapnb.pruning.chains import ORDERED
from lapnb.pruning.layers import (
    PRUNABLE,
    Layer,
    modules_by_name,
    prunable_layers,
    sound_backward,
)
from lapnb.pruning.twin import twin_of

ACTIVATIONS = nn.ReLU, nn.Sigmoid, nn.Tanh  # of our networks
# A model that is not ours must consist of these modules alone, which call what they hold in
# the order of definition
CHAIN = (
    *(nn.Sequential, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity),
    *ACTIVATIONS,
)
# Modules of our networks through which BackPACK computes the Hessian
HESSIAN_MODULES = nn.Linear, nn.Conv2d, nn.MaxPool2d, nn.Flatten, *ACTIVATIONS
NEEDS = "obd and obd_lap serve the fully-connected networks and Conv-6 of this project"


@torch.inference_mode(False)
def data_statistics(model: nn.Module, kind: str, batches: Iterable) -> list[Tensor]:
    """Compute what criteria look at in the data. The model runs in eval mode and is not changed.

    Kinds:

    - "activity" (lap_act): sqrt(p) per output unit, where p is the fraction of inputs for which
      the first activation after the layer is above 0, or 1 if no activation comes before the next
      layer. A channel has the sum of sqrt(p) over its positions. This serves networks that run
      their layers in the order of definition: those of this project, and an `nn.Sequential` of the
      modules in `CHAIN`, each used once.
    - "curvature" (obd, obd_lap): sqrt(h) per weight, 0 where h < 0. Here h is the diagonal of the
      Hessian of the mean cross entropy, computed by BackPACK's DiagHessian and summed over the
      batches. This serves `build_model("fcn")` and `build_model("conv6")`.
    - "inputs" (wanda, ria_act): ‖X_j‖₂ per input unit, over all inputs and positions.
    - "ones" (synflow): ∂R/∂|w| per weight, scaled so that the largest is 1. Here R is the sum of
      the outputs for an image of ones, computed with the absolute values of all parameters. Biases
      (parameters named so, or "beta") and the means of batch norms count as 0, their value at
      initialisation. Of the batches only the shape of an image is used.

    Args:
        model: the network.
        kind: "activity", "curvature", "inputs" or "ones".
        batches: any iterable of (images, labels), such as a DataLoader; images as the network
            takes them: normalised floats.

    Returns:
        One tensor per prunable layer, on its device, in or broadcastable to its weight's shape.

    Raises:
        ValueError: naming the parameter, or the module or function that cannot be handled.
    """
    require(kind in [*STATISTICS], "kind", f"one of {', '.join(STATISTICS)}", kind)
    check_kind(model, kind)
    values = prunable_layers(model)[0].values
    network = twin_of(model).to(values)
    layers = prunable_layers(network)
    with torch.autocast(values.device.type, enabled=False), sound_backward(network):
        return STATISTICS[kind](network, layers, _moved(batches, values))


def check_kind(model: nn.Module, kind: str) -> None:
    """Raise ValueError where it is known beforehand that a kind cannot be computed for a model."""
    if kind == "activity" and not (getattr(model, ORDERED, False) or _is_chain(model)):
        names = ", ".join(module.__name__ for module in CHAIN)
        raise ValueError(f"lap_act serves networks of this project, or {names}, each used once")
    if kind == "curvature":
        hessian_modules(model)


def _is_chain(model: nn.Module) -> bool:
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    return len({*modules}) == len(modules) and all(type(module) in CHAIN for module in modules)


def _moved(batches: Iterable, weight: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield images and labels on the device of `weight`, the images in its type."""
    allowed = "pairs (images, labels), at least one, images normalised floats"
    pair = None
    for pair in batches:
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        is_batch = is_pair and torch.is_tensor(pair[0]) and pair[0].is_floating_point()
        require(is_batch, "batches", allowed, type(pair).__name__)
        images, labels = pair
        yield images.detach().to(weight), None if labels is None else labels.to(weight.device)
    require(pair is not None, "batches", allowed, "none")


def _activations(network: nn.Module) -> dict[str, nn.Module]:
    """Map each layer's name to the first activation defined after it, or to the layer itself."""
    modules: dict[str, nn.Module] = {}
    last = ""
    for name, module in modules_by_name(network, ORDERED):
        if isinstance(module, PRUNABLE):
            last = name
            modules[last] = module
        elif isinstance(module, ACTIVATIONS) and last:
            modules[last] = module
            last = ""
    return modules


@torch.no_grad()
def _activity(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    counts: dict[str, Tensor] = {}

    def count(name, module, inputs, output):
        active = output > 0 if isinstance(module, ACTIVATIONS) else torch.ones_like(output)
        counts[name] = counts.get(name, 0) + active.sum(0, dtype=torch.double)

    for name, module in _activations(network).items():
        module.register_forward_hook(partial(count, name))
    inputs = 0
    for images, _ in batches:
        network(images)
        inputs += len(images)
    factors = []
    for layer in layers:
        p = counts[layer.name] / inputs
        if layer.weight.ndim == 2 and p.numel() != layer.outputs:
            raise ValueError(f"lap_act needs inputs of two dimensions in {layer.name}")
        factor = p.sqrt().reshape(layer.outputs, -1).sum(1)
        factors.append(layer.per_output(factor).to(layer.weight))
    return factors


@torch.no_grad()
def _inputs(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    squares: dict[nn.Module, Tensor] = {}

    def add(module, inputs):
        units = inputs[0].double().square().movedim(1 - module.weight.ndim, 0)
        squares[module] = squares.get(module, 0) + units.flatten(1).sum(1)

    for layer in layers:
        layer.module.register_forward_pre_hook(add)
    for images, _ in batches:
        network(images)
    norms = []
    for layer in layers:
        if layer.module not in squares:
            raise ValueError(f"cannot tell the inputs of {layer.name}: it does not run")
        norms.append(layer.per_input(squares[layer.module].sqrt()).to(layer.weight))
    return norms


@torch.enable_grad()
def _ones(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    network.double()  # outputs are sums of products over all layers
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if "bias" in leaf or leaf in ("beta", "running_mean"):
            tensor.zero_()
        elif isinstance(tensor, nn.Parameter):
            tensor.abs_()
    weights = [layer.weight.requires_grad_() for layer in layers]
    images, _ = next(batches)
    outputs = network(torch.ones_like(images[:1], dtype=torch.double))
    total = sum(x.sum() for x in tree_leaves(outputs) if isinstance(x, Tensor))
    slopes = torch.autograd.grad(total, weights, materialize_grads=True)
    largest = max(slope.max() for slope in slopes)
    return [slope / largest.clamp(min=1e-300) for slope in slopes]


def hessian_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that one of our networks runs one after the other.

    BackPACK can be silently wrong about a network that is no such chain of modules it supports.

    Raises:
        ValueError: for another network, naming the module that is at fault.
    """
    sequence = getattr(model, "layers", None)
    is_ours = getattr(model, ORDERED, False)
    if not (is_ours and isinstance(sequence, nn.Sequential)):
        raise ValueError(f"{NEEDS}, unlike {type(model).__name__}")
    modules = [module for module in sequence if type(module) is not nn.Identity]
    for module in modules:
        if type(module) not in HESSIAN_MODULES:
            raise ValueError(f"{NEEDS}, which hold no {module}")
    if isinstance(modules[0], nn.Linear):
        modules.insert(0, nn.Flatten())
    return modules


@torch.enable_grad()
def _curvature(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import DiagHessian

    modules = hessian_modules(network)
    for module in modules:
        module.inplace = False  # BackPACK needs what an in-place activation overwrites
    run = extend(nn.Sequential(*modules))
    weights = [layer.weight.requires_grad_() for layer in layers]
    totals = [torch.zeros_like(weight, dtype=torch.double) for weight in weights]
    loss = extend(nn.CrossEntropyLoss())
    for images, labels in batches:
        with backpack(DiagHessian()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # for the first layer
            loss(run(images), labels).backward()
        totals = [h + weight.diag_h for h, weight in zip(totals, weights, strict=True)]
    return [h.clamp(min=0).sqrt().to(w.dtype) for h, w in zip(totals, weights, strict=True)]


# What criteria look at (`Method.looks_at`), and the function that computes it
STATISTICS = {"activity": _activity, "curvature": _curvature, "inputs": _inputs, "ones": _ones}
