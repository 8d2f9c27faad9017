"""What a criterion may have to know of the data: numbers per weight or unit of every layer."""

import re
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lapnb.checks import require
from lapnb.pruning.layers import Layer, prunable_layers, sound_backward
from lapnb.pruning.twin import twin_of

# Functions by what they do to a layer's units: keep them in order, rearrange them, or mix them as a
# layer does. Their names are without underscores, dimensions and "_as".
FUNCTIONS = {
    "keeps": "add radd sub subtract rsub clone contiguous detach to type float double half pad "
    "dropout alpha_dropout feature_dropout feature_alpha_dropout batch_norm instance_norm "
    "layer_norm group_norm rms_norm local_response_norm max_pool avg_pool adaptive_max_pool "
    "adaptive_avg_pool",
    "rearranges": "reshape view flatten unflatten ravel permute transpose t swapaxes movedim "
    "moveaxis unsqueeze squeeze expand broadcast_to repeat tile repeat_interleave chunk split "
    "split_with_sizes tensor_split unbind getitem select narrow index_select gather roll flip "
    "unfold pixel_shuffle pixel_unshuffle channel_shuffle interpolate upsample cat concat "
    "concatenate stack mean sum max amax zeros_like ones_like",
    "mixes": "linear bilinear conv conv_transpose matmul mm bmm addmm baddbmm einsum softmax "
    "log_softmax scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh "
    "rnn_relu fold",
}
EFFECTS = {name: effect for effect, names in FUNCTIONS.items() for name in names.split()}
NO_ACTIVATIONS = "GLU", "MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"
# What BackPACK computes the Hessian of in our networks
HESSIAN_MODULES = nn.Linear, nn.Conv2d, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.MaxPool2d, nn.Flatten
NEEDS = "obd and obd_lap serve the fully-connected networks and Conv-6 of this project"


@torch.inference_mode(False)
def data_statistics(model: nn.Module, kind: str, batches: Iterable) -> list[Tensor]:
    """Compute what criteria look at in the data. The model runs in eval mode and is not changed.

    Kinds:

    - "activity" (lap_act): sqrt(p) per output unit, with p the fraction of inputs for which the
      first activation after the layer is above 0; 1 where none comes before the next layer.
      Channels have the sum of sqrt(p) over positions, the last layer 1. Activations must be
      modules of `torch.nn`. Of a layer that runs twice in one forward the last time counts.
    - "curvature" (obd, obd_lap): sqrt(h), 0 where h < 0, per weight, with h the diagonal of the
      mean cross entropy's Hessian, by BackPACK's DiagHessian, summed over the batches. This serves
      `build_model("fcn")` and `build_model("conv6")`.
    - "inputs" (wanda, ria_act): ‖X_j‖₂ per input unit, over all inputs and positions.
    - "ones" (synflow): ∂R/∂|w| per weight, largest 1, with R the sum of the outputs for an image
      of ones. Parameters have their absolute values. Biases (parameters named so, or "beta") and
      the means of batch norms count as 0, which they are at initialisation. Of the batches only a
      shape is used.

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
    originals = prunable_layers(model)
    values = values_of(originals[0])
    network = twin_of(model).to(values)
    layers = prunable_layers(network)
    with torch.autocast(values.device.type, enabled=False), sound_backward(network):
        try:
            tensors = STATISTICS[kind](network, layers, _moved(batches, layers[0].weight))
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"batches do not fit the model: {error}") from error
    pairs = zip(tensors, originals, strict=True)
    return [tensor.to(layer.weight.device) for tensor, layer in pairs]


def values_of(layer: Layer) -> Tensor:
    """Return a layer's values, on the CPU if its device has no numbers of 64 bits (Apple's)."""
    values = layer.values
    return values if values.device.type in ("cpu", "cuda") else values.cpu()


def _moved(batches: Iterable, weight: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images and labels on the device of `weight`, and images in its type."""
    allowed = "pairs (images, labels), at least one, images normalised floats"
    require(isinstance(batches, Iterable), "batches", allowed, type(batches).__name__)
    pair = None
    for pair in batches:
        require(_is_batch(pair), "batches", allowed, type(pair).__name__)
        images, labels = pair
        yield images.detach().to(weight), None if labels is None else labels.to(weight.device)
    require(pair is not None, "batches", allowed, "none")


