"""What to use: a practitioner's choices, judged on all recorded rows. Reads rows only."""

import pandas as pd

from lapnb.paper.tables import TABLES
from lapnb.report import compare as of
from lapnb.report.page import percent, recordings

USUAL = {"method": "lap", "scope": "layer", "schedule": "oneshot"}
MP = {"method": "mp"}
# What might be taken, and rather than what; where nothing else is named: LAP, layer-wise, one-shot
CHOICES = {
    "LAP rather than MP": ({}, MP),
    "LAP rather than look-forward alone": ({}, {"method": "lfp"}),
    "LAP rather than look-backward alone": ({}, {"method": "lbp"}),
    "sequential LAP, forward": ({"method": "lap_forward"}, {}),
    "sequential LAP, backward": ({"method": "lap_backward"}, {}),
    "residual-aware LAP": ({"method": "lap_flow"}, {}),
    "with data: LAP-act": ({"method": "lap_act"}, {}),
    "with data: OBD": ({"method": "obd"}, {}),
    "with data: Wanda": ({"method": "wanda"}, {}),
    "with data: RIA": ({"method": "ria_act"}, {}),
    "RIA": ({"method": "ria"}, {}),
    "SynFlow": ({"method": "synflow"}, {}),
    "LAMP, global": ({"method": "lamp", "scope": "global"}, {}),
    "global LAP": ({"scope": "global"}, {}),
    "global MP rather than layer-wise MP": (MP | {"scope": "global"}, MP),
    "iterative LAP": ({"schedule": "iterative"}, {}),
    "iterative MP rather than one-shot MP": (MP | {"schedule": "iterative"}, MP),
}
COLUMNS = ["choice", "verdict", "network", "scale", "n"]
COLUMNS += ["better at", "speaks against it", "at the sparsest"]


def advice() -> pd.DataFrame:
    """Whether to take the one rather than the other, a row per choice and network.

    Reads the retrained rows of all tables at the reduced and the paper scale. Pairs have the same
    dense network; the same runs in several tables count once; pairs of fewer than 3 seeds are left
    out. The verdict is *yes* when the 95 % interval of the paired difference in test error lies
    below 0 at some surviving fraction and above it at none, *no* the other way round, *it depends*
    for both, *open* for neither.

    Columns: choice (rather than layer-wise, one-shot LAP, unless it says what else); verdict;
    network; scale; n; better at, surviving fractions (%); speaks against it, where it is worse or
    cannot be told apart; at the sparsest, the errors (%) and their difference with its interval.
    """
    recorded = [rows for name in TABLES for rows in recordings(name, "paper", "reduced")]
    rows = pd.concat([rows.assign(network=_network(rows)) for rows in recorded] or [pd.DataFrame()])
    found = []
    for choice, (one, other) in CHOICES.items() if len(rows) else ():
        keys = ["network", "scale", "round", "seed", "dense_error"]
        both = _those(rows, one).merge(_those(rows, other), on=keys, suffixes=("", "_other"))
        both = both.drop_duplicates(keys[:-1])  # of another table
        for (network, scale), pairs in both.groupby(["network", "scale"], sort=False):
            about = {"choice": choice, "network": network, "scale": scale}
            names = {"error": "better", "error_other": "worse"}
            values = pairs.set_index("round").rename(columns=names)
            judged = of.intervals(values, "better", "worse", ["round"])
            judged["surviving"] = 100 * pairs.groupby("round").surviving.mean()
            if (judged.n >= 3).any():
                found.append(about | _judged(judged[judged.n >= 3]))
    return pd.DataFrame(found, columns=COLUMNS)


def in_short() -> str:
    """`advice`, a line per verdict: of each choice what its networks say that say anything."""
    choices: dict[str, list[str]] = {"yes": [], "it depends": [], "no": [], "open": []}
    for choice, own in advice().groupby("choice", sort=False):
        told = {*own.verdict} - {"open"} or {"open"}
        choices[told.pop() if len(told) == 1 else "it depends"].append(choice)
    return "\n".join(f"{verdict}: {'; '.join(own) or 'none'}" for verdict, own in choices.items())


def _network(rows: pd.DataFrame) -> pd.Series:
    """Network and data of each row, as in "FCN on MNIST, tanh"."""
    unusual = rows.activation.where(~rows.activation.isin(["relu", "none"]))
    return of.title(rows, whole=False) + (", " + unusual).fillna("")


def _those(rows: pd.DataFrame, settings: dict) -> pd.DataFrame:
    wanted = pd.Series(USUAL | settings)
    return rows[(rows[wanted.index] == wanted).all(axis=1) & (rows.retrain_steps > 0)]


def _judged(found: pd.DataFrame) -> dict:
    """What the intervals say, one row per surviving fraction."""
    better, worse, last = found[found.high < 0], found[found.low > 0], found.iloc[-1]
    level = found.drop([*better.index, *worse.index])
    verdicts = {(True, False): "yes", (False, True): "no", (True, True): "it depends"}
    against = {"worse": worse, "not told apart": level}
    return {
        "verdict": verdicts.get((len(better) > 0, len(worse) > 0), "open"),
        "n": int(last.n),
        "better at": _fractions(better),
        "speaks against it": "; ".join(
            f"{word} at {_fractions(some)}" for word, some in against.items() if len(some)
        ),
        "at the sparsest": f"{percent(last.surviving)} %: {of.numbers(last)}",
    }


def _fractions(found: pd.DataFrame) -> str:
    return ", ".join(map(percent, found.surviving)) + (" %" if len(found) else "")
