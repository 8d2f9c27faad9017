"""Rows as pictures. A file is written only with `save`."""

import contextlib
import io
import math
import pathlib
import textwrap

import pandas as pd

from lapnb.paper.protocol import VARIED
from lapnb.pruning.scores import METHODS
from lapnb.report import compare as of
from lapnb.runs.rows import results_file
from lapnb.store import write_whole

STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}
# Looks of the methods by their position in METHODS, taken in turns by further ones: colours at
# least 3:1 on white, apart for colour-blind readers where a table puts methods side by side.
PALETTE = "0173b2 8c8c8c 117733 882255 d55e00 332288 6b3d1a 005f5f 6b6b00 222222 cc5c82 008b8b "
PALETTE += "b5179e 4f8f00 9c7a00 b2182b d65fa8 10297a 7048c8 a0522d 00796b 5c6b7a c2410c 3f6212"
SHAPES = "osv^D><Pphd*XHsv^oDPXHp*"
DASHES = ["-"] * 5 + ["--"] * 2 + ["-"] * 6 + ["--"] * 5 + ["-."] * 6
TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90]
FINE = [0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80]
SIGNED = [-50, -20, -5, -1, 0, 1, 5, 20, 50]
MANY = 20  # rounds: a line then says more than markers


def look(method: str) -> dict[str, str]:
    """Colour, marker and dashes of a method."""
    n = [*METHODS].index(method) % len(SHAPES)
    return {"color": f"#{PALETTE.split()[n]}", "marker": SHAPES[n], "linestyle": DASHES[n]}


COLOURS = {method: look(method)["color"] for method in METHODS}
MARKERS = {method: look(method)["marker"] for method in METHODS}


@contextlib.contextmanager
def canvas(down: int = 1, across: int = 1, style: dict = STYLE, **look):
    """A figure in our style and its axes; pyplot forgets it, and shows it no second time."""
    import matplotlib.pyplot as plt

    with plt.rc_context(style):
        figure, axes = plt.subplots(down, across, squeeze=False, **look)
        plt.close(figure)
        yield figure, axes


def plot(results: pd.DataFrame, column: str = "error", save: bool = False):
    """`column` against surviving weights (%), and beside it the paired difference to MP; a Figure.

    Means with bars of ± one standard deviation, published means as hollow markers, the dense
    network as a thin line; differences with their 95 % interval. Settings that the table varies
    are stacked; the column gap shows training and test error first. With `save`, also writes
    figures/<scale>/<table>.png, or <table>-<column>.png, with the caption in its metadata.
    """
    rows, panels = of.one_source(results, column), []
    names = of.varied(rows)
    for _, part in rows.groupby([*VARIED], sort=False):
        for shown in ["train_error", "error", "gap"] if column == "gap" else [column]:
            panels.append((draw_means, part, shown))
        if "mp" in set(part.method) and part.method.nunique() > 1:
            panels.append((draw_differences, part, column))
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    size, shared = (6.4, 1 + 2.6 * down), {"sharex": True, "sharey": "col" if names else False}
    with canvas(down, across, figsize=size, **shared) as (figure, axes):
        for axis, (draw, part, shown) in zip(axes.flat, panels, strict=False):
            draw(axis, part, shown)
            axis.set_title(", ".join(part.iloc[0][names]))
        for axis in axes[-1]:
            axis.set_xlabel("surviving weights (%)")
        path = _path(results, "" if column == "error" else f"-{column}") if save else None
        return finish(figure, of.title(results), of.caption(results), path)


def scatter(results: pd.DataFrame, x: str, y: str = "error", save: bool = False):
    """Each run as a point: the column `x` against `y`, on log axes; a Figure.

    With `save` also figures/<scale>/<table>-<x>.png.
    """
    rows = of.one_source(of.one_source(results, x), y)
    with canvas(figsize=(6.4, 3.6)) as (figure, ((axis,),)):
        for method, own in rows.groupby("method", sort=False):
            points = look(method) | {"linestyle": "", "alpha": 0.7, "label": METHODS[method].title}
            axis.plot(own[x], own[y], **points)
        axis.set(xlabel=of.MEASURED[x][0], ylabel=of.MEASURED[y][0])
        _readable(axis, "log")
        axis.xaxis.set_inverted(False)  # less distortion is at the left
        words = of.caption(results, "one point per run")
        return finish(figure, of.title(results), words, _path(results, f"-{x}") if save else None)


