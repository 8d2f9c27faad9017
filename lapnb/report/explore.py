"""Look at one pruned network before retraining: a picture, and controls to change it."""

import copy
import os
from functools import lru_cache
from pathlib import Path

import pandas as pd
from torch import Tensor, nn

from lapnb.paper.tables import table
from lapnb.progress import Progress
from lapnb.pruning.layers import neighbours, prunable_layers
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.saliency import statistics
from lapnb.pruning.scores import METHODS
from lapnb.report.compare import COLOURS, STYLE
from lapnb.runs.cell import Task, compute, dense_network
from lapnb.training.checkpoint import load_checkpoint
from lapnb.training.data import Data, load_data
from lapnb.training.train import evaluate

# Each network is the dense one (seed 0) of a quick table: narrow, trained for seconds, cached.
NETWORKS = {"fcn": "fcn_mnist", "conv6": "conv6_cifar10"}
NETWORKS |= {name: f"{name}_cifar10" for name in ("vgg11", "vgg16", "vgg19", "resnet18")}
SCOPES = {"layer": "layer-wise", "global": "global"}


def effects(model: nn.Module, masks: list[Tensor]) -> pd.DataFrame:
    """What masks leave and lose in percent, one row per prunable layer.

    surviving: of the layer's weights. alone: ‖W̃ − W‖_F / ‖W‖_F, which MP makes as small as it can.
    lookahead: the same with each weight multiplied by the norms of its neighbours, so the root of
    the lost share of Σ L(w)², which LAP makes as small as it can.
    """
    layers, rows = prunable_layers(model), []
    weights = [layer.weight.detach() for layer in layers]
    for i, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
        before, after = neighbours(layers, weights, i)
        row = {"surviving": mask.double().mean()}
        for name, score in (("alone", weight), ("lookahead", weight * before * after)):
            row[name] = (score * ~mask).norm() / score.norm().clamp(min=1e-30)
        rows.append({name: 100 * float(value) for name, value in row.items()})
    return pd.DataFrame(rows, index=range(1, len(rows) + 1)).rename_axis("layer")


def panel(network="fcn", method="lap", scope="layer", keep=0.1, checkpoint="", dataset="mnist5k"):
    """A network pruned in one shot to the fraction `keep`, not retrained; a matplotlib Figure.

    Accuracy, the first layer's mask, and each layer's survival and distortion (`effects`). The
    network is our own, trained on first use and then cached, or your `checkpoint`. Raises
    ValueError or FileNotFoundError, in one sentence.
    """
    import matplotlib.pyplot as plt
    from torchvision.utils import make_grid

    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {network!r}")
    path = Path(checkpoint.strip()).expanduser() if checkpoint.strip() else None
    chosen = network, dataset, path, path.stat().st_mtime_ns if path and path.exists() else 0
    data, dense, accuracy = _network(*chosen)
    known = _statistics(METHODS[method].weights, *chosen) if method in METHODS else None
    masks = prune_masks(dense, method, keep, scope, statistics=known)
    pruned, layers = copy.deepcopy(dense), effects(dense, masks)
    apply_masks(pruned, masks)
    bars = pd.Series({"before\nretraining": evaluate(pruned, data)[1], "dense": accuracy})
    if masks[0].ndim == 2:
        place, image = "pixel", masks[0].sum(0).view(data.test_images.shape[1:]).sum(0)
    else:  # one tile per kernel, summed over input channels
        place, tiles = "kernel position", masks[0].sum(1, keepdim=True).float()
        image = make_grid(tiles, round(len(tiles) ** 0.5), padding=1, pad_value=float("nan"))[0]
    total = sum(mask.numel() for mask in masks)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(2, 2, figsize=(8.4, 5), layout="constrained")
        title = f"{path.name if path else network}, {METHODS[method].title}, {SCOPES[scope]}: "
        title += f"{100 * surviving(masks):.3g} % of {total:,} weights survive ({data.source})"
        figure.suptitle(title)
        colour, grey = COLOURS[method], "0.6"
        bars.plot.barh(ax=axes[0, 0], title="test accuracy (%)", color=[colour, grey])
        axes[0, 0].bar_label(axes[0, 0].containers[0], fmt="%.1f", padding=3)
        axes[0, 0].set_xlim(0, 115)
        figure.colorbar(axes[0, 1].imshow(image.numpy(), vmin=0), ax=axes[0, 1])
        axes[0, 1].set_title(f"first layer: survivors per {place}")
        axes[0, 1].axis("off")
        layers.surviving.plot.bar(ax=axes[1, 0], title="surviving weights (%)", color=colour, rot=0)
        layers[["alone", "lookahead"]].plot.bar(ax=axes[1, 1], color=[grey, "0.1"], rot=0)
        axes[1, 1].set(title="relative distortion (%)", ylim=(0, 125))
        axes[1, 1].legend(ncols=2, loc="upper center", frameon=False)
        plt.close(figure)
    return figure


def controls(dataset="mnist5k", **start):
    """`panel` under dropdowns, a slider and a path; redrawn when one of them has changed.

    `start` are the first values. Where progress bars are off (TQDM_DISABLE: reports, tests,
    committed outputs) nobody can move a slider, and a line is printed in its place.
    """
    if os.environ.get("TQDM_DISABLE"):
        return print("The controls need a browser: open this notebook in JupyterLab.")
    import ipywidgets
    from IPython.display import Pretty, clear_output, display

    def drawn():
        try:
            return panel(**{name: widget.value for name, widget in choice.items()}, dataset=dataset)
        except (ValueError, OSError, RuntimeError) as error:
            return Pretty(" ".join(str(error).split()))

    def redraw(_):
        with output:
            clear_output(wait=True)
            display(drawn())

    late = dict(continuous_update=False, layout={"width": "28rem"})
    choice = {
        "network": ipywidgets.Dropdown(options=list(NETWORKS)),
        "method": ipywidgets.Dropdown(options={METHODS[m].title: m for m in METHODS}, value="lap"),
        "scope": ipywidgets.Dropdown(options={title: name for name, title in SCOPES.items()}),
        "keep": ipywidgets.FloatLogSlider(0.1, min=-3, max=0, readout_format=".2%", **late),
        "checkpoint": ipywidgets.Text(placeholder="path of your own state_dict (optional)", **late),
    }
    for name, widget in choice.items():
        widget.description = name
    for name, value in start.items():
        choice[name].value = value
    output = ipywidgets.Output()
    # Not `with output`: that would sometimes leave papermill, which knows it, waiting for ever.
    output.append_display_data(drawn())
    for widget in choice.values():
        widget.observe(redraw, "value")
    return ipywidgets.VBox([*choice.values(), output])


@lru_cache(maxsize=8)
def _network(network, dataset, path, written) -> tuple[Data, nn.Module, float]:
    """Data, dense network and its accuracy (%); `written` tells versions of one file apart."""
    declared = table(NETWORKS[network], "quick", dataset=dataset, device="cpu")
    data = load_data(dataset, declared.image_size, declared.channels)
    task = Task(declared, data.source, seed=0)
    if not path and not task.cached():
        with Progress(task.steps, f"dense {network}") as bar:
            compute(task, bar.at)
    model = load_checkpoint(path, network, data) if path else dense_network(task, data)[0]
    return data, model, evaluate(model, data)[1]


@lru_cache(maxsize=8)
def _statistics(kind, *chosen) -> list[Tensor] | None:
    if kind not in ("active", "curved"):
        return None
    data, model, _ = _network(*chosen)
    return statistics(model, kind, data, batches=10, batch_size=60)
