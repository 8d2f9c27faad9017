"""Lookahead pruning (Park et al., ICLR 2020), reproduced: see README.md and notebooks/."""

from lapnb.paper.tables import table
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import apply_masks, prune_masks, to_torch_prune
from lapnb.report.compare import caption, compare, paired, plot, scatter, verdicts
from lapnb.runs.run import recorded, run
from lapnb.training.data import load_data
from lapnb.training.networks import build_model
from lapnb.training.train import evaluate, train

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
