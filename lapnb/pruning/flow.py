"""The neighbours of every layer of any network, found by following the data through its `forward`.

The model runs once on squared norms. Each linear layer or convolution emits the squared norms of
its weight's rows, ‖W[j, :]‖² for unit j, in place of its outputs. What lies between layers changes
them as it changes the variance of independent signals (`flow_rules`), so that what arrives at a
layer is `before`². As this is linear in what was emitted, `after`² is the gradient of the sum, over
all layers, of ⟨‖W[:, k]‖², what arrives at unit k⟩. For layer i

    before_j² = Σ over producers p of s²·‖W_p[j, :]‖²
    after_k²  = Σ over consumers c of s²·‖W_c[:, k]‖²

with s the scale of the norm layers and constants along each path. |w| · before · after is exactly
the Frobenius distortion that zeroing w causes in [W_p1 | W_p2 | …] → W_i → [W_c1; W_c2; …], where
activations are left out, the producers' inputs are independent and the consumers' outputs are
stacked. This holds across additions, branches and concatenations, too. For the network end to end
it is an approximation: it looks one layer away, as lookahead pruning does, and where parallel paths
meet again it drops their cross terms.

- The model's input counts as 1 per unit, and its outputs count as consumers of norm 1. So the first
  layer's `before` and the last one's `after` are the paper's. An identity path reaches through to
  the input or the outputs. Whole numbers are an input where they look up an embedding.
- Labels (`flow_rules`) tell units from positions; values never do.
- A batch norm multiplies by γ²/(running_var + ε), other norm layers by γ²: the scale that they
  compute from the data counts as 1.
- A linear layer or a convolution is a neighbour, whatever weight it has. The only exception is a
  filter of each channel by constants that is not transposed, such as a blur: it multiplies by the
  squares of the constants.
- Activations, dropout, resizing, pooling and averages over positions are the identity of each unit.
  Positions of one unit move together: a sum over n of them, as a filter makes it, counts as n².
- An average over n units is 1/n² of their sum. Padded units hold nothing; padded positions hold
  more of the same. Norms and deviations over positions are sums and means of squares. A power of
  activations is the same power of squares.
- A constant beside units counts as 1, as an input does, or as 0 if all of it is 0.
- In a product of signals each is multiplied by the other's square, so that weights on either side
  may be rescaled, as around relu(a)·b or x·linear(mean(x)).
- But what comes from a sigmoid, or from another activation that is not homogeneous, is a gate: in
  x·g, x passes and g counts as 1; what g is made of is multiplied by x². If both factors come from
  such activations, the sigmoid is the gate; if both or neither are sigmoids, the factor that is
  broadcast is the gate, or there is none.
- A block ends, with the factor 1 on either side, at what cannot be followed: matrix products of
  signals, attention, softmax, maxima over units.
- What has no rule is refused, and so is a `forward` that asks for the value of a signal, writes
  one into a constant, multiplies it by a matrix that is no layer's weight, or computes with a
  layer's weight outside that layer.
- A layer that is called twice gets the sum of before²·after² over its calls.
"""

import re
import traceback
import warnings

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lapnb.pruning.chains import chain_fault, neighbours
from lapnb.pruning.flow_rules import Refused, Rules, has_trait, is_signal, rule_of
from lapnb.pruning.layers import Layer, called, functional_of
from lapnb.pruning.twin import twin_of

Factors = tuple[Tensor, Tensor]


