"""What to use: a practitioner's choices, judged on all recorded rows. Only reads rows."""

from collections.abc import Iterable, Iterator
from itertools import product

import pandas as pd

from lapnb.pruning.scores import METHODS
from lapnb.report import compare, words
from lapnb.report.show import Shown
from lapnb.report.summary import everything, matched

MP = {"method": "mp", "scope": "layer", "schedule": "oneshot"}
LAP = MP | {"method": "lap"}
COLUMNS = ["choice", "network", "scale", "n", "verdict", "evidence"]


def advice() -> pd.DataFrame:
    """Judge whether to take one method rather than another, a row per choice and network.

    The rows judged are the retrained ones of all tables at the reduced and the paper scale; see
    `everything` and `matched` for the pairs. The one is better or worse than the other at a
    surviving fraction where p of the paired difference in test error, adjusted for the number of
    fractions (Holm), is below 5 %.

    Returns:
        Columns: choice, whose methods are layer-wise and one-shot unless it says otherwise;
        network; scale; n; verdict, *yes* when the one is better at some fraction and worse at none,
        *no* the other way round, *it depends* for both, *undecided* for neither; evidence, the
        number of fractions at which it is better or worse by its 95 % interval, the number of these
        that remain after the adjustment, and the difference at the sparsest of these fractions.
    """
    rows, judgements = everything(), []
    for choice, one, other in _choices():
        pairs = matched(rows, one, other, [])
        for (network, scale), part in pairs.groupby(["network", "scale"], sort=False):
            judgements.append([choice, network, scale, words.span(part.n), *_judged(part)])
    return pd.DataFrame(judgements, columns=COLUMNS)


def in_words() -> Shown:
    """Return `advice` as a table, a row per choice; the evidence is folded unless it depends."""
    text, html = [], ["<table><tr><th>choice</th><th>verdict</th><th>evidence</th></tr>"]
    for choice, rows in advice().groupby("choice", sort=False):
        verdict = together(rows.verdict)
        lines = rows.verdict + " on " + rows.network
        lines += " (" + rows.scale + " scale, n = " + rows.n + "): " + rows.evidence
        text += [f"{choice}: {verdict}", *("  " + lines)]
        start = "<details open>" if verdict == "it depends" else "<details>"
        html.append(f"<tr><td>{choice}</td><td><b>{verdict}</b></td><td>{start}")
        html.append(f"<summary>{words.listed(rows.network)}</summary><ul>")
        html += [*("<li>" + lines + "</li>"), "</ul></details></td></tr>"]
    html.append("</table>")
    return Shown({"text/plain": "\n".join(text), "text/html": "\n".join(html)})


def beside_lap(rows: pd.DataFrame) -> str:
    """Compare LAP with all else in a table's typed rows, by 95 % intervals."""
    forms = rows[[*LAP]].drop_duplicates().to_dict("records")
    other = LAP if LAP in forms else LAP | {"scope": "global"}
    clauses = []
    for one in forms:
        pairs = matched(rows, one, other, ["activation"])
        for activation, part in pairs.groupby("activation", sort=False):
            name = _named(one)
            if rows.activation.nunique() > 1:
                name += f", {words.short(activation)},"
            clauses.append(f"{name} is {_judged(part)[1]}")
    return "; ".join(clauses)


def _choices() -> Iterator[tuple[str, dict, dict]]:
    """Yield each choice: its name, what might be taken, and what it would replace."""
    yield "LAP rather than MP", LAP, MP
    for scope, schedule, method in product(["layer", "global"], ["oneshot", "iterative"], METHODS):
        one = {"method": method, "scope": scope, "schedule": schedule}
        if one in (MP, LAP):
            continue
        # MP and LAP are compared with their layer-wise, one-shot form; others are compared with LAP
        # in the same form
        other = {"mp": MP, "lap": LAP}.get(method, one | {"method": "lap"})
        yield f"{_named(one)} rather than {_named(other)}", one, other


def _named(choice: dict) -> str:
    """Return a choice in words, as in "LAP-act (sees data), global"."""
    text = words.short(choice["method"])
    if METHODS[choice["method"]].looks_at not in ("", "ones"):
        text += " (sees data)"
    if choice["scope"] == "global":
        text += ", global"
    if choice["schedule"] == "iterative":
        text += ", iterative"
    return text


def _judged(rows: pd.DataFrame) -> tuple[str, str]:
    """Return the verdict and the evidence from rows with an interval per surviving fraction."""
    clear = compare.holm(rows.p) < 0.05
    kinds = {"yes": ("better", rows[rows.high < 0]), "no": ("worse", rows[rows.low > 0])}
    verdicts, evidence = [], []
    for verdict, (kind, significant) in kinds.items():
        count = clear[significant.index].sum()
        if count:
            verdicts.append(verdict)
        if len(significant):
            at = f"{len(significant)} of {len(rows)} fractions"
            evidence.append(f"{kind} at {at} ({count} after adjustment; {_sparsest(significant)})")
    if not evidence:
        evidence = [f"not significantly different at {len(rows)} fractions ({_sparsest(rows)})"]
    return together(verdicts), " and ".join(evidence)


def _sparsest(rows: pd.DataFrame) -> str:
    last = rows.iloc[-1]
    return f"{words.interval_text(last)} at {words.percent(last.surviving)} %"


def together(verdicts: Iterable[str]) -> str:
    decided = {*verdicts} - {"undecided"}
    if not decided:
        return "undecided"
    return decided.pop() if len(decided) == 1 else "it depends"
