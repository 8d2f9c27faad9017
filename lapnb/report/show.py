"""What a notebook shows of a table: the same text and numbers whenever its rows are the same."""

import contextlib
import functools
import math
import pathlib

import pandas as pd

from lapnb.paper.tables import table as declared
from lapnb.report import compare, words
from lapnb.report.plots import FIXED, plot, png
from lapnb.runs.rows import keys, pool, results_file
from lapnb.runs.run import recorded

MOST_LINES = 12


class Markdown(str):
    """Text that a notebook renders and a terminal prints."""

    __repr__ = str.__str__

    def _repr_markdown_(self) -> str:
        return self


class Picture:
    """A figure in a notebook's size; a terminal prints its caption."""

    def __init__(self, figure):
        self.figure = figure

    def __repr__(self) -> str:
        return self.figure.get_label()

    def _repr_png_(self) -> bytes:
        return png(self.figure, 110)


def markdown(frame: pd.DataFrame) -> Markdown:
    """Return a table of texts without row numbers."""
    cells = frame.astype(object).fillna("–").to_numpy()
    lines = []
    for row in (frame.columns, ["---"] * len(frame.columns), *cells):
        texts = [str(cell).replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(texts)} |")
    return Markdown("\n".join(lines).replace(" ± ", f"{FIXED}±{FIXED}"))


def show(results: pd.DataFrame | str, column: str = "error") -> None:
    """Show a table in a notebook: result, our numbers beside the paper's, plot and verdicts.

    The picture is saved beside the table's rows when `results` are all of them.

    Args:
        results: Rows of one table, as `lapnb.run` returns them; or a table's name, for what is
            recorded of it on its own data set, the largest scale first.
        column: What to compare: error, error_before, train_error, gap or distortion.

    Raises:
        ValueError: These are not rows of one table, or they do not record `column`.

    >>> import lapnb
    >>> lapnb.show("fcn_mnist")  # doctest: +SKIP
    """
    if not isinstance(results, str):
        rows = compare.one_source(results, column)
        show_rows(rows, column)
        if is_whole(rows):
            plot(rows, column, save=True)
        return
    by_scale = recorded_rows(results, "paper", "reduced")
    if not by_scale:
        data = words.NAMES[declared(results, "paper").dataset]
        print(f"Not run on {data} yet: nothing is recorded at the reduced or paper scale.")
    for rows in by_scale:
        show_rows(rows, column)


def show_rows(rows: pd.DataFrame, column: str) -> None:
    """Show typed rows as `show` does."""
    from IPython.display import display

    table = side_by_side(rows, column)
    caption = words.how(rows, "mean ± standard deviation")
    text = [f"**{words.title(rows)}**", result(rows), caption, heading(table, column)]
    display(Markdown("\n\n".join([*text, markdown(table)])))
    display(Picture(plot(rows, column)))
    claims = claims_table(rows)
    if len(claims):
        display(markdown(claims))


def heading(table: pd.DataFrame, column: str) -> str:
    """Return the line above the table of `side_by_side`: what its cells hold."""
    text, cells = f"{words.MEASURED[column][0]}: ours", table.to_string()
    if "|" in cells:
        text += " | published"
    if "**" in cells:
        text += ", the best of a row in bold"
    return text[0].upper() + text[1:]


def is_whole(results: pd.DataFrame) -> bool:
    """Return whether these are all recorded runs of the table and newer than its picture.

    Because of this check, looking at recorded rows, or at some of them, changes no file.
    """
    first = results.iloc[0]
    path = results_file(first.table, first.scale, first.changed)
    picture = path.with_suffix(".png")
    if not path.exists():
        return False
    if picture.exists() and picture.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return False
    rows = pool(path)
    rows = rows[(rows.status == "ok") & (rows.source == first.source)]
    return keys(rows) == keys(results)


