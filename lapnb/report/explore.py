"""Look at a network pruned by two methods, before retraining: a picture, and controls for it."""

import copy
import os
import warnings
from functools import cache, lru_cache
from numbers import Real

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
from lapnb.report.compare import published
from lapnb.report.plots import COLOURS, WIDTH, canvas, finish
from lapnb.report.words import short
from lapnb.runs.compute import dense_network
from lapnb.runs.task import Task
from lapnb.training.data import Data, load_data
from lapnb.training.train import evaluate

# Each network is the dense one (seed 0) of a table.
NETWORKS = {"fcn": "fcn_mnist", "conv6": "conv6_cifar10"}
NETWORKS |= {name: f"{name}_cifar10" for name in ("vgg11", "vgg16", "vgg19", "resnet18")}
SCOPES = {"layer": "layer-wise", "global": "global"}
EFFECTS = ["surviving weights (%)", "distortion (%)", "distortion with neighbours (%)"]
BROWSERS = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")  # set where somebody looks on


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


def panel(network="fcn", method="lap", scope="layer", keep=0.1, dataset=None, beside="mp"):
    """Draw a network pruned in one shot by two methods, not retrained.

    The heading says what is left of the accuracy. Below it are the survivors of the first layer,
    by method and their difference, then each layer's survivors and distortion (`effects`).

    Args:
        network: a name of `NETWORKS`, trained at the quick scale on first use and then cached.
        method: a criterion, a name of `METHODS`.
        scope: "layer" or "global".
        keep: the fraction of the prunable weights that survives.
        dataset: what the network is trained on; None for the quick scale's own.
        beside: the criterion that `method` is compared with.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if a parameter has no such value, or the method does not fit the network.
    """
    import seaborn

    _check(
        network,
        method,
        beside,
        scope,
        keep,
    )
    data, dense, accuracy, statistics = _network(network, dataset)
    told = [f"dense {accuracy:.1f}"]
    masks, lost, colours = {}, {}, {}
    for name in dict.fromkeys((beside, method)):
        criterion = METHODS[name]
        example = data.normalise(data.test_images[:1]) if criterion.neighbours == "flow" else None
        known = statistics(criterion.looks_at)
        with warnings.catch_warnings(action="ignore"):  # of empty layers: one sees them
            masks[name] = prune_masks(
                dense,
                name,
                keep,
                scope,
                example,
                statistics=known,
            )
        apply_masks(pruned := copy.deepcopy(dense), masks[name])
        told.append(f"{short(name)} {evaluate(pruned, data)[1]:.1f}")
        lost[short(name)] = effects(dense, masks[name])
        colours[short(name)] = COLOURS[name]
    count = sum(mask.numel() for mask in masks[method])
    heading = f"Accuracy: {', '.join(told)} %\n{network}, {SCOPES[scope]}, not retrained: "
    heading += f"{100 * surviving(masks[method]):.3g} % of {count:,} weights"
    sizes = {"figsize": (WIDTH, 5), "height_ratios": [1.3, 1, 1, 1]}
    with canvas(4, 3, **sizes) as (figure, axes):
        draw_masks(
            axes[0],
            [masks[beside][0], masks[method][0]],
            [beside, method],
            data,
        )
        layers = pd.concat(lost, names=["method"]).reset_index()
        look = {
            "hue": "method",
            "palette": colours,
            "saturation": 1,
        }
        for row, column in enumerate(EFFECTS, 1):
            for axis in axes[row]:
                axis.remove()
            axis = figure.add_subplot(axes[row, 0].get_gridspec()[row, :])
            seaborn.barplot(
                layers,
                x="layer",
                y=column,
                ax=axis,
                **look,
            )
            axis.get_legend().remove()
            axis.set(title=column, ylabel="", xlabel="layer" if row == 3 else "")
            if scope == "global" and row == 1:
                axis.set_yscale("log")
        return finish(figure, heading, data.source)


