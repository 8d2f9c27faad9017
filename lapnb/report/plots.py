"""Results as pictures, 8 cm wide, the width at which they are read. Only `save` writes files.

Grounds are transparent, so that the pictures suit white and dark pages. No grey has a contrast of
4.5 : 1 on both; `INK` has 4.6 on white and 4.1 on the black of GitHub and JupyterLab, lines have at
least 3 on either.
"""

import contextlib
import hashlib
import io
import math
import pathlib
import textwrap

import pandas as pd

from lapnb.checks import require
from lapnb.paper.protocol import VARIED
from lapnb.pruning.scores import METHODS
from lapnb.report import compare, words
from lapnb.runs.rows import results_file
from lapnb.store import root, write_whole

WIDTH = 3.15  # inches
INK = "#757575"
FIXED = "\N{NO-BREAK SPACE}"
STYLE = pathlib.Path(__file__).with_suffix(".mplstyle")
# The looks of the methods by their position in METHODS; further methods take them in turn. The
# colours have a contrast of 3 : 1 on white and on black. Colour-blind readers can tell apart those
# of methods that a table puts side by side.
PALETTE = "0173b2 8c8c8c 903edf 007846 d55e00 0096b4 e1184e 784bff 8778ff 2d7869 872dff 339b66 "
PALETTE += "08a4a0 d21e5a 69a16b 4da0ad a9446f 5f4bf3"
SHAPES = "osv^D><Pphd*XH>v^P"
DASHES = ["-"] * 5 + ["--"] * 2 + ["-"] * 6 + ["--"] * 5
HOLLOW = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 0.8, "linestyle": ""}
ERRORS = ("error", "error_before", "train_error")  # 100 minus these is an accuracy
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90]
FINE = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 90]
MANY = 20  # beyond so many rounds, some have no marker, bar and tick


def look(method: str) -> dict[str, str]:
    """Return the colour, marker and dashes of a method."""
    n = [*METHODS].index(method) % len(SHAPES)
    colour = f"#{PALETTE.split()[n]}"
    return {"color": colour, "marker": SHAPES[n], "linestyle": DASHES[n]}


COLOURS = {method: look(method)["color"] for method in METHODS}
MARKERS = {method: look(method)["marker"] for method in METHODS}


@contextlib.contextmanager
def canvas(*shape: int, **settings):
    """Yield a figure in our style and its axes; pyplot forgets it, so it is not shown twice."""
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(*shape, squeeze=False, **settings)
        plt.close(figure)
        yield figure, axes


def plot(
    results: pd.DataFrame,
    column: str = "error",
    save: bool = False,
    methods: list[str] | None = None,
):
    """Draw `column` against surviving weights, and below it the paired difference to MP.

    Points are means with bars of ± one standard deviation, or with their 95 % interval where they
    are differences. Hollow markers are published means, a thin line is the dense network. Settings
    that the table varies are stacked.

    Args:
        results: rows of one table, as `run` and `recorded` return them.
        column: what is drawn, e.g. "error", "error_before" or "gap".
        save: whether to write figures/<scale>/<table>.png too, beside the recorded rows; other
            columns and a choice of methods are part of the file's name.
        methods: which methods are drawn; None for all.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if `results` are not rows of one table, or do not hold `column` or `methods`.

    >>> import lapnb
    >>> rows = lapnb.recorded("fcn_mnist", "paper")
    >>> print(lapnb.plot(rows, methods=["mp", "lap"]).get_suptitle())
    LAP beats MP: reproduced
    FCN on MNIST
    """
    rows = compare.one_source(results, column)
    suffix = "" if column == "error" else f"-{column}"
    if methods is not None:
        names = [*rows.method.unique()]
        allowed = f"some of {', '.join(names)}"
        require({*methods} <= {*names}, "methods", allowed, methods)
        rows = rows[rows.method.isin(methods)]
        suffix += "-" + "-".join(methods)
    variants = [part for _, part in rows.groupby([*VARIED], sort=False)]
    heights = [1.6, 1.2] if len(variants) == 1 else [1.1, 0.8]
    if compare.against_mp(rows, column).empty:
        heights = heights[:1]
    heights = heights * len(variants)
    size = WIDTH, 0.8 + sum(heights)
    with canvas(len(heights), figsize=size, height_ratios=heights, sharex=True) as (figure, axes):
        axes = axes.reshape(len(variants), -1)
        for (above, *below), part in zip(axes, variants, strict=True):
            _draw_means(above, part, column)
            for axis in below:
                _draw_differences(axis, part, column)
            variant = ", ".join(map(words.short, part.iloc[0][compare.varied(rows)]))
            above.set_title(variant, y=0.77, x=0.03, loc="left", weight="bold")
        if column in ERRORS:
            _error_axes(axes[:, 0])
        fractions = 100 * rows.groupby("round").surviving.mean()
        _surviving_axes(axes[0, 0], axes[-1, -1], fractions)
        heading = f"{compare.finding(rows, column)}\n{words.title(rows)}"
        finish(figure, heading, words.how(rows))
        if save:
            _save(figure, rows, suffix, column)
    return figure