def flow(model: nn.Module, example, layers: list[Layer], weights: list[Tensor]) -> list:
    """Follow the data to find the factors (before, after) of each layer.

    Args:
        model: any network. It is not changed, and its hooks do not run.
        example: a batch of the model's inputs, of which the first is taken; a tuple of positional
            or a dict of keyword arguments for a model that wants several. Only shapes matter.
        layers: those of `prunable_layers(model)`. Other weighted layers are neighbours too.
        weights: tensors in place of the layers' weights.

    Returns:
        For each layer a pair that is broadcastable to its weight. It is None, with a warning that
        names the layer, where the input does not reach it or nothing that it computes is used:
        such a layer stays dense.

    Raises:
        ValueError: no layer is reached, the data cannot be followed, or the model does not take
            the example. In the last two cases the message names the module where this happens, and
            a function that is refused.
    """
    if not any(isinstance(value, Tensor) for value in tree_leaves(example)):
        raise ValueError(f"example must be a batch of inputs, got {type(example).__name__}")
    calls = _walk(model, example, layers, weights)
    factors = [_factors(*x) for x in zip(layers, weights, calls, strict=True)]
    dense = [layer.name for layer, squares in zip(layers, calls, strict=True) if not squares]
    if len(dense) == len(layers):
        raise ValueError("example reaches no layer: pass a batch of inputs, images as floats")
    if dense:
        _report_unreached(", ".join(dense), example)
    # Take the chain's factors where they are the same, so that masks are equal bit for bit
    if not chain_fault(model, layers):
        for i, pair in enumerate(factors):
            ordered = neighbours(layers, weights, i)
            if pair and all(map(_close, ordered, pair)):
                factors[i] = ordered
    return factors


def _report_unreached(names: str, example) -> None:
    inputs = [value for value in tree_leaves(example) if isinstance(value, Tensor)]
    if not all(map(torch.is_floating_point, inputs)):
        raise ValueError(
            f"example has whole numbers, and {names} may be reached by them alone: pass what is no "
            "index of an embedding as floats"
        )
    reason = "as the input does not reach them or nothing they compute is used"
    warnings.warn(f"left dense, {reason}: {names}", stacklevel=3)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=0)


@torch.inference_mode(False)
@torch.enable_grad()
def _walk(model: nn.Module, example, layers: list[Layer], weights: list[Tensor]) -> list:
    """Run a copy, and return the squares (what arrives, what follows) of each layer's calls."""
    twin = twin_of(model, [layer.weight for layer in layers])
    stand_ins = [twin.get_submodule(layer.name).weight for layer in layers]
    walk = _Walk(layers, weights, stand_ins)
    inputs = example[:1] if isinstance(example, Tensor) else example
    unhooked = torch.autograd.graph.disable_saved_tensors_hooks("switch checkpointing off")
    try:
        inputs = tree_map_only(Tensor, walk.as_input, inputs)
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        with torch.random.fork_rng([]), unhooked, walk:
            outputs = twin(**inputs) if isinstance(inputs, dict) else twin(*args)
        return walk.finish(walk.signals(outputs))
    except Refused as reason:
        raise ValueError(
            f"cannot follow the data in {_innermost(twin, reason)}: {reason}; methods that need no "
            "neighbours, such as mp, work"
        ) from None
    except Exception as error:  # a model may raise anything for an input that it does not take
        where = _innermost(twin, error)
        kind = type(error).__name__
        raise ValueError(
            f"cannot run a copy of the model on example: {where} ends in {kind}: {error}"
        ) from error


def _innermost(twin: nn.Module, error: BaseException) -> str:
    """Return what messages call the innermost module that was at work when an error came."""
    innermost = twin
    for frame, _ in traceback.walk_tb(error.__traceback__):
        at_work = frame.f_locals.get("self")
        if isinstance(at_work, nn.Module):
            innermost = at_work
    names = {module: name for name, module in twin.named_modules()}
    return called(names.get(innermost, ""), innermost)


def _factors(layer: Layer, weight: Tensor, calls: list[Factors]) -> Factors | None:
    """Compute a layer's factors from the squares (what arrives, what follows) of its calls."""
    if not calls:
        return None
    before = sum(layer.per_input(arrived) for arrived, _ in calls)
    after = layer.per_output(calls[0][1])
    if len(calls) > 1:
        both = sum(layer.per_input(x) * layer.per_output(y) for x, y in calls)
        after = (both / before).nan_to_num(0)
    before = before.sqrt().to(weight)
    return before, after.sqrt().to(weight)