def _is_batch(pair) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    images, labels = pair
    if not isinstance(images, Tensor) or images.is_meta or not images.is_floating_point():
        return False
    return isinstance(labels, Tensor | None) and bool(images.isfinite().all())


class _Activity(TorchFunctionMode):
    """Tells, while a network runs, where the first activation after each layer is above 0.

    Each tensor carries as `sources` the layers that it comes from with no other layer and no
    activation in between, and whether the layer's units are still in their order.

    active: layer's name → where its activation is above 0: everywhere, until an activation comes.
    waiting: layers that have run, without an activation since.
    """

    def __init__(self, network: nn.Module, layers: list[Layer]):
        super().__init__()
        self.names = {id(layer.weight): layer.name for layer in layers}
        self.active: dict[str, Tensor] = {}
        self.waiting: set[str] = set()
        self.inside = False  # an activation
        for module in network.modules():
            is_activation = type(module).__module__ == nn.ReLU.__module__
            if is_activation and type(module).__name__ not in NO_ACTIVATIONS:
                module.register_forward_pre_hook(self.enter)
                module.register_forward_hook(self.leave)

    def enter(self, module, inputs) -> None:
        self.inside = True

    def leave(self, module, inputs, output) -> None:
        for layer, in_order in getattr(inputs[0], "sources", {}).items():
            if layer in self.waiting:
                if not in_order:
                    raise _cannot(layer, "its units are rearranged before the activation")
                self.active[layer] = output > 0
                self.waiting.discard(layer)
        output.sources = {}
        self.inside = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        outputs = _tensors(output)
        if self.inside or not outputs:
            return output
        inputs = _tensors([args, kwargs])
        layers = [self.names[id(x)] for x in inputs if id(x) in self.names]
        signals = [x.sources for x in inputs if hasattr(x, "sources")]
        sources = _passed(func, signals)
        if layers:
            sources = self.start(layers, signals, outputs[0])
        for x in outputs if signals else []:
            x.sources = sources
        return output

    def start(self, layers: list[str], signals: list, output: Tensor) -> dict[str, bool]:
        if not signals:
            raise _cannot(layers[0], "the functions that compute its input are not torch's")
        for layer in layers:
            self.active[layer] = torch.ones_like(output, dtype=torch.bool)
            self.waiting.add(layer)
        return dict.fromkeys(layers, True)


def _passed(func, signals: list[dict[str, bool]]) -> dict[str, bool]:
    """The sources of what a function makes of signals."""
    name = func.__name__.strip("_")
    effect = EFFECTS.get(re.sub(r"_as$|[123]d$", "", name))
    sources: dict[str, bool] = {}
    if effect == "mixes":
        return sources
    for signal in signals:
        for layer, in_order in signal.items():
            if effect is None:
                raise _cannot(layer, f"{name} comes after it, which is no activation module")
            sources[layer] = in_order and effect == "keeps" and sources.get(layer, True)
    return sources


def _cannot(layer: str, reason: str) -> ValueError:
    return ValueError(f"lap_act cannot tell how active {layer} is: {reason}")


def _tensors(nested) -> list[Tensor]:
    return [x for x in tree_leaves(nested) if isinstance(x, Tensor)]


