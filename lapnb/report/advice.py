"""What to use: a practitioner's choices, judged on all recorded rows. Only reads rows."""

from collections.abc import Iterable, Iterator
from itertools import product

import pandas as pd

from lapnb.pruning.scores import METHODS
from lapnb.report import compare, words
from lapnb.report.show import Markdown, markdown
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
            judgements.append([choice, network, scale, words.span(part.n), *judged(part)])
    return pd.DataFrame(judgements, columns=COLUMNS)


def in_words() -> Markdown:
    """Return `advice` as a table: a line for each choice, with the evidence where it depends."""
    evidence = (
        "In brackets, where it depends: at how many fractions the 95 % interval excludes 0, at how "
        "many of these after the adjustment, and the difference at the sparsest of these."
    )
    lines = []
    for choice, part in advice().groupby("choice", sort=False):
        line = {"choice": choice, "verdict": together(part.verdict)}
        names = part.network
        if line["verdict"] == "it depends":
            names = names + " (" + part.evidence + ")"
        for verdict in ("yes", "no", "it depends"):
            line[f"{verdict} on"] = "; ".join(names[part.verdict == verdict])
        line["undecided on"] = "; ".join(part.network[part.verdict == "undecided"])
        lines.append(line)
    table = markdown(pd.DataFrame(lines).replace("", "–"))
    return Markdown(f"{table}\n\n{evidence}")


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
        yield f"{named(one)} rather than {named(other)}", one, other


def named(choice: dict) -> str:
    """Return a choice in words, as in "LAP-act (sees data), global"."""
    text = words.short(choice["method"])
    if METHODS[choice["method"]].looks_at not in ("", "ones"):
        text += " (sees data)"
    if choice["scope"] == "global":
        text += ", global"
    if choice["schedule"] == "iterative":
        text += ", iterative"
    return text


def judged(rows: pd.DataFrame) -> tuple[str, str]:
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
