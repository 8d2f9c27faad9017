"""All tables together: claims, networks, and how often LAP is better. Reads rows, never trains."""

import contextlib
import json
import math
from html import escape
from urllib.parse import quote

import numpy as np
import pandas as pd

from lapnb.paper.protocol import SCALES
from lapnb.paper.tables import LAP_BEATS_MP, TABLES, table
from lapnb.report import compare as of
from lapnb.report import words
from lapnb.report.show import Shown, recordings, result
from lapnb.store import root

BIG = ("paper", "reduced")
# The tables of one network and nothing else, whose endpoints are put together
NETWORKS = [name for name in TABLES if LAP_BEATS_MP in TABLES[name]["claims"]]
NETWORKS = [name for name in NETWORKS if "," not in TABLES[name]["title"]]
YES_OR_NO = {"reproduced": "yes", "not reproduced": "no"}


def summary(scales: tuple[str, ...] = SCALES[::-1]) -> pd.DataFrame:
    """Judge every claim of every table, on the largest scale that has seeds enough, or any.

    Args:
        scales: The scales to look at, the largest first.

    Returns:
        Columns as of `verdicts`; repeats, the table that holds the same runs and is counted for
        them; and p_holm, of the first claim of each table, p adjusted for the number of tables
        (Holm), each run counted once. The verdict on a claim of which nothing is recorded is "not
        run".
    """
    found = []
    for name in TABLES:
        verdicts = [of.verdicts(rows) for rows in recordings(name, *scales)]
        for claim in map(words.in_words, table(name, "paper").claims):
            found.append(_largest(verdicts, name, claim))
    claims = pd.DataFrame(found).reset_index(drop=True)
    first = claims.dropna(subset="rows").drop_duplicates("rows").set_index("rows").table
    claims["repeats"] = claims["rows"].map(first).where(lambda name: name != claims.table)
    first_claim = claims.repeats.isna() & ~claims.table.duplicated()
    claims["p_holm"] = of.holm(claims.p.where(first_claim).astype(float))
    return claims.drop(columns="rows")


def _largest(verdicts: list[pd.DataFrame], name: str, claim: str) -> pd.Series:
    """The verdict on a claim of the first scale with seeds enough, else of the first with any."""
    nothing = {"table": name, "scale": "–", "claim": claim, "n": 0, "verdict": "not run"}
    rows = [row for found in verdicts for _, row in found[found.claim == claim].iterrows()]
    enough = [row for row in rows if row.n >= of.LEAST_SEEDS]
    some = [row for row in rows if row.n > 0]
    empty = pd.Series(nothing, index=of.VERDICT).fillna({"after_the_fact": False})
    return [*enough, *some, empty][0]


def networks() -> pd.DataFrame:
    """Sum up LAP against MP, a row per network: what README, RESULTS and the start page open with.

    Returns:
        Columns: table; network, with its data; scale; sparsity and surviving (%, text), the
        fractions of the endpoint; n; dense_error and published_dense; mp, lap, difference, low and
        high, test errors (%) averaged over these fractions; published_mp and published_lap, the
        same of the paper at its own scale; verdict, "yes" (LAP is better), "no" (MP is),
        "undecided" or "not run"; detectable; p, and p_holm over these rows.
    """
    claim = words.in_words(LAP_BEATS_MP)
    found = []
    for name in NETWORKS:
        recorded = {rows.scale[0]: of.one_source(rows) for rows in recordings(name, *BIG)}
        verdicts = [of.judged(rows, (LAP_BEATS_MP,)) for rows in recorded.values()]
        row = _largest(verdicts, name, claim)
        line = {"table": name, "network": TABLES[name]["title"]}
        if row.n:
            rows = recorded[row.scale]
            line["network"] = words.title(rows)
            line["dense_error"] = rows.groupby("seed").dense_error.mean().mean()
        line |= row[["scale", "sparsity", "surviving", "n"]].to_dict() | _published(name, row)
        line |= {"mp": row.baseline_mean, "lap": row.method_mean}
        line |= row[["difference", "low", "high", "p", "detectable", "verdict"]].to_dict()
        found.append(line)
    rows = pd.DataFrame(found).reindex(columns=NETWORK)
    rows["verdict"] = rows.verdict.replace(YES_OR_NO)
    rows["p_holm"] = of.holm(rows.p.astype(float))
    return rows


