"""The neighbours of every layer of any network, found by following the data through its `forward`.

The model runs once on squared norms. Each linear layer or convolution emits the squared norms of
its weight's rows, ‖W[j, :]‖² for unit j, in place of its outputs. What lies between layers does to
them what it does to the variance of independent signals (`flow_rules`), so that what arrives at a
layer is `before`². As this is linear in what was emitted, `after`² is the gradient of the sum, over
all layers, of ⟨‖W[:, k]‖², what arrives at unit k⟩. For layer i

    before_j² = Σ over producers p of s²·‖W_p[j, :]‖²
    after_k²  = Σ over consumers c of s²·‖W_c[:, k]‖²

with s the scale of the norm layers and constants along each path. |w| · before · after is exactly
the Frobenius distortion that zeroing w causes in [W_p1 | W_p2 | …] → W_i → [W_c1; W_c2; …], without
activations, the producers' inputs independent and the consumers' outputs stacked: so across
additions, branches and concatenations too. For the network end to end it is an approximation: it
looks one layer away, as lookahead pruning does, and where parallel paths meet again it drops their
cross terms.

- The model's input counts as 1 per unit, its outputs as consumers of norm 1: the first layer's
  `before` and the last one's `after` are the paper's. An identity path reaches through to them.
- A batch norm multiplies by γ²/(running_var + ε), other norm layers by γ²: the scale that they
  compute from the data counts as 1. Constants multiply by their square.
- Activations, dropout, resizing and pooling (averages too) are the identity of each unit.
- In a gate x·g, x passes and g counts as 1; what g is made of is multiplied by x². The gate is the
  factor that comes from a sigmoid, or is broadcast along the other, or comes from any activation;
  in a product of two equals each is multiplied by the other's square.
- A block ends, with the factor 1 on either side, at what cannot be followed: matrix products of
  signals, attention, softmax, maxima over units. What has no rule is refused.
- A layer that is called twice gets the sum of before²·after² over its calls.
"""

import re
import sys
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lapnb.pruning.chains import chain_fault, neighbours
from lapnb.pruning.flow_rules import ELEMENTWISE, Rules, emit, is_signal, rule_of
from lapnb.pruning.layers import Layer, called, prunable_layers
from lapnb.pruning.twin import twin_of

Factors = tuple[Tensor, Tensor]


