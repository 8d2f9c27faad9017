"""Pruning criteria. Each scores every weight of one layer; weights with low scores are pruned.

Lookahead pruning (LAP) scores a weight w from input unit j to output unit k of layer i by the
Frobenius distortion that zeroing it causes in the block of three layers (paper, Section 2):

    L_i(w) = |w| · ‖W_{i−1}[j, :]‖_F · ‖W_{i+1}[:, k]‖_F

`before` holds ‖W_{i−1}[j, :]‖_F and `after` holds ‖W_{i+1}[:, k]‖_F, shaped so that they multiply
the weight tensor (batch norm and convolutions included): `chains.neighbours` makes them for a
chain of layers, `flow.flow` for any network. For a criterion without neighbours `before` is what
`data_statistics` computes for it, or 1, and `after` is 1.

A new criterion is a function here and a line in `METHODS`. If it looks at data in a new way, it is
one more function in `data_statistics.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def mp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w|: magnitude pruning."""
    return weight.abs()


def lfp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w| · after: look-forward pruning, which sees only the next layer."""
    return weight.abs() * after


def lbp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w| · before: look-backward pruning, which sees only the previous layer."""
    return weight.abs() * before


def lap(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w| · before · after: lookahead pruning, which sees both neighbours."""
    return weight.abs() * before * after


def obd(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by sqrt(h) · |w|: optimal brain damage (LeCun et al., NeurIPS 1989).

    `before` is sqrt(h), and h is the diagonal of the loss's Hessian. The square of this score ranks
    as the published h · w² / 2 does.
    """
    return weight.abs() * before


def lamp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by w² / Σ of w′² over the layer's weights with w′² ≥ w²: LAMP (Lee et al., ICLR 2021).

    Within a layer it ranks as |w| does. It is made for the global ranking, without normalisation.
    """
    size = weight.flatten().abs()
    ascending = size.sort().values
    # For each entry, the sum of the squares from it on
    not_smaller = ascending.double().square().flip(0).cumsum(0).flip(0)
    sums = not_smaller[torch.searchsorted(ascending, size)].clamp(min=1e-300)
    return (size.double().square() / sums).view_as(weight).to(weight)


def lamp_lap(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by LAMP with the lookahead distortion L(w) in place of |w|: ours, unpublished."""
    return lamp(lap(weight, before, after), before, after)


def wanda(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w_kj| · ‖X_j‖₂, ranked within each output unit k: Wanda (Sun et al., ICLR 2024).

    `before` is ‖X_j‖₂, the norm of all that input unit j (of a convolution: the channel) receives.
    """
    return weight.abs() * before


def ria(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w_kj| / Σ_k |w_kj| + |w_kj| / Σ_j |w_kj|: relative importance (RIA).

    The method is that of Zhang et al., ICLR 2024. Σ_k runs over all weights that leave input unit
    j, Σ_j over all that enter output unit k, kernel positions included. In a grouped convolution
    the j-th inputs of all groups count as one unit.
    """
    size = weight.abs()
    leaving, entering = ([d for d in range(weight.ndim) if d != unit] for unit in (1, 0))
    tiny = torch.finfo(weight.dtype).tiny  # a unit without weights scores 0
    shares = (size / size.sum(over, keepdim=True).clamp(min=tiny) for over in (leaving, entering))
    return sum(shares)


def ria_act(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by RIA times ‖X_j‖₂^½ (Zhang et al., ICLR 2024); `before` is ‖X_j‖₂."""
    return ria(weight, before, after) * before.sqrt()


def synflow(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score by |w| · ∂R/∂|w|: SynFlow (Tanaka et al., NeurIPS 2020).

    `before` is ∂R/∂|w|, and R is the sum of the outputs of the network with absolute weights for
    an input of ones. Here it is computed once, on the trained network; the published method prunes
    at initialisation and in many small steps, each with scores of its own. Trained biases and
    running means count as 0. On a fully-connected network (no activation or ReLU) it is `lap_all`
    with absolute weights in its products and sums in place of Frobenius norms.
    """
    return weight.abs() * before


@dataclass(frozen=True)
class Method:
    """A criterion and what it is applied to.

    Attributes:
        title: the name in plots and captions.
        score: one of the functions above.
        looks_at: what the criterion must know of the data, a key of `data_statistics.STATISTICS`;
            "" for nothing. With neighbours these numbers multiply all weights first; without, they
            are `before`.
        neighbours: where `before` and `after` come from. "chain": the layers next to it, in the
            order of definition or, with an example, along its flow. "flow": always the flow of an
            example. "all": the products of all layers before and of all layers after. "": it needs
            none.
        order: "" when every layer sees the dense network; "forward" or "backward" when layers are
            pruned one after the other and each sees those already pruned in their pruned form.
        within: what is ranked together: each "layer", or each "row" (output unit) of it.
        power: the power of the score that the global ranking compares: as published, |w| for MP
            and the squared distortion for LAP and OBD.
        normalised: whether the global ranking divides each layer's scores by their Frobenius norm.
        random: whether random numbers replace the weights.
    """

    title: str
    score: Callable[[Tensor, Tensor, Tensor], Tensor]
    looks_at: str = ""
    neighbours: str = ""
    order: str = ""
    within: str = "layer"
    power: int = 1
    normalised: bool = True
    random: bool = False


METHODS = {
    "mp": Method("magnitude (MP)", mp),
    "rp": Method("random (RP)", mp, random=True),
    "lfp": Method("look-forward (LFP)", lfp, neighbours="chain", power=2),
    "lbp": Method("look-backward (LBP)", lbp, neighbours="chain", power=2),
    "lap": Method("lookahead (LAP)", lap, neighbours="chain", power=2),
    "lap_forward": Method("LAP, sequential forward", lap, neighbours="chain", order="forward"),
    "lap_backward": Method("LAP, sequential backward", lap, neighbours="chain", order="backward"),
    "lap_all": Method("whole-network LAP", lap, neighbours="all", power=2),
    "lap_act": Method("LAP-act", lap, "activity", neighbours="chain", power=2),
    "obd": Method("optimal brain damage (OBD)", obd, "curvature", power=2),
    "obd_lap": Method("OBD with LAP", lap, "curvature", neighbours="chain", power=2),
    "lap_flow": Method("LAP, residual-aware", lap, neighbours="flow", power=2),
    "lamp": Method("layer-adaptive magnitude (LAMP)", lamp, normalised=False),
    "lamp_lap": Method("LAMP with LAP", lamp_lap, neighbours="chain", normalised=False),
    "wanda": Method("weights and activations (Wanda)", wanda, "inputs", within="row"),
    "ria": Method("relative importance (RIA)", ria),
    "ria_act": Method("RIA with activations", ria_act, "inputs"),
    "synflow": Method("synaptic flow (SynFlow)", synflow, "ones", normalised=False),
}