NETWORK = [
    *("table", "network", "scale", "sparsity", "surviving", "n", "dense_error", "published_dense"),
    *("mp", "lap", "difference", "low", "high", "published_mp", "published_lap"),
    *("verdict", "detectable", "p", "p_holm"),
]


def _published(name: str, row: pd.Series) -> dict[str, float]:
    """The paper's dense error, and its MP and LAP averaged over the endpoint's rounds."""
    theirs = of.published()[of.published().table == name]
    if theirs.empty:
        return {}
    rounds = row.rounds if row.n else table(name, "paper").rounds[-LAP_BEATS_MP.rounds :]
    errors = theirs.pivot(index="round", columns="method", values="error_pct").reindex([*rounds])
    found = {"published_dense": theirs.unpruned_error.iloc[0]}
    return found | {f"published_{method}": errors[method].mean(skipna=False) for method in ("mp", "lap")}


def networks_in_words() -> pd.DataFrame:
    """`networks` as text, with the columns that a reader sees."""
    rows = networks()

    def beside(ours: pd.Series, theirs: pd.Series) -> pd.Series:
        """Dense errors, and how far they are from the published ones."""
        apart = (ours - theirs).map(lambda x: f" ({words.number(x, '+.1f')})", na_action="ignore")
        return ours.map("{:.1f}".format, na_action="ignore") + apart.fillna("")

    apart = [words.interval_text(row) if row["n"] else None for _, row in rows.iterrows()]
    theirs = zip(rows.published_mp, rows.published_lap, strict=True)
    columns = {
        "network and data": rows.network,
        "scale": rows.scale,
        "sparsity (%)": rows.sparsity,
        "n": rows.n,
        "dense (to the paper's)": beside(rows.dense_error, rows.published_dense),
        "MP": rows.mp.map("{:.1f}".format, na_action="ignore"),
        "LAP": rows.lap.map("{:.1f}".format, na_action="ignore"),
        "LAP − MP [95 %]": apart,
        "paper: MP → LAP": [f"{mp:.1f} → {lap:.1f}" if mp == mp else None for mp, lap in theirs],
        "LAP better?": rows.verdict.replace({"yes": "**yes**", "no": "**no**"}),
    }
    return pd.DataFrame(columns).astype(object)


# ---- all comparisons -----------------------------------------------------------------------------

# What two runs share that may be compared, beside their method; scope and schedule come with it
PAIR = ["network", "scale", "source", "round", "seed", "dense_error", "device"]


def everything() -> pd.DataFrame:
    """All retrained rows at the paper's and the reduced scale, with the network's title.

    The same runs in several tables count once. Runs of the same seeds on another machine start
    from other dense networks; they count as seeds of their own.
    """
    parts = []
    for name in TABLES:
        for results in recordings(name, *BIG):
            rows = of.one_source(results)
            unusual = rows.activation.where(~rows.activation.isin(["relu", "none"]))
            title = words.title(rows, whole=False) + (", " + unusual).fillna("")
            parts.append(rows.assign(network=title))
    if not parts:
        return pd.DataFrame(columns=[*of.SCHEMA])
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows.retrain_steps > 0]
    return rows.drop_duplicates([*PAIR, "method", "scope", "schedule"])


