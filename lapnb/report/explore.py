"""Look at a network pruned by two methods, before retraining: a picture, and controls for it."""

import copy
import os
import warnings
from functools import cache

import numpy as np
import pandas as pd
from torch import Tensor, nn

from lapnb.checks import require
from lapnb.paper.tables import table
from lapnb.progress import Progress
from lapnb.pruning.chains import neighbours
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import apply_masks, check_method, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.report.plots import COLOURS, WIDTH, canvas, finish
from lapnb.report.words import short
from lapnb.runs.compute import compute, dense_network
from lapnb.runs.task import Task
from lapnb.training.data import Data, load_data
from lapnb.training.train import evaluate

# Each network is the dense one (seed 0) of a table.
ON_CIFAR10 = ("conv6", "vgg11", "vgg16", "vgg19", "resnet18")
NETWORKS = {"fcn": "fcn_mnist"} | {name: f"{name}_cifar10" for name in ON_CIFAR10}
EFFECTS = ["surviving weights (%)", "distortion (%)", "distortion with neighbours (%)"]
# One of these is set where somebody looks at the output.
BROWSERS = {"JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"}


def effects(model: nn.Module, masks: list[Tensor]) -> pd.DataFrame:
    """Return what masks leave and lose (%), the columns `EFFECTS`, one row per prunable layer.

    The distortion of a layer is ‖W̃ − W‖_F / ‖W‖_F, which MP makes as small as it can. In the
    distortion with neighbours, each weight is multiplied by the norms of its neighbours. It is
    the root of the lost share of Σ L(w)², which LAP makes as small as it can.
    """
    layers = prunable_layers(model)
    weights = [layer.weight.detach() for layer in layers]
    rows = []
    for i, mask in enumerate(masks):
        before, after = neighbours(layers, weights, i)
        shares = [mask.double().mean()]
        for score in (weights[i], weights[i] * before * after):
            shares.append((score * ~mask).norm() / score.norm().clamp(min=1e-30))
        rows.append([100 * float(share) for share in shares])
    return pd.DataFrame(rows, range(1, len(rows) + 1), EFFECTS).rename_axis("layer")


def panel(network="fcn", method="lap", scope="layer", keep=0.1, dataset=None, beside="mp"):
    """Draw a network pruned in one shot by two methods, not retrained.

    The heading says what is left of the accuracy. Below it are the surviving weights of the first
    layer for each method, their difference, and then the `effects` on each layer.

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
    require(network in [*NETWORKS], "network", f"one of {', '.join(NETWORKS)}", network)
    data, dense, accuracy = _dense(network, dataset)
    accuracies = [f"dense {accuracy:.1f}"]
    survivors = {}
    lost = {}
    for name in (beside, method):
        check_method(dense, name, scope)
        example = None
        if METHODS[name].neighbours == "flow":
            example = data.normalise(data.test_images[:1])
        # the warnings are about empty layers, which the picture shows
        with warnings.catch_warnings(action="ignore"):
            masks = prune_masks(dense, name, keep, scope, example, data.batches(10, 60))
        pruned = copy.deepcopy(dense)
        apply_masks(pruned, masks)
        title = short(name)
        accuracies.append(f"{title} {evaluate(pruned, data)[1]:.1f}")
        survivors[title] = _survivors(masks[0], data)
        lost[title] = effects(dense, masks)
    count = sum(mask.numel() for mask in masks)
    heading = f"Accuracy: {', '.join(accuracies)} %\n{network}, {short(scope)}, "
    heading += f"not retrained: {100 * surviving(masks):.3g} % of {count:,} weights"
    one, other = short(beside), short(method)
    colours = [COLOURS[beside], COLOURS[method]]
    with canvas(figsize=(WIDTH, 5.2)) as (figure, _):
        figure.clear()
        axes = figure.subplot_mosaic("abc;000;111;222", height_ratios=[1.5, 1, 1, 1])
        most = max(map(np.nanmax, survivors.values()))
        _draw_survivors(axes["a"], one, survivors[one], "viridis", 0, most)
        _draw_survivors(axes["b"], other, survivors[other], "viridis", 0, most)
        difference = survivors[other] - survivors[one]
        most = np.nanmax(abs(difference)) or 1
        _draw_survivors(axes["c"], f"{other} − {one}", difference, "coolwarm", -most, most)
        for place, effect in enumerate(EFFECTS):
            axis = axes[str(place)]
            bars = pd.concat(lost, axis=1).xs(effect, axis=1, level=1)
            bars.plot.bar(ax=axis, title=effect, color=colours, width=0.8, rot=0, legend=False)
            axis.set_xlabel("")
        axis.set_xlabel("layer")
        if scope == "global":
            axes["0"].set_yscale("log")
        finish(figure, heading, data.source)
    return figure


def _draw_survivors(axis, title: str, picture: np.ndarray, colours: str, low, high) -> None:
    axis.set_title(title)
    axis.axis("off")
    image = axis.imshow(picture, cmap=colours, vmin=low, vmax=high)
    axis.figure.colorbar(image, ax=axis, location="bottom")


def _survivors(mask: Tensor, data: Data) -> np.ndarray:
    """Count the first layer's surviving weights per input pixel, or per position of each kernel."""
    from torchvision.utils import make_grid

    if mask.ndim == 2:
        return mask.sum(0).view(data.test_images.shape[1:]).sum(0).numpy()
    tiles = mask.sum(1, keepdim=True).float()  # one per kernel, summed over input channels
    across = round(len(tiles) ** 0.5)
    return make_grid(tiles, across, padding=1, pad_value=float("nan"))[0].numpy()


def controls(network="fcn", method="lap", scope="layer", keep=0.1, dataset=None, beside="mp"):
    """Return `panel` below controls, redrawn when one of them changes; alone without a browser.

    The arguments are those of `panel`; the slider goes from 0.1 % to 100 %.
    """
    if BROWSERS.isdisjoint(os.environ):
        return panel(network, method, scope, keep, dataset, beside)
    from ipywidgets import Dropdown, FloatLogSlider, interactive

    titles = [(criterion.title, name) for name, criterion in METHODS.items()]
    slider = {"readout_format": ".2%", "continuous_update": False}

    def draw(**choice):
        try:
            return panel(**choice, dataset=dataset)
        except (ValueError, OSError, RuntimeError) as error:
            print(error)

    return interactive(
        draw,
        network=Dropdown(options=[*NETWORKS], value=network),
        beside=Dropdown(options=titles, value=beside),
        method=Dropdown(options=titles, value=method),
        scope=Dropdown(options=["layer", "global"], value=scope),
        keep=FloatLogSlider(keep, min=-3, max=0, step=0.02, **slider),
    )


@cache
def _dense(network: str, dataset: str | None) -> tuple[Data, nn.Module, float]:
    """Return the data, the dense network, and its accuracy (%)."""
    declared = table(NETWORKS[network], "quick", dataset=dataset, device="cpu")
    data = load_data(declared.dataset, declared.image_size, declared.channels)
    task = Task(declared, data.source, seed=0)
    with Progress(task.steps, f"dense {network}", delay=1) as bar:
        compute(task, bar.at)  # on one thread, as for the table whose dense network this is
    model, _ = dense_network(task, data, bar.at)
    return data, model, evaluate(model, data)[1]
