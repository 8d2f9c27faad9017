"""What a criterion may have to know of the data: numbers per weight or unit of every layer."""

import copy
import re
import warnings
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lapnb.pruning.flow_rules import rule_of
from lapnb.pruning.layers import Layer, prunable_layers, sound_backward
from lapnb.pruning.twin import twin_of

NEEDS = "obd and obd_lap need a network of modules that BackPACK's DiagHessian supports"
SUPPORTED = (
    r"(Conv|ConvTranspose|MaxPool|AvgPool|AdaptiveAvgPool)[123]d|Linear|Flatten|Identity|Dropout|"
    r"ReLU|LeakyReLU|ELU|SELU|Sigmoid|LogSigmoid|Tanh|ZeroPad2d"
)
# Functions of torch, by name or by their rule in `flow`, that may stand between a layer and its
# activation, and those that mix units as a layer does
BETWEEN = {"identity", "add", "as_is", "cat", "stack", "reduce", "pad", "avg_pool"}
BETWEEN |= {"norm", "batch_norm"}
MIXING = {"weighted", "end", "multi_head_attention_forward"}


@torch.inference_mode(False)
def data_statistics(model: nn.Module, kind: str, batches: Iterable) -> list[Tensor]:
    """One tensor per prunable layer, on its device, in or broadcastable to its weight's shape.

    "activity" (lap_act): sqrt(p) per output unit, with p the fraction of inputs for which the first
        activation after the layer is above 0; 1 where none comes before the next layer. Channels
        have the sum of sqrt(p) over positions, the last layer 1. Of a layer that runs twice in one
        forward the last time counts.
    "curvature" (obd, obd_lap): sqrt(h), 0 where h < 0, per weight, with h the diagonal of the mean
        cross entropy's Hessian, by BackPACK's DiagHessian, summed over the batches.
    "inputs" (wanda, ria_act): ‖X_j‖₂ per input unit, over all inputs and positions.
    "ones" (synflow): ∂R/∂|w| per weight, largest 1, with R the sum of the outputs for an image of
        ones when parameters have their absolute values and biases and the means and biases of batch
        norms, which are 0 at initialisation, count as 0. Of the batches only a shape is used.

    `batches`: any iterable of (images, labels), such as a DataLoader; images as the network takes
    them: normalised floats. The network is in eval mode; `model` is not changed. Raises ValueError
    naming the parameter, or the module or function that cannot be handled.
    """
    if kind not in STATISTICS:
        raise ValueError(f"kind must be one of {', '.join(STATISTICS)}; got {kind!r}")
    dtype = prunable_layers(model)[0].values.dtype
    network = twin_of(model).to(dtype)
    layers = prunable_layers(network)
    weight = layers[0].weight
    with torch.autocast(weight.device.type, enabled=False), sound_backward(network):
        try:
            return STATISTICS[kind](network, layers, _moved(batches, weight))
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"batches do not fit the model: {error}") from error


def _moved(batches: Iterable, weight: Tensor):
    """Images and labels on the device of `weight`, and images in its type."""
    pair = None
    for pair in batches if isinstance(batches, Iterable) else [None]:
        images, labels = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        right = isinstance(images, Tensor) and images.is_floating_point() and not images.is_meta
        right = right and isinstance(labels, Tensor | None) and bool(images.isfinite().all())
        if not right:
            raise ValueError("batches must hold pairs (images, labels), images normalised floats")
        yield images.detach().to(weight), labels if labels is None else labels.to(weight.device)
    if pair is None:
        raise ValueError("batches must hold at least one pair (images, labels)")


class _Activity(TorchFunctionMode):
    """Tells, while a network runs, where the first activation after each layer is above 0.

    Each tensor carries as `sources` the names of the layers that it comes from with no other layer
    and no activation in between.
    """

    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.names = {id(layer.weight): layer.name for layer in layers}
        self.active: dict[str, Tensor] = {}  # everywhere, until an activation comes
        self.waiting: set[str] = set()  # layers that have run, without an activation since

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors([args, kwargs]), _tensors(output)
        name = func.__name__.strip("_")
        kind = {name, rule_of(func)}
        layers = {self.names[id(x)] for x in inputs if id(x) in self.names}
        signals = [x.sources for x in inputs if hasattr(x, "sources")]
        sources = set().union(*signals)
        if layers or kind & MIXING:
            if layers and not signals:
                raise _cannot(*layers, "the functions that compute its input are not torch's")
            self.active |= {layer: torch.ones_like(outputs[0]) > 0 for layer in layers}
            self.waiting |= layers
            sources = layers
        elif "activation" in kind:
            self.active |= {layer: output > 0 for layer in sources & self.waiting}
            self.waiting -= sources
            sources = set()
        elif sources and outputs and not kind & BETWEEN:
            raise _cannot(min(sources), f"{name} comes after it")
        for x in outputs if signals else []:
            x.sources = sources
        return output


def _cannot(layer: str, reason: str) -> ValueError:
    return ValueError(f"lap_act cannot tell how active {layer} is: {reason}")


def _tensors(nested) -> list[Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, Tensor)]