def scatter(results: pd.DataFrame, x: str, y: str = "error", save: bool = False):
    """Draw each run as a point: one recorded column against another.

    Args:
        results: rows of one table, as `run` and `recorded` return them.
        x: the column on the horizontal axis, which is linear.
        y: the column on the vertical axis.
        save: whether to write figures/<scale>/<table>-<x>.png too, beside the recorded rows.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if `results` are not rows of one table, or do not hold `x` or `y`.

    >>> import lapnb
    >>> rows = lapnb.recorded("fcn_linear", "paper")
    >>> lapnb.scatter(rows, "distortion", "error_before").get_suptitle().splitlines()[-1]
    'Linear FCN on MNIST'
    """
    rows = compare.one_source(compare.one_source(results, x), y)
    with canvas(figsize=(WIDTH, 2.4)) as (figure, ((axis,),)):
        for method, part in rows.groupby("method", sort=False):
            points = look(method) | {"linestyle": "", "alpha": 0.8}
            axis.plot(part[x], part[y], label=_name(method), **points)
        axis.set(xlabel=words.MEASURED[x][0], ylabel=words.MEASURED[y][0])
        if y in ERRORS:
            _error_axes([axis])
        order = words.number(rows[x].rank().corr(rows[y].rank()))
        heading = f"Rank correlation of {x} and error: {order}\n{words.title(rows)}"
        finish(figure, heading, words.how(rows, "one point per run"))
        if save:
            _save(figure, rows, f"-{x}", x)
    return figure


