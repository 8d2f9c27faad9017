"""Lookahead pruning (Park et al., ICLR 2020), reproduced: see README.md and notebooks/."""

from importlib import metadata

from lapnb.paper.tables import table
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import apply_masks, keep_masks, prune_masks, to_torch_prune
from lapnb.report.compare import caption, compare, paired, verdicts
from lapnb.report.plots import plot, scatter
from lapnb.report.show import show
from lapnb.runs.run import recorded, run
from lapnb.training.data import Data, load_data
from lapnb.training.networks import build_model
from lapnb.training.train import evaluate, train

__version__ = metadata.version("lapnb")
__all__ = [
    "Data",
    "apply_masks",
    "build_model",
    "caption",
    "compare",
    "evaluate",
    "keep_masks",
    "load_data",
    "paired",
    "plot",
    "prunable_layers",
    "prune_masks",
    "recorded",
    "run",
    "scatter",
    "show",
    "table",
    "to_torch_prune",
    "train",
    "verdicts",
]
