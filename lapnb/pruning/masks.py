"""From scores to boolean masks, and masks on weights and gradients."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from lapnb.checks import require, require_whole
from lapnb.pruning.chains import chain_layers, check_chain, neighbours
from lapnb.pruning.data_statistics import check_kind, data_statistics
from lapnb.pruning.flow import flow
from lapnb.pruning.layers import DENSE, Layer, modules_by_name, prunable_layers
from lapnb.pruning.linear_product import check_linear, whole_network
from lapnb.pruning.scores import METHODS, Method


def prune_masks(
    model: nn.Module,
    method: str,
    keep: float | Sequence[float],
    scope: str = "layer",
    example=None,
    batches: Iterable | None = None,
    statistics: list[Tensor] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Compute which weights survive. The model is not changed.

    Warns of layers without scores above 0 or without weights left, and of modules with weights
    that cannot be pruned (recurrent ones, the input projection of attention, embeddings, bilinear
    ones): they stay dense.

    Args:
        model: the network.
        method: the name of a criterion, a key of `lapnb.pruning.scores.METHODS`.
        keep: the surviving fraction, in [0, 1]: one for all layers, or one per layer. Of n weights
            exactly round(keep · n) survive; for ties see `keep_largest`.
        scope: "layer" ranks each layer by itself. (Wanda ranks each output unit: round(keep · n)
            is spread evenly over a layer's units, those whose next score is highest keep one
            more.) "global" makes one ranking over all layers, each layer's scores (|w| for MP, the
            squared distortion for LAP) divided by their Frobenius norm, except for LAMP and
            SynFlow.
        example: a batch of the model's inputs. Neighbours are then found by following it through
            the model. A layer that it never reaches stays dense, with a warning. Without it the
            neighbours of a layer are those defined next to it, dense ones too. This is known to
            hold for this project's own networks only.
        batches: (images, labels) for the methods that look at data, as `data_statistics` takes
            them, unless its result is passed as `statistics`. Lookahead methods count
            neighbours that stay dense without such numbers.
        statistics: one tensor per prunable layer.
        seed: a whole number, for the random scores of rp.

    Returns:
        Boolean masks (True survives) in the order, shapes and devices of `prunable_layers(model)`.

    Raises:
        ValueError: naming the argument or module that cannot be handled.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", seed=0)
    >>> masks = lapnb.prune_masks(model, "lap", keep=0.1)
    >>> [int(mask.sum()) for mask in masks]
    [39200, 25000, 25000, 25000, 500]
    """
    layers = check_method(model, method, scope, example, statistics)
    fractions = _fractions(keep, len(layers), scope)
    require_whole("seed", seed, 0, 2**63 - 1)
    criterion = METHODS[method]
    if criterion.neighbours == "flow" and example is None:
        raise ValueError(f"method {method} follows the data: pass example=, a batch of inputs")
    if criterion.looks_at and statistics is None:
        if batches is None:
            raise ValueError(f"method {method} looks at data: pass batches= of (images, labels)")
        statistics = data_statistics(model, criterion.looks_at, batches)
    _warn_of_dense(model)
    with torch.inference_mode(False), torch.no_grad():
        scores = _Scores(model, layers, criterion, example, statistics, seed)
        if scope == "global":
            return _rank_over_all(scores, fractions[0])
        return _rank_within_layers(scores, fractions)


def check_method(model: nn.Module, method, scope="layer", example=None, statistics=None) -> list:
    """Return the layers that `prune_masks` would prune, without numbers of weights or data.

    Raises:
        ValueError: as `prune_masks`, as far as that can be known beforehand.
    """
    require(method in [*METHODS], "method", f"one of {', '.join(METHODS)}", method)
    require(scope in ("layer", "global"), "scope", '"layer" or "global"', scope)
    criterion = METHODS[method]
    if scope == "global" and (criterion.order or criterion.within == "row"):
        raise ValueError(f"method {method} has no global scope")
    layers = prunable_layers(model)
    for layer in layers:
        if criterion.within == "row" and layer.transposed:  # its rows are not its output units
            raise ValueError(f"method {method} cannot rank within units of {layer.name}")
    if _is_ordered(criterion, example):
        check_chain(model)
    if criterion.neighbours == "all":
        check_linear(model)
    if statistics is None:
        check_kind(model, criterion.looks_at)
    return layers


def _is_ordered(criterion: Method, example) -> bool:
    """Return whether the order of definition says which layers are neighbours."""
    by_order = criterion.neighbours == "chain" and example is None
    return by_order or criterion.neighbours == "all"


