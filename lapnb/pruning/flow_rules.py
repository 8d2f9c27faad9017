"""What functions do to the signals of `flow`, which are squared norms in place of activations.

A signal is a tensor that depends, for autograd, on what a layer emitted or on the model's input;
everything else is a constant. Each signal has these attributes:

labels: a random number per unit, in the signal's own shape; 0 where there is nothing. They move
    with the signal where it is rearranged, and constants leave them alone. So neighbours along a
    dimension whose labels differ are two units, and those with the same label are two positions of
    one.
gate: a number that decides whether the signal is the gate in a product of signals: 0 if it is
    homogeneous in the weights that make it, 1 if it comes from an activation that is not, 2 if it
    comes from a sigmoid or a softmax, 3 if it is a scale computed from the data.
root: the same object for all elementwise functions of one signal.
"""

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lapnb.pruning.layers import (
    Layer,
    at_least_float,
    column_norms,
    norm_scale,
    row_norms,
)

# Each method of `Rules` and its functions: their names without underscores, dimensions and "_as"
NAMES = {
    "activation": "sigmoid hardsigmoid relu6 elu selu celu gelu silu mish hardswish hardtanh tanh "
    "softplus softsign logsigmoid tanhshrink softshrink hardshrink threshold sin cos exp erf "
    "clamp clamp_min clamp_max clip",
    "homogeneous": "relu leaky_relu prelu rrelu abs",
    "identity": "dropout alpha_dropout feature_dropout feature_alpha_dropout detach neg contiguous "
    "clone requires_grad normalize local_response_norm nan_to_num",
    "convert": "to type float double half bfloat16 cpu cuda",
    "power": "pow square sqrt",
    "scale_of_data": "rsqrt reciprocal rdiv rtruediv",
    "add": "add radd sub subtract",
    "rsub": "rsub",
    "multiply": "mul rmul multiply",
    "divide": "div divide truediv true_divide",
    # These rearrange or select signals, or ask for their shape
    "moved": "reshape view flatten unflatten ravel permute transpose t swapaxes movedim moveaxis "
    "unsqueeze squeeze expand broadcast_to repeat tile repeat_interleave chunk split "
    "split_with_sizes tensor_split unbind getitem select narrow index_select gather roll flip "
    "unfold pixel_shuffle pixel_unshuffle channel_shuffle zero "
    "size dim ndimension numel stride is_contiguous is_floating_point is_complex element_size "
    "get_device len hash repr format",
    # These make constants
    "constant": "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full",
    "cat": "cat concat concatenate",
    "reduce": "mean sum norm linalg_norm linalg_vector_norm std var",
    "largest": "max amax",
    "pool": "max_pool adaptive_avg_pool adaptive_max_pool interpolate upsample",
    "norm": "layer_norm rms_norm",
    "batch_norm": "batch_norm instance_norm",
    "weighted": "linear conv conv_transpose",
    "product": "matmul rmatmul mm bmm einsum",
    "end": "softmax log_softmax fold scaled_dot_product_attention",
    "embedding": "embedding embedding_bag",
    # These methods have the names of their functions
    "": "avg_pool stack pad addcmul glu group_norm where masked_fill multi_head_attention_forward",
}
RULES = {}
for _rule, _names in NAMES.items():
    for _name in _names.split():
        RULES[_name] = _rule or _name
TRAITS = {
    "elementwise": "activation homogeneous identity convert power add rsub multiply divide",
    # All other rules take one signal, the first argument: no parameter of theirs is a signal
    "takes several": "convert add rsub multiply divide moved constant cat stack product "
    "end embedding addcmul where masked_fill multi_head_attention_forward",
}
SUMS = "mean", "sum"
SATURATING = "sigmoid", "hardsigmoid", "softmax"


def rule_of(func) -> str | None:
    """Return the name of a function's method of `Rules`; None if it has no rule."""
    name = func.__name__.strip("_")
    return RULES.get(re.sub(r"_as$|[123]d$", "", name))


def has_trait(rule: str, trait: str) -> bool:
    return rule in TRAITS[trait].split()


class Refused(BaseException):
    """The reason why the data cannot be followed. No `except Exception` of a model catches it."""


