"""From scores to boolean masks: layer-wise, within rows, sequential, global."""

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from lapnb.checks import require, require_whole
from lapnb.pruning import data_statistics as of_data
from lapnb.pruning.chains import chain_fault, neighbours, whole_network
from lapnb.pruning.flow import flow
from lapnb.pruning.layers import Layer, prunable_layers
from lapnb.pruning.scores import METHODS, Method


def check(
    model: nn.Module, method: str, scope="layer", example=None, statistics=None
) -> list[Layer]:
    """The layers that `prune_masks` would prune; its ValueError where it needs no data to tell."""
    require(method in [*METHODS], "method", f"one of {', '.join(METHODS)}", method)
    require(scope in ("layer", "global"), "scope", '"layer" or "global"', scope)
    layers, criterion = prunable_layers(model), METHODS[method]
    if scope == "global" and (criterion.order or criterion.within == "row"):
        parts = "layer after layer" if criterion.order else "within each output unit"
        raise ValueError(f"method {method} prunes {parts}, so it has no global scope")
    for layer in layers:
        if criterion.within == "row" and layer.transposed:  # its rows are not its output units
            raise ValueError(f"method {method} cannot rank within units of {layer.name}")
    whole = criterion.neighbours == "all"
    in_order = whole or (criterion.neighbours == "chain" and example is None)
    if in_order and (fault := chain_fault(model, layers, linear=whole)):
        raise ValueError(fault)
    if criterion.looks_at == "curvature" and statistics is None:
        of_data.hessian_chain(model, layers)
    return layers


@torch.no_grad()
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
    """Boolean masks (True survives), in the order, shapes and devices of `prunable_layers(model)`.

    keep: the surviving fraction, in [0, 1]: one for all layers, or one per layer. Of n weights
        exactly round(keep · n) survive; ties: see `keep_largest`.
    scope: "layer" ranks each layer by itself (wanda each output unit: round(keep · n) is spread
        evenly over a layer's units, those whose next score is highest keep one more). "global"
        makes one ranking over all layers, each layer's scores (|w| for MP, squared distortion for
        LAP) divided by their Frobenius norm (not for LAMP and SynFlow).
    example: a batch of the model's inputs. Neighbours are then found by following it through the
        model. Without it they are the layers defined next to each, in models known to be chains.
        A layer that the batch never reaches stays dense, with a warning, and is not ranked.
    batches: (images, labels) for the methods that look at data, as `data_statistics` takes
        them, unless that function's result is at hand as `statistics`.
    seed: a whole number, for the random scores of rp.

    The model is not changed. Warns of a layer without scores above 0 or without weights left;
    ValueError names the argument or module that cannot be handled.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", seed=0)
    >>> masks = lapnb.prune_masks(model, "lap", keep=0.1)
    >>> [int(mask.sum()) for mask in masks]
    [39200, 25000, 25000, 25000, 500]
    """
    layers, criterion = check(model, method, scope, example, statistics), METHODS[method]
    fractions = _fractions(keep, len(layers) if scope == "layer" else 1, scope)
    require_whole("seed", seed, 0, 2**63 - 1)
    if criterion.neighbours == "flow" and example is None:
        raise ValueError(f"method {method} follows the data: pass example=, a batch of inputs")
    if criterion.looks_at and statistics is None:
        if batches is None:
            raise ValueError(f"method {method} looks at data: pass batches= of (images, labels)")
        statistics = of_data.data_statistics(model, criterion.looks_at, batches)
    weights, known = _ranked(layers, criterion, statistics, seed)
    if example is None:  # else other layers, which are not scaled, may be neighbours
        weights = _scaled(weights)
    followed: list = []

    def around(i: int) -> tuple[Tensor, Tensor] | None:
        if not criterion.neighbours:
            return known[i], known[i].new_ones(())
        if criterion.neighbours == "all":
            return whole_network(weights, i)
        if example is None:
            return neighbours(layers, weights, i)
        if criterion.order or not followed:
            followed[:] = flow(model, example, layers, weights)
        return followed[i]

    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    scores = {}  # that a global ranking compares
    for i in range(len(layers))[:: -1 if criterion.order == "backward" else 1]:
        if (factors := around(i)) is None:  # flow has warned
            continue
        score, layer = criterion.score(weights[i], *factors), layers[i]
        largest = score.max()  # NaN if any is
        if not largest.isfinite():
            raise ValueError(f"scores must be finite, but weights or data of {layer.name} are not")
        if not largest:
            warnings.warn(f"{layer.name}: all scores are 0, lowest indices are kept", stacklevel=3)
        if scope == "global":
            scores[i] = _comparable(score.flatten(), criterion)
            continue
        pick = keep_in_rows if criterion.within == "row" else keep_largest
        masks[i] = pick(score, round(fractions[i] * score.numel()), layer.weight)
        if criterion.order:
            weights[i] = weights[i] * masks[i]
    if scores:
        flat, sizes = torch.cat([*scores.values()]), [len(score) for score in scores.values()]
        count, ranked = round(fractions[0] * len(flat)), [layers[i].weight for i in scores]
        kept = keep_largest(flat, count, *ranked).split(sizes)
        for i, mask in zip(scores, kept, strict=True):
            masks[i] = mask.view_as(masks[i])
            if not mask.any():
                warnings.warn(f"the global ranking leaves {layers[i].name} empty", stacklevel=3)
    return masks