def draw_masks(axes, masks: list[Tensor], names: list[str], data: Data) -> None:
    """Draw what two masks of a layer leave, and the second minus the first."""
    import seaborn

    one, other = (_survivors(mask, data) for mask in masks)
    most = float(max(one.nan_to_num().max(), other.nan_to_num().max()))
    apart = float((other - one).nan_to_num().abs().max()) or 1
    first, second = map(short, names)
    panels = [
        (first, one, "viridis", 0, most),
        (second, other, "viridis", 0, most),
        (f"{second} − {first}", other - one, "vlag", -apart, apart),
    ]
    bar = {"location": "bottom", "shrink": 0.8}
    bare = {
        "square": True,
        "xticklabels": False,
        "yticklabels": False,
        "cbar_kws": bar,
    }
    for axis, (title, picture, colours, least, largest) in zip(axes, panels, strict=True):
        seaborn.heatmap(
            picture,
            ax=axis,
            cmap=colours,
            vmin=least,
            vmax=largest,
            **bare,
        )
        axis.set_title(title)
        axis.grid(False)


def _check(network, method, beside, scope, keep) -> None:
    choices = {"network": (network, NETWORKS), "scope": (scope, SCOPES)}
    choices |= {"method": (method, METHODS), "beside": (beside, METHODS)}
    for name, (given, allowed) in choices.items():
        require(
            given in [*allowed],
            name,
            f"one of {', '.join(allowed)}",
            given,
        )
    in_range = isinstance(keep, Real) and 0 <= keep <= 1
    require(
        in_range,
        "keep",
        "a number in [0, 1]",
        keep,
    )


def controls(network="fcn", method="lap", scope="layer", keep=0.1, dataset=None, beside="mp"):
    """`panel` below controls, redrawn when one of them has changed; without a browser, alone.

    The slider stops at the paper's surviving fractions too. The arguments are those of `panel`.
    """
    start = {
        "network": network,
        "method": method,
        "scope": scope,
        "keep": keep,
        "beside": beside,
    }
    _check(**start)
    if not {*BROWSERS} & {*os.environ}:
        return panel(**start, dataset=dataset)
    from IPython.display import display
    from ipywidgets import Dropdown, SelectionSlider, VBox, interactive_output

    paper = {*published().surviving_pct / 100}
    stops = {stop: f"{100 * stop:.3g} %" for stop in (keep, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}
    stops |= {stop: f"{100 * stop:.3g} %, in the paper" for stop in paper}
    options = {
        "network": [*NETWORKS],
        "beside": [(criterion.title, name) for name, criterion in METHODS.items()],
        "method": [(criterion.title, name) for name, criterion in METHODS.items()],
        "scope": [(title, name) for name, title in SCOPES.items()],
    }
    widgets = {
        name: Dropdown(options=choices, value=start[name], description=name)
        for name, choices in options.items()
    }
    slider = [(stops[stop], stop) for stop in sorted(stops)]
    late = {"continuous_update": False, "layout": {"width": "28rem"}}
    widgets["keep"] = SelectionSlider(
        options=slider,
        value=keep,
        description="keep",
        **late,
    )

    def draw(**choice):
        try:
            display(panel(**choice, dataset=dataset))
        except (ValueError, OSError, RuntimeError) as error:
            print(" ".join(str(error).split()))

    return VBox([*widgets.values(), interactive_output(draw, widgets)])


def _survivors(mask: Tensor, data: Data) -> Tensor:
    """How many weights of the first layer survive: per pixel of the input, or kernel position."""
    from torchvision.utils import make_grid

    if mask.ndim == 2:
        return mask.sum(0).view(data.test_images.shape[1:]).sum(0)
    tiles = mask.sum(1, keepdim=True).float()  # one per kernel, summed over input channels
    return make_grid(
        tiles,
        round(len(tiles) ** 0.5),
        padding=1,
        pad_value=float("nan"),
    )[0]


@lru_cache(maxsize=8)
def _network(network, dataset) -> tuple:
    """Data, dense network, its accuracy (%), and a function: statistics of the data, by kind."""
    declared = table(
        NETWORKS[network],
        "quick",
        dataset=dataset,
        device="cpu",
    )
    data = load_data(declared.dataset, declared.image_size, declared.channels)
    task = Task(declared, data.source, seed=0)
    with Progress(task.steps, f"dense {network}", delay=1) as bar:
        model, _ = dense_network(task, data, bar.at)

    @cache
    def statistics(kind: str):
        return data_statistics(model, kind, data.batches(10, 60)) if kind else None

    return data, model, evaluate(model, data)[1], statistics
