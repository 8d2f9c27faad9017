"""From scores to boolean masks: layer-wise, sequential, global."""

from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from lapnb.pruning.layers import Layer, neighbours, prunable_layers
from lapnb.pruning.linear import whole_network
from lapnb.pruning.scores import METHODS, Method


@torch.no_grad()
def prune_masks(
    model: nn.Module,
    method: str,
    keep: float | Sequence[float],
    scope: str = "layer",
    data=None,
    statistics: list[Tensor] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Boolean masks (True survives), in the order and shapes of `prunable_layers(model)`.

    keep: the surviving fraction, in [0, 1]: one for all layers, or one per layer. Of n weights
        exactly round(keep · n) survive; ties go to weights that are not zero yet, then to the
        lower index.
    scope: "layer" ranks each layer by itself. "global" makes one ranking over all layers, each
        layer's scores (|w| for MP, squared distortion for LAP) divided by their Frobenius norm.
    data: a `Data`, for the data-dependent methods (lap_act, obd, obd_lap), unless their
        `statistics` (see `lapnb.statistics`) are at hand already.
    seed: for the random scores of rp.

    The model is not changed. Raises ValueError naming the argument, or the module that cannot be
    handled.

    >>> import lapnb
    >>> model = lapnb.build_model("fcn", seed=0)
    >>> masks = lapnb.prune_masks(model, "lap", keep=0.1)
    >>> [int(mask.sum()) for mask in masks]
    [39200, 25000, 25000, 25000, 500]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if scope not in ("layer", "global"):
        raise ValueError(f'scope must be "layer" or "global", got {scope!r}')
    layers, criterion = prunable_layers(model), METHODS[method]
    fractions = _fractions(keep, len(layers), scope)
    if scope == "global" and criterion.order:
        raise ValueError(f"method {method} prunes layer after layer, so it has no global scope")
    weights = _weights(model, layers, method, data, statistics, seed)
    if scope == "global":
        return _global_masks(layers, weights, criterion, fractions[0])
    order = range(len(layers))
    masks: list = [None] * len(layers)
    for i in reversed(order) if criterion.order == "backward" else order:
        score = _score(layers, weights, i, criterion)
        masks[i] = keep_largest(score, round(fractions[i] * score.numel()), layers[i].weight)
        if criterion.order:
            weights[i] = weights[i] * masks[i]
    return masks


def keep_largest(score: Tensor, count: int, weight: Tensor | None = None) -> Tensor:
    """Mask of the `count` largest entries of `score`; ties go to the lower index.

    But first to entries of `weight` that are not zero: what was pruned earlier does not come back
    for a weight that scores 0 because its neighbours are gone.
    """
    flat = score.flatten()
    if not torch.stack(flat.aminmax()).isfinite().all():  # one pass: NaN is passed on to both
        raise ValueError("scores must be finite: the network's weights hold NaN or infinity")
    if count in (0, score.numel()):
        return torch.full_like(score, count > 0, dtype=torch.bool)
    threshold = _kth_smallest(flat, flat.numel() - count + 1)
    mask = flat >= threshold
    if surplus := int(mask.count_nonzero()) - count:
        ties = (flat == threshold).nonzero().flatten()
        if weight is not None:
            ties = ties[(weight.flatten()[ties] == 0).int().argsort(stable=True)]
        mask[ties[-surplus:]] = False
    return mask.view(score.shape)


def _kth_smallest(flat: Tensor, k: int) -> Tensor:
    if flat.is_cuda:
        return flat.kthvalue(k).values
    # NumPy's partition is several times faster than torch.kthvalue on a CPU
    import numpy as np

    return torch.tensor(np.partition(flat.numpy(), k - 1)[k - 1])


@torch.no_grad()
def apply_masks(model: nn.Module, masks: list[Tensor]) -> None:
    """Zero the weights outside the masks, in place. ValueError when they do not fit the model."""
    layers = prunable_layers(model)
    if not isinstance(masks, list | tuple) or not all(isinstance(m, Tensor) for m in masks):
        raise ValueError(f"masks must be a list of boolean tensors, got {type(masks).__name__}")
    if len(masks) != len(layers):
        raise ValueError(f"masks must be one per prunable layer ({len(layers)}), got {len(masks)}")
    for layer, mask in zip(layers, masks, strict=True):
        if mask.shape != layer.weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {layer.name} must be boolean of shape {tuple(layer.weight.shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
    for layer, mask in zip(layers, masks, strict=True):
        # not a product with the mask: that would leave -0.0, and NaN where a weight is infinite
        layer.weight.masked_fill_(~mask.to(layer.weight.device), 0)


def surviving(masks: list[Tensor]) -> float:
    """The fraction of prunable weights that survive."""
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def to_torch_prune(model: nn.Module, masks: list[Tensor]) -> nn.Module:
    """Attach the masks in the form of `torch.nn.utils.prune` (weight_orig, weight_mask); permanent.

    For those who go on with PyTorch's own tools: `prune.is_pruned(model)` is then true, weights
    outside the masks are zero in every forward pass, and `prune.remove` folds the masks in.
    """
    from torch.nn.utils import prune

    apply_masks(model, masks)
    for layer, mask in zip(prunable_layers(model), masks, strict=True):
        prune.custom_from_mask(layer.module, "weight", mask.to(layer.weight.device))
    return model


def _score(layers: list[Layer], weights: list[Tensor], i: int, criterion: Method) -> Tensor:
    around = whole_network if criterion.whole else neighbours
    return criterion.score(weights[i], *around(layers, weights, i))


def _global_masks(layers, weights, criterion, fraction) -> list[Tensor]:
    sizes = [w.numel() for w in weights]
    flat = torch.empty(sum(sizes), dtype=weights[0].dtype, device=weights[0].device)
    for i, part in enumerate(flat.split(sizes)):
        score = _score(layers, weights, i, criterion).flatten() ** criterion.power
        torch.div(score, torch.linalg.vector_norm(score).clamp(min=1e-30), out=part)
    dense = torch.cat([layer.weight.flatten() for layer in layers])
    parts = keep_largest(flat, round(fraction * flat.numel()), dense).split(sizes)
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def _weights(model, layers, method, data, statistics, seed) -> list[Tensor]:
    """The tensors that the criterion ranks (see `Method.weights`), never the model's own."""
    kind = METHODS[method].weights
    weights = [layer.weight.detach() for layer in layers]
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        # times w ≠ 0: what an earlier round has pruned does not return
        return [torch.rand(w.shape, generator=generator).to(w.device) * (w != 0) for w in weights]
    if kind in ("active", "curved"):
        from lapnb.pruning import saliency as stats

        if statistics is None:
            if data is None:
                raise ValueError(f"method {method} depends on data: pass data=lapnb.load_data(…)")
            statistics = stats.statistics(model, kind, data, seed=seed)
        return [s.to(w) * w for s, w in zip(statistics, weights, strict=True)]
    return weights


def _fractions(keep, count: int, scope: str) -> list[float]:
    single = isinstance(keep, Real)
    if not single and scope == "global":
        raise ValueError('keep must be one fraction when scope="global", got one per layer')
    fractions = [keep] * count if single else list(keep) if isinstance(keep, Iterable) else []
    if len(fractions) != count:
        raise ValueError(f"keep must be one fraction or {count}, one per layer; got {keep!r}")
    for fraction in fractions:
        if not (isinstance(fraction, Real) and 0 <= fraction <= 1):
            raise ValueError(f"keep must lie in [0, 1], got {fraction!r}")
    return fractions