class _Walk(Rules):
    """A mode that runs functions of signals by their rules and all others as they are."""

    def as_input(self, value: Tensor) -> Tensor:
        """Turn a model's input into a signal of 1 per unit; whole numbers stay as they are."""
        if not value.is_floating_point():
            return value
        shape = _units(value, self.layers[0])
        return self.emit(value.new_ones(shape, dtype=torch.double), value.shape)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if "input" in kwargs:
            args = (kwargs.pop("input"), *args)
        leaves = tree_leaves((args, kwargs))
        signals = self.signals(leaves)
        rule = rule_of(func)
        if not signals and rule != "embedding":
            out = func(*args, **kwargs)
            if rule != "constant":
                self.check_constant(out, func, leaves, args, kwargs)
            return out
        if func.__name__ == "__get__":
            return self.attribute(func, args[0])
        self.check(func, rule, signals, args)
        if rule != "convert":  # x.to(weight) uses only its type
            self.check_weights(func, leaves, args, kwargs)
        in_place = kwargs.pop("inplace", False) or re.fullmatch("[a-z].*_", func.__name__)
        try:
            with torch.enable_grad():
                out = getattr(self, rule)(func, *args, **kwargs)
                if in_place and out is not args[0]:
                    out = self.written(args[0], out)
        except (TypeError, NotImplementedError) as error:
            raise Refused(f"{_name(func)} has no rule for these arguments ({error})") from error
        self.set_gates(out, func, rule, signals, args)
        return out

    def signals(self, values) -> list[Tensor]:
        """Return the signals among `values`; refuse one that comes from code without rules."""
        signals = [value for value in tree_leaves(values) if is_signal(value)]
        if not all(hasattr(signal, "labels") for signal in signals):
            raise Refused("what comes before is scripted, compiled or has a gradient of its own")
        return signals

    def check(self, func, rule, signals, args) -> None:
        """Refuse a function that has no rule, or none for these arguments."""
        if rule is None:
            raise Refused(f"{_name(func)} has no rule")
        single = len(signals) == 1 and signals[0] is args[0]
        if not (single or has_trait(rule, "takes several")):
            reason = "its weight or another parameter is computed from the data"
            raise Refused(f"{_name(func)} has no rule for these arguments ({reason})")

    def check_constant(self, out, func, leaves, args, kwargs) -> None:
        """Refuse a constant that is computed with a layer's weight."""
        outputs = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if outputs and all(value is not x for value in outputs for x in leaves):
            self.check_weights(func, leaves, args, kwargs)

    def check_weights(self, func, leaves, args, kwargs) -> None:
        """Refuse a function that computes with a layer's weight, unless it is the layer's own."""
        for value in leaves:  # parts of a weight are refused where they are made
            i = self.index.get(id(value))
            if i is None or func.__name__ == "multi_head_attention_forward":
                continue
            layer = self.layers[i]
            takes = any(value is x for x in [*args[1:2], kwargs.get("weight")])
            if not takes or func.__name__ != functional_of(layer.module):
                raise Refused(
                    f"{_name(func)} computes with the weight of {called(layer.name, layer.module)} "
                    "(set its prunable = False to leave it dense)"
                )

    def attribute(self, func, signal):
        """Return an attribute of a signal as if it were an activation."""
        name = func.__self__.__name__
        dtype = self.layers[0].weight.dtype
        replaced = {"requires_grad": False, "data": signal, "dtype": dtype}
        if name in replaced:
            return replaced[name]
        out = func(signal)
        return self.moved(func, signal) if is_signal(out) else out


def _name(func) -> str:
    if func.__name__ == "__get__":
        return func.__self__.__name__
    return func.__name__.strip("_")


def _units(value: Tensor, first: Layer) -> list[int]:
    """Return the shape of an input's units, 1 along positions, judged by the first layer."""
    shape = [1] * value.ndim
    if value.ndim < 2:
        return shape
    if not isinstance(first.module, nn.Linear):
        shape[1] = value.shape[1]
    elif value.ndim < 4 or value.shape[-1] == first.module.in_features:
        shape[-1] = value.shape[-1]
    else:  # every value is a unit, as all are flattened or rearranged
        shape[1:] = value.shape[1:]
    return shape
