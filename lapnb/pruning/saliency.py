"""What the data-dependent methods (lap_act, obd, obd_lap) know of the training data."""

import copy
import warnings
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from lapnb.progress import progress
from lapnb.pruning.layers import Layer, prunable_layers
from lapnb.training.data import Data, augment
from lapnb.training.train import stream

PAPER = {"active": (2000, 30), "curved": (1000, 60)}  # batches, batch size
NEEDS = "obd and obd_lap need a network of modules that BackPACK's DiagHessian supports"
ACTIVATIONS = tuple(getattr(nn, name) for name in nn.modules.activation.__all__)


def statistics(
    model: nn.Module, kind: str, data: Data, batches=None, batch_size=None, seed: int = 0
) -> list[Tensor]:
    """Per prunable layer, what its weights are multiplied by before they are ranked.

    "active" (lap_act): sqrt(p), shape (outputs, 1[, 1, 1]), with p the fraction of inputs for which
        the first activation (a module of torch.nn) after the layer is above 0; 1 where none comes
        before the next layer. Channels have the sum of sqrt(p) over positions, the last layer 1.
    "curved" (obd, obd_lap): sqrt(h), 0 where h < 0, in the shape of the weight, with h the diagonal
        of the mean cross entropy's Hessian, by BackPACK's DiagHessian, summed over the batches.

    A batch has `batch_size` training images, drawn without replacement and augmented as in
    training; the paper's numbers unless given. The network is in eval mode; `model` is not
    changed. Raises ValueError naming the parameter, or the module that cannot be handled.
    """
    if kind not in PAPER:
        raise ValueError(f"kind must be one of {', '.join(PAPER)}; got {kind!r}")
    batches = PAPER[kind][0] if batches is None else batches
    batch_size = PAPER[kind][1] if batch_size is None else batch_size
    if batches < 1 or not 1 <= batch_size <= len(data.train_labels):
        raise ValueError(
            f"batches must be at least 1 and batch_size between 1 and {len(data.train_labels)}, "
            f"the size of the training set; got batches={batches}, batch_size={batch_size}"
        )
    network = copy.deepcopy(model).eval().requires_grad_(False)
    layers = prunable_layers(network)
    drawn = _draw(data, batches, batch_size, seed, layers[0].weight)
    return (_active if kind == "active" else _curved)(network, layers, drawn)


def _draw(data, batches, batch_size, seed, weight):
    """Images and labels of each batch, on the device of `weight`."""
    for n in progress(range(batches), "statistics of the data", "batches"):
        rng = stream(seed, "statistics", n)
        batch = torch.from_numpy(rng.choice(len(data.train_labels), batch_size, replace=False))
        images = augment(data.train_images[batch], data.augmentation, rng)
        yield data.normalise(images).to(weight), data.train_labels[batch].to(weight.device)


@torch.no_grad()
def _active(network: nn.Module, layers: list[Layer], drawn) -> list[Tensor]:
    modules, shapes, counts = [layer.module for layer in layers], {}, {}
    inputs, current = 0, None  # the layer that ran last, until an activation has run

    def ran(module, args, output):
        nonlocal current
        if module in modules:
            current, shapes[module] = module, output.shape[1:]
        elif current is not None and isinstance(module, ACTIVATIONS):
            counts[current] = counts.get(current, 0) + (output > 0).sum(0)
            current = None

    for module in network.modules():
        module.register_forward_hook(ran)
    for images, _ in drawn:
        network(images)
        inputs += len(images)
    factors = []
    for module, layer in zip(modules, layers, strict=True):
        if module not in shapes:
            raise ValueError(f"lap_act cannot handle {layer.name}: it does not run in eval mode")
        p = counts.get(module, torch.full(shapes[module], inputs)).double() / inputs
        factor = p.sqrt().reshape(len(layer.weight), -1).sum(1)
        factors.append(factor.view(-1, *[1] * (layer.weight.ndim - 1)).to(layer.weight))
    factors[-1].fill_(1)
    return factors


def _chain(network: nn.Module, layers: list[Layer]) -> list[tuple[str, nn.Module]]:
    """The modules, by name, of a plain chain: BackPACK can be silently wrong about all else."""
    chain = []
    for before, node in pairwise(fx.symbolic_trace(network).graph.nodes):
        is_module, options = node.op == "call_module", [*node.args[1:], *node.kwargs.values()]
        is_flatten = node.target in ("flatten", torch.flatten) and options == [1]
        name = node.target if is_module else " after ".join([node.name, *dict(chain[-1:])])
        if node.all_input_nodes != [before] or not (is_module or is_flatten or node.op == "output"):
            raise ValueError(f"{NEEDS} in a plain chain, which breaks at {name}")
        module = network.get_submodule(name) if is_module else nn.Flatten()
        odd = {getattr(module, "padding_mode", "zeros"), getattr(module, "divisor_override", None)}
        if odd != {"zeros", None}:  # BackPACK overlooks both
            raise ValueError(f"{NEEDS}, unlike {name}: {module}")
        module.inplace = False  # BackPACK needs what an activation in place overwrites
        if node.op != "output" and not isinstance(module, nn.Identity):
            chain.append((name, copy.deepcopy(module) if name in dict(chain) else module))
    for layer in layers:
        if (runs := [name for name, _ in chain].count(layer.name)) != 1:
            raise ValueError(f"{NEEDS}, each once: {layer.name} runs {runs} times")
    return chain


@torch.enable_grad()
def _curved(network: nn.Module, layers: list[Layer], drawn) -> list[Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import DiagHessian

    chain, weights = _chain(network, layers), [layer.weight.requires_grad_() for layer in layers]
    run, loss = extend(nn.Sequential(*(m for _, m in chain))), extend(nn.CrossEntropyLoss())
    totals = [torch.zeros_like(weight, dtype=torch.double) for weight in weights]
    for images, labels in drawn:
        done = []
        with backpack(DiagHessian(), extension_hook=done.append), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # for the first layer
            try:
                loss(run(images), labels).backward()
            except (NotImplementedError, AssertionError, TypeError) as error:  # in the first batch
                name = [name for name, module in chain if module not in done][-1]
                raise ValueError(f"{NEEDS}, unlike {name}: {error}") from error
        totals = [h + weight.diag_h for h, weight in zip(totals, weights, strict=True)]
    return [h.clamp(min=0).sqrt().to(w.dtype) for h, w in zip(totals, weights, strict=True)]