@torch.no_grad()
def _activity(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    counts, inputs, factors = {}, 0, []
    for images, _ in batches:
        images.sources = set()
        with _Activity(layers) as watch:
            network(images)
        inputs += len(images)
        for name, active in watch.active.items():
            counts[name] = counts.get(name, 0) + active.sum(0)
    for layer in layers:
        if layer.name not in counts:
            raise _cannot(layer.name, "it does not run in eval mode")
        p, linear = counts[layer.name].double() / inputs, isinstance(layer.module, nn.Linear)
        p, flat = p.movedim(-1, 0) if linear else p, p.ndim == 1 and not linear
        if len(p) % layer.outputs or (len(p) != layer.outputs and not flat):
            raise _cannot(layer.name, f"its activation has {len(p)} units, not {layer.outputs}")
        factor = p.sqrt().reshape(layer.outputs, -1).sum(1)
        factors.append(layer.per_output(factor).to(layer.weight))
    factors[-1].fill_(1)
    return factors


@torch.no_grad()
def _inputs(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    squares: dict[nn.Module, Tensor] = {}

    def run(module, inputs):
        units = inputs[0].double().square().movedim(1 - module.weight.ndim, 0)
        squares[module] = squares.get(module, 0) + units.flatten(1).sum(1)

    for layer in layers:
        layer.module.register_forward_pre_hook(run)
    for images, _ in batches:
        network(images)
    for layer in layers:
        if layer.module not in squares:
            raise ValueError(f"cannot tell the inputs of {layer.name}: it does not run as a module")
    return [layer.per_input(squares[layer.module].sqrt()).to(layer.weight) for layer in layers]


@torch.enable_grad()
def _ones(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    network.double()  # sums of products over all layers
    for name, tensor in network.state_dict().items():
        tensor.zero_() if name.endswith(("bias", "running_mean")) else tensor.abs_()
    weights = [layer.weight.requires_grad_() for layer in layers]
    images, _ = next(batches)
    outputs = _tensors(network(torch.ones_like(images[:1], dtype=torch.double)))
    slopes = torch.autograd.grad(sum(x.sum() for x in outputs), weights, materialize_grads=True)
    largest = max(slope.max() for slope in slopes)
    return [slope / largest.clamp(min=1e-300) for slope in slopes]


def hessian_chain(network: nn.Module, layers: list[Layer]) -> list[tuple[str, nn.Module]]:
    """The modules, by name, of a plain chain: BackPACK can be silently wrong about all else.

    Raises ValueError naming what breaks the chain or is no module for DiagHessian.
    """
    try:
        nodes = fx.symbolic_trace(network).graph.nodes
    except Exception as error:  # whatever its forward does with what is no tensor yet
        raise ValueError(f"{NEEDS} in a plain chain; its forward cannot be traced") from error
    chain: list[tuple[str, nn.Module]] = []
    for before, node in pairwise(nodes):
        is_module, options = node.op == "call_module", [*node.args[1:], *node.kwargs.values()]
        is_flatten = node.target in ("flatten", torch.flatten) and options == [1]
        name = node.target if is_module else " after ".join([node.name, *dict(chain[-1:])])
        if node.all_input_nodes != [before] or not (is_module or is_flatten or node.op == "output"):
            raise ValueError(f"{NEEDS} in a plain chain, which breaks at {name}")
        module = network.get_submodule(name) if is_module else nn.Flatten()
        odd = getattr(module, "divisor_override", None) or getattr(module, "padding_mode", "zeros")
        named = isinstance(getattr(module, "padding", 0), str)
        if odd != "zeros" or named or not re.fullmatch(SUPPORTED, type(module).__name__):
            raise ValueError(f"{NEEDS}, unlike {name}: {module}")
        if node.op != "output" and not isinstance(module, nn.Identity):
            chain.append((name, copy.deepcopy(module) if name in dict(chain) else module))
    for layer in layers:
        if (runs := [name for name, _ in chain].count(layer.name)) != 1:
            raise ValueError(f"{NEEDS}, each once: {layer.name} runs {runs} times")
    return chain


@torch.enable_grad()
def _curvature(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import DiagHessian

    modules = [module for _, module in hessian_chain(network, layers)]
    for module in modules:
        module.inplace = False  # BackPACK needs what an activation in place overwrites
    run, loss = extend(nn.Sequential(*modules)), extend(nn.CrossEntropyLoss())
    weights = [layer.weight.requires_grad_() for layer in layers]
    totals = [torch.zeros_like(weight, dtype=torch.double) for weight in weights]
    for images, labels in batches:
        with backpack(DiagHessian()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # for the first layer
            try:
                loss(run(images), labels).backward()
            except (NotImplementedError, AssertionError, TypeError) as error:  # some settings
                raise ValueError(f"{NEEDS}: {error}") from error
        totals = [h + weight.diag_h for h, weight in zip(totals, weights, strict=True)]
    return [h.clamp(min=0).sqrt().to(w.dtype) for h, w in zip(totals, weights, strict=True)]


STATISTICS = {"activity": _activity, "curvature": _curvature, "inputs": _inputs, "ones": _ones}
