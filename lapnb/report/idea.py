"""The paper's idea as a picture, with numbers small enough to check by hand."""

import numpy as np
import pandas as pd
import torch

from lapnb.pruning.layers import neighbours, prunable_layers
from lapnb.pruning.masks import prune_masks
from lapnb.report.compare import short
from lapnb.report.plots import png
from lapnb.store import root, write_whole
from lapnb.training.networks import FCN

# Row j of the first is what enters unit j, column k of the last is what leaves unit k.
WEIGHTS = (
    [[1.0, -2.0, 2.0], [-1.0, 0.5, 1.0], [0.2, 0.4, -0.4]],
    [[0.5, -1.6, 1.7], [1.6, 1.7, -1.8], [-1.8, 1.6, 1.5]],
    [[2.0, 0.5, -0.4], [1.0, -1.0, 0.2], [-2.0, 1.0, 0.4]],
)
W, V = (0, 0), (2, 2)  # (k, j) of the two weights that are compared: top and bottom
BEFORE, AFTER, REMOVED = "#6a3d9a", "#1b8a5a", "#c1121f"  # colours of no method
TITLES = {
    "mp": "Magnitude pruning (MP) looks at the weight alone",
    "lap": "Lookahead pruning (LAP) looks at its neighbours too",
}


def example() -> pd.DataFrame:
    """The weights w and v of the picture: their scores, what zeroing them distorts, who does it.

    `distortion` is ‖W_{i+1} W̃_i W_{i−1} − W_{i+1} W_i W_{i−1}‖_F, computed by zeroing the weight.
    `removed_by` names the methods that prune this weight when one of the layer's nine has to go.
    """
    model = FCN([3, 3, 3, 3], "none")
    layers = prunable_layers(model)
    for layer, values in zip(layers, WEIGHTS, strict=True):
        layer.weight.data = torch.tensor(values)
    first, middle, last = weights = [layer.weight.detach() for layer in layers]
    before, after = (factor.flatten() for factor in neighbours(layers, weights, 1))
    lost = {method: ~prune_masks(model, method, [1, 8 / 9, 1])[1] for method in TITLES}
    rows = {}
    for name, (k, j) in {"w": W, "v": V}.items():
        change = torch.zeros_like(middle)
        change[k, j] = middle[k, j]
        row = {"magnitude": middle[k, j].abs(), "before": before[j], "after": after[k]}
        row["lookahead"] = row["magnitude"] * row["before"] * row["after"]
        row["distortion"] = torch.linalg.norm(last @ change @ first)
        removed_by = ", ".join(short(method) for method in TITLES if lost[method][k, j])
        rows[name] = {key: float(x) for key, x in row.items()} | {"removed_by": removed_by}
    return pd.DataFrame.from_dict(rows, orient="index")


def draw_idea(save: bool = False):
    """How MP and LAP look at one weight of three layers; with `save` figures/idea.png; a Figure.

    Lines are as thick as the `WEIGHTS` are large; a cross marks the weight that the method removes
    first.
    """
    import matplotlib.pyplot as plt

    heads = {"before": r"$\Vert W_{i-1}[j{,}{:}]\Vert$", "magnitude": "$|w|$"}
    heads |= {"after": r"$\Vert W_{i+1}[{:}{,}k]\Vert$"}
    numbers = example()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), facecolor="white", layout="constrained")
    plt.close(figure)
    for axis, (method, title) in zip(axes, TITLES.items(), strict=True):
        colours = [BEFORE, "black", AFTER] if method == "lap" else ["0.8", "black", "0.8"]
        axis.set(xlim=(-0.5, 4.2), ylim=(-1.7, 2.4))
        axis.set_title(title, fontsize=10.5)
        axis.axis("off")
        for layer, (column, head) in enumerate(heads.items()):
            place = {"color": colours[layer], "ha": "center"}
            axis.text(layer + 0.5, -0.35, ("$W_{i-1}$", "$W_i$", "$W_{i+1}$")[layer], ha="center")
            for (k, j), weight in np.ndenumerate(WEIGHTS[layer]):
                seen = (k in (W[1], V[1]), (k, j) in (W, V), j in (W[0], V[0]))[layer]
                colour = colours[layer] if seen else "0.8"
                width = 0.8 if colour == "0.8" else 2.2 * abs(weight)
                look = {"color": colour, "linewidth": width, "zorder": 1 + (colour != "0.8")}
                axis.plot([layer, layer + 1], [2 - j, 2 - k], **look)
            if colours[layer] != "0.8":
                axis.text(layer + 0.5, -0.8, head, **place)
                for name, y in (("w", -1.15), ("v", -1.5)):
                    axis.text(layer + 0.5, y, f"{numbers[column][name]:.3g}", **place)
        axis.scatter(*np.indices((4, 3)), s=230, color="white", edgecolor="0.3", zorder=3)
        for name, y, prime, unit in (("w", -1.15, "", 2), ("v", -1.5, "'", 0)):
            removed = short(method) in numbers.removed_by[name]
            colour, end = (REMOVED, "  removed first") if removed else ("black", "")
            product = f"= {numbers.lookahead[name]:.3g}" if method == "lap" else ""
            axis.text(-0.4, y, f"${name}$:")
            axis.text(3.1, y, product + end, color=colour)
            axis.text(1.5, unit + 0.2, f"${name}$", ha="center", fontsize=13)
            for x, letter in ((1, "j"), (2, "k")):
                axis.text(x, unit, f"${letter}{prime}$", ha="center", va="center", zorder=4)
            if removed:
                axis.plot(1.5, unit, "x", color=REMOVED, markersize=14, markeredgewidth=3)
    if save:
        write_whole(root() / "figures" / "idea.png", png(figure))
    return figure
