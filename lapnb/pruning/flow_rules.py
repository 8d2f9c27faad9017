"""What functions do to the signals of `flow`, which are squared norms in place of activations.

A signal is a tensor that depends, for autograd, on what a layer emitted or the model was given; all
else is a constant. It is the same at all positions: where it varies along a dimension, units lie.
"""

import inspect
import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lapnb.pruning.layers import at_least_float, column_norms, norm_scale, row_norms

# Functions by name, without underscores, dimensions and "_as", for each method of `Rules`
NAMES = {
    "activation": "sigmoid hardsigmoid relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu "
    "mish hardswish hardtanh tanh softplus softsign logsigmoid tanhshrink softshrink hardshrink "
    "threshold clamp clip clamp_min clamp_max sin cos exp erf abs sqrt square pow",
    "identity": "dropout alpha_dropout feature_dropout feature_alpha_dropout detach neg to type "
    "float double half bfloat16 cpu cuda requires_grad normalize local_response_norm",
    "add": "add radd sub subtract rsub",
    "multiply": "mul rmul multiply",
    "divide": "div divide truediv true_divide",
    "one": "var std var_mean std_mean norm linalg_norm linalg_vector_norm rsqrt reciprocal rdiv",
    # rearranges, selects, pools or resizes signals, asks for their shape or makes constants of it
    "as_is": "reshape view flatten unflatten ravel permute transpose t swapaxes movedim moveaxis "
    "contiguous unsqueeze squeeze expand broadcast_to repeat tile repeat_interleave chunk split "
    "split_with_sizes tensor_split unbind getitem select narrow index_select gather roll flip "
    "unfold pixel_shuffle pixel_unshuffle channel_shuffle clone copy zero interpolate upsample "
    "adaptive_avg_pool adaptive_max_pool max_pool size dim ndimension numel stride is_contiguous "
    "is_floating_point get_device len hash repr format zeros_like ones_like empty_like full_like "
    "new_zeros new_ones new_empty new_full",
    "cat": "cat concat concatenate",
    "reduce": "mean sum max amax",
    "norm": "layer_norm rms_norm group_norm",
    "batch_norm": "batch_norm instance_norm",
    "weighted": "linear conv conv_transpose",
    "end": "matmul mm addmm bmm baddbmm einsum softmax log_softmax fold "
    "scaled_dot_product_attention",
    "fill": "where masked_fill setitem",
    # called as the function is
    "": "avg_pool stack pad addcmul glu embedding multi_head_attention_forward",
}
RULES = {name: rule or name for rule, names in NAMES.items() for name in names.split()}
ELEMENTWISE = {"activation", "identity", "add", "multiply", "divide"}


def rule_of(func) -> str | None:
    """The name of a function's method of `Rules`."""
    return RULES.get(re.sub(r"_as$|[123]d$", "", func.__name__.strip("_")))


