"""Results as pictures, 8 cm wide, the width at which they are read. `save` alone writes a file.

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
from typing import TYPE_CHECKING

import pandas as pd

from lapnb.checks import require
from lapnb.paper.protocol import VARIED
from lapnb.paper.tables import table
from lapnb.pruning.scores import METHODS
from lapnb.report import compare as of
from lapnb.report import words
from lapnb.runs.rows import results_file
from lapnb.store import root, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 3.15  # inches
INK = "#757575"
STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "legend.fontsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "axes.grid": True,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}
# Looks of the methods by their position in METHODS, taken in turns by further ones. The colours
# have a contrast of 3 : 1 on white and on black, and are apart for colour-blind readers where a
# table puts methods side by side.
PALETTE = "0173b2 8c8c8c 903edf 007846 d55e00 0096b4 e1184e 784bff 8778ff 2d7869 872dff 339b66 "
PALETTE += "08a4a0 d21e5a 69a16b 4da0ad a9446f 5f4bf3"
SHAPES = "osv^D><Pphd*XH>v^P"
DASHES = ["-"] * 5 + ["--"] * 2 + ["-"] * 6 + ["--"] * 5
ERRORS = ("error", "error_before", "train_error")  # 100 minus these is an accuracy
TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90]
FINE = [0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80]
MANY = 20  # rounds: a line with a band then says more than markers with bars


def look(method: str) -> dict[str, str]:
    """Colour, marker and dashes of a method."""
    n = [*METHODS].index(method) % len(SHAPES)
    return {
        "color": f"#{PALETTE.split()[n]}",
        "marker": SHAPES[n],
        "linestyle": DASHES[n],
    }


COLOURS = {method: look(method)["color"] for method in METHODS}
MARKERS = {method: look(method)["marker"] for method in METHODS}


@contextlib.contextmanager
def canvas(down: int = 1, across: int = 1, style: dict = STYLE, **settings):
    """A figure in our style and its axes; pyplot forgets it, and shows it no second time."""
    import matplotlib.pyplot as plt

    with plt.rc_context(style):
        figure, axes = plt.subplots(
            down,
            across,
            squeeze=False,
            **settings,
        )
        plt.close(figure)
        yield figure, axes


def plot(
    results: pd.DataFrame,
    column: str = "error",
    save: bool = False,
    methods: list[str] | None = None,
) -> "Figure":
    """Draw `column` against surviving weights, and below it the paired difference to MP.

    Points are means with bars of ± one standard deviation, or with their 95 % interval where they
    are differences. Hollow markers are published means, a thin line is the dense network. Settings
    that the table varies are stacked.

    Args:
        results: rows of one table, as `run` and `recorded` return them.
        column: what is drawn, e.g. "error", "error_before" or "gap".
        save: whether to write figures/<scale>/<table>.png too; other columns and a choice of
            methods are part of the file's name.
        methods: which methods are drawn; None for all.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if `results` are not rows of one table, or do not hold `column` or `methods`.

    >>> import lapnb
    >>> rows = lapnb.recorded("fcn_mnist", "paper")
    >>> print(lapnb.plot(rows, methods=["mp", "lap"]).get_suptitle())
    LAP beats MP at 5 of 7 surviving fractions
    FCN on MNIST
    """
    rows = of.one_source(results, column)
    suffix = "" if column == "error" else f"-{column}"
    if methods is not None:
        names = [*rows.method.unique()]
        known = len(methods) > 0 and {*methods} <= {*names}
        require(
            known,
            "methods",
            f"some of {', '.join(names)}",
            methods,
        )
        rows = rows[rows.method.isin(methods)]
        suffix += "-" + "-".join(methods)
    panels = []
    for _, part in rows.groupby([*VARIED], sort=False):
        panels.append((_means, part))
        if "mp" in {*part.method} and {*part.method} - {"mp", "rp"}:
            panels.append((_differences, part))
    heights = [1.6 if draw is _means else 1.2 for draw, _ in panels]
    sizes = {"figsize": (WIDTH, 0.8 + sum(heights)), "height_ratios": heights}
    with canvas(len(panels), sharex=True, **sizes) as (figure, axes):
        for axis, (draw, part) in zip(axes[:, 0], panels, strict=True):
            draw(
                axis,
                part,
                column,
                of.varied(rows),
            )
        fractions = 100 * rows.groupby("round").surviving.mean()
        _surviving_axes(axes[0, 0], axes[-1, 0], fractions)
        marks = words.BARS
        if len(fractions) > MANY:
            marks = marks.replace("bars", "bands")
        heading = f"{finding(rows, column)}\n{words.title(rows)}"
        return finish(
            figure,
            heading,
            words.how(rows, marks),
            _path(rows, suffix, save),
            column,
        )


def scatter(results: pd.DataFrame, x: str, y: str = "error", save: bool = False) -> "Figure":
    """Draw each run as a point: one recorded column against another.

    Args:
        results: rows of one table, as `run` and `recorded` return them.
        x: the column on the horizontal axis, which is linear.
        y: the column on the vertical axis.
        save: whether to write figures/<scale>/<table>-<x>.png too.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: if `results` are not rows of one table, or do not hold `x` or `y`.

    >>> import lapnb
    >>> rows = lapnb.recorded("fcn_linear", "paper")
    >>> lapnb.scatter(rows, "distortion", "error_before").get_suptitle().splitlines()[-1]
    'Linear FCN on MNIST'
    """
    rows = of.one_source(of.one_source(results, x), y)
    with canvas(figsize=(WIDTH, 2.4)) as (figure, ((axis,),)):
        for method, part in rows.groupby("method", sort=False):
            points = look(method) | {
                "linestyle": "",
                "alpha": 0.8,
                "label": _name(method),
            }
            axis.plot(part[x], part[y], **points)
        axis.set(xlabel=words.MEASURED[x][0], ylabel=words.MEASURED[y][0])
        _error_axis(axis, y, rows[y])
        order = rows[x].rank().corr(rows[y].rank())
        found = f"Rank correlation of {x} and error: {order:.2f}".replace("-", "−")
        heading = f"{found}\n{words.title(rows)}"
        text = words.how(rows, "one point per run")
        return finish(
            figure,
            heading,
            text,
            _path(rows, f"-{x}", save),
            x,
        )


def plot_networks(networks: pd.DataFrame, seeds: pd.DataFrame, save: bool = False) -> "Figure":
    """Draw LAP − MP of all networks: a line each, with its interval and every seed as a dot.

    Args:
        networks: a row per network with the columns network ("VGG-16 ×¼ on CIFAR-10"), scale, n,
            difference, low, high (points), dense (%), and published (points, NaN where there is
            none).
        seeds: a row per network and seed with the columns network, scale and difference.
        save: whether to write figures/networks.png too.

    Returns:
        A matplotlib Figure.
    """
    import seaborn

    networks = networks.dropna(subset="difference")
    places = networks[["network", "scale"]].assign(place=range(len(networks)))
    dots = seeds.merge(places)
    low, high = _reach(networks, seeds)
    sizes = {"figsize": (WIDTH, 0.32 * len(networks) + 0.6), "width_ratios": [10, 4]}
    with canvas(
        1,
        2,
        sharey=True,
        **sizes,
    ) as (figure, ((axis, beside),)):
        axis.set(xlim=(low, high), ylim=(len(networks) - 0.4, -0.9), yticks=[])
        axis.grid(False)
        beside.set_xlim(0, 1)
        beside.axis("off")
        seaborn.scatterplot(
            dots,
            x="difference",
            y="place",
            ax=axis,
            color=INK,
            s=7,
            linewidth=0,
        )
        for place, row in enumerate(networks.itertuples()):
            _draw_network(axis, place, row)
            beside.text(
                0.35,
                place,
                f"{row.dense:.1f}",
                ha="right",
                va="center",
            )
            beside.text(
                1,
                place,
                _signed(row.published),
                ha="right",
                va="center",
            )
        beside.text(
            0.35,
            -0.7,
            "dense",
            ha="right",
        )
        beside.text(
            1,
            -0.7,
            "published",
            ha="right",
        )
        axis.set(ylabel="", xlabel="LAP − MP, test error (points)")
        better = (networks.high < 0).sum() or "none"
        worse = (networks.low > 0).sum() or "none"
        heading = f"LAP beats MP on {better} of {len(networks)} networks, MP on {worse}"
        text = "every seed a dot · diamonds: means with 95 % intervals · dense: test error (%) · "
        text += "published: LAP − MP in the paper"
        path = root() / "figures" / "networks.png" if save else None
        return finish(
            figure,
            heading,
            text,
            path,
            "difference",
        )


def _draw_network(axis, place: int, row) -> None:
    """A network's name, mean and interval; an arrow and numbers where the mean is off the axis."""
    left, right = axis.get_xlim()
    colour = COLOURS["lap"]
    name = f"{row.network}, {row.scale}, n = {row.n}"
    axis.text(
        left,
        place - 0.37,
        name,
        fontsize=6.5,
        va="center",
        in_layout=False,
    )
    axis.vlines(0, place - 0.18, place + 0.3, color=COLOURS["mp"], linewidth=0.8)
    axis.plot([row.low, row.high], [place, place], color=colour)
    axis.plot(
        row.difference,
        place,
        "D",
        color=colour,
    )
    text = f"{_signed(row.difference)} [{_signed(row.low)}, {_signed(row.high)}]"
    about = {
        "color": colour,
        "fontsize": 6.5,
        "va": "center",
        "in_layout": False,
    }
    if row.difference < left:
        axis.plot(
            left,
            place,
            "<",
            color=colour,
            clip_on=False,
        )
        axis.text(
            left,
            place,
            f"   {text}",
            **about,
        )
    if row.difference > right:
        axis.plot(
            right,
            place,
            ">",
            color=colour,
            clip_on=False,
        )
        axis.text(
            right,
            place,
            f"{text}   ",
            ha="right",
            **about,
        )