class Rules(TorchFunctionMode):
    """The sums that are counted, and a method per rule, which takes a function and its arguments.

    `stand_ins` are the layers' weights in the model that runs; `weights` count in their place.
    """

    def __init__(self, layers: list[Layer], weights: list[Tensor], stand_ins: list[Tensor]):
        super().__init__()
        self.layers, self.weights = layers, weights
        self.index = {id(stand_in): i for i, stand_in in enumerate(stand_ins)}
        self.random = torch.Generator("cpu").manual_seed(0)
        self.calls: list[tuple] = []  # number of the layer, what arrives, source of what it emits
        self.total = weights[0].new_zeros(())  # Σ of ⟨‖W[:, k]‖², what arrives⟩

    def finish(self, outputs: list[Tensor]) -> list[list]:
        """Return the squares (what arrives, what follows) of each layer's calls; [] if unused."""
        self.count(outputs)
        pairs: list[list] = [[] for _ in self.weights]
        if self.calls:
            sources = [source for _, _, source in self.calls]
            slopes = torch.autograd.grad(self.total, sources, allow_unused=True)
            for (i, arrived, _), slope in zip(self.calls, slopes, strict=True):
                if slope is not None:
                    pairs[i].append((arrived, slope))
        return pairs

    def count(self, ends: list[Tensor]) -> None:
        """Count each unit of these signals as consumed with norm 1."""
        for signal in ends:
            for dim in range(signal.ndim):
                signal = self.mean_of_units(signal, dim)
            self.total = self.total + signal.sum()

    # Signals and their labels

    def mark(self, out, labels):
        """Give labels to the signals in `out`, and return it."""
        for value, label in zip(tree_leaves(out), tree_leaves(labels), strict=True):
            if is_signal(value):
                value.labels = label
                value.gate = 0
                value.root = object()
        return out

    def emit(self, values: Tensor, shape, labels: Tensor | None = None) -> Tensor:
        """Return a new signal of `values` in a shape; without `labels` its units are new."""
        if labels is None:
            labels = self.new_labels(values)
        if not is_signal(values):
            values = values.detach().requires_grad_()
        out = values.expand(shape).clone()
        return self.mark(out, labels.expand(shape).clone())

    def new_labels(self, like: Tensor) -> Tensor:
        options = dict(dtype=torch.double, device="cpu", generator=self.random)
        return 1 + torch.rand(like.shape, **options).to(like)

    def set_gates(self, out, func, rule: str, signals: list[Tensor], args) -> None:
        """Set the gate and the root of the signals in `out`, which products need."""
        gate = _gate_of(func, rule, args)
        root = object()
        if has_trait(rule, "elementwise") and len({id(signal.root) for signal in signals}) == 1:
            root = signals[0].root
        if rule in ("moved", "divide"):  # in x.expand_as(y) only x counts
            signals = signals[:1]
        if rule == "moved" or has_trait(rule, "elementwise"):
            gate = max(gate, min(signal.gate for signal in signals))
        for value in filter(is_signal, tree_leaves(out)):
            value.gate = gate
            value.root = root

    def written(self, x: Tensor, out: Tensor) -> Tensor:
        """Write `out` and its labels into x in place, and return x."""
        if not is_signal(x):
            raise NotImplementedError("it writes into a constant")
        x.copy_(out)
        x.labels.copy_(out.labels)
        return x

    def joined(self, out: Tensor, *parts) -> Tensor:
        """Label `out`, an elementwise function of parts, with the sums of their labels."""
        labels = sum(part.labels for part in parts if is_signal(part))
        return self.mark(out, labels.expand(out.shape).clone())

    def borders(self, x: Tensor, dim: int) -> Tensor:
        """Return, for each pair of neighbours along a dimension, whether they are two units."""
        labels = x.labels.movedim(dim, 0).flatten(1)
        first = labels[:-1]
        second = labels[1:]
        both = (first != 0) & (second != 0)
        return (differ(first, second) & both).any(1)

    def has_units(self, x: Tensor, dim: int) -> bool:
        return bool(self.borders(x, dim).any())

    def of_units(self, x: Tensor, values: Tensor, dim: int) -> Tensor:
        """Sum values of x over the positions of each unit along a dimension."""
        borders = self.borders(x, dim)
        if not borders.any():
            return values.sum(dim, keepdim=True)
        unit = torch.cat([borders.new_zeros(1), borders]).cumsum(0)
        shape = [*values.shape]
        shape[dim] = int(unit[-1]) + 1
        return values.new_zeros(shape).index_add(dim, unit, values)

    def mean_of_units(self, x: Tensor, dim: int) -> Tensor:
        """Return one entry per unit along a dimension: the mean over its positions."""
        count = self.of_units(x, torch.ones_like(x.detach()), dim)
        labels = self.of_units(x, x.labels, dim) / count
        return self.mark(self.of_units(x, x, dim) / count, labels)

    def sum_over(self, x: Tensor, dim: int) -> Tensor:
        """Sum over a dimension: positions of a unit move together, units independently."""
        squares = self.of_units(x, x, dim)
        sizes = self.of_units(x, x.detach().sqrt(), dim)
        factor = ratio(sizes.square(), squares)
        out = (squares * factor).sum(dim, keepdim=True)
        labels = x.labels.mean(dim, keepdim=True)
        return self.mark(out, labels)

    # Layers

    def weighted(self, func, x, weight, bias=None, *args, **kwargs):
        """Let a layer take what arrives, weigh it with its columns and emit its rows."""
        i = self.index.get(id(weight))
        transposed = "transpose" in func.__name__
        if weight.shape[1] == 1 and not (transposed or is_parameter(weight)):
            return self.filtered(func, x, weight, *args, **kwargs)
        values = at_least_float(weight) if i is None else self.weights[i]
        out = func(meta(x), meta(weight), None, *args, **kwargs)
        channel = 1 - weight.ndim
        inputs = x.shape[channel]
        groups = inputs // weight.shape[1]
        if transposed:
            groups = out.shape[channel] // weight.shape[1]
            values = values.unflatten(0, (groups, -1))
            values = values.transpose(1, 2).flatten(0, 1)
        arrived = x.movedim(channel, -1)
        arrived = arrived.reshape(-1, inputs).mean(0)
        columns = column_norms(values, groups).to(arrived)
        self.total = self.total + columns.square() @ arrived
        rows = row_norms(values).to(arrived).square()
        source = rows.detach().requires_grad_()
        if i is not None:
            self.calls.append((i, arrived.detach(), source))
        positions = [1] * (weight.ndim - 2)
        return self.emit(source.view(-1, *positions), out.shape)

    def embedding(self, func, indices, weight, *args, **kwargs):
        """Treat an embedding as a layer with one-hot inputs."""
        values = column_norms(at_least_float(weight), 1)
        out = func(indices, weight, *args, **kwargs)
        return self.emit(values.double().square(), out.shape)

    def multi_head_attention_forward(self, func, *args, **kwargs):
        """Treat the projections of attention as layers; the block ends between them."""
        queries_keys_values = args[:3]
        if args[5] is None:  # keys or values of another size than queries
            weights = [kwargs[f"{name}_proj_weight"] for name in "qkv"]
        else:
            weights = args[5].chunk(3)
        for x, weight in zip(queries_keys_values, weights, strict=True):
            if is_signal(x):
                self.weighted(functional.linear, x, weight)
        one = self.total.new_ones(())
        meta_args, meta_kwargs = tree_map_only(Tensor, meta, (args, kwargs))
        out, scores = func(*meta_args, **meta_kwargs)
        out = self.emit(one, out.shape)
        out = self.weighted(functional.linear, out, args[11])
        return out, scores if scores is None else self.emit(one, scores.shape)

    def filtered(self, func, x, weight, *args, **kwargs):
        """Filter each channel by constants, as a blur does: positions move together."""

        def run(values, filters):
            return func(values, filters.to(values), None, *args, **kwargs)

        out = run(x, weight.square())
        sizes = run(x.detach().sqrt(), weight.abs())
        ones = torch.ones_like(weight)
        labels = run(x.labels, ones) / run(torch.ones_like(x.labels), ones)
        return self.mark(out * ratio(sizes.square(), out), labels)

    # Products of signals

    def product(self, func, *args, **kwargs):
        if sum(map(is_signal, tree_leaves((args, kwargs)))) == 1:
            raise NotImplementedError("a factor is a matrix that is no layer's weight")
        return self.end(func, *args, **kwargs)

    def end(self, func, *args, **kwargs):
        """End the block at what cannot be followed; what comes out of it counts as 1."""
        signals = [value for value in tree_leaves((args, kwargs)) if is_signal(value)]
        self.count(signals)
        one = signals[0].new_ones(())
        args, kwargs = with_labels((args, kwargs))
        labels = func(*args, **kwargs)

        def emitted(label):
            return self.emit(one, label.shape, label.nan_to_num(0))

        return tree_map_only(Tensor, emitted, labels)

    # Each unit by itself

    def identity(self, func, x, *_, **__):
        return self.joined(x.clone(), x)

    activation = homogeneous = identity

    def convert(self, func, x, *args, **kwargs):
        if not is_signal(x):  # a constant takes the type of a signal
            return x.to(self.layers[0].weight)
        if not torch.is_floating_point(func(x.detach(), *args, **kwargs)):
            raise NotImplementedError("it asks for whole numbers")
        return self.identity(func, x)

    def power(self, func, x, exponent=None):
        """Apply a homogeneous function of a degree other than 1."""
        if exponent is None:
            exponent = 0.5 if "sqrt" in func.__name__ else 2
        if exponent < 0:
            return self.scale_of_data(func, x)
        return self.joined(x.clamp(min=1e-300) ** exponent, x)

    def scale_of_data(self, func, x, *_, **__):
        return self.joined(0 * x + 1, x)

    def norm(self, func, x, size, weight=None, *_, **__):
        return self.multiply(func, x, 1 if weight is None else weight)

    def group_norm(self, func, x, groups, weight=None, *_, **__):
        if weight is not None:
            weight = weight.view(-1, *[1] * (x.ndim - 2))
        return self.norm(func, x, groups, weight)

    def batch_norm(
        self,
        func,
        x,
        mean=None,
        variance=None,
        *,
        weight=None,
        eps=1e-5,
        **settings,
    ):
        of_batch = settings.get("training") or settings.get("use_input_stats")
        if variance is not None and not of_batch:
            weight = norm_scale(variance, weight, eps)
        return self.group_norm(func, x, 1, weight)

    def add(self, func, a, b, alpha=1):
        added = alpha**2 * without_constant(b)
        return self.joined(without_constant(a) + added, a, b)

    def rsub(self, func, a, b):
        return self.add(func, a, b)

    def multiply(self, func, a, b):
        if not is_signal(a):
            a, b = b, a
        if not is_signal(b):
            factor = torch.as_tensor(b).to(a)
            return self.joined(a * factor.square(), a)
        rank_a = self.gate_rank(a, b)
        rank_b = self.gate_rank(b, a)
        if rank_a == rank_b:
            return self.joined(a * b, a, b)
        x, gate = (b, a) if rank_a > rank_b else (a, b)
        if x.root is gate.root:  # an activation, such as x·sigmoid(x)
            return self.joined(x.clone(), x)
        slope = gate - gate.detach()  # the gate counts as 1
        return self.joined(x + x.detach() * slope, x, gate)

    def gate_rank(self, x: Tensor, other: Tensor) -> int:
        """Return the rank of x in its product with `other`.

        The factor of higher rank is the gate; with equal ranks both count.
        """
        if x.gate == 0 or (x.gate == 1 and x.numel() > other.numel()):
            return 0
        return 2 * x.gate + (x.numel() < other.numel())

    def addcmul(self, func, x, a, b, value=1):
        return self.add(func, x, self.multiply(func, a, b), value)

    def divide(self, func, a, b):
        if not is_signal(b):
            return self.multiply(func, a, 1 / b)
        if not is_signal(a):
            return self.scale_of_data(func, b)
        return self.joined(a * torch.ones_like(b), a)

    def glu(self, func, x, dim=-1):
        x, gate = self.moved(torch.chunk, x, 2, dim)
        gate.gate = 2
        return self.multiply(func, x, gate)

    # Sums, pooling and rearrangements

    def largest(self, func, x, *args, **kwargs):
        """Treat a maximum over positions as the identity; end the block at one over units."""
        units = any(self.has_units(x, dim) for dim in dimensions(x, args, **kwargs))
        rule = self.end if units else self.moved
        return rule(func, x, *args, **kwargs)

    def reduce(self, func, x, *args, **kwargs):
        """Reduce by sum, mean, norm, std or var.

        A mean over positions is the identity of each unit, one over n units is 1/n² of their sum.
        """
        name = func.__name__
        dims = dimensions(x, args[1:] if "norm" in name else args, **kwargs)
        shape = func(meta(x), *args, **kwargs).shape
        size = math.prod(x.shape[dim] for dim in dims)
        if name in SUMS:
            out = x
            for dim in dims:
                out = self.sum_over(out, dim)
        else:
            out = x.sum(dims)
        out = out / {"mean": size**2, "std": size, "var": size}.get(name, 1)
        if name == "var":
            out = out.square()
        return self.mark(out.view(shape), x.labels.mean(dims).view(shape))

    def pool(self, func, x, *args, **kwargs):
        """Treat pooling and resizing as the identity; end the block at a maximum over units."""

        def run(values):
            return func(values, *args, **kwargs)

        labels = x.labels
        pooled = run(labels)
        if differ(pooled, -run(-labels)).any():
            return self.end(func, x, *args, **kwargs)
        of_squares = run(labels.square())
        if differ(of_squares, pooled.square()).any():
            raise NotImplementedError("it averages over units")
        return self.mark(run(x), pooled)

    def avg_pool(
        self,
        func,
        x,
        kernel_size,
        stride=None,
        padding=0,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        if divisor_override:
            raise NotImplementedError("its divisor is another")
        padded = False  # padding does not count
        return self.pool(func, x, kernel_size, stride, padding, ceil_mode, padded)

    def pad(self, func, x, pad, mode="constant", value=None):
        """Pad units with a constant, positions with more of the same."""
        if mode != "constant":
            return self.moved(func, x, pad, mode)
        fill = float(bool(value))
        for k in range(0, len(pad), 2):
            dim = x.ndim - 1 - k // 2
            left, right = pad[k : k + 2]
            if x.shape[dim] == 1 or self.has_units(x, dim):
                sides = [0] * k + [left, right]
                labels = func(x.labels, sides)
                x = self.mark(func(x, sides, mode, fill), labels)
            else:
                last = x.shape[dim] - 1
                places = torch.arange(-left, last + 1 + right, device=x.device)
                places = places.clamp(0, last)
                x = self.moved(torch.index_select, x, dim, places)
        return x

    def cat(self, func, tensors, dim=0):
        tensors = [x for x in tensors if x.numel()]
        signals = [x for x in tensors if is_signal(x)]
        tokens = not all(self.has_units(x, dim) for x in signals if x.shape[dim] > 1)
        parts = []
        for x in tensors:
            part = x if is_signal(x) else self.constant_part(x, signals[0], dim, tokens)
            parts.append(part)
        return self.mark(torch.cat(parts, dim), torch.cat([part.labels for part in parts], dim))

    def constant_part(self, x: Tensor, like: Tensor, dim: int, tokens: bool) -> Tensor:
        """Return the signal that stands for a constant beside units.

        Constant units count as 1, as an input does, or as 0 if all of them are 0. A token counts as
        next to nothing.
        """
        if tokens:  # it is not 0, as a layer may see it alone
            part = like.new_full(x.shape, 1e-12)
            part.labels = like.labels.narrow(dim, 0, 1).expand(x.shape)
        else:
            part = like.new_full(x.shape, float(x.any()))
            part.labels = self.new_labels(part) * part
        return part

    def stack(self, func, tensors, dim=0):
        dim = dim % (tensors[0].ndim + 1)
        parts = [self.moved(torch.unsqueeze, x, dim) for x in tensors]
        return self.cat(func, parts, dim)

    def moved(self, func, *args, **kwargs):
        # Signals and labels may have another memory layout than activations
        reshapes = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}
        move = reshapes.get(func.__name__, func)
        out = move(*args, **kwargs)
        args, kwargs = with_labels((args, kwargs))
        return self.mark(out, move(*args, **kwargs))

    def constant(self, func, x, *args, **kwargs):
        return func(x.detach(), *args, **kwargs)

    def where(self, func, condition, a, b):
        out = torch.where(condition, without_constant(a), without_constant(b))
        return self.joined(out, a, b)

    def masked_fill(self, func, x, mask, value):
        return self.where(func, mask, value, x)


