"""From scores to boolean masks, and masks on weights and gradients."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from lapnb.checks import require, require_whole
from lapnb.pruning.chains import chain_fault, chain_layers, neighbours
from lapnb.pruning.data_statistics import backpack_modules, data_statistics, to_exact_device
from lapnb.pruning.flow import flow
from lapnb.pruning.layers import Layer, modules_by_name, prunable_layers
from lapnb.pruning.linear_product import check_linear, whole_network
from lapnb.pruning.scores import METHODS, Method

# Modules with weights that are no layers here
OTHER_KINDS = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.Bilinear,
)


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
            neighbours are the layers defined next to each, dense ones too, which is known of this
            project's own networks only.
        batches: (images, labels) for the methods that look at data, as `data_statistics` takes
            them, unless that function's result is at hand as `statistics`. Lookahead methods count
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
    criterion = METHODS[method]
    fractions = _fractions(keep, len(layers), scope)
    require_whole("seed", seed, 0, 2**63 - 1)
    if criterion.neighbours == "flow" and example is None:
        raise ValueError(f"method {method} follows the data: pass example=, a batch of inputs")
    if criterion.looks_at and statistics is None:
        if batches is None:
            raise ValueError(f"method {method} looks at data: pass batches= of (images, labels)")
        statistics = data_statistics(model, criterion.looks_at, batches)
    with torch.inference_mode(False), torch.no_grad():
        scores = _Scores(model, layers, criterion, example, statistics, seed)
        if scope == "global":
            masks = _rank_over_all(scores, fractions[0])
        else:
            masks = _rank_within_layers(scores, fractions)
    for message in [*scores.warnings, *_stay_dense(model, layers)]:
        warnings.warn(message, stacklevel=2)
    return masks


def check_method(
    model: nn.Module, method: str, scope="layer", example=None, statistics=None
) -> list[Layer]:
    """Return the layers that `prune_masks` would prune, without numbers of weights or data.

    Raises:
        ValueError: as `prune_masks`, as far as that can be known beforehand.
    """
    require(method in [*METHODS], "method", f"one of {', '.join(METHODS)}", method)
    require(scope in ("layer", "global"), "scope", '"layer" or "global"', scope)
    layers = prunable_layers(model)
    criterion = METHODS[method]
    in_rows = criterion.within == "row"
    if scope == "global" and (criterion.order or in_rows):
        parts = "within each output unit" if in_rows else "layer after layer"
        raise ValueError(f"method {method} prunes {parts}, so it has no global scope")
    for layer in layers:
        if in_rows and layer.transposed:  # its rows are not its output units
            raise ValueError(f"method {method} cannot rank within units of {layer.name}")
    if _in_order(criterion, example):
        chain = chain_layers(model)
        if fault := chain_fault(model, chain):
            raise ValueError(fault)
        if criterion.neighbours == "all":
            check_linear(chain)
    if criterion.looks_at == "curvature" and statistics is None:
        backpack_modules(model)
    return layers


def _in_order(criterion: Method, example) -> bool:
    """Whether the order of definition says which layers are neighbours."""
    chain = criterion.neighbours == "chain" and example is None
    return chain or criterion.neighbours == "all"


def _stay_dense(model: nn.Module, layers: list[Layer]) -> Iterator[str]:
    """What to say of modules with weights that cannot be pruned."""
    modules = [module for _, module in modules_by_name(model)]
    kinds = {type(module).__name__ for module in modules if isinstance(module, OTHER_KINDS)}
    if kinds:
        prunable = sum(layer.weight.numel() for layer in layers)
        total = sum(parameter.numel() for parameter in model.parameters())
        names = ", ".join(sorted(kinds))
        yield f"left dense: {names}; {prunable:,} of {total:,} parameters can be pruned"


class _Scores:
    """The scores of each layer, and what they are computed from.

    chain: the layers in whose order `weights` are: all of a chain, else the prunable ones.
    weights: what is ranked, and the weights of layers that stay dense.
    data: what the criterion knows of the data for each prunable layer; 1 without.
    warnings: what to say at the end.
    """

    def __init__(self, model, layers: list[Layer], criterion: Method, example, statistics, seed):
        self.model = model
        self.layers = layers
        self.criterion = criterion
        self.example = example
        self.warnings: list[str] = []
        self.flow: list | None = None
        self.values = [to_exact_device(layer.values) for layer in layers]
        self.data = [values.new_ones(()) for values in self.values]
        ranked = self.values
        if criterion.random:
            ranked = _noise(self.values, seed)
        if criterion.looks_at:
            self.data = _expanded(statistics, self.values)
            if criterion.neighbours:
                ranked = [numbers * w for numbers, w in zip(self.data, ranked, strict=True)]
        self.chain = chain_layers(model) if _in_order(criterion, example) else layers
        modules = [layer.module for layer in self.chain]
        self.places = [modules.index(layer.module) for layer in layers]
        self.weights = [to_exact_device(layer.values) for layer in self.chain]
        for place, weight in zip(self.places, ranked, strict=True):
            self.weights[place] = weight
        unit = _unit(self.weights)
        if self._follows_data() and unit != 1:
            # Other neighbours are not rescaled, so squares of these need a wider range
            self.weights = [weight.double() for weight in self.weights]
        elif unit != 1:
            self.weights = [weight / unit for weight in self.weights]

    def _follows_data(self) -> bool:
        return self.criterion.neighbours != "" and not _in_order(self.criterion, self.example)

    def of(self, i: int) -> Tensor | None:
        """The scores of layer i; None where the data does not reach it."""
        factors = self._factors(i)
        if factors is None:  # flow has warned
            return None
        score = self.criterion.score(self.weights[self.places[i]], *factors)
        largest = score.max()  # NaN if any is
        name = self.layers[i].name
        if not largest.isfinite():
            raise ValueError(f"scores must be finite, but weights or data of {name} are not")
        if not largest:
            self.warnings.append(f"{name}: all scores are 0, lowest indices are kept")
        return score

    def _factors(self, i: int) -> tuple[Tensor, Tensor] | None:
        """`before` and `after` of layer i."""
        if not self.criterion.neighbours:
            return self.data[i], self.data[i].new_ones(())
        if self.criterion.neighbours == "all":
            return whole_network(self.weights, self.places[i])
        if not self._follows_data():
            return neighbours(self.chain, self.weights, self.places[i])
        if self.flow is None or self.criterion.order:
            self.flow = flow(self.model, self.example, self.layers, self.weights)
        if self.flow[i] is None:
            return None
        before, after = (factor.to(self.weights[i]) for factor in self.flow[i])
        return before / _unit([before]), after / _unit([after])

    def prune(self, i: int, mask: Tensor) -> None:
        """Let the layers that follow see layer i pruned."""
        place = self.places[i]
        self.weights[place] = self.weights[place] * mask


def _rank_within_layers(scores: _Scores, fractions: list[float]) -> list[Tensor]:
    criterion = scores.criterion
    pick = keep_in_rows if criterion.within == "row" else keep_largest
    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in scores.layers]
    numbers = list(range(len(masks)))
    if criterion.order == "backward":
        numbers.reverse()
    for i in numbers:
        score = scores.of(i)
        if score is None:
            continue
        mask = pick(score, round(fractions[i] * score.numel()), scores.values[i])
        if criterion.order:
            scores.prune(i, mask)
        masks[i] = mask.to(masks[i].device)
    return masks


def _rank_over_all(scores: _Scores, fraction: float) -> list[Tensor]:
    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in scores.layers]
    compared = {}
    for i in range(len(masks)):
        score = scores.of(i)
        if score is not None:
            compared[i] = _comparable(score.flatten(), scores.criterion)
    if not compared:
        return masks
    flat = torch.cat([*compared.values()])
    values = [scores.values[i] for i in compared]
    mask = keep_largest(flat, round(fraction * len(flat)), *values)
    parts = mask.split([len(score) for score in compared.values()])
    for i, part in zip(compared, parts, strict=True):
        masks[i] = part.view_as(masks[i]).to(masks[i].device)
        if not part.any():
            scores.warnings.append(f"the global ranking leaves {scores.layers[i].name} empty")
    return masks


def keep_largest(score: Tensor, count: int, *weights: Tensor) -> Tensor:
    """Mask of the `count` largest entries of `score`, which belong to the entries of `weights`.

    Ties go to weights not yet zero (what was pruned does not return), then to the lower index.
    """
    flat = score.flatten()
    rank = len(flat) - count
    if count == 0 or rank == 0:
        return torch.full_like(score, count > 0, dtype=torch.bool)
    if flat.is_cuda:
        threshold = flat.kthvalue(rank + 1).values
    else:
        values = flat.clone().numpy()  # NumPy's partition is several times faster than kthvalue
        values.partition(rank)
        threshold = float(values[rank])
    mask = flat >= threshold
    surplus = int(mask.count_nonzero()) - count
    if surplus:
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
    """Zero the weights outside the masks, in place.

    Raises:
        ValueError: when the masks do not fit the model.
    """
    zero(fitting(model, masks))


@dataclass
class MaskHandle:
    """Ends what it was returned for."""

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
    those of its weights that are outside. With several optimizers call it once for each.

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
    """
    pairs = fitting(model, masks)
    is_hooked = getattr(getattr(type(optimizer), "step", None), "hooked", False)
    is_optimizer = isinstance(optimizer, torch.optim.Optimizer) and is_hooked
    allowed = "a torch.optim.Optimizer that steps prunable weights of the model, no wrapper of one"
    usable = is_optimizer and _held(pairs, optimizer) != []
    require(usable, "optimizer", allowed, type(optimizer).__name__)
    held = [layer.name for layer, _ in _held(pairs, optimizer)]
    outside = [x.name for x, _ in pairs if x.weight.requires_grad and x.name not in held]
    if outside:
        names = ", ".join(outside)
        warnings.warn(f"optimizer does not step {names}: not kept at zero by it", stacklevel=2)
    zero(pairs)
    handle = mask_gradients(pairs)
    before = optimizer.register_step_pre_hook(lambda *_: zero_gradients(_held(pairs, optimizer)))
    after = optimizer.register_step_post_hook(lambda *_: zero(_held(pairs, optimizer)))
    handle.hooks += [before, after]
    return handle