def _signed(value: float) -> str:
    """A difference as text; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _reach(networks: pd.DataFrame, seeds: pd.DataFrame) -> tuple[float, float]:
    """The limits of the axis: they hold all networks but those whose difference is exceptional."""
    size = networks.difference.abs()
    near = networks[size <= 4 * size.median()]
    dots = seeds.merge(near[["network", "scale"]]).difference
    low = min(0, near.low.min(), dots.min())
    high = max(0, near.high.max(), dots.max())
    return 1.05 * low - 0.5, 1.05 * high + 0.5


def finding(rows: pd.DataFrame, column: str = "error") -> str:
    """Say how often LAP is significantly better than MP; else what is lowest at the sparsest."""
    what = words.MEASURED[column][1]
    claims = table(rows.table.iloc[0], "paper").claims
    if not {"mp", "lap"} <= {*rows.method} or not (claims or rows.method.nunique() == 2):
        return _lowest(rows, column)
    pairs = of.pairs(
        rows,
        "lap",
        "mp",
        column,
    )
    pairs = pairs[pairs.n >= of.LEAST_SEEDS]
    if pairs.empty:
        return f"LAP and MP{what}: too few seeds to compare"
    total = f"{len(pairs)} {'comparisons' if of.varied(rows) else 'surviving fractions'}"
    if column == "gap":
        alike = pairs.low.gt(-1) & pairs.high.lt(1)
        return f"LAP's gap is within 1 point of MP's at {alike.sum()} of {total}"
    worse = (pairs.low > 0).sum()
    text = f"LAP beats MP{what} at {(pairs.high < 0).sum() or 'none'} of {total}"
    return f"{text}, MP at {worse}" if worse else text


def _lowest(rows: pd.DataFrame, column: str) -> str:
    means = of.means(rows, column)
    sparsest = means[means["round"] == means["round"].max()]
    best = sparsest.loc[sparsest[column].idxmin()]
    name = ", ".join([words.short(best.method), *_variant(best, of.varied(rows))])
    return f"Lowest at {words.percent(best.surviving)} %: {name} ({best[column]:.2f})"


def _variant(row: pd.Series, names: list[str]) -> list[str]:
    """What a row is of the settings that vary, in words."""
    return [words.WORDS.get(value, value) for value in row[names]]


def _means(axis, rows: pd.DataFrame, column: str, varied: list[str]) -> None:
    dense = None
    if column in ("error", "error_before"):
        dense = rows.groupby("seed").dense_error.mean().mean()
    draw_means(
        axis,
        of.means(rows, column),
        column,
        dense,
    )
    variant = ", ".join(_variant(rows.iloc[0], varied))
    axis.set_title(
        variant,
        y=0.82,
        x=0.03,
        loc="left",
        weight="bold",
    )


def _differences(axis, rows: pd.DataFrame, column: str, varied: list[str]) -> None:
    others = [method for method in rows.method.unique() if method not in ("mp", "rp")]
    pairs = [
        of.pairs(
            rows,
            method,
            "mp",
            column,
        ).assign(method=method)
        for method in others
    ]
    table = pd.concat(pairs)
    if table.empty:
        axis.text(
            0.5,
            0.5,
            "no seed in common with MP",
            transform=axis.transAxes,
            ha="center",
        )
    else:
        draw_differences(axis, table, column)


def draw_means(axis, means: pd.DataFrame, column: str = "error", dense=None) -> None:
    """Draw a line per method: `compare`'s means, ours and the published ones, of `column`.

    `dense` is the error of the dense network.
    """
    values = [means[column], means.paper]
    if dense is not None:
        axis.axhline(dense, color=INK, linewidth=0.8)
        place = {
            "xycoords": ("axes fraction", "data"),
            "ha": "right",
            "va": "bottom",
        }
        axis.annotate(
            f"dense: {dense:.1f}",
            (0.99, dense),
            fontsize=6.5,
            **place,
        )
        values.append(pd.Series(dense))
    mean, std = means[column], means["std"]
    _lines(axis, means.assign(value=mean, low=mean - std, high=mean + std))
    axis.set_ylabel(words.MEASURED[column][0])
    _error_axis(axis, column, pd.concat(values))


def draw_differences(axis, pairs: pd.DataFrame, column: str = "error") -> None:
    """Draw `paired`'s differences to MP, a line per method, on a linear axis.

    The axis holds what is better than MP, and LAP; an arrow shows where a line leaves it.
    """
    axis.axhline(0, color=COLOURS["mp"], linewidth=0.8)
    _lines(axis, pairs.assign(value=pairs.difference, paper=math.nan))
    axis.set_ylabel("difference to MP" + ("" if column == "distortion" else "\n(points)"))
    low, high = _limits(pairs)
    axis.set_ylim(low, high)
    above = pairs[pairs.difference > high]
    for row in above.itertuples():
        axis.plot(
            row.surviving,
            high,
            "^",
            color=COLOURS[row.method],
            clip_on=False,
        )


def _limits(pairs: pd.DataFrame) -> tuple[float, float]:
    """From the best mean to the worst of LAP; others may be as much worse as the best is better."""
    certain = pairs[(pairs.method == "lap") & (pairs.n >= 3)]
    low = min(0, pairs.difference.min(), certain.low.min())
    high = max(0, certain.high.max(), min(pairs.difference.max(), -low))
    space = 0.06 * (high - low) or 1
    return low - space, high + space


def _name(method: str) -> str:
    """A method's title where it is short, else its abbreviation."""
    title = METHODS[method].title
    return title if len(title) < 20 else words.short(method)


