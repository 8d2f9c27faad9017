"""What to use: a practitioner's choices, judged on all recorded rows. Reads rows only."""

from collections.abc import Iterator
from itertools import product

import pandas as pd

from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.report import compare as of
from lapnb.report.show import Shown, percent, recordings

MP, LAP = ({"method": m, "scope": "layer", "schedule": "oneshot"} for m in ("mp", "lap"))
COLUMNS = ["choice", "network", "scale", "n", "verdict", "evidence"]


def advice() -> pd.DataFrame:
    """Whether to take the one rather than the other, a row per choice and network.

    Reads the retrained rows of all tables at the reduced and the paper scale. Pairs have the same
    dense network and device; the same runs in several tables count once; pairs of fewer than 3
    seeds are left out, and fractions at which both choices are the same run. The verdict is *yes*
    when the 95 % interval of the paired difference in test error lies below 0 at some surviving
    fraction and above it at none, *no* the other way round, *it depends* for both, *open* for
    neither.

    Columns: choice, methods being layer-wise and one-shot unless it says otherwise; network; scale;
    n; verdict; evidence, the surviving fractions (%) where the one is better, where it is worse
    and where they cannot be told apart, with the errors (%) and the interval at the sparsest.
    """
    recorded = [rows for name in TABLES for rows in recordings(name, "paper", "reduced")]
    rows = pd.concat([rows.assign(network=_network(rows)) for rows in recorded] or [pd.DataFrame()])
    found = []
    for choice, one, other in _choices() if len(rows) else ():
        keys = ["network", "scale", "round", "seed", "dense_error", "device"]
        both = _those(rows, one).merge(_those(rows, other), on=keys, suffixes=("", "_other"))
        both = both.drop_duplicates(keys[:4])  # of another table
        for (network, scale), pairs in both.groupby(["network", "scale"], sort=False):
            names = {"error": "better", "error_other": "worse"}
            values = pairs.set_index("round").rename(columns=names)
            judged = of.intervals(values, "better", "worse", ["round"])
            judged["surviving"] = 100 * pairs.groupby("round").surviving.mean()
            same = (judged[["low", "high"]] == 0).all(axis=1)  # as iterative pruning's first round
            judged = judged[(judged.n >= 3) & ~same]
            if len(judged):
                n = "–".join(map(str, sorted({judged.n.min(), judged.n.max()})))
                found.append((choice, network, scale, n, *_judged(judged)))
    return pd.DataFrame(found, columns=COLUMNS)


def in_words() -> Shown:
    """`advice` as a list, by choice; its heading is what the networks say, open ones aside."""
    text, html = [], []
    for choice, own in advice().groupby("choice", sort=False):
        head = f"{choice}: {_together(own.verdict)}"
        lines = own.network + " (" + own.scale + " scale, n = " + own.n + "): " + own.evidence
        text += [head, *("  " + lines)]
        html += [f"<b>{head}</b><ul>", *("<li>" + lines + "</li>"), "</ul>"]
    return Shown({"text/plain": "\n".join(text), "text/html": "\n".join(html)})


def _choices() -> Iterator[tuple[str, dict, dict]]:
    """What might be taken, and rather than what."""
    yield "LAP rather than MP", LAP, MP
    for scope, schedule, method in product(["layer", "global"], ["oneshot", "iterative"], METHODS):
        one = {"method": method, "scope": scope, "schedule": schedule}
        if one in (MP, LAP):
            continue
        special = ", global" * (scope == "global") + ", iterative" * (schedule == "iterative")
        # MP and LAP beside their layer-wise, one-shot form, others beside LAP in the same form
        other = {"mp": MP, "lap": LAP}.get(method, one | {"method": "lap"})
        data = " (sees data)" * (METHODS[method].looks_at not in ("", "ones"))
        rather = of.short(other["method"]) + special * (other not in (MP, LAP))
        yield f"{of.short(method)}{data}{special} rather than {rather}", one, other


def _network(rows: pd.DataFrame) -> pd.Series:
    """Network and data of each row, as in "FCN on MNIST, tanh"."""
    unusual = rows.activation.where(~rows.activation.isin(["relu", "none"]))
    return of.title(rows, whole=False) + (", " + unusual).fillna("")


def _those(rows: pd.DataFrame, settings: dict) -> pd.DataFrame:
    wanted = pd.Series(settings)
    return rows[(rows[wanted.index] == wanted).all(axis=1) & (rows.retrain_steps > 0)]


def _judged(found: pd.DataFrame) -> tuple[str, str]:
    """Verdict and evidence of the intervals, one row per surviving fraction."""
    better, worse = found[found.high < 0], found[found.low > 0]
    level = found.drop([*better.index, *worse.index])
    kinds = {"better at": better, "worse at": worse, "not told apart at": level}
    told = [f"{word} {_told(some)}" for word, some in kinds.items() if len(some)]
    return _together(["yes"] * len(better) + ["no"] * len(worse)), "; ".join(told)


def _together(verdicts: list[str] | pd.Series) -> str:
    said = {*verdicts} - {"open"} or {"open"}
    return said.pop() if len(said) == 1 else "it depends"


def _told(found: pd.DataFrame) -> str:
    """The fractions, and the numbers of the sparsest of them."""
    fractions = ", ".join(map(percent, found.surviving))
    return f"{fractions} %{', at the last' * (len(found) > 1)}: {of.numbers(found.iloc[-1])}"