def _held(pairs: list[tuple[Layer, Tensor]], optimizer) -> list[tuple[Layer, Tensor]]:
    """The layers, with their masks, whose weights an optimizer steps."""
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [(layer, mask) for layer, mask in pairs if id(layer.weight) in ids]


def mask_gradients(pairs: list[tuple[Layer, Tensor]]) -> MaskHandle:
    """Mask the gradients of layers, as `fitting` pairs them with masks, when they are computed."""
    zero_gradients(pairs)
    trained = [(layer.weight, mask) for layer, mask in pairs if layer.weight.requires_grad]
    return MaskHandle([_mask_gradient(weight, mask) for weight, mask in trained])


def _mask_gradient(weight: Tensor, mask: Tensor) -> RemovableHandle:
    pruned = ~mask.to(weight.device)
    return weight.register_hook(lambda gradient: gradient.masked_fill(pruned, 0))


@torch.no_grad()
def zero_gradients(pairs: list[tuple[Layer, Tensor]]) -> None:
    """Zero what gradients there are outside the masks."""
    for layer, mask in pairs:
        gradient = layer.weight.grad
        if gradient is not None:
            gradient.masked_fill_(~mask.to(gradient.device), 0)


@torch.no_grad()
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
    """Attach masks as `torch.nn.utils.prune` does (weight_orig, weight_mask); zeroes weight_orig.

    For PyTorch's own tools. Until `prune.remove` folds them in, functions here refuse the model.

    Returns:
        The model itself.

    Raises:
        ValueError: when the masks do not fit the model.
    """
    pairs = fitting(model, masks)
    zero(pairs)
    for layer, mask in pairs:
        prune.custom_from_mask(layer.module, "weight", mask.to(layer.weight.device))
    return model