def _lines(axis, numbers: pd.DataFrame) -> None:
    """A line per method from low over value to high, each a little aside so that none is hidden.

    All of a fraction lie nearer to it than to the next.
    """
    groups = numbers.groupby("method", sort=False)
    apart = groups.surviving.apply(lambda own: (own / own.shift(-1)).min()).min()
    aside = min(1.05, apart ** (0.5 / len(groups)))
    hollow = {
        "markersize": 6,
        "markerfacecolor": "none",
        "markeredgewidth": 0.8,
        "linestyle": "",
    }
    for place, (method, line) in enumerate(groups):
        x = line.surviving * aside ** (len(groups) / 2 - place)
        style = look(method) | {"label": _name(method)}
        if len(x) > MANY:
            axis.plot(x, line.value, **style | {"marker": "None"})
            axis.fill_between(
                x,
                line.low,
                line.high,
                color=style["color"],
                alpha=0.2,
                linewidth=0,
            )
        else:
            bars = [line.value - line.low, line.high - line.value]
            axis.errorbar(
                x,
                line.value,
                bars,
                elinewidth=0.8,
                **style,
            )
        if line.paper.notna().any():
            axis.plot(x, line.paper, **style | hollow | {"label": None})
            axis.plot(
                [],
                [],
                **hollow,
                marker="o",
                color=INK,
                label="published",
            )


