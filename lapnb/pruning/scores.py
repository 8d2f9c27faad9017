"""Pruning criteria. Each scores every weight of one layer; the weights of lowest score are pruned.

Lookahead pruning (LAP) scores a weight w from input unit j to output unit k of layer i by the
Frobenius distortion that zeroing it causes in the block of three layers (paper, Section 2):

    L_i(w) = |w| · ‖W_{i−1}[j, :]‖_F · ‖W_{i+1}[:, k]‖_F

`before` holds ‖W_{i−1}[j, :]‖_F and `after` holds ‖W_{i+1}[:, k]‖_F, shaped so that they multiply
the weight tensor; `chain.neighbours` makes them (batch norm and convolutions included).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def mp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Magnitude pruning."""
    return weight.abs()


def lfp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Look-forward pruning: only the next layer."""
    return weight.abs() * after


def lbp(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Look-backward pruning: only the previous layer."""
    return weight.abs() * before


def lap(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Lookahead pruning: both neighbours."""
    return weight.abs() * before * after


@dataclass(frozen=True)
class Method:
    """A criterion and what it is applied to.

    `weights`: "dense" the weights themselves; "random" noise in their place; "active" each row
    scaled by the square root of the fraction of inputs on which its unit is active; "curved"
    sqrt(h)·|w| with h the Hessian's diagonal, so that its square ranks as h·w²/2 does.
    `order`: "" when every layer sees the dense network; "forward" or "backward" when layers are
    pruned one after the other and each sees the layers already pruned in their pruned form.
    `whole`: the neighbours are all layers before and after, not only the adjacent ones.
    `power`: what the authors rank globally: |w| for MP, squared distortion for the others.
    """

    title: str
    score: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights: str = "dense"
    order: str = ""
    whole: bool = False
    power: int = 2


METHODS = {
    "mp": Method("magnitude (MP)", mp, power=1),
    "rp": Method("random (RP)", mp, weights="random", power=1),
    "lfp": Method("look-forward (LFP)", lfp),
    "lbp": Method("look-backward (LBP)", lbp),
    "lap": Method("lookahead (LAP)", lap),
    "lap_forward": Method("LAP, sequential forward", lap, order="forward"),
    "lap_backward": Method("LAP, sequential backward", lap, order="backward"),
    "lap_all": Method("LAP, whole network", lap, whole=True),
    "lap_act": Method("LAP-act", lap, weights="active"),
    "obd": Method("optimal brain damage (OBD)", mp, weights="curved"),
    "obd_lap": Method("OBD with LAP", lap, weights="curved"),
}