@torch.no_grad()
def _activity(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    watch = _Activity(network, layers)
    counts: dict[str, Tensor] = {}
    inputs = 0
    for images, _ in batches:
        images.sources = {}
        watch.active = {}
        with watch:
            network(images)
        inputs += len(images)
        for name, active in watch.active.items():
            counts[name] = counts.get(name, 0) + active.sum(0)
    factors = []
    for layer in layers:
        if layer.name not in counts:
            raise _cannot(layer.name, "it does not run in eval mode")
        units = 1 - layer.weight.ndim if layer.weight.ndim > 2 else -1
        p = (counts[layer.name].double() / inputs).movedim(units, 0)
        if len(p) != layer.outputs:
            raise _cannot(layer.name, f"its activation has {len(p)} units, not {layer.outputs}")
        factor = p.sqrt().reshape(layer.outputs, -1).sum(1)
        factors.append(layer.per_output(factor).to(layer.weight))
    factors[-1].fill_(1)
    return factors


class _Inputs(TorchFunctionMode):
    """Adds up, while a network runs, the squares of what enters each input unit of each layer."""

    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.names = {id(layer.weight): layer.name for layer in layers}
        self.squares: dict[str, Tensor] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        layers = [self.names[id(x)] for x in _tensors([args, kwargs]) if id(x) in self.names]
        if layers and _tensors(output):  # else a shape or a type was asked for
            self.add(layers[0], func.__name__, *args)
        return output

    def add(self, layer: str, function: str, inputs=None, weight=None, *_) -> None:
        if id(weight) not in self.names or not re.match("linear|conv", function):
            raise _cannot_count(layer, f"its weight is used in {function}")
        units = inputs.double().square().movedim(1 - weight.ndim, 0)
        self.squares[layer] = self.squares.get(layer, 0) + units.flatten(1).sum(1)


def _cannot_count(layer: str, reason: str) -> ValueError:
    return ValueError(f"cannot tell the inputs of {layer}: {reason}")


@torch.no_grad()
def _inputs(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    watch = _Inputs(layers)
    for images, _ in batches:
        with watch:
            network(images)
    norms = []
    for layer in layers:
        if layer.name not in watch.squares:
            raise _cannot_count(layer.name, "it does not run")
        norms.append(layer.per_input(watch.squares[layer.name].sqrt()).to(layer.weight))
    return norms


@torch.enable_grad()
def _ones(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    network.double()  # sums of products over all layers
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        leaf = name.rpartition(".")[2]
        if "bias" in leaf or leaf in ("beta", "running_mean"):
            tensor.zero_()
        elif isinstance(tensor, nn.Parameter):
            tensor.abs_()
    weights = [layer.weight.requires_grad_() for layer in layers]
    images, _ = next(batches)
    outputs = _tensors(network(torch.ones_like(images[:1], dtype=torch.double)))
    slopes = torch.autograd.grad(sum(x.sum() for x in outputs), weights, materialize_grads=True)
    largest = max(slope.max() for slope in slopes)
    return [slope / largest.clamp(min=1e-300) for slope in slopes]


def hessian_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that one of our networks runs one after the other.

    BackPACK can be silently wrong about all that is no such chain of modules it supports.

    Raises:
        ValueError: for another network, naming the module that is at fault.
    """
    children = [*model.named_children()]
    is_ours = getattr(model, "definition_order", False) and len(children) == 1
    if not (is_ours and isinstance(children[0][1], nn.Sequential)):
        raise ValueError(f"{NEEDS}, unlike {type(model).__name__}")
    prefix, sequence = children[0]
    modules: list[nn.Module] = []
    for name, module in sequence.named_children():
        padded = getattr(module, "padding_mode", "zeros") != "zeros"
        if type(module) is nn.Identity:
            continue
        if padded or type(module) not in HESSIAN_MODULES:
            raise ValueError(f"{NEEDS}, unlike {prefix}.{name}: {module}")
        modules.append(module)
    if isinstance(modules[0], nn.Linear):
        modules.insert(0, nn.Flatten())
    return modules


@torch.enable_grad()
def _curvature(network: nn.Module, layers: list[Layer], batches) -> list[Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import DiagHessian

    modules = hessian_modules(network)
    for module in modules:
        module.inplace = False  # BackPACK needs what an activation in place overwrites
    run = extend(nn.Sequential(*modules))
    weights = [layer.weight.requires_grad_() for layer in layers]
    totals = [torch.zeros_like(weight, dtype=torch.double) for weight in weights]
    loss = extend(nn.CrossEntropyLoss())
    for images, labels in batches:
        expected = network(images)
        with backpack(DiagHessian()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # for the first layer
            try:
                logits = run(images)
                loss(logits, labels).backward()
            except (NotImplementedError, AssertionError, TypeError) as error:  # some settings
                raise ValueError(f"{NEEDS}: {error}") from error
        if not torch.equal(logits, expected):
            raise ValueError(f"{NEEDS}, unlike {type(network).__name__}, whose forward does more")
        totals = [h + weight.diag_h for h, weight in zip(totals, weights, strict=True)]
    return [h.clamp(min=0).sqrt().to(w.dtype) for h, w in zip(totals, weights, strict=True)]


STATISTICS = {"activity": _activity, "curvature": _curvature, "inputs": _inputs, "ones": _ones}
"""What criteria look at (`Method.looks_at`) → the function that computes it."""