@torch.inference_mode(False)
@torch.enable_grad()
def flow(model: nn.Module, example, layers: list[Layer], weights: list[Tensor]) -> list:
    """Factors (before, after) of each of `layers`, broadcastable to its weight, in a list.

    It has None, with a warning that names the layer, where the input does not reach it or nothing
    that it computes is used: such a layer stays dense.

    example: a batch of the model's inputs, of which the first is taken; a tuple of positional or a
        dict of keyword arguments for a model that wants several. Only shapes matter.
    layers: those of `prunable_layers(model)`. Other weighted layers are neighbours too.
    weights: tensors in place of the layers' weights.

    The model is not changed. Raises ValueError where the data cannot be followed, naming the
    function and the module that calls it, and where the model does not take the example.
    """
    given = [value for value in tree_leaves(example) if isinstance(value, Tensor)]
    if not given or any(value.is_meta or not value.numel() for value in given):
        raise ValueError(f"example must be a batch of inputs, got {type(example).__name__}")
    inputs = example[:1] if isinstance(example, Tensor) else example
    inputs = tree_map_only(Tensor, _as_input, inputs)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    devices = {p.device for p in model.parameters() if p.is_cuda}
    compiles = "torch._dynamo" in sys.modules  # importing it takes seconds
    eager = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
    unhooked = torch.autograd.graph.disable_saved_tensors_hooks("switch checkpointing off")
    try:
        twin = twin_of(model)
        follow = _Follow(twin, prunable_layers(twin), weights)
        with torch.random.fork_rng(devices), eager, unhooked, follow:
            outputs = twin(**inputs) if isinstance(inputs, dict) else twin(*args)
    except (RuntimeError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ValueError(f"cannot run a copy of the model on example: {error}") from error
    outputs = vars(outputs) if is_dataclass(outputs) else outputs
    calls = follow.finish(follow.signals(outputs))
    factors = [_factors(*x) for x in zip(layers, weights, calls, strict=True)]
    if names := [layer.name for layer, pair in zip(layers, factors, strict=True) if pair is None]:
        warnings.warn(
            "left dense, as the input does not reach them or nothing they compute is used: "
            + ", ".join(names),
            stacklevel=7,  # where prune_masks is called
        )
    if not chain_fault(model, layers):  # masks are equal bit for bit where its order says the same
        close = partial(torch.allclose, rtol=1e-6, atol=0)
        for i, pair in enumerate(factors):
            ordered = neighbours(layers, weights, i)
            factors[i] = ordered if pair and all(map(close, ordered, pair)) else pair
    return factors


def _factors(layer: Layer, weight: Tensor, calls: list[Factors]) -> Factors | None:
    """The factors of a layer from the squares (what arrives, what follows) of each of its calls."""
    if not calls:
        return None
    before = sum(layer.per_input(arrived) for arrived, _ in calls)
    after = layer.per_output(calls[0][1])
    if len(calls) > 1:
        both = sum(layer.per_input(x) * layer.per_output(y) for x, y in calls)
        after = (both / before).nan_to_num(0)
    return before.sqrt().to(weight), after.sqrt().to(weight)


def _as_input(value: Tensor) -> Tensor:
    """An input of the model: 1 per unit, unless it holds whole numbers."""
    if not value.is_floating_point():
        return value
    kind = torch.float32 if value.device.type == "mps" else torch.float64
    return _mark(emit(value.new_ones((), dtype=kind), value.shape)[1])


def _mark(out, name: str = "", rule: str | None = None, signals=()):
    """`out`, its signals marked with what a product needs to know about its factors.

    gate: 2 for what comes from a sigmoid, 1 for other activations, else 0. root: the same for all
    that are elementwise functions of one signal.
    """
    root = signals[0].root if rule in ELEMENTWISE and len(signals) == 1 else None
    gate = 2 if name in ("sigmoid", "hardsigmoid", "softmax") else int(rule == "activation")
    if rule in ELEMENTWISE or rule == "as_is":  # of x.expand_as(y) the first counts
        gate = max(gate, min(x.gate for x in signals[: 1 if rule == "as_is" else None]))
    for value in filter(is_signal, tree_leaves(out)):
        value.gate, value.root = gate, root or object()
        written = value._base  # through a view
        if is_signal(written) and not hasattr(written, "gate"):
            written.gate, written.root = 0, object()
    return out


class _Follow(Rules):
    """Runs functions of signals by their rules."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, rule = dict(kwargs or {}), func.__name__.strip("_"), rule_of(func)
        signals = self.signals((args, kwargs))
        if not signals and name != "embedding":
            return func(*args, **kwargs)
        if name == "get":  # an attribute; that these are no activations is not to be seen
            hidden = {"requires_grad": False, "data": args[0], "dtype": self.dtype}
            attribute = func.__self__.__name__
            return hidden[attribute] if attribute in hidden else _mark(func(*args))
        if rule is None:
            self.refuse(f"{name} has no rule")
        in_place = kwargs.pop("inplace", False) or re.fullmatch("[a-z].*_", func.__name__)
        with torch.enable_grad():
            try:
                out = getattr(self, rule)(func, *args, **kwargs)
            except (TypeError, NotImplementedError) as error:
                self.refuse(f"{name} has no rule for these arguments ({error})")
            if in_place and out is not args[0]:
                out = args[0].copy_(out)
        return _mark(out, name, rule, signals)

    def signals(self, values) -> list[Tensor]:
        """The signals among `values`; refused where one comes from code without rules."""
        signals = [value for value in tree_leaves(values) if is_signal(value)]
        custom = torch.autograd.function.BackwardCFunction
        if any(not hasattr(x, "gate") or isinstance(x.grad_fn, custom) for x in signals):
            self.refuse("what comes before is scripted, compiled or has a gradient of its own")
        return signals

    def refuse(self, why: str) -> None:
        """Raise ValueError that names the innermost module at work."""
        names = {module: name for name, module in self.twin.named_modules()}
        selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_stack(None)]
        name = next((names[x] for x in selves if isinstance(x, nn.Module) and x in names), "")
        raise ValueError(
            f"cannot follow the data in {called(name, self.twin.get_submodule(name))}: {why}; "
            "methods that need no neighbours, such as mp, work"
        )