def _path(results: pd.DataFrame, suffix: str) -> pathlib.Path:
    first = results.iloc[0]
    rows = results_file(first.table, first.scale, first.changed)
    return rows.with_name(f"{rows.stem}{suffix}.png")


def draw_means(axis, rows: pd.DataFrame, column: str = "error") -> None:
    """A line per method on a matplotlib axis, with the published means where there are any."""
    if column in ("error", "error_before"):
        axis.axhline(rows.dense_error.mean(), color="0.5", linewidth=1, label="dense network")
    found = of.compare(rows, column)
    mean, std = found[column], found["std"]
    _lines(axis, found.assign(value=mean, low=mean - std, high=mean + std))
    axis.set_ylabel(of.MEASURED[column][0])
    _readable(axis, "linear" if column == "gap" else "log")


def draw_differences(axis, rows: pd.DataFrame, column: str = "error") -> None:
    """Each method minus MP on the seeds that both have, with the 95 % interval."""
    axis.axhline(0, color=look("mp")["color"], linewidth=1)
    others = [method for method in rows.method.unique() if method != "mp"]
    found = [of.paired(rows, method, "mp", column).assign(method=method) for method in others]
    _lines(axis, pd.concat(found).rename(columns={"difference": "value"}).assign(paper=None))
    axis.set_ylabel("difference to MP" + " (points)" * (column != "distortion"))
    _readable(axis, "symlog" if max(map(abs, axis.get_ylim())) > 3 else "linear")


def _lines(axis, found: pd.DataFrame) -> None:
    """A line per method from low over value to high, each a little aside so that none is hidden.

    All of a fraction lie nearer to it than to the next.
    """
    groups = found.groupby("method", sort=False)
    apart = groups.surviving.apply(lambda own: (own / own.shift(-1)).min()).min()
    aside = min(1.03, apart ** (0.5 / len(groups)))
    for n, (method, own) in enumerate(groups):
        x, y = own.surviving * aside ** (len(groups) / 2 - n), own.value
        line = look(method) | {"label": METHODS[method].title}
        if len(x) > MANY:
            axis.plot(x, y, **line | {"marker": "None"})
            axis.fill_between(x, own.low, own.high, color=line["color"], alpha=0.2, linewidth=0)
        else:
            edge = {"elinewidth": 1, "markeredgecolor": "white", "markeredgewidth": 0.6}
            axis.errorbar(x, y, [y - own.low, own.high - y], **edge, **line)
        if own.paper.notna().any():
            hollow = {"markersize": 9, "markerfacecolor": "none", "label": "published"}
            axis.plot(x, own.paper, **line | hollow | {"linestyle": ""})


def _readable(axis, scale: str) -> None:
    """Surviving weights on a log axis, dense at the left; ticks such as 2, 5, 10 %."""
    axis.set_xscale("log")
    axis.set_yscale(scale, **({"linthresh": 1} if scale == "symlog" else {}))
    axis.margins(0.06)
    axis.xaxis.set_inverted(True)
    for line in (axis.xaxis, axis.yaxis)[: 1 if scale == "linear" else 2]:
        low, high = sorted(line.get_view_interval())
        count = sum(low <= tick <= high for tick in TICKS)
        ticks = FINE if count < 3 else TICKS[1::2] if count > 8 else TICKS
        ticks = SIGNED if line.get_scale() == "symlog" else ticks
        ticks = [tick for tick in ticks if low <= tick <= high]
        line.set_ticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
        line.set_ticks([], minor=True)


def finish(figure, heading: str, words: str, path: pathlib.Path | None = None):
    """A heading above the panels, legend and caption below them; saved when there is a path."""
    figure.suptitle(heading)
    named = {}
    for axis in figure.axes:
        named |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(named.values(), named, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    below = -(0.2 + 0.22 * math.ceil(len(named) / 3)) / figure.get_figheight()
    small = {"fontsize": 8, "color": "0.3", "ha": "center", "va": "top"}
    figure.text(0.5, below, textwrap.fill(words.replace("± ", "±\u00a0"), 105), **small)
    figure.set_label(words)
    if path:
        write_whole(path, png(figure))
    return figure


def png(figure, dpi: int = 150) -> bytes:
    """A figure as a PNG on white, with its label, the caption, in the metadata."""
    look = {"dpi": dpi, "bbox_inches": "tight", "facecolor": "white"}
    figure.savefig(file := io.BytesIO(), metadata={"Description": figure.get_label()}, **look)
    return file.getvalue()
