"""What to use: a practitioner's choices, judged on all recorded rows. Reads rows only."""

from collections.abc import Iterable, Iterator
from itertools import product

import pandas as pd

from lapnb.pruning.scores import METHODS
from lapnb.report import compare as of
from lapnb.report import words
from lapnb.report.show import Shown
from lapnb.report.summary import everything, matched

MP = {
    "method": "mp",
    "scope": "layer",
    "schedule": "oneshot",
}
LAP = MP | {"method": "lap"}
COLUMNS = [
    "choice",
    "network",
    "scale",
    "n",
    "verdict",
    "evidence",
]


def advice() -> pd.DataFrame:
    """Say whether to take the one rather than the other, a row per choice and network.

    Judges the retrained rows of all tables at the reduced and the paper scale; see `everything` and
    `matched` for what is paired. At a surviving fraction the one is better or worse where p of the
    paired difference in test error is below 5 %, adjusted for the number of fractions (Holm).

    Returns:
        Columns: choice, methods being layer-wise and one-shot unless it says otherwise; network;
        scale; n; verdict, *yes* when the one is better at some fraction and worse at none, *no* the
        other way round, *it depends* for both, *undecided* for neither; evidence, the fractions (%)
        where it is better, worse and not significantly different, with the errors (%) and the
        95 % interval at the sparsest.
    """
    rows, found = everything(), []
    for choice, one, other in _choices():
        pairs = matched(
            rows,
            one,
            other,
            [],
        )
        for (network, scale), part in pairs.groupby(["network", "scale"], sort=False):
            n = words.span(part.n)
            found.append([choice, network, scale, n, *_judged(part, _named(one), _named(other))])
    return pd.DataFrame(found, columns=COLUMNS)


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Sum up `advice`, a row per choice: what the networks say together, and which say what."""
    lines = []
    for choice, part in rows.groupby("choice", sort=False):
        line = {"choice": choice, "verdict": _together(part.verdict)}
        for verdict in ("yes", "no", "it depends", "undecided"):
            line[f"{verdict} on"] = "; ".join(part[part.verdict == verdict].network)
        lines.append(line)
    return pd.DataFrame(lines)


def in_words() -> Shown:
    """`advice` as a list by choice, whose evidence is folded in HTML."""
    text, html = [], []
    for choice, rows in advice().groupby("choice", sort=False):
        head = f"{choice}: {_together(rows.verdict)}"
        lines = rows.network + " (" + rows.scale + " scale, n = " + rows.n + "): " + rows.evidence
        text += [head, *("  " + lines)]
        html.append(f"<details><summary><b>{head}</b></summary><ul>")
        html += [*("<li>" + lines + "</li>"), "</ul></details>"]
    return Shown({"text/plain": "\n".join(text), "text/html": "\n".join(html)})


def _choices() -> Iterator[tuple[str, dict, dict]]:
    """What might be taken, and rather than what."""
    yield "LAP rather than MP", LAP, MP
    for scope, schedule, method in product(["layer", "global"], ["oneshot", "iterative"], METHODS):
        one = {
            "method": method,
            "scope": scope,
            "schedule": schedule,
        }
        if one in (MP, LAP):
            continue
        # MP and LAP beside their layer-wise, one-shot form, others beside LAP in the same form
        other = {"mp": MP, "lap": LAP}.get(method, one | {"method": "lap"})
        yield f"{_named(one)} rather than {_named(other)}", one, other


def _named(choice: dict) -> str:
    """A choice in words, as in "LAP-act (sees data), global"."""
    text = words.short(choice["method"])
    if METHODS[choice["method"]].looks_at not in ("", "ones"):
        text += " (sees data)"
    if choice["scope"] == "global":
        text += ", global"
    if choice["schedule"] == "iterative":
        text += ", iterative"
    return text


def _judged(rows: pd.DataFrame, one: str, other: str) -> tuple[str, str]:
    """Verdict and evidence of the intervals, one row per surviving fraction."""
    clear = of.holm(rows.p) < 0.05
    better, worse = rows[clear & (rows.difference < 0)], rows[clear & (rows.difference > 0)]
    kinds = {
        "better": better,
        "worse": worse,
        "not significant after adjustment": rows[~clear],
    }
    told = [f"{kind} at {_told(some, one, other)}" for kind, some in kinds.items() if len(some)]
    return _together(["yes"] * len(better) + ["no"] * len(worse)), "; ".join(told)


def _together(verdicts: Iterable[str]) -> str:
    said = {*verdicts} - {"undecided"}
    if not said:
        return "undecided"
    return said.pop() if len(said) == 1 else "it depends"


def _told(rows: pd.DataFrame, one: str, other: str) -> str:
    """The fractions, and the numbers of the sparsest of them."""
    text = f"{words.several(rows.surviving)} %"
    if len(rows) > 1:
        text += ", at the sparsest of these"
    return f"{text}: {words.numbers(rows.iloc[-1], one, other)}"