def plot_networks(networks: pd.DataFrame, seeds: pd.DataFrame, save: bool = False):
    """Draw LAP − MP of all networks, one line for each, with its interval and a dot per seed.

    Args:
        networks: a row per network with the columns network ("VGG-16 ×¼ on CIFAR-10"), scale, n,
            difference, low, high (points), dense (%), and published (points, NaN where there is
            none).
        seeds: a row per network and seed with the columns network, scale and difference.
        save: whether to write figures/networks.png too.

    Returns:
        A matplotlib Figure.
    """
    networks = networks.dropna(subset="difference").reset_index()
    better = networks.high < 0
    worse = networks.low > 0
    with canvas(figsize=(WIDTH, 0.32 * len(networks) + 0.6)) as (figure, ((axis,),)):
        beside = {"transform": axis.get_yaxis_transform(), "va": "center"}
        right = beside | {"ha": "right"}
        axis.text(1.13, -0.5, "dense", **right)
        axis.text(1.36, -0.5, "paper", **right)
        for place, row in networks.iterrows():
            name = f"{row.network}, {row.scale}, n = {row.n}"
            axis.text(0, place - 0.42, name, fontsize=6.5, in_layout=False, **beside)
            axis.text(1.13, place, f"{row.dense:.1f}", **right)
            published = "–" if pd.isna(row.published) else words.number(row.published, "+.1f")
            axis.text(1.36, place, published, **right)
            colour = COLOURS["lap"] if better[place] or worse[place] else INK
            bars = [[row.difference - row.low], [row.high - row.difference]]
            axis.vlines(0, place - 0.22, place + 0.3, color=COLOURS["mp"])
            axis.errorbar(row.difference, place, xerr=bars, color=colour, marker="D", **HOLLOW)
            dots = seeds[(seeds.network == row.network) & (seeds.scale == row.scale)].difference
            axis.plot(dots, [place] * len(dots), "o", color=INK, markersize=2)
        axis.set(ylim=(len(networks) - 0.6, -0.8), yticks=[])
        axis.set_xlabel("← LAP better     LAP − MP (points)")
        axis.grid(False)
        axis.spines.left.set_visible(False)
        heading = f"LAP beats MP on {better.sum()} of {len(networks)} networks, "
        heading += f"MP beats LAP on {worse.sum() or 'none'}"
        text = "diamonds: means, 95 % intervals, orange where 0 is excluded · every seed a dot · "
        text += "dense: test error (%) · paper: LAP − MP as published"
        finish(figure, heading, text)
        if save:
            write_whole(root() / "figures" / "networks.png", png(figure))
    return figure


def _draw_means(axis, rows: pd.DataFrame, column: str) -> None:
    """Draw our line and the published one for each method, and the dense network's line."""
    if column in ("error", "error_before"):
        dense = words.dense_error(rows)
        axis.axhline(dense, color=INK, linewidth=0.8)
        place = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        style = {"fontsize": 6.5, "ha": "right", "va": "top"}
        axis.annotate(f"dense {dense:.1f}", (1, dense), (-1, -1.5), **place, **style)
    means = compare.compare(rows, column)
    mean, std = means[column], means["std"]
    _draw_lines(axis, means.assign(value=mean, low=mean - std, high=mean + std))
    axis.set_ylabel(textwrap.fill(words.MEASURED[column][0], 20))


def _draw_differences(axis, rows: pd.DataFrame, column: str) -> None:
    """Draw a line per method on a linear axis, but for random pruning, which is too far off.

    All of LAP and all that is better than MP lies within its limits. A method that is
    worse than MP lies within if it is worse by no more than others are better.
    """
    pairs = compare.against_mp(rows[rows.method != "rp"], column)
    sure = pairs.n >= compare.LEAST_SEEDS
    ends = pairs.high.where(sure, pairs.difference)
    low = min(0, pairs.low.where(sure, pairs.difference).min())
    high = max(0, ends[pairs.method == "lap"].max(), min(ends.max(), -low))
    space = 0.06 * (high - low) or 1
    axis.axhline(0, color=COLOURS["mp"], linewidth=0.8)
    _draw_lines(axis, pairs.assign(value=pairs.difference, paper=math.nan))
    axis.set_ylim(low - space, high + space)
    axis.set_ylabel("difference\nto MP" + ("" if column == "distortion" else " (points)"))


def _draw_lines(axis, numbers: pd.DataFrame) -> None:
    """Draw a line per method and its range from low to high, a little aside from the others."""
    groups = numbers.groupby("method", sort=False)
    step = (numbers.surviving.max() / numbers.surviving.min()) ** 0.007
    for place, (method, line) in enumerate(groups):
        x = line.surviving / step ** (place - (len(groups) - 1) / 2)
        every = math.ceil(len(x) / MANY)
        style = look(method) | {"markevery": every}
        bars = [line.value - line.low, line.high - line.value]
        options = style | {"errorevery": every, "elinewidth": 0.8, "label": _name(method)}
        axis.errorbar(x, line.value, bars, **options)
        axis.plot(x, line.paper, **style | HOLLOW)
    if numbers.paper.notna().any():
        axis.errorbar([], [], **HOLLOW, marker="o", color=INK, label="Published")