def _error_axis(axis, column: str, values: pd.Series) -> None:
    """Error on the left, linear if all values lie within a factor of 2; accuracy on the right."""
    from matplotlib.ticker import MaxNLocator

    axis.margins(y=0.08)
    if column not in ERRORS:
        return
    ticks = MaxNLocator(5).tick_values(*axis.get_ylim())
    if values.max() > 2 * values.min():
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        ticks = TICKS
        if sum(low <= tick <= high for tick in TICKS) < 3:
            ticks = FINE
    low, high = axis.get_ylim()
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    right = axis.secondary_yaxis("right")
    right.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
    right.set_yticks([], minor=True)
    right.set_ylabel("accuracy (%)")


def _surviving_axes(first, last, fractions: pd.Series) -> None:
    """Surviving weights below the last panel, sparsity above the first; few to the right.

    Measured fractions are ticks. The sparsest is labelled, and others as far as there is room.
    """
    last.set_xscale("log")
    low, high = fractions.min(), fractions.max()
    last.margins(x=0.04)
    last.autoscale(axis="x")  # points that lie aside of their fraction included
    last.set_xlim(sorted(last.get_xlim(), reverse=True))
    labelled = [low]
    for fraction in sorted(fractions):
        if fraction >= labelled[-1] * (high / low) ** 0.155 and fraction > low:
            labelled.append(fraction)
    last.set_xticks(labelled, [words.percent(fraction) for fraction in labelled])
    if len(fractions) <= MANY:
        last.set_xticks(fractions, [""] * len(fractions), minor=True)
    else:
        last.set_xticks([], minor=True)
    last.set_xlabel("surviving weights (%)")
    top = first.secondary_xaxis("top")
    top.set_xticks(labelled, [words.sparsity(fraction) for fraction in labelled])
    top.set_xticks([], minor=True)
    top.set_xlabel("sparsity (%)")


