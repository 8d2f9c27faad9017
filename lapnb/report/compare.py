"""Statistics of rows: means, paired differences, endpoints, verdicts on claims. Reads rows only."""

import dataclasses
import math
import pathlib
from functools import cache

import numpy as np
import pandas as pd

from lapnb.checks import require
from lapnb.paper.protocol import VARIED, Claim
from lapnb.paper.tables import ALL_ROUNDS, TABLES, table
from lapnb.pruning.scores import METHODS
from lapnb.report import words
from lapnb.report.words import MEASURED
from lapnb.runs.rows import typed

ROWS = "results must be rows of one table, as lapnb.run and lapnb.recorded return them"
# What rows of one table agree in
SHARED = [
    "table",
    "scale",
    "network",
    "width",
    "source",
    "dense_steps",
    "retrain_steps",
    "changed",
]
VERDICT = (
    "table scale network claim surviving sparsity dense method_mean baseline_mean difference low"
)
VERDICT = f"{VERDICT} high n p detectable area verdict found by_fraction runs".split()
INTERVAL = [
    "difference",
    "low",
    "high",
    "n",
    "p",
    "detectable",
    "standard_error",
]
LEAST_SEEDS = 3


# ---- rows ----------------------------------------------------------------------------------------


@cache
def published() -> pd.DataFrame:
    """Read the published test errors (%): transcribed by us, see the note in README.md."""
    return pd.read_csv(pathlib.Path(__file__).parents[1] / "paper" / "published.csv")