def recorded_rows(name: str, *scales: str) -> list[pd.DataFrame]:
    """Return the recorded rows of a table, typed, for each of the `scales` that has any."""
    by_scale = []
    for scale in scales:
        path = results_file(name, scale)
        state = None
        if path.exists():
            state = path.stat().st_mtime_ns, path.stat().st_size
        by_scale += [rows.copy() for rows in _rows_in(name, scale, path, state)]
    return by_scale


@functools.lru_cache
def _rows_in(name: str, scale: str, path: pathlib.Path, state: tuple) -> list[pd.DataFrame]:
    """Read a table's rows once for each `state` of its results file, its time and size."""
    with contextlib.suppress(FileNotFoundError):
        return [compare.with_losses(recorded(name, scale))]
    return []


def result(rows: pd.DataFrame) -> str:
    """Say in one line what typed rows show of the first claim.

    For a table without claims, say which method is ahead where fewest weights survive.
    """
    verdicts = compare.verdicts(rows)
    if verdicts.empty:
        return f"{compare.lowest(rows)} ({rows.scale[0]} scale, {words.seeds(rows)})"
    return words.verdict_line(verdicts.iloc[0])


def claims_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts on typed rows as a table to read, a row per claim."""
    judged = compare.verdicts(rows)
    columns = {
        "claim": judged.claim,
        f"verdict ({rows.scale.iloc[0]} scale)": judged.verdict,
        "sparsity (%)": judged.sparsity,
        "surviving (%)": judged.surviving,
        "found [95 % interval]": judged.found,
        "n": judged.n,
        "detectable difference": judged.detectable.map("{:.2g}".format, na_action="ignore"),
        "by fraction": judged.by_fraction,
    }
    return pd.DataFrame(columns)


def side_by_side(rows: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Return `compare` as text, as in a paper: a row per surviving fraction, a column per method.

    MP, LAP and their difference stand first. A cell is ours | published. The best of a row is
    between **. Of many rounds only some are shown.
    """
    cells = compare.compare(rows, column)
    methods = [*rows.method.unique()]
    keys = [*compare.varied(rows), "round"]
    cells["best"] = cells.groupby(keys)[column].transform("min") == cells[column]
    if len(methods) == 1 or column in ("gap", "lost"):
        cells["best"] = False
    cells["text"] = [_cell(row, column) for _, row in cells.iterrows()]
    if {"mp", "lap"} <= {*methods}:
        pairs = compare.paired(rows, "lap", "mp", column).assign(method="difference")
        style = words.digits(column)
        pairs["text"] = [words.interval_text(row, style) for _, row in pairs.iterrows()]
        cells = pd.concat([cells, pairs])
        methods = [*dict.fromkeys(["mp", "lap", "difference", *methods])]
    return labelled(cells, keys, methods)


def _cell(row: pd.Series, column: str) -> str:
    """Return a method's mean and standard deviation, and the published ones, as text."""
    style = words.digits(column)
    text = words.number(row[column], style)
    if row["n"] > 1:
        text += f" ± {row['std']:{style}}"
    if row.best:
        text = f"**{text}**"
    if row.paper > 0:
        text += f" | {row.paper:.2f} ± {row.paper_std:.2f}"
    return text


def labelled(cells: pd.DataFrame, keys: list[str], methods: list[str]) -> pd.DataFrame:
    """Return the text of cells as a table by variant and round; of many rounds only some."""
    means = cells.groupby("round").surviving.mean()
    step = math.ceil(len(means) / MOST_LINES)
    cells = cells[cells["round"].isin(means.index[::-step])].replace(words.WORDS)
    surviving = cells["round"].map(means)
    cells["sparsity (%)"] = surviving.map(words.sparsity)
    cells["surviving (%)"] = surviving.map(words.percent)
    index = [*keys, "sparsity (%)", "surviving (%)"]
    wide = cells.set_index([*index, "method"]).text.unstack(sort=False)
    wide = wide.rename(columns=words.short)[[*map(words.short, methods)]].reset_index()
    return wide.drop(columns="round").rename_axis(columns=None)
