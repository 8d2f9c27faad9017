"""The paper's idea as a picture, with numbers small enough to check by hand."""

import numpy as np
import pandas as pd
import torch

from lapnb.pruning.scores import METHODS
from lapnb.report.compare import short
from lapnb.report.plots import png
from lapnb.store import root, write_whole

# Row j of the first is what enters unit j, column k of the last is what leaves unit k.
WEIGHTS = (
    [[1.0, -2.0, 2.0], [-1.0, 0.5, 1.0], [0.2, 0.4, -0.4]],
    [[0.5, -1.6, 1.7], [1.6, 1.7, -1.8], [-1.8, 1.6, 1.5]],
    [[2.0, 0.5, -0.4], [1.0, -1.0, 0.2], [-2.0, 1.0, 0.4]],
)
W, V = (0, 0), (2, 2)  # (k, j) of the two weights that are compared: top and bottom
GREY, REMOVED = "0.8", "#c1121f"
TITLES = {
    "mp": "Magnitude pruning (MP) looks at the weight alone",
    "lap": "Lookahead pruning (LAP) looks at its neighbours too",
}
COLUMNS = {  # of the numbers below the picture, one per layer: matrix, heading, colour of no method
    "before": ("$W_{i-1}$", r"$\Vert W_{i-1}[j{,}{:}]\Vert$", "#6a3d9a"),
    "magnitude": ("$W_i$", "$|w|$", "black"),
    "after": ("$W_{i+1}$", r"$\Vert W_{i+1}[{:}{,}k]\Vert$", "#1b8a5a"),
}


def example() -> pd.DataFrame:
    """The weights w and v of the picture: their scores, what zeroing them distorts, who does it.

    `distortion` is ‖W_{i+1} W̃_i W_{i−1} − W_{i+1} W_i W_{i−1}‖_F, computed by zeroing the weight.
    `removed_by` names the methods that prune this weight when one of the layer's nine has to go.
    """
    first, middle, last = map(torch.tensor, WEIGHTS)
    before, after = first.norm(dim=1), last.norm(dim=0)
    scores = {name: METHODS[name].score(middle, before, after[:, None]) for name in TITLES}
    rows = {}
    for name, (k, j) in {"w": W, "v": V}.items():
        zeroed = middle.clone()
        zeroed[k, j] = 0
        row = {"magnitude": scores["mp"][k, j], "before": before[j], "after": after[k]}
        row["lookahead"] = scores["lap"][k, j]
        row["distortion"] = (last @ (zeroed - middle) @ first).norm()
        lowest = [short(method) for method, own in scores.items() if own.min() == own[k, j]]
        rows[name] = {key: float(x) for key, x in row.items()} | {"removed_by": ", ".join(lowest)}
    return pd.DataFrame.from_dict(rows, orient="index")


def draw_idea(save: bool = False):
    """How MP and LAP look at one weight of three layers; with `save` figures/idea.png; a Figure.

    Lines are as thick as the `WEIGHTS` are large; a cross marks the weight that the method removes
    first.
    """
    import matplotlib.pyplot as plt

    numbers = example()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), facecolor="white", layout="constrained")
    plt.close(figure)
    for axis, (method, title) in zip(axes, TITLES.items(), strict=True):
        axis.set(xlim=(-0.5, 4.2), ylim=(-1.7, 2.4))
        axis.set_title(title, fontsize=10.5)
        axis.axis("off")
        for layer, (column, (matrix, head, colour)) in enumerate(COLUMNS.items()):
            axis.text(layer + 0.5, -0.35, matrix, ha="center")
            looked_at = method == "lap" or column == "magnitude"
            for (k, j), weight in np.ndenumerate(WEIGHTS[layer]):
                seen = looked_at and (k in (0, 2), (k, j) in (W, V), j in (0, 2))[layer]
                look = {"color": colour, "linewidth": 2.2 * abs(weight), "zorder": 2}
                look = look if seen else {"color": GREY, "linewidth": 0.8, "zorder": 1}
                axis.plot([layer, layer + 1], [2 - j, 2 - k], **look)
            told = [head, *numbers[column].map("{:.3g}".format)] if looked_at else []
            for y, text in zip((-0.8, -1.15, -1.5), told, strict=False):
                axis.text(layer + 0.5, y, text, color=colour, ha="center")
        axis.scatter(*np.indices((4, 3)), s=230, color="white", edgecolor="0.3", zorder=3)
        for name, y, prime, unit in (("w", -1.15, "", 2), ("v", -1.5, "'", 0)):
            product = f"= {numbers.lookahead[name]:.3g}" if method == "lap" else ""
            removed = short(method) in numbers.removed_by[name]
            axis.text(-0.4, y, f"${name}$:")
            axis.text(1.5, unit + 0.2, f"${name}$", ha="center", fontsize=13)
            for x, letter in ((1, "j"), (2, "k")):
                axis.text(x, unit, f"${letter}{prime}$", ha="center", va="center", zorder=4)
            if removed:
                product += "  removed first"
                axis.plot(1.5, unit, "x", color=REMOVED, markersize=14, markeredgewidth=3)
            axis.text(3.1, y, product, color=REMOVED if removed else "black")
    if save:
        write_whole(root() / "figures" / "idea.png", png(figure))
    return figure