def _warn_of_dense(model: nn.Module) -> None:
    dense = [m for _, m in modules_by_name(model, "prunable") if isinstance(m, DENSE)]
    if dense:
        kinds = sorted({type(module).__name__ for module in dense})
        warnings.warn(f"left dense: {', '.join(kinds)}", stacklevel=3)


class _Scores:
    """The scores of each layer, and what they are computed from.

    weights: what is ranked in each layer, and the weights of a chain's layers that stay dense.
    places: the index in `weights` of each layer's own.
    data: what the criterion knows of the data for each layer; 1 if it looks at none.
    masks: which weights survive: all of them, until a layer is ranked.
    """

    def __init__(self, model, layers: list[Layer], criterion: Method, example, statistics, seed):
        self.model = model
        self.layers = layers
        self.criterion = criterion
        self.example = example
        self.factors: list = []  # what flow has returned
        self.is_ordered = _is_ordered(criterion, example)
        self.chain = chain_layers(model) if self.is_ordered else layers
        self.weights = [layer.values for layer in self.chain]
        modules = [layer.module for layer in self.chain]
        self.places = [modules.index(layer.module) for layer in layers]
        self.data = [weight.new_ones(()) for weight in self.weights]
        self.masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
        if criterion.random:
            self._rank_noise(seed)
        if criterion.looks_at:
            self._look_at(statistics)
        self._rescale()

    def _rank_noise(self, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(int(seed))
        for i, weight in enumerate(self.weights):
            options = dict(dtype=torch.float32, device="cpu", generator=generator)
            noise = torch.rand(weight.shape, **options).to(weight)
            self.weights[i] = noise * (weight != 0)  # what is pruned does not return

    def _rescale(self) -> None:
        """Keep products of weights from under- and overflow."""
        unit = _unit(self.weights)
        if self.is_ordered or not self.criterion.neighbours:
            self.weights = [weight / unit for weight in self.weights]
        elif unit != 1:  # flow also sees weights that are not among these
            self.weights = [weight.double() for weight in self.weights]

    def _look_at(self, statistics) -> None:
        one_each = len(statistics) == len(self.layers)
        require(one_each, "statistics", "one tensor per prunable layer", len(statistics))
        for place, numbers in zip(self.places, statistics, strict=True):
            weight = self.weights[place]
            self.data[place] = numbers.to(weight).expand_as(weight)
            if self.criterion.neighbours:
                self.weights[place] = self.data[place] * weight

    def of(self, i: int) -> Tensor | None:
        """Return the scores of layer i; None where the data does not reach it."""
        factors = self._neighbours(i)
        if factors is None:  # flow has warned
            return None
        name = self.layers[i].name
        score = self.criterion.score(self.weights[self.places[i]], *factors)
        largest = score.max()  # NaN if any score is
        if not largest.isfinite():
            raise ValueError(f"scores must be finite, but weights or data of {name} are not")
        if not largest:
            warnings.warn(f"{name}: all scores are 0, lowest indices are kept", stacklevel=4)
        return score

    def _neighbours(self, i: int) -> tuple[Tensor, Tensor] | None:
        """Return `before` and `after` of layer i; None where the data does not reach it."""
        place = self.places[i]
        if not self.criterion.neighbours:
            return self.data[place], self.data[place].new_ones(())
        if self.criterion.neighbours == "all":
            return whole_network(self.weights, place)
        if self.is_ordered:
            return neighbours(self.chain, self.weights, place)
        if self.criterion.order or not self.factors:
            self.factors = flow(self.model, self.example, self.layers, self.weights)
        if self.factors[i] is None:
            return None
        before, after = self.factors[i]
        return before / _unit([before]), after / _unit([after])


def _rank_within_layers(scores: _Scores, fractions: list[float]) -> list[Tensor]:
    pick = keep_in_rows if scores.criterion.within == "row" else keep_largest
    indices = range(len(fractions))
    if scores.criterion.order == "backward":
        indices = reversed(indices)
    for i in indices:
        score = scores.of(i)
        if score is None:
            continue
        mask = pick(score, round(fractions[i] * score.numel()), scores.layers[i].values)
        if scores.criterion.order:
            place = scores.places[i]
            scores.weights[place] = scores.weights[place] * mask
        scores.masks[i] = mask
    return scores.masks


def _rank_over_all(scores: _Scores, fraction: float) -> list[Tensor]:
    compared = {}
    for i in range(len(scores.layers)):
        score = scores.of(i)
        if score is not None:
            compared[i] = _comparable(score.flatten(), scores.criterion)
    flat = torch.cat([*compared.values()])
    values = [scores.layers[i].values for i in compared]
    mask = keep_largest(flat, round(fraction * len(flat)), *values)
    parts = mask.split([len(score) for score in compared.values()])
    for i, part in zip(compared, parts, strict=True):
        scores.masks[i] = part.view_as(scores.masks[i])
        if not part.any():
            message = f"the global ranking leaves {scores.layers[i].name} empty"
            warnings.warn(message, stacklevel=3)
    return scores.masks


def keep_largest(score: Tensor, count: int, *weights: Tensor) -> Tensor:
    """Return the mask of the `count` largest entries of `score`, a score per entry of `weights`.

    Ties go to weights that are not zero (what was pruned does not return), then to lower indices.
    """
    pruned = torch.cat([weight.flatten() for weight in weights]) == 0
    flat = score.flatten().masked_fill(pruned, -1)  # all other scores are at least 0
    rank = len(flat) - count
    if count == 0 or rank == 0:
        return torch.full_like(score, count > 0, dtype=torch.bool)
    if flat.is_cuda:
        threshold = flat.kthvalue(rank + 1).values
    else:
        values = flat.numpy().copy()  # NumPy's partition is several times faster than kthvalue
        values.partition(rank)
        threshold = float(values[rank])
    mask = flat >= threshold
    surplus = int(mask.count_nonzero()) - count
    if surplus:
        ties = (flat == threshold).nonzero().flatten()
        mask[ties[-surplus:]] = False
    return mask.view(score.shape)


def keep_in_rows(score: Tensor, count: int, weight: Tensor) -> Tensor:
    """Return a mask of `count`: equally many per row, one more where the next score is largest."""
    rows = score.masked_fill(weight == 0, -1).flatten(1)  # what was pruned earlier comes last
    rank = rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    per_row, remainder = divmod(count, len(rows))
    next_in_row = rows.masked_fill(rank != per_row, -2)
    one_more = keep_largest(next_in_row, remainder, torch.ones_like(rows))
    return ((rank < per_row) | one_more).view_as(score)


def apply_masks(model: nn.Module, masks: list[Tensor]) -> None:
    """Zero the weights outside the masks, in place.

    Args:
        model: the network.
        masks: as `prune_masks` returns them.

    Raises:
        ValueError: when the masks do not fit the model.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", width=0.1, seed=0)
    >>> lapnb.apply_masks(model, lapnb.prune_masks(model, "lap", keep=0.25))
    >>> [int(layer.weight.count_nonzero()) for layer in lapnb.prunable_layers(model)]
    [9800, 625, 625, 625, 125]
    """
    zero(fitting(model, masks))


@dataclass
class MaskHandle:
    """A handle that ends what it was returned for."""

    hooks: list[RemovableHandle]

    def remove(self) -> None:
        """Remove all hooks."""
        for hook in self.hooks:
            hook.remove()


def keep_masks(
    model: nn.Module, masks: list[Tensor], optimizer: torch.optim.Optimizer
) -> MaskHandle:
    """Keep weights outside the masks at zero in your own training loop.

    They are zero from now on: their gradients are masked as soon as they are computed, so moments,
    clipping and line searches see none of them, and each step of the optimizer ends by zeroing
    them. With several optimizers call it once for each.

    After `load_state_dict` of dense weights, masked weights live until the next step. Copies that
    average weights (EMA) need `apply_masks` too. A deep copy of an optimizer loses the hooks. An
    optimizer that keeps weights of its own or moves them outside `step` (SAM's two steps,
    Lookahead, schedule-free) must be made after `apply_masks`, and what it writes outside `step`
    needs `apply_masks` again.

    Args:
        model: the network.
        masks: as `prune_masks` returns them.
        optimizer: a `torch.optim.Optimizer` of prunable weights.

    Returns:
        A handle whose `remove()` ends this.

    Raises:
        ValueError: when the masks do not fit, when the optimizer holds no prunable weight, or when
            it is a wrapper, whose hooks never run.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", width=0.1, seed=0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = lapnb.keep_masks(model, lapnb.prune_masks(model, "lap", keep=0.25), optimizer)
    >>> model(torch.ones(1, 1, 28, 28)).square().sum().backward()
    >>> optimizer.step()
    >>> int(lapnb.prunable_layers(model)[1].weight.count_nonzero())  # of 2,500
    625
    """
    pairs = fitting(model, masks)
    trained = [pair for pair in pairs if pair[0].weight.requires_grad]
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    unstepped = [layer.name for layer, _ in trained if id(layer.weight) not in stepped]
    is_hooked = getattr(type(optimizer).step, "hooked", False)
    allowed = "a torch.optim.Optimizer that steps prunable weights of the model, no wrapper of one"
    fits = is_hooked and len(unstepped) < len(trained)
    require(fits, "optimizer", allowed, type(optimizer).__name__)
    if unstepped:
        warnings.warn(f"optimizer does not step {', '.join(unstepped)}, masked too", stacklevel=2)
    zero(pairs)
    with torch.inference_mode(False):
        hooks = [_mask_gradient(layer.weight, mask) for layer, mask in trained]
    hooks.append(optimizer.register_step_post_hook(lambda *_: zero(pairs)))
    return MaskHandle(hooks)


def _mask_gradient(weight: Tensor, mask: Tensor) -> RemovableHandle:
    pruned = ~mask.to(weight.device)
    if weight.grad is not None:
        weight.grad.masked_fill_(pruned, 0)
    return weight.register_hook(lambda grad: grad.masked_fill(pruned.to(grad.device), 0))


@torch.inference_mode()  # weights that were made in this mode can be changed only in it
def zero(pairs: list[tuple[Layer, Tensor]]) -> None:
    """Zero the weights outside the masks."""
    for layer, mask in pairs:
        # not a product with the mask: that would leave -0.0, and NaN where a weight is infinite
        layer.weight.masked_fill_(~mask.to(layer.weight.device), 0)


def surviving(masks: list[Tensor]) -> float:
    """Return the fraction of prunable weights that survive."""
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@torch.no_grad()
def to_torch_prune(model: nn.Module, masks: list[Tensor]) -> nn.Module:
    """Attach masks as `torch.nn.utils.prune` does, as weight_orig and weight_mask.

    The pruned entries of weight_orig become zero. This serves PyTorch's own tools. Functions here
    refuse the model until `prune.remove` folds the masks in.

    Args:
        model: the network.
        masks: as `prune_masks` returns them.

    Returns:
        The model itself.

    Raises:
        ValueError: when the masks do not fit the model.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", width=0.1, seed=0)
    >>> pruned = lapnb.to_torch_prune(model, lapnb.prune_masks(model, "lap", keep=0.25))
    >>> int(pruned.layers[0].weight_mask.sum())
    9800
    """
    pairs = fitting(model, masks)
    zero(pairs)
    for layer, mask in pairs:
        prune.custom_from_mask(layer.module, "weight", mask.to(layer.weight.device))
    return model


def fitting(model: nn.Module, masks: list[Tensor]) -> list[tuple[Layer, Tensor]]:
    """Return each prunable layer with its mask; raise ValueError when the masks do not fit."""
    layers = prunable_layers(model)
    allowed = f"a list of one per prunable layer ({len(layers)})"
    given = len(masks) if isinstance(masks, list | tuple) else type(masks).__name__
    require(given == len(layers), "masks", allowed, given)
    pairs = list(zip(layers, masks, strict=True))
    for layer, mask in pairs:
        shape = tuple(layer.weight.shape)
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == shape
        given = getattr(mask, "shape", mask)
        require(fits, f"mask of {layer.name}", f"a bool tensor of shape {shape}", given)
    return pairs


def _unit(tensors: Iterable[Tensor]) -> float:
    """Return a power of two near the largest value; 1 if products neither under- nor overflow."""
    largest = max(abs(float(value)) for x in tensors for value in x.aminmax())
    if 0.01 < largest < 100:
        return 1.0
    return 2.0 ** max(math.frexp(largest)[1], -126)


def _comparable(score: Tensor, criterion: Method) -> Tensor:
    """Return what the global ranking compares: the scores to a power, normalised or not."""
    if not criterion.normalised:
        return score**criterion.power
    score = (score / _unit([score])) ** criterion.power
    return score / torch.linalg.vector_norm(score).clamp(min=1e-30)


def _fractions(keep, layers: int, scope: str) -> list[float]:
    """Return the surviving fraction of each layer or, in global scope, the only one."""
    count = layers if scope == "layer" else 1
    try:
        fractions = torch.as_tensor(keep, dtype=torch.double, device="cpu").expand(count).tolist()
    except (TypeError, ValueError, RuntimeError):
        fractions = [math.nan]
    allowed = f"a number in [0, 1] or, in layer scope, one for each of {layers} layers"
    require(all(0 <= fraction <= 1 for fraction in fractions), "keep", allowed, keep)
    return fractions