def one_source(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Return a typed copy of rows that may be compared with each other, with columns gap and lost.

    All that follows uses this copy, so that it does not matter how the rows were read.

    Raises:
        ValueError: These are not rows of one table, scale, source and settings, each run once; or
            they do not record `column`.
    """
    if not isinstance(results, pd.DataFrame) or results.empty:
        raise ValueError(f"{ROWS}; got {type(results).__name__} without rows")
    try:
        rows = typed(results.reset_index(drop=True))
        _refuse_mixed(rows)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{ROWS}; {error}") from error
    rows["gap"] = rows.error - rows.train_error
    rows["lost"] = rows.error_before - rows.dense_error
    recorded = [name for name in MEASURED if rows[name].notna().any()]
    require(
        column in recorded,
        "column",
        f"one of {', '.join(recorded)}",
        column,
    )
    return rows


def _refuse_mixed(rows: pd.DataFrame) -> None:
    """Raise ValueError unless these are finished runs of one table, each run once."""
    for name in SHARED:
        values = rows[name].unique().tolist()
        if len(values) > 1:
            raise ValueError(f"{name} is {words.listed(map(repr, values))}")
    if rows.table[0] not in TABLES:
        raise ValueError(f"there is no table {rows.table[0]!r}")
    finished = (rows.status == "ok") & (rows.source != "") & (rows.device != "")
    if not finished.all():
        raise ValueError(f"row {finished.idxmin()} is no finished run")
    looks_at = rows.method.map({name: method.looks_at for name, method in METHODS.items()})
    if rows.groupby([*VARIED, "round", looks_at]).settings.nunique().max() > 1:
        raise ValueError("the settings of a round differ, as their hashes say")


def varied(rows: pd.DataFrame) -> list[str]:
    """The settings that rows put side by side."""
    return [name for name in VARIED if rows[name].nunique() > 1]


def those(rows: pd.DataFrame, values: dict) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return rows[(rows[[*values]] == pd.Series(values)).all(axis=1)]


# ---- means and pairs -----------------------------------------------------------------------------


def compare(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Compare our means with the published ones, one row per method and surviving fraction.

    Args:
        results: Rows of one table, as `lapnb.run` returns them.
        column: What to compare: error, error_before, train_error, gap or distortion.

    Returns:
        Columns: method; `column` and std, its mean and standard deviation over seeds; n, the number
        of seeds; surviving (%); paper and paper_std, the published ones (empty where there are
        none, or of another network or data set); difference, ours − paper's; gain_over_mp,
        100 · (error − MP's) / MP's, below 0 where the method is better; paper_gain. Settings that
        the table varies come first.
    """
    return means(one_source(results, column), column)


def means(rows: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """`compare` of typed rows."""
    rows = rows.assign(surviving=100 * rows.surviving)
    groups = rows.groupby([*varied(rows), "method", "round"], sort=False)
    ours = groups[column].agg(
        **{
            column: "mean",
            "std": "std",
            "n": "count",
        }
    )
    ours = ours.join(groups.surviving.mean()).reset_index()
    theirs = published().rename(columns={"error_pct": "paper", "error_std": "paper_std"})
    theirs = theirs[theirs.table == rows.table.iloc[0]]
    if column != "error" or not words.as_published(rows):
        theirs = theirs[:0]
    both = ours.merge(theirs[["method", "round", "paper", "paper_std"]], "left")
    keys = [*varied(rows), "round"]
    mp = both[keys].merge(both[both.method == "mp"], "left", keys)
    both["difference"] = both[column] - both.paper
    both["gain_over_mp"] = 100 * (both[column] / mp[column] - 1)
    both["paper_gain"] = 100 * (both.paper / mp.paper - 1)
    return both


def paired(
    results: pd.DataFrame, method: str, baseline: str, column: str = "error"
) -> pd.DataFrame:
    """Compare two methods on the seeds that both have, one row per surviving fraction.

    Args:
        results: Rows of one table, as `lapnb.run` returns them.
        method: The method, as "lap".
        baseline: What it is compared with, as "mp".
        column: What to compare: error, error_before, train_error, gap or distortion.

    Returns:
        Columns: surviving (%); the two methods' means; difference, `method` − `baseline`; low and
        high, its 95 % interval (Student's t over the seeds' differences); n, the number of seeds;
        p, detectable and standard_error, see `interval`. Settings that the table varies, and the
        round, come first.
    """
    rows = one_source(results, column)
    methods = [*rows.method.unique()]
    for parameter, name in (("method", method), ("baseline", baseline)):
        require(
            name in methods,
            parameter,
            f"one of {', '.join(methods)}",
            name,
        )
    require(
        method != baseline,
        "baseline",
        "another method",
        baseline,
    )
    return pairs(
        rows,
        method,
        baseline,
        column,
    )


def pairs(rows: pd.DataFrame, method: str, baseline: str, column: str = "error") -> pd.DataFrame:
    """`paired` of typed rows."""
    keys = [*varied(rows), "round"]
    values = rows.pivot(
        index=[*keys, "seed"],
        columns="method",
        values=column,
    )
    found = intervals(values[[method, baseline]], keys)
    surviving = 100 * rows.groupby("round").surviving.mean()
    found.insert(0, "surviving", surviving.reindex(found.index, level="round"))
    return found.rename_axis(columns=None).reset_index()


def intervals(values: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The means of two columns and the `interval` of first − second, by levels of the index."""
    values = values.dropna()
    groups = values.groupby(level=keys)
    apart = (values.iloc[:, 0] - values.iloc[:, 1]).groupby(level=keys)
    found = pd.DataFrame([interval(part) for _, part in apart], columns=INTERVAL)
    return groups.mean().join(found.set_index(groups.size().index))


# ---- one number per seed -------------------------------------------------------------------------


def interval(values: pd.Series) -> dict[str, float]:
    """Summarise one number per seed.

    Returns:
        difference, the mean; low and high, its 95 % interval (Student's t); n; p, two-sided, that
        the mean is 0; standard_error; and detectable, the difference that the t test at 5 % finds
        with 80 % power at this n and standard deviation: (t(0.975) + t(0.8)) · standard_error.
    """
    from scipy.stats import t  # takes a second to import

    n, mean = len(values), values.mean()
    error = values.std() / n**0.5
    half = t.ppf(0.975, n - 1) * error
    p = 2 * t.sf(abs(mean) / error, n - 1) if error else float(mean == 0)
    found = {
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "n": n,
        "p": p,
    }
    return found | {"detectable": half + t.ppf(0.8, n - 1) * error, "standard_error": error}


def per_seed(values: pd.DataFrame, claim: Claim) -> pd.Series:
    """Sum up each row of `values`, a seed's numbers, as the `measure` of a claim says.

    Args:
        values: A row per seed; a column per fraction of surviving weights (%), the sparsest last.
        claim: Says how.
    """
    percent = values.columns.to_numpy(float)
    halvings = -np.log2(percent)
    if claim.measure == "kept":
        near = (values.round(6) <= claim.loss).cummin(axis=1)
        return near.mul(percent).where(near).min(axis=1)
    if claim.measure == "mean":
        return values.mean(axis=1)
    if len(halvings) < 2:
        return pd.Series(math.nan, values.index)
    if claim.measure == "area":
        return pd.Series(
            np.trapezoid(
                values,
                halvings,
                axis=1,
            )
            / np.ptp(halvings),
            values.index,
        )
    return pd.Series(np.polyfit(halvings, values.T, 1)[0], values.index)


def alike(found: dict, claim: Claim) -> float:
    """The p value of a mean outside the limits of a claim: the larger of two one-sided tests'."""
    from scipy.stats import t

    nearest = min(found["difference"] - claim.low, claim.high - found["difference"])
    error = found["standard_error"]
    return t.sf(nearest / error, found["n"] - 1) if error else float(nearest <= 0)


def judge(found: dict, claim: Claim) -> str:
    """Judge an `interval` by the limits of a claim.

    *reproduced* when there are at least 3 seeds and the 95 % interval lies between the limits, *not
    reproduced* when it lies outside, *undecided* otherwise. With two limits, as of methods that are
    alike, two one-sided tests at 5 % each reproduce: the 90 % interval lies between them.
    """
    if found["n"] < LEAST_SEEDS:
        return "undecided"
    if found["high"] < claim.low or found["low"] > claim.high:
        return "not reproduced"
    inside = found["high"] < claim.high
    if claim.low > -math.inf:
        inside = alike(found, claim) < 0.05
    return "reproduced" if inside else "undecided"


def holm(p: pd.Series) -> pd.Series:
    """Adjust p values for their number (Holm, 1979); missing ones stay missing."""
    ascending = p.dropna().sort_values()
    left = np.arange(len(ascending), 0, -1)
    return (ascending * left).cummax().clip(upper=1).reindex(p.index)


# ---- verdicts ------------------------------------------------------------------------------------


def verdicts(results: pd.DataFrame) -> pd.DataFrame:
    """Judge the paper's claims on `results`, one row per claim.

    The endpoint of a claim is declared with its table: one number per seed, mostly the mean paired
    difference over the sparsest fractions. See `judge` for *reproduced*, *not reproduced* and
    *undecided*. A claim is *not run* without seeds of both methods.

    Args:
        results: Rows of one table, as `lapnb.run` returns them.

    Returns:
        Columns: table, scale, network; claim; surviving and sparsity, the fractions that count (%,
        text); dense, the dense networks' test error; method_mean and baseline_mean; difference, low
        and high, n, p, detectable: see `interval`; area, the mean area between the two curves over
        the log of the surviving weights; verdict; found, these numbers in words; by_fraction, the
        verdict at each of the fractions; runs, the same for two tables that hold the same runs.
    """
    return judged(one_source(results))


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` of typed rows."""
    first = rows.iloc[0]
    about = {
        "table": first.table,
        "scale": first.scale,
        "network": words.title(rows),
    }
    about["dense"] = rows.drop_duplicates("seed").dense_error.mean()
    claims = table(first.table, "paper").claims
    return pd.DataFrame([about | _judged(rows, claim) for claim in claims], columns=VERDICT)


def endpoint(rows: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """What a claim is judged by: a row per seed, and columns method, baseline and difference."""
    return _numbers(*_sides(rows, claim), claim)


def _numbers(ours: pd.DataFrame, theirs: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """`endpoint` of the two sides of a claim."""
    baseline = claim.published
    if claim.baseline != "published":
        baseline = per_seed(theirs, claim)
    both = pd.DataFrame({"method": per_seed(ours, claim), "baseline": baseline}).dropna()
    return both.assign(difference=both.method - both.baseline)


def _sides(rows: pd.DataFrame, claim: Claim) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The claim's column of the method and of the baseline.

    A row per seed and a column per fraction of surviving weights (%). The rounds are the declared
    ones of the scale, of those that have a seed of both methods; the seeds have all these rounds.
    """
    part = those(rows, claim.where)
    values = part.pivot(
        index="seed",
        columns=["method", "round"],
        values=claim.column,
    )
    methods = {*part.method}
    ours = values[claim.method] if claim.method in methods else pd.DataFrame()
    theirs = ours
    if claim.baseline != "published":
        theirs = values[claim.baseline] if claim.baseline in methods else pd.DataFrame()
    there = (ours - theirs).dropna(axis=1, how="all")
    first = rows.iloc[0]
    declared = table(first.table, first.scale).rounds[-claim.rounds :]
    rounds = [t for t in declared if t in there]
    seeds = there[rounds].dropna().index
    surviving = 100 * part.groupby("round").surviving.mean()[rounds]
    sides = [side.reindex(index=seeds, columns=rounds) for side in (ours, theirs)]
    return tuple(side.set_axis(surviving, axis=1) for side in sides)


def _judged(rows: pd.DataFrame, claim: Claim) -> dict:
    """The row of a claim in `verdicts`."""
    told = {
        "claim": words.in_words(claim),
        "n": 0,
        "verdict": "not run",
    }
    methods = [claim.method]
    if claim.baseline != "published":
        methods.append(claim.baseline)
    ours, theirs = _sides(rows, claim)
    numbers = _numbers(ours, theirs, claim)
    if numbers.empty:
        names = [words.short(name) for name in methods if name not in {*rows.method}]
        missing = f"no rows of {' or '.join(names)}" if names else "no seed of both"
        return told | {"found": missing}
    told |= interval(numbers.difference)
    told |= {"method_mean": numbers.method.mean(), "baseline_mean": numbers.baseline.mean()}
    told |= {"surviving": words.several(ours), "sparsity": words.several(ours, words.sparsity)}
    told["runs"] = f"{claim.column} {numbers.round(6).to_numpy().tolist()}"
    told["verdict"] = judge(told, claim)
    if claim.low > -math.inf:
        told["p"] = alike(told, claim)
    style = words.digits(claim.column)
    told["found"] = words.numbers(told, *map(words.short, (claim.method, claim.baseline)), style)
    if claim.measure == "trend":
        told["found"] = f"{words.interval_text(told)} points with each halving of the weights"
    told["found"] += words.devices(rows[rows.method.isin(methods)])
    if claim.measure == "mean":
        apart = ours - theirs
        told["by_fraction"] = words.by_fraction(
            {at: judge(interval(apart[at]), claim) for at in apart}
        )
        whole = dataclasses.replace(
            claim,
            measure="area",
            rounds=ALL_ROUNDS,
        )
        told["area"] = endpoint(rows, whole).difference.mean()
    return told


def effects(results: pd.DataFrame, baseline: str = "mp") -> pd.DataFrame:
    """Compare differences with the published ones, and errors above the dense network's.

    Where the images or the training differ, all errors shift, and effects say more than errors.

    Returns:
        One row per method and surviving fraction of which a difference to `baseline` is published:
        method, round, surviving (%), difference, paper_difference, z (their distance in standard
        errors), above_dense and paper_above_dense, the method's error above its dense network's.
    """
    rows = one_source(results)
    both = means(rows).dropna(subset="paper").set_index("round")
    theirs = both[both.method == baseline]
    dense = published()[published().table == rows.table[0]].unpruned_error.mean()
    found = []
    for method in both.method.unique():
        ours = both[both.method == method]
        if method == baseline or theirs.empty:
            continue
        pair = pairs(rows, method, baseline).set_index("round")
        line = pair[["surviving", "difference"]].assign(method=method)
        line["paper_difference"] = ours.paper - theirs.paper
        variance = pair.standard_error**2 + (ours.paper_std**2 + theirs.paper_std**2) / 5
        line["z"] = (line.difference - line.paper_difference) / variance**0.5
        line["above_dense"] = ours.error - rows.dense_error.mean()
        line["paper_above_dense"] = ours.paper - dense
        found.append(line.reset_index())
    return pd.concat(found or [pd.DataFrame()])


def caption(results: pd.DataFrame, marks: str = words.BARS) -> str:
    """Say how results were computed: scale, data, what differs from the paper, device, seeds.

    Args:
        results: Rows of one table, as `lapnb.run` returns them.
        marks: What the spread over seeds looks like, said where there are several.
    """
    return words.how(one_source(results), marks)
