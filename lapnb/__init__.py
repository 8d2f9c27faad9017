"""Lookahead pruning (Park et al., ICLR 2020), reproduced: see README.md and notebooks/."""

from lapnb.chain import prunable_layers
from lapnb.data import load_data
from lapnb.masks import apply_masks, prune_masks, to_torch_prune
from lapnb.models import build_model
from lapnb.report import caption, compare, paired, plot, scatter, verdicts
from lapnb.runs import recorded, run
from lapnb.tables import table
from lapnb.train import evaluate, train

__all__ = [
    "apply_masks",
    "build_model",
    "caption",
    "compare",
    "evaluate",
    "load_data",
    "paired",
    "plot",
    "prunable_layers",
    "prune_masks",
    "recorded",
    "run",
    "scatter",
    "table",
    "to_torch_prune",
    "train",
    "verdicts",
]


def __dir__() -> list[str]:
    return __all__