class Rules(TorchFunctionMode):
    """What is counted, and a method per rule, which takes the function and its arguments.

    `index` numbers layers by the ids of their weights in `twin`, in whose place `weights` count.
    """

    def __init__(self, twin: nn.Module, layers: list, weights: list[Tensor]):
        super().__init__()
        self.index, self.weights = {id(layer.weight): i for i, layer in enumerate(layers)}, weights
        self.calls = [[] for _ in weights]  # of each layer: (what arrives, source of what it emits)
        self.total = torch.zeros(())  # Σ of ⟨‖W[:, k]‖², what arrives⟩
        self.twin, self.dtype = twin, layers[0].weight.dtype

    def finish(self, outputs: list[Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
        """The squares (what arrives, what follows) of each layer's calls; [] where it is unused."""
        self.count(outputs)
        sources = [source for calls in self.calls for _, source in calls]
        grads = iter(torch.autograd.grad(self.total, sources, allow_unused=True) if sources else ())
        found = [[(arrived, next(grads)) for arrived, _ in calls] for calls in self.calls]
        return [[call for call in calls if call[1] is not None] for calls in found]

    def count(self, ends: list[Tensor]) -> None:
        """Let each unit of these signals be consumed with norm 1."""
        for signal in ends:
            _, positions = _sizes(signal, range(signal.ndim))
            self.total = self.total + signal.sum() / positions

    def weighted(self, func, x, weight, bias=None, *args, **kwargs):
        """A layer takes what arrives, weighs it with its columns and emits its rows."""
        if is_signal(weight):
            raise NotImplementedError("its weight is computed from the data")
        i = self.index.get(id(weight))
        values = at_least_float(weight) if i is None else self.weights[i]
        shape = func(_meta(x), _meta(weight), None, *args, **kwargs).shape
        channel = 1 - weight.ndim
        groups = x.shape[channel] // weight.shape[1]
        if "transpose" in func.__name__:
            groups = shape[channel] // weight.shape[1]
            values = values.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        if i is None and groups == len(values) > 1 and (values == values[0]).all():  # a blur
            return x.mean(tuple(range(channel + 1, 0)), True).expand(shape).clone()
        arrived = x.movedim(channel, -1).reshape(-1, x.shape[channel]).mean(0)
        self.total = self.total + column_norms(values, groups).to(arrived).square() @ arrived
        rows = row_norms(values).to(arrived).square()
        source, out = emit(rows.view(-1, *[1] * (weight.ndim - 2)), shape)
        if i is not None:
            self.calls[i].append((arrived.detach(), source))
        return out

    def end(self, func, *args, **kwargs):
        """What cannot be followed ends the block; what comes out of it counts as 1."""
        right = args[-1]
        if func.__name__ in ("matmul", "mm", "addmm") and right.ndim == 2 and not is_signal(right):
            return self.weighted(functional.linear, args[-2], right.mT)
        signals = [value for value in tree_leaves((args, kwargs)) if is_signal(value)]
        self.count(signals)
        return self.start(signals[0].new_ones(()), func, *args, **kwargs)

    def start(self, one: Tensor, func, *args, **kwargs):
        args, kwargs = tree_map_only(Tensor, _meta, (args, kwargs))
        return tree_map_only(Tensor, lambda x: emit(one, x.shape)[1], func(*args, **kwargs))

    def multi_head_attention_forward(self, func, *args, **kwargs):
        """Its projections are layers, between them the block ends."""
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        weights = [given.get(f"{name}_proj_weight") for name in "qkv"]
        if not given.get("use_separate_proj_weight"):
            weights = given["in_proj_weight"].chunk(3)
        for name, weight in zip(("query", "key", "value"), weights, strict=True):
            if is_signal(given[name]):
                self.weighted(functional.linear, given[name], weight)
        out, scores = self.start(given["query"].new_ones(()), func, *args, **kwargs)
        return self.weighted(functional.linear, out, given["out_proj_weight"]), scores

    def embedding(self, func, indices, weight, *_, **__):
        values = column_norms(at_least_float(weight), 1).double().square()  # one-hot inputs
        return emit(values, (*indices.shape, weight.shape[1]))[1]

    def batch_norm(self, func, x, mean=None, running_var=None, *, weight=None, eps=1e-5, **how):
        if running_var is not None and not (how.get("training") or how.get("use_input_stats")):
            weight = norm_scale(running_var, weight, eps)
        return self.norm(functional.group_norm, x, 1, weight)

    def norm(self, func, x, size, weight=None, *_, **__):
        if weight is not None and "group" in func.__name__:
            weight = weight.view(-1, *[1] * (x.ndim - 2))
        return self.multiply(func, x, 1 if weight is None else weight)

    def one(self, func, *args, **kwargs):  # scales that are computed from the data
        return tree_map_only(Tensor, torch.ones_like, func(*args, **kwargs))

    def as_is(self, func, *args, **kwargs):
        return func(*args, **kwargs)

    def identity(self, func, x, *_, **__):
        if not is_signal(x):
            raise NotImplementedError("a parameter of it is computed from the data")
        return x.clone()

    activation = identity

    def add(self, func, a, b, alpha=1):
        return _without_constant(a) + alpha**2 * _without_constant(b)

    def multiply(self, func, a, b):
        if not (is_signal(a) and is_signal(b)):
            signal, factor = (a, b) if is_signal(a) else (b, a)
            return signal * (factor.to(signal) if isinstance(factor, Tensor) else factor) ** 2
        if a.root is b.root:  # an activation written as a product, as x·sigmoid(x)
            return min(a, b, key=lambda signal: signal.gate).clone()
        rank = [(signal.gate == 2, -signal.numel(), signal.gate) for signal in (a, b)]
        x, gate = (a, b) if rank[0] < rank[1] else (b, a)
        return a * b if rank[0] == rank[1] else _gate(x, gate)

    def addcmul(self, func, x, a, b, value=1):
        return self.add(func, x, self.multiply(func, a, b), value)

    def divide(self, func, a, b):
        return a * torch.ones_like(b) if is_signal(b) else self.multiply(func, a, 1 / b)

    def glu(self, func, x, dim=-1):
        return _gate(*x.chunk(2, dim))

    def reduce(self, func, x, *args, **kwargs):
        """Over positions the identity of each unit; over n units a mean is 1/n² of their sum."""
        dim = args[0] if args else kwargs.get("dim")
        dims = range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
        units, positions = _sizes(x, dims)
        if func.__name__ in ("max", "amax"):
            return func(x, *args, **kwargs) if units == 1 else self.end(func, x, *args, **kwargs)
        factor = positions if func.__name__ == "sum" else 1 / units
        return func(x, *args, **kwargs) * factor

    def avg_pool(self, func, x, kernel_size, stride=None, padding=0, ceil_mode=False, *_, **__):
        return func(x, kernel_size, stride, padding, ceil_mode, False)  # padding does not count

    def pad(self, func, x, pad, mode="constant", value=None):
        """Units are padded with nothing, positions with more of the same."""
        for d, (left, right) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
            if _varies(x, -d):
                x = func(x, [0] * (2 * d - 2) + [left, right])
            else:
                x = x.narrow(-d, 0, 1).repeat_interleave(x.shape[-d] + left + right, -d)
        return x

    def cat(self, func, tensors, dim=0):
        """Constants among units count as 1, as inputs do; a constant token as next to nothing."""
        like = next(filter(is_signal, tensors))
        fill = 1 if like.ndim != 3 or _varies(like, dim) else 1e-12  # a layer may see it alone
        parts = [x if is_signal(x) else like.new_full(x.shape, fill) for x in tensors]
        return torch.cat(parts, dim)

    def stack(self, func, tensors, dim=0):
        return self.cat(func, [x.unsqueeze(dim) for x in tensors], dim)

    def fill(self, func, x, where, value):
        where = _without_constant(where) if func is torch.where else where  # where(x, where, value)
        return func(x, where, _without_constant(value))


def is_signal(value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def emit(values: Tensor, shape) -> tuple[Tensor, Tensor]:
    """The source of a new signal, and the signal: `values` expanded to a shape."""
    source = values.detach().clone().requires_grad_()
    return source, source.expand(shape).clone()


def _meta(value: Tensor) -> Tensor:
    """A tensor without values, for asking a function for the shape that it makes."""
    kind = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=kind, device="meta")


def _varies(x: Tensor, dim: int) -> bool:
    return not torch.allclose(x, x.narrow(dim, 0, 1).expand_as(x), rtol=1e-6, atol=0)


def _sizes(x: Tensor, dims) -> tuple[int, int]:
    """How many units and how many positions there are along some dimensions."""
    units = math.prod(x.shape[d] for d in dims if _varies(x, d))
    return units, math.prod(x.shape[d] for d in dims) // units


def _without_constant(value) -> Tensor:
    """Signals are added; of a constant there is nothing to add but its shape."""
    return value if is_signal(value) else torch.zeros_like(torch.as_tensor(value))


def _gate(x: Tensor, gate: Tensor) -> Tensor:
    """x, with a gradient of x² (which is x here) for the gate."""
    return x + x.detach() * (gate - gate.detach())
