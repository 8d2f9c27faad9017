"""What a notebook shows of a table: the same text and numbers whenever its rows are the same."""

import base64
import contextlib
import math
import re
from html import escape

import pandas as pd

from lapnb.paper.tables import table as table_of
from lapnb.report import compare as of
from lapnb.report.plots import plot, png
from lapnb.runs.rows import keys, pool, results_file
from lapnb.runs.run import recorded


def show(results: pd.DataFrame | str, column: str = "error") -> None:
    """What a notebook shows of a table: result, ours beside the paper's, plot and verdicts.

    A table's name stands for what is recorded of it on its own data set, the largest scale first.
    """
    from IPython.display import display

    if isinstance(results, str):
        found = recordings(results, "paper", "reduced")
        if not found:
            data = f"Not run on {of.NAMES[table_of(results, 'paper').dataset]} yet"
            print(f"{data}: nothing is recorded at the reduced or paper scale.")
        for rows in found:
            show(rows, column)
        return
    table, figure = side_by_side(results, column), plot(results, column)
    cells = table.to_string()
    head = f"{of.MEASURED[column][0]}: ours" + " | published" * ("|" in cells)
    head += ", the best of a row in bold" * ("**" in cells)
    how = of.caption(results, "mean ± standard deviation")
    text = "\n".join([of.title(results), result(results), how, head])
    html = re.sub("^(.*)", r"<b>\1</b>", escape(text)).replace("\n", "<br>")
    display(Shown({"text/plain": text, "text/html": html}))
    display(without_numbers(table))
    picture = base64.b64encode(png(figure, 110)).decode()
    display(Shown({"text/plain": figure.get_label(), "image/png": picture}))
    if is_whole(results):
        plot(results, save=True)
    found = of.verdicts(results)
    if len(found):
        found["surviving (%)"] = found.surviving.map(percent, na_action="ignore")
        names = {"found": "found [95 % interval]", "verdict": f"verdict ({found.scale[0]} scale)"}
        shown = ["claim", "verdict", "surviving (%)", "found", "n"]
        display(without_numbers(found[shown].rename(columns=names)))


def is_whole(results: pd.DataFrame) -> bool:
    """Return whether these are all runs that are recorded of the table, and newer than its picture.

    Looking at recorded rows, or at some of them, then changes no file.
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


def recordings(name: str, *scales: str) -> list[pd.DataFrame]:
    """The recorded rows of a table, by scale, of those of the `scales` that have any."""
    found = []
    for scale in scales:
        with contextlib.suppress(FileNotFoundError):
            found.append(recorded(name, scale))
    return found


def percent(value: float) -> str:
    """Two digits after the point, as in the paper, or two that are not 0."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def result(results: pd.DataFrame) -> str:
    """One sentence: what the rows say of the first claim that they can judge.

    Of a table without claims: which method is ahead where fewest weights survive or, without
    retraining, how far networks can be pruned before they lose accuracy.
    """
    found, scale = of.verdicts(results), f"{of.one_source(results).scale.iloc[0]} scale"
    if found.empty and results.retrain_steps.any():
        best = of.compare(results).sort_values(["round", "error"], ascending=[False, True]).iloc[0]
        lowest = " ".join([of.short(best.method), *best[of.varied(results)], f"{best.error:.2f}"])
        return f"lowest mean error at {percent(best.surviving)} %: {lowest} ({scale}, n = {best.n})"
    if found.empty:
        low = [f"{of.short(name)} {low:.3g} %" for name, low in kept(results, 1).dropna().items()]
        found = ", ".join(low) or "nothing"
        return f"at most 1 point of accuracy is lost down to {found} ({scale})"
    judged = found[found.n > 0]
    if judged.empty:
        return f"no claim of the paper can be judged: {found.found[0]} ({scale})"
    own = judged[judged.claim == judged.claim.iloc[0]]
    last, counts = own.iloc[-1], own.verdict.value_counts(sort=False)
    verdict = " and ".join(f"{word} at {count}" for word, count in counts.items())
    verdict = f"{last.claim}: {verdict} of {len(own)} surviving fractions"
    return f"{verdict} ({scale}, n = {last.n}); at {percent(last.surviving)} % {last.found}"


def kept(results: pd.DataFrame, loss: float) -> pd.Series:
    """By method, the surviving fraction (%) down to which pruning costs at most `loss` points.

    Of the dense networks' mean accuracy, before retraining; NaN where that is at no fraction.
    """
    found = of.compare(results, "error_before").sort_values("round")
    lost = found.error_before - results.dense_error.mean()
    near = (lost.round(6) <= loss).groupby(found.method).cummin()
    return found.surviving.where(near).groupby(found.method, sort=False).min()


class Shown(dict):
    """What a notebook shows, by MIME type; a terminal prints the text among it."""

    def __repr__(self) -> str:
        return self["text/plain"]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self


def without_numbers(frame: pd.DataFrame) -> Shown:
    """A table without row numbers; what stands between ** is bold, and no line breaks at ±."""
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(index=False, border=0, na_rep="–").replace(" ± ", "&nbsp;±&nbsp;")
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html)
    return Shown({"text/plain": frame.to_string(index=False, na_rep="–"), "text/html": html})


def side_by_side(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """`compare` as text, as in a paper: a row per surviving fraction, a column per method.

    A cell is ours | published. The best of a row is between **; of many rounds some are shown.
    """
    both, style = of.compare(results, column), of.digits(column)
    keys, ranked = [*of.varied(results), "round"], column != "gap" and both.method.nunique() > 1
    both["best"] = both.groupby(keys)[column].transform("min") if ranked else None

    def cell(mean, std, best, paper, paper_std):
        ours = f"{mean:{style}}" + (f" ± {std:{style}}" if std == std else "")
        theirs = f" | {paper:.2f} ± {paper_std:.2f}" if paper == paper else ""
        return ((f"**{ours}**" if mean == best else ours) + theirs).replace("-", "−")

    numbers = both[[column, "std", "best", "paper", "paper_std"]].itertuples(index=False)
    both["cell"] = [cell(*row) for row in numbers]
    rounds = sorted(both["round"].unique())[::-1]
    some = both[both["round"].isin(rounds[:: math.ceil(len(rounds) / 12)])]
    wide = some.set_index([*keys, "method"]).cell.unstack(sort=False)
    wide = wide.rename(columns=of.short).reset_index().rename_axis(columns=None)
    wide["round"] = wide["round"].map(both.groupby("round").surviving.mean()).map(percent)
    return wide.rename(columns={"round": "surviving (%)"})
