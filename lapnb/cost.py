"""What computing the masks costs, in seconds: the paper's table of computing times."""

import copy
import io
import time
from itertools import product

import pandas as pd
import torch
from torch import nn
from torch.nn.utils import prune

from lapnb.chain import prunable_layers
from lapnb.data import Data, load_data
from lapnb.masks import prune_masks
from lapnb.models import NETWORKS, build_model
from lapnb.report import STYLE, colours
from lapnb.scores import METHODS
from lapnb.statistics import statistics
from lapnb.store import root, write_whole
from lapnb.tables import _one_of, _several, _whole, table

LIBRARY, GLOBAL = "torch.nn.utils.prune", "lap, global"
BACKPACK = ("fcn", "conv6")  # its Hessian diagonals know neither batch norm nor residual sums
KEEP = 0.1
# Width, repeats, and batches that the data-dependent methods look at (None: as many as the paper's)
SETTINGS = {"smoke": (0.1, 1, 1), "quick": (1, 5, 2), "reduced": (1, 5, 20), "paper": (1, 5, None)}


def cost(
    networks=("fcn", "conv6", "vgg19", "resnet18"),
    methods=("mp", "lap", "obd", "lap_act"),
    scale: str = "quick",
    device: str = "auto",
    repeats: int | None = None,
) -> pd.DataFrame:
    """Wall seconds to compute the masks of new networks that keep 10 % of each layer.

    One row per device, network and method: `seconds` is the median of `n` times, `min` and `max`
    their extremes. With mp comes torch.nn.utils.prune.l1_unstructured, layer by layer, and with lap
    its global scope. obd and lap_act look, once, at `batches` batches of `batch_size` bundled
    digits; obd only where BackPACK can. `device` is "cpu", "cuda", or "auto" for both where there
    is a GPU. `repeats` is 5 unless given; 1, on narrow networks, at the smoke scale. Writes
    figures/<scale>/pruning_cost.csv. Raises ValueError naming the parameter.
    """
    networks = _several(_one_of(NETWORKS))("networks", networks)
    chosen = table("fcn_data_dependent", scale=scale, device=device, methods=methods)
    width, usual, batches = SETTINGS[scale]
    repeats = usual if repeats is None else _whole(1)("repeats", repeats)
    places = dict.fromkeys(["cpu" if device == "auto" else chosen.device, chosen.device])
    times = []
    for place, network in product(places, networks):
        data = load_data("mnist5k", *((28, 1) if network == "fcn" else (32, 3))).to(place)
        model = build_model(network, width=width, seed=0).to(place)
        looks = _looks(network, chosen.methods, batches)
        # The methods take turns, so that whatever else the machine does hits all alike.
        for turn, (name, look) in product(range(repeats), looks.items()):
            if turn == 0 or not any(look):
                times.append((place, network, name, *look, _seconds(model, name, data, look)))
    columns = ["device", "network", "method", "batches", "batch_size"]
    groups = pd.DataFrame(times, columns=[*columns, "seconds"]).groupby(columns, sort=False)
    rows = groups.seconds.agg(["median", "min", "max", "count"]).reset_index()
    rows = rows.rename(columns={"median": "seconds", "count": "n"})
    rows = rows.assign(scale=scale, width=width, threads=torch.get_num_threads())
    write_whole(root() / f"figures/{scale}/pruning_cost.csv", rows.to_csv(index=False).encode())
    return rows


def plot(rows: pd.DataFrame):
    """The medians as bars on a log axis, saved as figures/<scale>/pruning_cost.png; a Figure."""
    import matplotlib.pyplot as plt
    import seaborn

    (scale, width, threads), png = rows[["scale", "width", "threads"]].iloc[0], io.BytesIO()
    shades = colours() | {LIBRARY: "0.6", GLOBAL: "#f4b183"}
    axes = dict(x="network", y="seconds", hue="method", col="device")
    caption = f"{scale} scale · 10 % kept · width × {width:g} · {threads} CPU threads"
    with plt.rc_context(STYLE):
        grid = seaborn.catplot(rows, kind="bar", **axes, palette=shades, height=3.4, aspect=1.4)
        grid.set(yscale="log", xlabel="", ylabel="seconds")
        grid.set_titles("computing the masks, {col_name}")
        grid.figure.text(0.1, -0.02, caption, fontsize=6.5, color="0.3")
        grid.figure.savefig(png, format="png", dpi=200, bbox_inches="tight", facecolor="white")
    plt.close(grid.figure)
    write_whole(root() / f"figures/{scale}/pruning_cost.png", png.getvalue())
    return grid.figure


def _looks(network: str, methods, batches: int | None) -> dict[str, tuple[int, int]]:
    """What is timed, by name, with how many batches of what size it looks at."""
    paper = table(f"{'conv6' if network == 'conv6' else 'fcn'}_data_dependent", scale="paper")
    looks = {}
    for method in methods:
        kind = METHODS[method].weights
        published, size = getattr(paper, f"{kind}_batches", (0, 0))
        if kind != "curved" or network in BACKPACK:
            looks[method] = (published and (batches or published), size)
        looks |= {"mp": {LIBRARY: (0, 0)}, "lap": {GLOBAL: (0, 0)}}.get(method, {})
    return looks


def _seconds(model: nn.Module, name: str, data: Data, look: tuple[int, int]) -> float:
    model, kind = copy.deepcopy(model), METHODS[name].weights if any(look) else ""
    wait = torch.cuda.synchronize if data.train_images.is_cuda else lambda: None
    if kind:
        statistics(model, kind, data, 1, 1)  # imports, and whatever else only the first call does
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