def matched(rows: pd.DataFrame, one: dict, other: dict, more: list[str]) -> pd.DataFrame:
    """Intervals of the errors of two choices, a row per network, scale, `more` and round.

    A choice is a dictionary of columns and their values. Pairs have the same dense network and
    device. Left out are fewer than 3 seeds, and fractions at which both choices are the same run.
    """
    keys = ["network", "scale", *more, "round"]
    sides = [rows[(rows[[*side]] == pd.Series(side)).all(axis=1)] for side in (one, other)]
    both = sides[0].merge(sides[1], on=[*PAIR, *more], suffixes=("", "_other")).set_index(keys)
    found = of.intervals(both[["error", "error_other"]], keys)
    found = found.rename(columns={"error": "method_mean", "error_other": "baseline_mean"})
    found["surviving"] = 100 * both.groupby(level=keys, sort=False).surviving.mean()
    same = (found.low == 0) & (found.high == 0)
    return found[(found.n >= of.LEAST_SEEDS) & ~same].reset_index()


def comparisons() -> pd.DataFrame:
    """All comparisons of LAP with MP, claimed or not: a row per network, variant and fraction."""
    rows = everything()
    if rows.empty:
        return rows
    return matched(rows, {"method": "lap"}, {"method": "mp"}, ["scope", "schedule"])


def sentence() -> str:
    """Say how often LAP, and how often MP, is significantly better, of `comparisons`."""
    rows = comparisons()
    if rows.empty:
        return "LAP and MP are not compared yet."
    lap, mp = rows[rows.high < 0], rows[rows.low > 0]
    most = f" (by at most {mp.difference.max():.1f} points)" if len(mp) else ""
    rest = len(rows) - len(lap) - len(mp)
    return (
        f"LAP significantly better in {len(lap)} of {len(rows)} comparisons, MP in {len(mp)}{most}, "
        f"{rest} undecided (95 % intervals of paired differences, each by itself)."
    )


# ---- across networks -----------------------------------------------------------------------------

# Thought of after the rows were looked at
GROUPS = {
    "VGGs on CIFAR-10": ["vgg11_cifar10", "vgg16_cifar10", "vgg19_cifar10"],
    "ResNets and Tiny-ImageNet": [
        name for name in NETWORKS if "tiny" in name or name.startswith("resnet")
    ],
}


def across() -> pd.DataFrame:
    """Put the endpoints of the networks together, as rliable does (Agarwal et al., NeurIPS 2021).

    Returns:
        A row for all networks, for groups of them, and for each. Columns: networks; seeds; better,
        the seeds in which LAP is; probability that LAP is better, the mean over networks; iqm, the
        interquartile mean of LAP − MP over all seeds; low and high, its 95 % interval (bootstrap,
        seeds drawn within each network); p of a sign-flip test of the mean, signs of seeds being
        flipped; collapsed, runs of MP that are worse than the worst of LAP in the same network at
        the sparsest fraction, and p_collapse; after_the_fact, whether the group was put together
        after the rows were looked at.
    """
    apart, sparsest = {}, {}
    for name in NETWORKS:
        for results in recordings(name, *BIG)[:1]:
            rows = of.one_source(results)
            if {"mp", "lap"} <= {*rows.method}:
                apart[name] = of.endpoint(rows, LAP_BEATS_MP).difference.to_numpy()
                last = rows[rows["round"] == rows["round"].max()]
                sparsest[name] = [last[last.method == m].error.to_numpy() for m in ("lap", "mp")]
    groups = {"all networks": [*apart]} | GROUPS | {name: [name] for name in apart}
    found = []
    for group, names in groups.items():
        there = [name for name in names if name in apart]
        if there:
            line = {"networks": group, "after_the_fact": group in GROUPS}
            line |= together([apart[name] for name in there])
            found.append(line | collapsed([sparsest[name] for name in there]))
    return pd.DataFrame(found)


