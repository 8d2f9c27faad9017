"""Look at a network pruned by two methods, before retraining: a picture, and controls for it."""

import copy
import os
import warnings
from functools import cache, lru_cache
from numbers import Real
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from lapnb.checks import require
from lapnb.paper.tables import table
from lapnb.progress import Progress
from lapnb.pruning.chains import neighbours
from lapnb.pruning.data_statistics import data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.report.compare import published, short
from lapnb.report.plots import COLOURS, STYLE, canvas
from lapnb.runs.compute import dense_network
from lapnb.runs.task import Task
from lapnb.training.checkpoint import load_checkpoint
from lapnb.training.data import Data, load_data
from lapnb.training.train import evaluate

# Each network is the dense one (seed 0) of a table.
NETWORKS = {"fcn": "fcn_mnist", "conv6": "conv6_cifar10"}
NETWORKS |= {name: f"{name}_cifar10" for name in ("vgg11", "vgg16", "vgg19", "resnet18")}
SCOPES = {"layer": "layer-wise", "global": "global"}
EFFECTS = ["surviving weights (%)", "distortion of the layer (%)"]
EFFECTS += ["the same with its neighbours (%)"]


def effects(model: nn.Module, masks: list[Tensor]) -> pd.DataFrame:
    """What masks leave and lose in percent, the columns `EFFECTS`, one row per prunable layer.

    The distortion of a layer is ‖W̃ − W‖_F / ‖W‖_F, which MP makes as small as it can; with its
    neighbours, the same with each weight multiplied by the norms of its neighbours, so the root of
    the lost share of Σ L(w)², which LAP makes as small as it can.
    """
    layers, rows = prunable_layers(model), []
    weights = [layer.weight.detach() for layer in layers]
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        before, after = neighbours(layers, weights, i)
        scores = weight, weight * before * after
        lost = [(score * ~mask).norm() / score.norm().clamp(min=1e-30) for score in scores]
        rows.append([100 * float(share) for share in (mask.double().mean(), *lost)])
    return pd.DataFrame(rows, range(1, len(rows) + 1), EFFECTS).rename_axis("layer")


def panel(
    network="fcn", method="lap", scope="layer", keep=0.1, checkpoint="", dataset=None, beside="mp"
):
    """A network pruned in one shot by `beside` and by `method`, not retrained; a Figure.

    Accuracy, the first layer's masks, and each layer's survival and distortion (`effects`), when
    the fraction `keep` survives. The network is our own of the quick scale, trained on first use
    and then cached, or your `checkpoint`; `dataset` is that scale's own unless named. Raises
    ValueError or FileNotFoundError, in one sentence.
    """
    import seaborn

    _check(network, method, beside, scope, keep, checkpoint)
    path = Path(checkpoint.strip()).expanduser()
    chosen = network, dataset, path, tuple(path.stat()) if path.is_file() else ()
    data, dense, accuracy, known = _network(*chosen)
    bars, masks, found = {"dense": accuracy}, {}, {}
    for name in dict.fromkeys((beside, method)):
        criterion = METHODS[name]
        example = data.normalise(data.test_images[:1]) if criterion.neighbours == "flow" else None
        looked = known(criterion.looks_at)
        with warnings.catch_warnings(action="ignore"):  # of empty layers: one sees them
            masks[name] = prune_masks(dense, name, keep, scope, example, statistics=looked)
        apply_masks(pruned := copy.deepcopy(dense), masks[name])
        bars[short(name)] = evaluate(pruned, data)[1]
        found[name] = effects(dense, masks[name])
    style = STYLE | {"axes.grid": False, "font.size": 9, "axes.titlesize": 9}
    bare = {"xticklabels": False, "yticklabels": False}
    with canvas(2, 3, style, figsize=(9.6, 5.2)) as (figure, axes):
        figure.suptitle(
            f"{path.name or network}, {SCOPES[scope]}: {100 * surviving(masks[method]):.3g} % of "
            f"{sum(mask.numel() for mask in masks[method]):,} weights survive ({data.source})"
        )
        shown = pd.Series(bars).plot.barh(ax=axes[0, 0], color=["0.6", *map(COLOURS.get, masks)])
        shown.bar_label(shown.containers[0], fmt="%.1f", padding=3)
        shown.set(title="test accuracy before retraining (%)", xlim=(0, 118))
        for axis, name in zip(axes[0, 1:], (beside, method), strict=True):
            picture, place = _survivors(masks[name][0], data)
            seaborn.heatmap(picture, ax=axis, square=True, vmin=0, cmap="viridis", **bare)
            axis.set_title(f"{short(name)}, first layer:\nsurvivors per {place}")
        look = {"hue": "method", "palette": COLOURS, "saturation": 1, "legend": False}
        layers = pd.concat(found, names=["method"]).reset_index()
        for axis, column in zip(axes[1], EFFECTS, strict=True):
            seaborn.barplot(layers, x="layer", y=column, ax=axis, **look)
            axis.set(title=column, ylabel="")
        if scope == "global":
            axes[1, 0].set_yscale("log")
    return figure


