"""What computing the masks costs, in seconds: the paper's table of computing times."""

import copy
import itertools
import time
from typing import Annotated, Literal

import pandas as pd
import torch
from pydantic import Field
from torch.nn.utils import prune

from lapnb.checks import checked
from lapnb.paper.protocol import Several, Whole
from lapnb.paper.tables import table
from lapnb.pruning.data_statistics import data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import prune_masks
from lapnb.pruning.scores import METHODS
from lapnb.report.plots import COLOURS, canvas, finish
from lapnb.store import root, write_whole
from lapnb.training.data import load_data
from lapnb.training.networks import NETWORKS, build_model

LIBRARY, GLOBAL, KEEP = "torch.nn.utils.prune", "lap, global", 0.1
BESIDE = {"mp": [LIBRARY], "lap": [GLOBAL]}  # what is timed beside a method
BACKPACK = ("fcn", "conv6")  # its Hessian diagonals know neither batch norm nor residual sums
# Batches that the data-dependent methods look at; at the paper's scale as many as the paper's
BATCHES = {"smoke": 1, "quick": 2, "reduced": 20}


def cost(
    networks=("fcn", "conv6", "vgg19", "resnet18"),
    methods=("mp", "lap", "obd", "lap_act"),
    scale: str = "quick",
    device: str = "auto",
    repeats: int = 5,
) -> pd.DataFrame:
    """Wall seconds to compute masks that keep 10 % of each layer, on untrained networks.

    One row per device, network and method: `seconds` is the median of `n` times. Beside mp stands
    torch.nn.utils.prune.l1_unstructured, layer by layer, and beside lap its global scope. Methods
    that look at data look, once, at `batches` batches of `batch_size` bundled digits; obd only
    where BackPACK can. `device` is "cpu", "cuda", or "auto": both where there is a GPU. The smoke
    scale has narrow networks. Writes figures/<scale>/pruning_cost.csv. Raises ValueError naming the
    parameter.
    """
    chosen = table("fcn_data_dependent", scale=scale, device=device, methods=methods)
    networks = checked("networks", networks, Several[Literal[*NETWORKS]])
    repeats = checked("repeats", repeats, Annotated[Whole, Field(ge=1)])
    names = [name for method in chosen.methods for name in [method, *BESIDE.get(method, [])]]
    width, times = 0.1 if scale == "smoke" else 1, []
    places = dict.fromkeys(["cpu" if device == "auto" else chosen.device, chosen.device])
    for place, network in itertools.product(places, networks):
        data = load_data("mnist5k", *((28, 1) if network == "fcn" else (32, 3))).to(place)
        model = build_model(network, width=width, seed=0).to(place)
        same = "conv6" if network == "conv6" else "fcn"
        looks = table(f"{same}_data_dependent", scale="paper").looks
        # in turns, so that noise hits all methods alike
        for turn, name in itertools.product(range(repeats), names):
            kind = METHODS[name].looks_at if name in METHODS else ""
            if kind and (turn or (kind == "curvature" and network not in BACKPACK)):
                continue
            count, size = looks.get(kind, (0, 0))
            count = count and BATCHES.get(scale, count)
            seconds = _seconds(model, name, data, count, size)
            times.append((place, network, name, count, size, seconds))
    columns = ["device", "network", "method", "batches", "batch_size"]
    groups = pd.DataFrame(times, columns=[*columns, "seconds"]).groupby(columns, sort=False).seconds
    rows = groups.agg(seconds="median", min="min", max="max", n="count").reset_index()
    rows = rows.assign(scale=scale, width=width, threads=torch.get_num_threads())
    write_whole(root() / f"figures/{scale}/pruning_cost.csv", rows.to_csv(index=False).encode())
    return rows


def _seconds(model, name: str, data, count: int, size: int) -> float:
    model = copy.deepcopy(model)
    wait = torch.cuda.synchronize if data.train_images.is_cuda else lambda: None
    method, _, scope = name.partition(", ")
    if count:  # imports, and whatever else only the first call does
        data_statistics(model, METHODS[method].looks_at, data.batches(1, 1))
    wait()
    start = time.perf_counter()
    if name == LIBRARY:
        for layer in prunable_layers(model):
            prune.l1_unstructured(layer.module, "weight", amount=1 - KEEP)
    else:
        batches = data.batches(count, size) if count else None
        prune_masks(model, method, KEEP, scope or "layer", batches=batches)
    wait()
    return time.perf_counter() - start


def plot(rows: pd.DataFrame, save: bool = False):
    """The medians as bars on a log axis, a panel per device; a Figure.

    With `save` also figures/<scale>/pruning_cost.png.
    """
    import seaborn

    if not isinstance(rows, pd.DataFrame) or "device" not in rows or rows.empty:
        raise ValueError(f"rows must be what cost returns; got {type(rows).__name__}")
    first, groups = rows.iloc[0], rows.groupby("device", sort=False)
    words = f"{first.scale} scale · 10 % kept · width ×{first.width:g} · CPU threads: "
    words += f"{first.threads} · methods that look at data: {rows.batches.max()} batches"
    look = {"x": "network", "y": "seconds", "hue": "method", "saturation": 1}
    look["palette"] = COLOURS | {LIBRARY: "0.6", GLOBAL: "#7a3300"}
    with canvas(len(groups), figsize=(6.4, 3.2 * len(groups))) as (figure, axes):
        for axis, (device, part) in zip(axes[:, 0], groups, strict=True):
            seaborn.barplot(part, ax=axis, **look).set(yscale="log", xlabel=device)
            axis.get_legend().remove()
        path = root() / f"figures/{first.scale}/pruning_cost.png" if save else None
        return finish(figure, "Computing the masks", words, path)