def keep_largest(score: Tensor, count: int, *weights: Tensor) -> Tensor:
    """Mask of the `count` largest entries of `score`, which belong to the entries of `weights`.

    Ties go to weights not yet zero (what was pruned does not return), then to the lower index.
    """
    flat, rank = score.flatten(), score.numel() - count
    if count == 0 or rank == 0:
        return torch.full_like(score, count > 0, dtype=torch.bool)
    if flat.is_cuda:
        threshold = flat.kthvalue(rank + 1).values
    else:
        values = flat.clone().numpy()  # NumPy's partition is several times faster than kthvalue
        values.partition(rank)
        threshold = torch.tensor(values[rank])
    mask = flat >= threshold
    if surplus := int(mask.count_nonzero()) - count:
        ties = (flat == threshold).nonzero().flatten()
        pruned = torch.cat([weight.flatten() for weight in weights])[ties] == 0
        ties = ties[pruned.int().argsort(stable=True)]
        mask[ties[-surplus:]] = False
    return mask.view(score.shape)


def keep_in_rows(score: Tensor, count: int, weight: Tensor) -> Tensor:
    """`keep_largest` with equally many of each row, and one more where the next is largest."""
    rows = score.masked_fill(weight == 0, -1).flatten(1)  # what was pruned earlier comes last
    rank = rows.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    each, left = divmod(count, len(rows))
    one_more = keep_largest(rows.masked_fill(rank != each, -2), left, rows)
    return ((rank < each) | one_more).view_as(score)


def apply_masks(model: nn.Module, masks: list[Tensor]) -> None:
    """Zero the weights outside the masks, in place. ValueError when they do not fit the model."""
    zero(fitting(model, masks))


def keep_masks(model: nn.Module, masks: list[Tensor], optimizer: torch.optim.Optimizer):
    """For your own training loop: weights outside the masks are zero now and after each step.

    Returns a handle whose `remove()` ends this. ValueError when masks or optimizer do not fit.
    """
    pairs = fitting(model, masks)
    trained = {id(p) for group in getattr(optimizer, "param_groups", []) for p in group["params"]}
    if trained.isdisjoint(id(layer.weight) for layer, _ in pairs):
        raise ValueError("optimizer must be a torch.optim.Optimizer of the model's parameters")
    zero(pairs)
    return optimizer.register_step_post_hook(lambda *_: zero(pairs))


def surviving(masks: list[Tensor]) -> float:
    """The fraction of prunable weights that survive."""
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@torch.no_grad()
def to_torch_prune(model: nn.Module, masks: list[Tensor]) -> nn.Module:
    """Attach masks as `torch.nn.utils.prune` does (weight_orig, weight_mask); zeroes weight_orig.

    For PyTorch's own tools. Until `prune.remove` folds them in, functions here refuse the model.
    """
    pairs = fitting(model, masks)
    zero(pairs)
    for layer, mask in pairs:
        prune.custom_from_mask(layer.module, "weight", mask.to(layer.weight.device))
    return model


def fitting(model: nn.Module, masks: list[Tensor]) -> list[tuple[Layer, Tensor]]:
    """Each prunable layer with its mask; ValueError when they do not fit."""
    layers, found = prunable_layers(model), type(masks)
    if not isinstance(masks, list | tuple) or (found := len(masks)) != len(layers):
        raise ValueError(f"masks must be one per prunable layer ({len(layers)}); got {found}")
    pairs = list(zip(layers, masks, strict=True))
    for layer, mask in pairs:
        wanted = torch.bool, layer.values.shape
        got = getattr(mask, "dtype", None), getattr(mask, "shape", None)
        got = "one on the meta device" if getattr(mask, "is_meta", False) else got
        if got != wanted:
            raise ValueError(f"mask of {layer.name} must be {wanted}, got {got}")
    return pairs


@torch.no_grad()
def zero(pairs: list[tuple[Layer, Tensor]]) -> None:
    for layer, mask in pairs:
        # not a product with the mask: that would leave -0.0, and NaN where a weight is infinite
        layer.weight.masked_fill_(~mask.to(layer.weight.device), 0)


def _ranked(layers, criterion: Method, statistics, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """What the criterion ranks, and what it knows of the data."""
    weights = [layer.values for layer in layers]
    known = [w.new_ones(()) for w in weights]
    if criterion.random:  # where w ≠ 0: what an earlier round has pruned does not return
        noise = torch.Generator().manual_seed(int(seed))
        weights = [torch.rand(w.shape, generator=noise).to(w) * (w != 0) for w in weights]
    if criterion.looks_at:
        try:
            known = [s.to(w).expand_as(w) for s, w in zip(statistics, weights, strict=True)]
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(f"statistics must be a tensor per layer, in shape: {error}") from error
        if criterion.neighbours:
            weights = [s * w for s, w in zip(known, weights, strict=True)]
    return weights, known


def _scaled(tensors: list[Tensor]) -> list[Tensor]:
    """All divided by one power of two, which is exact, where powers might under- or overflow."""
    largest = max(abs(float(value)) for x in tensors for value in x.aminmax())
    unit = 2.0 ** max(math.frexp(largest)[1], -126)
    return tensors if 0.01 < largest < 100 else [x / unit for x in tensors]


def _comparable(score: Tensor, criterion: Method) -> Tensor:
    """What the global ranking compares."""
    if not criterion.normalised:
        return score**criterion.power
    score = _scaled([score])[0] ** criterion.power
    return score / torch.linalg.vector_norm(score).clamp(min=1e-30)


def _fractions(keep, count: int, scope: str) -> list[float]:
    try:
        fractions = torch.as_tensor(keep, dtype=torch.double).expand(count)
    except (TypeError, ValueError, RuntimeError):
        fractions = torch.tensor(math.nan)
    if not ((fractions >= 0) & (fractions <= 1)).all():
        several = f" or {count} of them, one per layer" if scope == "layer" else " in global scope"
        raise ValueError(f"keep must be a number in [0, 1]{several}; got {keep!r}")
    return fractions.tolist()