def _check(network, method, beside, scope, keep, checkpoint) -> None:
    choices = {"network": (network, NETWORKS), "scope": (scope, SCOPES)}
    choices |= {"method": (method, METHODS), "beside": (beside, METHODS)}
    for name, (given, allowed) in choices.items():
        require(given in [*allowed], name, f"one of {', '.join(allowed)}", given)
    right = isinstance(keep, Real) and 0 <= keep <= 1
    require(right, "keep", "a number in [0, 1]", keep)
    require(isinstance(checkpoint, str), "checkpoint", "a string", checkpoint)


def controls(
    dataset=None, network="fcn", method="lap", scope="layer", keep=0.1, checkpoint="", beside="mp"
):
    """`panel` under dropdowns, a slider and a path; redrawn when one of them has changed.

    The slider stops at the paper's surviving fractions too. It starts at the arguments. Where
    progress bars are off (TQDM_DISABLE: reports, tests, committed outputs) nobody can move a
    slider, and a line is printed in its place.
    """
    _check(network, method, beside, scope, keep, checkpoint)
    if os.environ.get("TQDM_DISABLE"):
        return print("The controls need a browser: open this notebook in JupyterLab.")
    from IPython.display import Pretty, display
    from ipywidgets import Dropdown, Output, SelectionSlider, Text, VBox

    paper = {*published().surviving_pct / 100}
    stops = sorted(paper | {keep, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5})
    stops = [(f"{100 * stop:.3g} %{', in the paper' * (stop in paper)}", stop) for stop in stops]
    methods = [(criterion.title, name) for name, criterion in METHODS.items()]
    late = {"continuous_update": False, "layout": {"width": "28rem"}}
    choice = {
        "network": Dropdown(options=[*NETWORKS], value=network),
        "beside": Dropdown(options=methods, value=beside),
        "method": Dropdown(options=methods, value=method),
        "scope": Dropdown(options=[(title, name) for name, title in SCOPES.items()], value=scope),
        "keep": SelectionSlider(options=stops, value=keep, **late),
        "checkpoint": Text(
            checkpoint, placeholder="path of your own state_dict (optional)", **late
        ),
    }
    output = Output()

    def drawn():
        try:
            return panel(**{name: widget.value for name, widget in choice.items()}, dataset=dataset)
        except (ValueError, OSError, RuntimeError) as error:
            return Pretty(" ".join(str(error).split()))

    @output.capture(clear_output=True, wait=True)
    def redraw(_):
        display(drawn())

    for name, widget in choice.items():
        widget.description = name
        widget.observe(redraw, "value")
    # Not `redraw`: an output that captures sometimes leaves papermill waiting for ever.
    output.append_display_data(drawn())
    return VBox([*choice.values(), output])


def _survivors(mask: Tensor, data: Data) -> tuple[Tensor, str]:
    """A picture of how many weights of the first layer survive, and per what."""
    from torchvision.utils import make_grid

    if mask.ndim == 2:
        return mask.sum(0).view(data.test_images.shape[1:]).sum(0), "pixel"
    tiles = mask.sum(1, keepdim=True).float()  # one per kernel, summed over input channels
    grid = make_grid(tiles, round(len(tiles) ** 0.5), padding=1, pad_value=float("nan"))
    return grid[0], "kernel position"


@lru_cache(maxsize=8)
def _network(network, dataset, path, written) -> tuple:
    """Data, dense network, its accuracy (%), and what it must know of the data, by kind.

    `written` tells versions of one file apart.
    """
    declared = table(NETWORKS[network], "quick", dataset=dataset, device="cpu")
    data = load_data(declared.dataset, declared.image_size, declared.channels)
    if path.name:
        model = load_checkpoint(path, network, data)
    else:
        task = Task(declared, data.source, seed=0)
        with Progress(task.steps, f"dense {network}", delay=1) as bar:
            model, _ = dense_network(task, data, bar.at)
    known = cache(lambda kind: data_statistics(model, kind, data.batches(10, 60)) if kind else None)
    return data, model, evaluate(model, data)[1], known