def is_signal(value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def is_parameter(value) -> bool:
    """Return whether a tensor is a parameter of the model or a view of one."""
    return isinstance(value, nn.Parameter) or isinstance(value._base, nn.Parameter)


def _gate_of(func, rule: str, args) -> int:
    """Return the gate of a function's outputs, whatever its inputs are."""
    name = func.__name__.strip("_")
    has_nonzero = any(isinstance(x, int | float) and x for x in args)
    if name in SATURATING:
        return 2
    if "clamp" in name or rule in ("add", "rsub"):  # with zero alone they are homogeneous
        return int(has_nonzero)
    if rule == "reduce":
        return int(name not in SUMS)
    return {"activation": 1, "scale_of_data": 3}.get(rule, 0)


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b as a constant; 0 where both are 0."""
    return (a / b.detach()).nan_to_num(0)


def with_labels(values):
    """Replace signals in `values` by their labels, and other floats by doubles, as labels are."""

    def label_of(x):
        if is_signal(x):
            return x.labels
        return x.double() if x.is_floating_point() else x

    return tree_map_only(Tensor, label_of, values)


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Return where labels differ by more than rounding."""
    return (a - b).abs() > 1e-9 * b.abs()


def meta(value: Tensor) -> Tensor:
    """Return a tensor without values, to ask a function for the shape that it makes."""
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=dtype, device="meta")


def without_constant(value) -> Tensor:
    """Return a signal as it is, and zeros in the shape of a constant."""
    return value if is_signal(value) else torch.zeros_like(torch.as_tensor(value))


def dimensions(x: Tensor, args, dim=None, **_) -> list[int]:
    """Return the dimensions that a reduction sums over."""
    dim = args[0] if args and dim is None else dim
    if dim is None:
        return list(range(x.ndim))
    return [dim] if isinstance(dim, int) else list(dim)
