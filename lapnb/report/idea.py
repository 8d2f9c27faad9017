"""The paper's idea as a picture, with numbers small enough to check by hand."""

import pandas as pd
import torch

from lapnb.pruning.layers import neighbours, prunable_layers
from lapnb.pruning.masks import prune_masks
from lapnb.pruning.scores import METHODS
from lapnb.store import root
from lapnb.training.networks import FCN

# Row j of the first is what enters unit j, column k of the last is what leaves unit k.
WEIGHTS = (
    [[1.0, -2.0, 2.0], [-1.0, 0.5, 1.0], [0.2, 0.4, -0.4]],
    [[0.5, -1.6, 1.7], [1.6, 1.7, -1.8], [-1.8, 1.6, 1.5]],
    [[2.0, 0.5, -0.4], [1.0, -1.0, 0.2], [-2.0, 1.0, 0.4]],
)
W, V = (0, 0), (2, 2)  # (k, j) of the two weights that are compared: top and bottom
GREY, BEFORE, AFTER, REMOVED = "0.8", "#0173b2", "#c96f00", "#c1121f"


def example_network() -> FCN:
    """Three linear layers of three units each, with `WEIGHTS` and no activation."""
    model = FCN([3, 3, 3, 3], "none")
    with torch.no_grad():
        for layer, weight in zip(prunable_layers(model), WEIGHTS, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    return model


def example() -> pd.DataFrame:
    """The weights w and v of the picture: their scores, what zeroing them distorts, who does it.

    `distortion` is ‖W_{i+1} W̃_i W_{i−1} − W_{i+1} W_i W_{i−1}‖_F, computed by zeroing the weight.
    `removed_by` names the methods that prune this weight when one of the layer's nine has to go.
    """
    model = example_network()
    layers = prunable_layers(model)
    first, middle, last = weights = [layer.weight.detach() for layer in layers]
    before, after = (f.flatten() for f in neighbours(layers, weights, 1))
    removed = {m: ~prune_masks(model, m, [1, 8 / 9, 1])[1] for m in ("mp", "lap")}
    rows = {}
    for name, (k, j) in {"w": W, "v": V}.items():
        change = torch.zeros_like(middle)
        change[k, j] = middle[k, j]
        magnitude, back, ahead = (float(x) for x in (middle[k, j].abs(), before[j], after[k]))
        rows[name] = {
            "magnitude": magnitude,
            "before": back,
            "after": ahead,
            "lookahead": magnitude * back * ahead,
            "distortion": float(torch.linalg.norm(last @ change @ first)),
            "removed_by": ", ".join(METHODS[m].title for m, mask in removed.items() if mask[k, j]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def draw_idea():
    """How MP and LAP look at one weight of three layers, saved as figures/idea.png; a Figure.

    Lines are as thick as the weights of `example_network` are large; a cross marks the weight that
    the method removes first.
    """
    import matplotlib.pyplot as plt

    titles = {
        "mp": "Magnitude pruning (MP) looks at the weight alone",
        "lap": "Lookahead pruning (LAP) looks at its neighbours too",
    }
    formula = [
        ("$|w|$", "black"),
        (r"$\,\cdot\,\Vert W_{i-1}[j{,}{:}]\Vert$", BEFORE),
        (r"$\,\cdot\,\Vert W_{i+1}[{:}{,}k]\Vert$", AFTER),
    ]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.1), facecolor="white", layout="constrained")
    for axis, (method, title) in zip(axes, titles.items(), strict=True):
        around = method == "lap"
        axis.set_title(title, fontsize=10.5)
        _network(axis, around)
        _coloured(axis, -0.8, formula if around else formula[:1], 14)
        for (name, row), y in zip(example().round(2).iterrows(), (-1.15, -1.45), strict=True):
            removed = METHODS[method].title in row.removed_by
            numbers = [(f"${name}$:  {row.magnitude:g}", "black")]
            if around:
                numbers += [(f" · {row.before:g}", BEFORE), (f" · {row.after:g}", AFTER)]
                numbers += [(f" = {row.lookahead:g}", "black")]
            _coloured(axis, y, numbers + [("  removed first", REMOVED)] * removed, 10.5)
            height = 2 if name == "w" else 0
            axis.text(1.5, height + 0.2, f"${name}$", ha="center", fontsize=13)
            if removed:
                axis.plot(1.5, height, "x", color=REMOVED, markersize=14, markeredgewidth=3)
    path = root() / "figures" / "idea.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    plt.close(figure)
    return figure


def _network(axis, looks_around: bool) -> None:
    """Four columns of units; black the weights w and v, in colour the neighbours in view."""
    for layer, weight in enumerate(WEIGHTS):
        for k, row in enumerate(weight):
            for j, value in enumerate(row):
                colour = GREY
                if layer == 1 and (k, j) in (W, V):
                    colour = "black"
                elif looks_around and layer == 0 and k in (W[1], V[1]):
                    colour = BEFORE
                elif looks_around and layer == 2 and j in (W[0], V[0]):
                    colour = AFTER
                shown = colour != GREY
                axis.plot(
                    [layer, layer + 1],
                    [2 - j, 2 - k],
                    color=colour,
                    linewidth=2.2 * abs(value) if shown else 0.8,
                    solid_capstyle="butt",
                    zorder=2 if shown else 1,
                )
        axis.text(
            layer + 0.5, -0.35, ("$W_{i-1}$", "$W_i$", "$W_{i+1}$")[layer], ha="center", fontsize=11
        )
    for column in range(4):
        axis.scatter([column] * 3, range(3), s=230, color="white", edgecolor="0.3", zorder=3)
    for column, name, units in ((1, "j", (W[1], V[1])), (2, "k", (W[0], V[0]))):
        for unit, prime in zip(units, ("", "'"), strict=True):
            text = f"${name}{prime}$"
            axis.text(column, 2 - unit, text, ha="center", va="center", fontsize=10, zorder=4)
    axis.set(xlim=(-0.25, 3.25), ylim=(-1.6, 2.45))
    axis.axis("off")


def _coloured(axis, y: float, pieces: list[tuple[str, str]], size: float) -> None:
    """One centred line of text in several colours."""
    from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea

    areas = [TextArea(text, textprops={"color": c, "fontsize": size}) for text, c in pieces]
    box = HPacker(children=areas, align="baseline", pad=0, sep=0)
    axis.add_artist(AnnotationBbox(box, (1.5, y), frameon=False))
