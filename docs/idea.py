"""Draw the paper's idea, with numbers small enough to check by hand: `python docs/idea.py`.

Writes figures/idea.png, which README.md and the start page show.
"""

import numpy as np
import pandas as pd
import torch

from lapnb.pruning.scores import METHODS
from lapnb.report.plots import COLOURS, INK, WIDTH, canvas, png
from lapnb.report.words import short
from lapnb.store import root, write_whole

# Row j of the first holds the weights into unit j, column k of the last those out of unit k.
WEIGHTS = (
    [[1.0, -2.0, 2.0], [-1.0, 0.5, 1.0], [0.2, 0.4, -0.4]],
    [[0.5, -1.6, 1.7], [1.6, 1.7, -1.8], [-1.8, 1.6, 1.5]],
    [[2.0, 0.5, -0.4], [1.0, -1.0, 0.2], [-2.0, 1.0, 0.4]],
)
COMPARED = {"w": (0, 0), "v": (2, 2)}  # the units (k, j) of two weights: top and bottom
TITLES = {
    "mp": "Magnitude pruning (MP) looks at the weight alone",
    "lap": "Lookahead pruning (LAP) looks at its neighbours too",
}
REMOVED = COLOURS["lap_backward"]
COLUMNS = {  # the columns of numbers below the picture, one per layer: matrix, heading, colour
    "before": ("$W_{i-1}$", "norm of the\nweights in", COLOURS["lfp"]),
    "magnitude": ("$W_i$", "weight's\nmagnitude", INK),
    "after": ("$W_{i+1}$", "norm of the\nweights out", COLOURS["lap_flow"]),
}
HEAD = {"ha": "center", "va": "top", "fontsize": 6.5}
ROWS = {"w": -1.55, "v": -1.9}  # the rows of numbers, and how low they stand


def example() -> pd.DataFrame:
    """Return, for weights w and v, their scores, what zeroing them distorts, and who removes them.

    `distortion` is ‖W_{i+1} W̃_i W_{i−1} − W_{i+1} W_i W_{i−1}‖_F, computed by zeroing the weight.
    `removed_by` names the methods that prune this weight when one of the layer's nine has to go.
    """
    first, middle, last = map(torch.tensor, WEIGHTS)
    before, after = first.norm(dim=1), last.norm(dim=0)
    scores = {name: METHODS[name].score(middle, before, after[:, None]) for name in TITLES}
    rows = {}
    for name, (k, j) in COMPARED.items():
        zeroed = middle.clone()
        zeroed[k, j] = 0
        row = {"magnitude": scores["mp"][k, j], "before": before[j], "after": after[k]}
        row["lookahead"] = scores["lap"][k, j]
        row["distortion"] = (last @ (zeroed - middle) @ first).norm()
        lowest = [short(method) for method, score in scores.items() if score.min() == score[k, j]]
        rows[name] = {key: float(x) for key, x in row.items()} | {"removed_by": ", ".join(lowest)}
    return pd.DataFrame.from_dict(rows, orient="index")


def draw():
    """Draw how MP and LAP look at a weight in the middle of three layers; return the Figure.

    Lines are as thick as the `WEIGHTS` are large; a cross marks the weight that the method removes
    first.
    """
    numbers = example()
    with canvas(2, figsize=(WIDTH, 4.6)) as (figure, axes):
        for axis, method in zip(axes[:, 0], TITLES, strict=True):
            axis.set(xlim=(-0.45, 4.3), ylim=(-1.95, 2.4))
            axis.set_title(TITLES[method])
            axis.axis("off")
            for layer, column in enumerate(COLUMNS):
                draw_layer(axis, layer, column, method, numbers)
            axis.scatter(*np.indices((4, 3)), s=110, color=INK, zorder=3, linewidth=0)
            draw_scores(axis, method, numbers)
        figure.suptitle("What MP and LAP remove first", fontsize=8)
        figure.set_label(described(numbers))
        return figure


def draw_layer(axis, layer: int, column: str, method: str, numbers: pd.DataFrame) -> None:
    """Draw a layer's weights as lines, those the method looks at in colour, and its numbers."""
    matrix, heading, colour = COLUMNS[column]
    axis.text(layer + 0.5, -0.4, matrix, ha="center")
    looked_at = method == "lap" or column == "magnitude"
    for (k, j), weight in np.ndenumerate(WEIGHTS[layer]):
        seen = (k in (0, 2), (k, j) in COMPARED.values(), j in (0, 2))[layer]
        style = {"color": INK, "alpha": 0.3, "linewidth": 0.6, "zorder": 1}
        if looked_at and seen:
            style = {"color": colour, "linewidth": 1.4 * abs(weight), "zorder": 2}
        axis.plot([layer, layer + 1], [2 - j, 2 - k], **style)
    if looked_at:
        axis.text(layer + 0.5, -0.8, heading, color=colour, **HEAD)
        for name, y in ROWS.items():
            axis.text(layer + 0.5, y, f"{numbers[column][name]:.3g}", color=colour, ha="center")
            if layer > 0 and method == "lap":
                axis.text(layer, y, "×", ha="center")


def draw_scores(axis, method: str, numbers: pd.DataFrame) -> None:
    """Draw the names and scores of w and v, and a cross on the one that is removed first."""
    axis.text(3.36, -0.8, f"score\nof {short(method)}", **HEAD)
    for (name, y), prime, unit in zip(ROWS.items(), ("", "'"), (2, 0), strict=True):
        axis.text(-0.4, y, f"${name}$")
        axis.text(1.5, unit + 0.18, f"${name}$", ha="center", fontsize=9)
        for x, letter in ((1, "j"), (2, "k")):
            centred = {"ha": "center", "va": "center", "zorder": 4, "color": "white"}
            axis.text(x, unit, f"${letter}{prime}$", **centred)
        score = numbers.lookahead if method == "lap" else numbers.magnitude
        colour = INK
        if short(method) in numbers.removed_by[name]:
            colour = REMOVED
            axis.text(3.66, y, "removed", color=colour)
            axis.plot(1.5, unit, "x", color=REMOVED, markersize=9, markeredgewidth=2)
        axis.text(2.97, y, "=", color=colour)
        axis.text(3.36, y, f"{score[name]:.3g}", color=colour, ha="center")


def described(numbers: pd.DataFrame) -> str:
    """Describe the picture in words."""
    w, v = numbers.loc["w"], numbers.loc["v"]
    return (
        f"MP removes w, whose magnitude is smaller ({w.magnitude:.3g}, v: {v.magnitude:.3g}). "
        f"LAP removes v, whose neighbours are weak: its score is {v.lookahead:.3g}, that of w is "
        f"{w.lookahead:.3g}."
    )


if __name__ == "__main__":
    write_whole(root() / "figures" / "idea.png", png(draw()))