def _name(method: str) -> str:
    """Return a method's title where it is short, else its abbreviation."""
    title = METHODS[method].title
    name = title if len(title) < 20 else words.short(method)
    return name[0].upper() + name[1:]


def _error_axes(axes: list) -> None:
    """Give panels the same axis, with error on the left and accuracy on the right.

    It is linear if all values lie within a factor of 2.
    """
    spans = [axis.dataLim.intervaly for axis in axes]
    low = min(span[0] for span in spans)
    high = max(span[1] for span in spans)
    for axis in axes:
        axis.update_datalim([(1, low), (1, high)], updatex=False)
        axis.margins(y=0.14)
        ticks = axis.get_yticks()
        if high > 2 * low:
            axis.set_yscale("log")
            ticks = TICKS if high > 6 * low else FINE
        limits = axis.get_ylim()
        right = axis.secondary_yaxis("right")
        right.set_ylabel("accuracy (%)")
        for side, labels in ((axis, ticks), (right, [100 - tick for tick in ticks])):
            side.set_yticks(ticks, [f"{label:g}" for label in labels])
            side.set_yticks([], minor=True)
        axis.set_ylim(limits)


def _surviving_axes(first, last, fractions: pd.Series) -> None:
    """Put surviving weights below the last panel, fewest on the right, sparsity above the first.

    Measured fractions are ticks. Labels without room beside their neighbours stand further out.
    """
    low, high = fractions.min(), fractions.max()
    space = 1.02 * (high / low) ** 0.05
    last.set(xscale="log", xlim=(high * space, low / space))
    room = (high / low) ** 0.155
    near: list[float] = []
    out: list[float] = []
    for fraction in sorted(fractions):
        if not near or fraction >= near[-1] * room:
            near.append(fraction)
        elif len(fractions) <= MANY:
            out.append(fraction)
    top = first.secondary_xaxis("top")
    last.set_xlabel("surviving weights (%)")
    top.set_xlabel("sparsity (%)")
    for axis, text in ((last, words.percent), (top, words.sparsity)):
        axis.set_xticks(near, map(text, near))
        axis.set_xticks(out, map(text, out), minor=True)
        axis.tick_params(axis="x", which="minor", length=11, width=0.5, labelsize=6.5)


def _save(figure, rows: pd.DataFrame, suffix: str, column: str) -> None:
    """Write figures/<scale>/<table><suffix>.png, whose metadata say what it shows of which rows."""
    first = rows.iloc[0]
    path = results_file(first.table, first.scale, first.changed)
    metadata = {
        "Column": column,
        "Table": f"{path.parent.name}/{path.stem}",
        "Rows": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    write_whole(path.with_name(f"{path.stem}{suffix}.png"), png(figure, **metadata))


def finish(figure, heading: str, text: str) -> None:
    """Put a heading above the panels, and the legend and a caption below them."""
    figure.suptitle(heading, fontsize=8, wrap=True)
    named = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    columns = 2 if max(map(len, named), default=0) > 16 else 3
    below = 0.06
    if named:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
        figure.legend(named.values(), named, ncols=columns, columnspacing=1, **place)
        below += 0.15 * math.ceil(len(named) / columns)
    height = -below / figure.get_figheight()
    fixed = text.replace(" · ", f"{FIXED}· ").replace(" = ", f"{FIXED}={FIXED}")
    lines = textwrap.fill(fixed, 60)
    figure.text(0.5, height, lines, fontsize=6.5, ha="center", va="top")
    figure.set_label(text)


def png(figure, dpi: int = 200, **about: str) -> bytes:
    """Return a figure as a PNG, whose metadata hold the heading, the caption and `about`."""
    file = io.BytesIO()
    about["Title"] = figure.get_suptitle().replace("\n", ": ")
    about["Description"] = figure.get_label()
    figure.savefig(file, metadata=about, dpi=dpi, bbox_inches="tight")
    return file.getvalue()