def _path(rows: pd.DataFrame, suffix: str, save: bool) -> pathlib.Path | None:
    first = rows.iloc[0]
    file = results_file(first.table, first.scale, first.changed)
    return file.with_name(f"{file.stem}{suffix}.png") if save else None


def wrapped(text: str, width: int) -> str:
    """A caption in lines, which begin between its parts where that is possible."""
    lines = [""]
    for part in text.split(" · "):
        if len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" · {part}" if lines[-1] else part
        else:
            lines += textwrap.wrap(part, width)
    return "\n".join(filter(None, lines))


def finish(figure, heading: str, text: str, path: pathlib.Path | None = None, column: str = ""):
    """Put a heading above the panels, legend and caption below; save where there is a path."""
    # a space before a line break that is not the heading's own: see `png`
    lines = [textwrap.fill(line, 46).replace("\n", " \n") for line in heading.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=8)
    named = {}
    for axis in figure.axes:
        named |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    if "published" in named:
        named["published"] = named.pop("published")  # the last
    columns = 2 if max(map(len, named), default=0) > 16 else 3
    if named:
        place = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, 0),
            "ncols": columns,
        }
        figure.legend(
            named.values(),
            named,
            columnspacing=1,
            **place,
        )
    below = -(0.06 + 0.15 * math.ceil(len(named) / columns)) / figure.get_figheight()
    small = {
        "fontsize": 6.5,
        "ha": "center",
        "va": "top",
    }
    figure.text(
        0.5,
        below,
        wrapped(text, 60),
        **small,
    )
    figure.set_label(text)
    if path:
        write_whole(path, png(figure, rows=path, column=column))
    return figure


def png(figure, dpi: int = 200, rows: pathlib.Path | None = None, column: str = "") -> bytes:
    """A figure as a PNG. Its metadata hold heading, caption and what was drawn of which rows."""
    title = figure.get_suptitle().replace(" \n", " ").replace("\n", ": ")
    about = {
        "Title": title,
        "Description": figure.get_label(),
        "Column": column,
    }
    if rows:
        stem = rows.stem.partition("-")[0]
        table_file = rows.with_name(f"{stem}.csv")
        about["Table"] = f"{rows.parent.name}/{stem}"
        if table_file.exists():
            about["Rows"] = hashlib.sha256(table_file.read_bytes()).hexdigest()
    figure.savefig(
        file := io.BytesIO(),
        metadata=about,
        dpi=dpi,
        bbox_inches="tight",
    )
    return file.getvalue()
