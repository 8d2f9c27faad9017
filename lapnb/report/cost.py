"""What computing the masks costs, in seconds: the paper's table of computing times."""

import copy
import io
import time
from itertools import product

import pandas as pd
import torch
from torch.nn.utils import prune

from lapnb.paper.tables import one_of, several, table, whole
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.masks import prune_masks
from lapnb.pruning.saliency import statistics
from lapnb.pruning.scores import METHODS
from lapnb.report.compare import COLOURS, STYLE
from lapnb.store import root, write_whole
from lapnb.training.data import Data, load_data
from lapnb.training.networks import NETWORKS, build_model

LIBRARY, GLOBAL, KEEP = "torch.nn.utils.prune", "lap, global", 0.1
BACKPACK = ("fcn", "conv6")  # its Hessian diagonals know neither batch norm nor residual sums
# Width, and batches that the data-dependent methods look at (None: as many as the paper's)
SETTINGS = {"smoke": (0.1, 1), "quick": (1, 2), "reduced": (1, 20), "paper": (1, None)}


def cost(
    networks=("fcn", "conv6", "vgg19", "resnet18"),
    methods=("mp", "lap", "obd", "lap_act"),
    scale: str = "quick",
    device: str = "auto",
    repeats: int = 5,
) -> pd.DataFrame:
    """Wall seconds to compute the masks of new networks that keep 10 % of each layer.

    One row per device, network and method: `seconds` is the median of `n` times. Beside mp stands
    torch.nn.utils.prune.l1_unstructured, layer by layer, and beside lap its global scope. obd and
    lap_act look, once, at `batches` batches of `batch_size` bundled digits; obd only where BackPACK
    can. `device` is "cpu", "cuda", or "auto": both where there is a GPU. The smoke scale has narrow
    networks. Writes figures/<scale>/pruning_cost.csv. Raises ValueError naming the parameter.
    """
    networks = several(one_of(NETWORKS))("networks", networks)
    chosen = table("fcn_data_dependent", scale=scale, device=device, methods=methods)
    repeats = whole(1)("repeats", repeats)
    width, batches = SETTINGS[scale]
    places = dict.fromkeys(["cpu" if device == "auto" else chosen.device, chosen.device])
    times = []
    for place, network in product(places, networks):
        data = load_data("mnist5k", *((28, 1) if network == "fcn" else (32, 3))).to(place)
        model = build_model(network, width=width, seed=0).to(place)
        looks = _looks(network, chosen.methods, batches)
        for turn, (name, look) in product(range(repeats), looks.items()):  # noise hits all alike
            if turn == 0 or not any(look):
                times.append((place, network, name, *look, _seconds(model, name, data, look)))
    columns = ["device", "network", "method", "batches", "batch_size", "seconds"]
    groups = pd.DataFrame(times, columns=columns).groupby(columns[:-1], sort=False).seconds
    rows = groups.agg(seconds="median", min="min", max="max", n="count").reset_index()
    rows = rows.assign(scale=scale, width=width, threads=torch.get_num_threads())
    write_whole(root() / f"figures/{scale}/pruning_cost.csv", rows.to_csv(index=False).encode())
    return rows


def plot(rows: pd.DataFrame):
    """The medians as bars on a log axis, saved as figures/<scale>/pruning_cost.png; a Figure."""
    import matplotlib.pyplot as plt
    import seaborn

    (scale, width, threads), png = rows[["scale", "width", "threads"]].iloc[0], io.BytesIO()
    shades = COLOURS | {LIBRARY: "0.6", GLOBAL: "#f4b183"}
    what = dict(kind="bar", x="network", y="seconds", hue="method", col="device", palette=shades)
    caption = f"{scale} scale · 10 % kept · width × {width:g} · CPU threads: {threads}"
    with plt.rc_context(STYLE):
        grid = seaborn.catplot(rows, **what, height=3.4, aspect=1.4)
        grid.set(yscale="log", xlabel="", ylabel="seconds to compute the masks")
        grid.figure.text(0.1, 0.02, f"{caption} · data: {rows.batches.max()} batches", fontsize=6.5)
        grid.figure.savefig(png, format="png", dpi=200, bbox_inches="tight", facecolor="white")
    plt.close(grid.figure)
    write_whole(root() / f"figures/{scale}/pruning_cost.png", png.getvalue())
    return grid.figure


def _looks(network: str, methods, batches: int | None) -> dict[str, tuple[int, int]]:
    """What is timed, by name, with how many batches of what size it looks at."""
    paper = table(f"{'conv6' if network == 'conv6' else 'fcn'}_data_dependent", scale="paper")
    looks = {}
    for method in methods:
        published, size = getattr(paper, f"{METHODS[method].weights}_batches", (0, 0))
        if METHODS[method].weights != "curved" or network in BACKPACK:
            looks[method] = (published and (batches or published), size)
        looks |= {"mp": {LIBRARY: (0, 0)}, "lap": {GLOBAL: (0, 0)}}.get(method, {})
    return looks


def _seconds(model: torch.nn.Module, name: str, data: Data, look: tuple[int, int]) -> float:
    model, kind = copy.deepcopy(model), METHODS[name].weights if any(look) else ""
    wait = torch.cuda.synchronize if data.train_images.is_cuda else lambda: None
    if kind:  # imports, and whatever else only the first call does
        statistics(model, kind, data, 1, 1)
    wait()
    start = time.perf_counter()
    if name == LIBRARY:
        for layer in prunable_layers(model):
            prune.l1_unstructured(layer.module, "weight", amount=1 - KEEP)
    else:
        method, scope = ("lap", "global") if name == GLOBAL else (name, "layer")
        facts = statistics(model, kind, data, *look) if kind else None
        prune_masks(model, method, KEEP, scope, statistics=facts)
    wait()
    return time.perf_counter() - start