def fitting(model: nn.Module, masks: list[Tensor]) -> list[tuple[Layer, Tensor]]:
    """Return each prunable layer with its mask; ValueError when they do not fit."""
    layers = prunable_layers(model)
    is_list = isinstance(masks, list | tuple)
    allowed = f"one per prunable layer ({len(layers)})"
    require(is_list and len(masks) == len(layers), "masks", allowed, _briefly(masks))
    pairs = list(zip(layers, masks, strict=True))
    for layer, mask in pairs:
        shape = layer.values.shape
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and not mask.is_meta
        allowed = f"a bool tensor of shape {tuple(shape)}"
        fits = is_mask and mask.shape == shape
        require(fits, f"mask of {layer.name}", allowed, _briefly(mask))
    return pairs


def _briefly(masks) -> str:
    """What messages say of masks that do not fit."""
    if isinstance(masks, Tensor):
        return f"{masks.dtype} of shape {tuple(masks.shape)} on {masks.device}"
    return f"{len(masks)}" if isinstance(masks, list | tuple) else type(masks).__name__


def _noise(weights: list[Tensor], seed: int) -> list[Tensor]:
    """Random numbers where weights are not 0: what an earlier round has pruned does not return."""
    generator = torch.Generator("cpu").manual_seed(int(seed))
    kind = dict(dtype=torch.float32, device="cpu", generator=generator)
    return [torch.rand(w.shape, **kind).to(w) * (w != 0) for w in weights]


def _expanded(statistics, weights: list[Tensor]) -> list[Tensor]:
    """What a criterion knows of the data, in the shapes of the weights."""
    try:
        pairs = zip(statistics, weights, strict=True)
        return [numbers.to(w).expand_as(w) for numbers, w in pairs]
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"statistics must be a tensor per layer, in shape: {error}") from error


def _unit(tensors: list[Tensor]) -> float:
    """A power of two near the largest value; 1 where products neither under- nor overflow."""
    largest = max(abs(float(value)) for x in tensors for value in x.aminmax())
    if 0.01 < largest < 100:
        return 1.0
    return 2.0 ** max(math.frexp(largest)[1], -126)


def _comparable(score: Tensor, criterion: Method) -> Tensor:
    """What the global ranking compares."""
    if not criterion.normalised:
        return score**criterion.power
    score = (score / _unit([score])) ** criterion.power
    return score / torch.linalg.vector_norm(score).clamp(min=1e-30)


def _fractions(keep, layers: int, scope: str) -> list[float]:
    """The surviving fraction of each layer; in global scope the only one."""
    count = layers if scope == "layer" else 1
    try:
        fractions = torch.as_tensor(keep, dtype=torch.double, device="cpu").expand(count).tolist()
    except (TypeError, ValueError, RuntimeError):
        fractions = [math.nan]
    allowed = "a number in [0, 1] in global scope"
    if scope == "layer":
        allowed = f"a number in [0, 1] or {count} of them, one per layer"
    require(all(0 <= fraction <= 1 for fraction in fractions), "keep", allowed, keep)
    return fractions