def together(differences: list[np.ndarray]) -> dict[str, float]:
    """Sum up several networks' differences, an array of seeds each: see `across`."""
    from scipy.stats import permutation_test, trim_mean

    every = np.concatenate(differences)
    random = np.random.default_rng(0)
    draws = [random.choice(seeds, (10_000, len(seeds))) for seeds in differences]
    low, high = np.quantile(trim_mean(np.hstack(draws), 0.25, axis=1), [0.025, 0.975])
    better = [np.mean(seeds < 0) for seeds in differences]

    def mean(values, axis):
        return values.mean(axis)

    flips = {"permutation_type": "samples", "n_resamples": 2**16, "rng": 0}
    p = permutation_test((every,), mean, vectorized=True, **flips).pvalue
    found = {"seeds": len(every), "better": (every < 0).sum(), "probability": np.mean(better)}
    return found | {"iqm": trim_mean(every, 0.25), "low": low, "high": high, "p": p}


def collapsed(pairs: list) -> dict[str, float]:
    """Runs worse than the worst of the other method, over networks of which each gives both."""
    total, chances = 0, np.ones(1)
    for method, baseline in pairs:
        total += of.exceedance(method, baseline)[0]
        tail = [of.tail(len(method), len(baseline), k) for k in range(len(baseline) + 2)]
        chances = np.convolve(chances, -np.diff(tail))
    return {"collapsed": total, "p_collapse": min(1.0, chances[total:].sum())}


# ---- masks ---------------------------------------------------------------------------------------


def cost_of_masks(times: pd.DataFrame, most: float = 1.5) -> pd.DataFrame:
    """Judge whether LAP's masks cost about as much as MP's: at most `most` times the seconds.

    Args:
        times: Columns network, method and seconds, at the paper's widths; a row per repeat.
        most: The ratio up to which the costs are alike.

    Returns:
        A row per network: mp and lap, the median seconds; ratio, of geometric means; low and high,
        its 95 % interval (Welch's t on logarithms); n; and the verdict, as of `judge`.
    """
    from scipy.stats import ttest_ind

    found = []
    for network, rows in times.groupby("network", sort=False):
        seconds = {name: np.log(part.seconds) for name, part in rows.groupby("method")}
        if not {"mp", "lap"} <= {*seconds}:
            continue
        lap, mp = seconds["lap"], seconds["mp"]
        n, ratio = min(len(lap), len(mp)), lap.mean() - mp.mean()
        low, high = math.nan, math.nan
        if n > 1:
            low, high = ttest_ind(lap, mp, equal_var=False).confidence_interval()
        line = {"network": network, "mp": np.exp(mp.median()), "lap": np.exp(lap.median())}
        line |= {"ratio": np.exp(ratio), "low": np.exp(low), "high": np.exp(high), "n": n}
        verdict = "undecided"
        if n >= of.LEAST_SEEDS and line["high"] < most:
            verdict = "reproduced"
        if n >= of.LEAST_SEEDS and line["low"] > most:
            verdict = "not reproduced"
        found.append(line | {"verdict": verdict})
    return pd.DataFrame(found)


# ---- the start page ------------------------------------------------------------------------------


def index() -> Shown:
    """All notebooks, those of tables first: link, and one line of result at the largest scale."""
    notebooks = {path.stem: path for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    notebooks.pop("00_start_here", None)
    rows = []
    for name in sorted(notebooks, key=lambda name: [*TABLES, name].index(name)):
        heading = name  # of a broken notebook
        with contextlib.suppress(ValueError, LookupError, OSError):
            cells = json.loads(notebooks[name].read_text("utf-8"))["cells"]
            heading = "".join(cells[0]["source"]).splitlines()[0].strip("# ")
        link = f'<a href="{quote(name)}.ipynb">{escape(heading)}</a>'
        rows.append([link, escape(_result(name))])
    frame = pd.DataFrame(rows, columns=["notebook", "result"])
    with pd.option_context("display.max_colwidth", None):
        html = frame.to_html(index=False, escape=False, border=0, justify="left")
    return Shown({"text/plain": frame.to_string(index=False), "text/html": html})


def _result(name: str) -> str:
    """A notebook's line in the index."""
    if name not in TABLES:
        return ""
    found = recordings(name, *SCALES[::-1])
    if not found:
        return "not run"
    return f"{words.title(found[0])}: {result(found[0])}"
