"""What a notebook shows of a table: the same text and numbers whenever its rows are the same."""

import base64
import contextlib
import math
import re
from html import escape

import pandas as pd

from lapnb.paper.tables import table as declared
from lapnb.report import compare as of
from lapnb.report import words
from lapnb.report.plots import plot, png
from lapnb.report.words import percent
from lapnb.runs.rows import keys, read, results_file
from lapnb.runs.run import recorded

MOST_LINES = 12
DIFFERENCE = "LAP − MP [95 %]"


def show(results: pd.DataFrame | str, column: str = "error") -> None:
    """Show what a notebook shows of a table: result, ours beside the paper's, plot and verdicts.

    The picture is saved beside the table's rows when `results` are all of them.

    Args:
        results: Rows of one table, as `lapnb.run` returns them; or a table's name, for what is
            recorded of it on its own data set, the largest scale first.
        column: What to compare: error, error_before, train_error, gap or distortion.

    Raises:
        ValueError: These are not rows of one table, or they do not record `column`.
    """
    if isinstance(results, str):
        show_recorded(results, column)
        return
    rows = of.one_source(results, column)
    show_rows(rows, column)
    if is_whole(rows):
        plot(
            rows,
            column,
            save=True,
        )


def show_recorded(name: str, column: str = "error") -> None:
    """Show each recorded scale of a table; no file is changed."""
    found = recordings(name, "paper", "reduced")
    if not found:
        data = words.NAMES[declared(name, "paper").dataset]
        print(f"Not run on {data} yet: nothing is recorded at the reduced or paper scale.")
    for results in found:
        show_rows(of.one_source(results, column), column)


def show_rows(rows: pd.DataFrame, column: str) -> None:
    """Show typed rows."""
    from IPython.display import display

    table, figure = side_by_side(rows, column), plot(rows, column)
    cells = table.to_string()
    head = f"{words.MEASURED[column][0]}: ours"
    if "|" in cells:
        head += " | published"
    if "**" in cells:
        head += ", the best of a row in bold"
    how = words.how(rows, "mean ± standard deviation")
    text = "\n".join([words.title(rows), result(rows), how, head])
    html = re.sub("^(.*)", r"<b>\1</b>", escape(text)).replace("\n", "<br>")
    display(Shown({"text/plain": text, "text/html": html}))
    display(without_numbers(table))
    picture = base64.b64encode(png(figure, 110)).decode()
    display(Shown({"text/plain": figure.get_label(), "image/png": picture}))
    if len(of.judged(rows)):
        display(without_numbers(claims_table(rows)))


def is_whole(rows: pd.DataFrame) -> bool:
    """Whether typed rows are exactly the runs that the table's own results file holds."""
    first = rows.iloc[0]
    there = read(results_file(first.table, first.scale, first.changed))
    return keys(there[there.status == "ok"]) == keys(rows)


def recordings(name: str, *scales: str) -> list[pd.DataFrame]:
    """The recorded rows of a table, by scale, of those of the `scales` that have any."""
    found = []
    for scale in scales:
        with contextlib.suppress(FileNotFoundError):
            found.append(recorded(name, scale))
    return found


def result(results: pd.DataFrame) -> str:
    """One line: what the rows say of the first claim that they can judge.

    Of a table without claims: which method is ahead where fewest weights survive.
    """
    rows = of.one_source(results)
    verdicts = of.judged(rows)
    if verdicts.empty:
        order = of.means(rows).sort_values(["round", "error"], ascending=[False, True])
        best = order.iloc[0]
        variant = [words.WORDS.get(best[name], best[name]) for name in of.varied(rows)]
        lowest = ", ".join([words.short(best.method), *variant])
        at = f"{percent(best.surviving)} % of the weights"
        about = f"{rows.scale[0]} scale, n = {best.n}"
        return f"lowest mean error at {at}: {lowest}, {best.error:.2f} ({about})"
    run = verdicts[verdicts.n > 0]
    return words.verdict_line((verdicts if run.empty else run).iloc[0])


def claims_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The verdicts as a table to read: claim, verdict, where, numbers, by fraction."""
    found = of.judged(rows)
    found["detectable"] = found.detectable.map("{:.2g}".format, na_action="ignore")
    names = {
        "claim": "claim",
        "verdict": f"verdict ({rows.scale.iloc[0]} scale)",
        "sparsity": "sparsity (%)",
        "surviving": "surviving (%)",
        "found": "found [95 % interval]",
        "n": "n",
        "detectable": "detectable difference",
        "by_fraction": "by fraction",
    }
    return found[[*names]].rename(columns=names)


class Shown(dict):
    """What a notebook shows, by MIME type; a terminal prints the text among it."""

    def __repr__(self) -> str:
        return self["text/plain"]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self


def without_numbers(frame: pd.DataFrame) -> Shown:
    """A table without row numbers: between ** bold, after | a second line, no break at ±."""
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(
            index=False,
            border=0,
            na_rep="–",
        ).replace(" ± ", "&nbsp;±&nbsp;")
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html).replace(" | ", "<br>")
    return Shown({"text/plain": frame.to_string(index=False, na_rep="–"), "text/html": html})


def side_by_side(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """`compare` as text, as in a paper: a row per surviving fraction, a column per method.

    MP, LAP and their difference stand first. A cell is ours | published. The best of a row is
    between **; of many rounds some are shown.
    """
    rows = of.one_source(results, column)
    both, variants = of.means(rows, column), of.varied(rows)
    rounds = sorted(rows["round"].unique())[::-1]
    both = both[both["round"].isin(rounds[:: math.ceil(len(rounds) / MOST_LINES)])]
    keys = [*variants, "round"]
    groups = both.groupby(keys)[column]
    ranked = (both[column] == groups.transform("min")) & (groups.transform("size") > 1)
    ranked &= column not in ("gap", "lost")
    both["cell"] = [
        _cell(row, column, best)
        for (_, row), best in zip(
            both.iterrows(),
            ranked,
            strict=True,
        )
    ]
    wide = both.set_index([*keys, "method"]).cell.unstack(sort=False)
    if {"mp", "lap"} <= {*wide}:
        pairs = of.pairs(
            rows,
            "lap",
            "mp",
            column,
        ).set_index(keys)
        style = words.digits(column)
        difference = pairs.apply(
            words.interval_text,
            axis=1,
            style=style,
        ).rename(DIFFERENCE)
        wide = wide[["mp", "lap"]].join(difference).join(wide.drop(columns=["mp", "lap"]))
    wide = wide.rename(columns={name: words.short(name) for name in wide if name != DIFFERENCE})
    wide = wide.reset_index().rename_axis(columns=None)
    surviving = wide.pop("round").map(both.groupby("round").surviving.mean())
    wide.insert(len(variants), "surviving (%)", surviving.map(percent))
    wide.insert(len(variants), "sparsity (%)", surviving.map(words.sparsity))
    return wide


def _cell(row: pd.Series, column: str, best: bool) -> str:
    """Mean and standard deviation of a method, and the published ones."""
    style = words.digits(column)
    text = words.number(row[column], style)
    if row["n"] > 1:
        text += f" ± {row['std']:{style}}"
    if best:
        text = f"**{text}**"
    if pd.notna(row.paper):
        text += f" | {row.paper:.2f} ± {row.paper_std:.2f}"
    return text
