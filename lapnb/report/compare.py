"""Statistics of rows: means, paired differences, endpoints, verdicts on claims. Only reads rows."""

import dataclasses
import math

import numpy as np
import pandas as pd

from lapnb.checks import require
from lapnb.paper.protocol import VARIED, Claim
from lapnb.paper.tables import ALL_ROUNDS, table
from lapnb.pruning.scores import METHODS
from lapnb.report import words
from lapnb.report.words import MEASURED, published
from lapnb.runs.rows import typed

ROWS = "results must be rows of one table, as lapnb.run and lapnb.recorded return them"
INTERVAL = ["difference", "low", "high", "n", "p", "detectable", "standard_error"]
VERDICT = """
    table scale network claim surviving sparsity dense published_dense method_mean baseline_mean
    difference low high n p detectable area verdict found by_fraction runs
"""
LEAST_SEEDS = 3


# ---- rows ----------------------------------------------------------------------------------------


def one_source(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Return a typed copy of rows that may be compared with each other, with columns gap and lost.

    All comparisons use this copy, so that it does not matter how the rows were read. Rows that
    have these columns already are such a copy.

    Raises:
        ValueError: These are not rows of one table, scale, source and settings, each run once; or
            they do not record `column`.
    """
    if not isinstance(results, pd.DataFrame) or results.empty:
        raise ValueError(f"{ROWS}; got {type(results).__name__} without rows")
    rows = results
    if "lost" not in results:
        rows = with_losses(_typed(results))
    recorded = [name for name in MEASURED if rows[name].notna().any()]
    require(column in recorded, "column", f"one of {', '.join(recorded)}", column)
    return rows


def _typed(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows typed, if they may be compared with each other."""
    try:
        rows = typed(results)
    except ValueError as error:
        raise ValueError(f"{ROWS}; {error}") from error
    for name in ("table", "scale", "source", "changed", "status"):
        values = rows[name].unique().tolist()
        require(len(values) == 1, "results", f"rows of one {name}", values)
    looks_at = rows.method.map({name: method.looks_at for name, method in METHODS.items()})
    alike = rows.groupby([*VARIED, "round", looks_at]).settings.nunique().max() == 1
    require(alike, "results", "rows of the same settings", "other hashes in a round")
    return rows


def with_losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Return typed rows with the columns gap and lost added."""
    return rows.assign(
        gap=rows.error - rows.train_error,
        lost=rows.error_before - rows.dense_error,
    )


def varied(rows: pd.DataFrame) -> list[str]:
    """Return which of the settings `VARIED` differ between rows."""
    return [name for name in VARIED if rows[name].nunique() > 1]


def those(rows: pd.DataFrame, values: dict) -> pd.DataFrame:
    """Return the rows that have these values in these columns."""
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

    Raises:
        ValueError: These are not rows of one table, or they do not record `column`.

    >>> import lapnb
    >>> means = lapnb.compare(lapnb.recorded("fcn_mnist", "paper"))
    >>> means[means.method == "lap"][["surviving", "error", "paper"]].iloc[-1].round(2).tolist()
    [0.12, 23.95, 16.45]
    """
    rows = one_source(results, column)
    keys = [*varied(rows), "round"]
    groups = rows.groupby([*keys, "method"], sort=False)
    ours = groups[column].agg(["mean", "std", "count"]).join(100 * groups.surviving.mean())
    ours = ours.rename(columns={"mean": column, "count": "n"}).reset_index()
    paper = published().rename(columns={"error_pct": "paper", "error_std": "paper_std"})
    paper = paper[paper.table == rows.table.iloc[0]]
    if column != "error" or not words.as_published(rows):
        paper = paper[:0]
    both = ours.merge(paper[["method", "round", "paper", "paper_std"]], "left")
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

    Raises:
        ValueError: These are not rows of one table, or they do not record `column`.

    >>> import lapnb
    >>> sparsest = lapnb.paired(lapnb.recorded("fcn_mnist", "paper"), "lap", "mp").iloc[-1]
    >>> sparsest[["surviving", "difference", "low", "high", "n"]].round(2).tolist()
    [0.12, -51.72, -68.53, -34.92, 5.0]
    """
    rows = one_source(results, column)
    keys = [*varied(rows), "round"]
    differences = matched(rows, {"method": method}, {"method": baseline}, keys, [], column)
    return differences.rename(columns={"method_mean": method, "baseline_mean": baseline})


def matched(
    rows: pd.DataFrame, one: dict, other: dict, keys: list[str], same: list[str], column="error"
) -> pd.DataFrame:
    """Return the intervals of the difference between two choices, a row for each value of `keys`.

    A choice is a dictionary of columns and their values. The runs of a pair have the same seed and
    agree in `same` too.
    """
    on = [*keys, "seed", *same]
    theirs = f"{column}_other"
    pairs = those(rows, one).merge(those(rows, other), on=on, suffixes=("", "_other"))
    lines = []
    for values, part in pairs.dropna(subset=[column, theirs]).groupby(keys):
        line = dict(zip(keys, values, strict=True))
        line["surviving"] = 100 * part.surviving.mean()
        line["method_mean"] = part[column].mean()
        line["baseline_mean"] = part[theirs].mean()
        lines.append(line | interval(part[column] - part[theirs]))
    columns = [*keys, "surviving", "method_mean", "baseline_mean", *INTERVAL]
    return pd.DataFrame(lines, columns=columns)


def against_mp(rows: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Compare each method with MP as `paired` does; a column method names it."""
    methods = rows.method[rows.method != "mp"].unique()
    parts = [paired(rows, method, "mp", column).assign(method=method) for method in methods]
    return pd.concat(parts or [rows[:0]], ignore_index=True)


# ---- one number per seed -------------------------------------------------------------------------


def interval(values: pd.Series) -> dict[str, float]:
    """Summarise one number per seed.

    Returns:
        difference, the mean; low and high, its 95 % interval (Student's t); n; p, the two-sided
        p value for a mean of 0; standard_error; and detectable, the difference that the t test at
        5 % finds with 80 % power at this n and standard deviation: (t(0.975) + t(0.8)) ·
        standard_error.
    """
    from scipy.stats import t  # takes a second to import

    n, mean = len(values), values.mean()
    error = values.std() / n**0.5
    half = t.ppf(0.975, n - 1) * error
    p = 2 * t.sf(abs(mean) / error, n - 1) if error else float(mean == 0)
    detectable = half + t.ppf(0.8, n - 1) * error
    numbers = mean, mean - half, mean + half, n, p, detectable, error
    return dict(zip(INTERVAL, numbers, strict=True))


def per_seed(values: pd.DataFrame, claim: Claim) -> pd.Series:
    """Sum up each row of `values`, a seed's numbers, as the `measure` of a claim says.

    Args:
        values: A row per seed; a column per fraction of surviving weights (%), the sparsest last.
        claim: Holds the `measure`, and the `loss` of "kept".
    """
    percent = values.columns.to_numpy(float)
    if claim.measure == "kept":
        near = (values.round(6) <= claim.loss).cummin(axis=1)
        return near.mul(percent).where(near).min(axis=1)
    if claim.measure == "mean":
        return values.mean(axis=1)
    if len(percent) < 2:
        return pd.Series(math.nan, values.index)
    halvings = -np.log2(percent)
    if claim.measure == "area":
        between = np.trapezoid(values, halvings, axis=1)
        return pd.Series(between / np.ptp(halvings), values.index)
    return pd.Series(np.polyfit(halvings, values.T, 1)[0], values.index)


def alike(found: dict, claim: Claim) -> float:
    """Return the p value for a mean outside a claim's limits: the larger of two one-sided tests."""
    from scipy.stats import t

    nearest = min(found["difference"] - claim.low, claim.high - found["difference"])
    error = found["standard_error"]
    return t.sf(nearest / error, found["n"] - 1) if error else float(nearest <= 0)


def judge(found: dict, claim: Claim) -> str:
    """Judge an `interval` by the limits of a claim.

    The claim is *undecided* with fewer than 3 seeds. Otherwise it is *reproduced* when the 95 %
    interval lies between the limits, *not reproduced* when the interval lies outside, *undecided*
    when it does neither. With two limits, as for methods that are alike, it is reproduced by two
    one-sided tests at 5 % each, which means that the 90 % interval lies between the limits.
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
        text); dense, the dense networks' test error, and published_dense; method_mean and
        baseline_mean; difference, low and high, n, p, detectable: see `interval`; area, the mean
        difference between the two curves over all fractions, by halvings of the weights; verdict;
        found, these numbers in words; by_fraction, the verdict at each of the fractions; runs, the
        same for two tables that hold the same runs.

    Raises:
        ValueError: These are not rows of one table.

    >>> import lapnb
    >>> print(*lapnb.verdicts(lapnb.recorded("fcn_mnist", "paper")).loc[0, ["claim", "verdict"]])
    LAP beats MP reproduced
    """
    rows = one_source(results)
    claims = words.in_the_paper(rows).claims
    return pd.DataFrame([verdict(rows, claim) for claim in claims], columns=VERDICT.split())


def sides(rows: pd.DataFrame, claim: Claim) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the claim's column of the method and of the baseline, a row per seed.

    Each has a column per fraction of surviving weights (%). The method stands in for a baseline
    that is published. The rounds are those of the claim, as far as both methods have them; the
    seeds are those that have all these rounds.
    """
    first = rows.iloc[0]
    declared = table(first.table, first.scale).rounds_of(claim)
    part = those(rows, claim.where)
    part = part[part["round"].isin(declared)]
    baseline = claim.method if claim.baseline == "published" else claim.baseline
    ours, theirs = (
        part[part.method == name].pivot(index="seed", columns="round", values=claim.column)
        for name in (claim.method, baseline)
    )
    ours, theirs = ours.align(theirs, join="inner")
    seeds = (ours - theirs).dropna().index
    percent = 100 * part.groupby("round").surviving.mean()[ours.columns]
    return ours.loc[seeds].set_axis(percent, axis=1), theirs.loc[seeds].set_axis(percent, axis=1)


def endpoint(ours: pd.DataFrame, theirs: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """Return what a claim is judged by, from its `sides`: a row per seed.

    The columns are method_mean, baseline_mean and difference.
    """
    baseline = claim.published
    if claim.baseline != "published":
        baseline = per_seed(theirs, claim)
    both = pd.DataFrame({"method_mean": per_seed(ours, claim), "baseline_mean": baseline})
    return both.assign(difference=both.method_mean - both.baseline_mean).dropna()


def verdict(rows: pd.DataFrame, claim: Claim) -> dict:
    """Return the row of a claim in `verdicts`."""
    first = rows.iloc[0]
    row = {"table": first.table, "scale": first.scale, "network": words.title(rows)}
    row |= {"claim": words.in_words(claim), "n": 0, "verdict": "not run"}
    ours, theirs = sides(rows, claim)
    numbers = endpoint(ours, theirs, claim)
    if numbers.empty:
        method, baseline = words.short(claim.method), words.short(claim.baseline)
        return row | {"found": f"no seed of {method} and {baseline}"}
    part = those(rows, claim.where).query("seed in @numbers.index")
    row["dense"] = words.dense_error(part)
    row["published_dense"] = words.published_dense(part)
    row |= numbers.mean().to_dict() | interval(numbers.difference)
    row |= {"surviving": words.several(ours), "sparsity": words.several(ours, words.sparsity)}
    row["runs"] = f"{claim.column} {numbers.round(6).to_numpy().tolist()}"
    row["verdict"] = judge(row, claim)
    if claim.low > -math.inf:
        row["p"] = alike(row, claim)
    row["found"] = words.found(row, claim)
    if claim.measure == "mean":
        differences = ours - theirs
        judged = {at: judge(interval(differences[at]), claim) for at in differences}
        row["by_fraction"] = words.by_fraction(judged)
        whole = dataclasses.replace(claim, measure="area", rounds=ALL_ROUNDS)
        row["area"] = endpoint(*sides(rows, whole), whole).difference.mean()
    return row


def finding(rows: pd.DataFrame, column: str = "error") -> str:
    """Say in a few words what typed rows show of `column`: the title of a picture.

    This is the verdict on the first claim about the column, or one verdict per variant. Without a
    verdict it is the method with the lowest mean.
    """
    columns = [column, "lost"] if column == "error_before" else [column]
    claims = [claim for claim in words.in_the_paper(rows).claims if claim.column in columns]
    if claims and not claims[0].where:
        claims = claims[:1]
    verdicts = [verdict(rows, claim)["verdict"] for claim in claims]
    if {*verdicts} <= {"not run"}:
        return lowest(rows, column)
    outcome = verdicts[0]
    if len({*verdicts}) > 1:
        variants = [words.short(*claim.where.values()) for claim in claims]
        outcome = ", ".join(map("{} ({})".format, verdicts, variants))
    return f"{words.in_words(dataclasses.replace(claims[0], where={}))}: {outcome}"


def lowest(rows: pd.DataFrame, column: str = "error") -> str:
    """Say which method has the lowest mean where fewest weights survive."""
    averages = compare(rows, column)
    sparsest = averages[averages["round"] == averages["round"].max()]
    best = sparsest.loc[sparsest[column].idxmin()]
    name = ", ".join(map(words.short, best[["method", *varied(rows)]]))
    at = words.percent(best.surviving)
    return f"Lowest at {at} % of the weights: {name}, {words.number(best[column])}"


def caption(results: pd.DataFrame, marks: str = words.BARS) -> str:
    """Say how results were computed: scale, data, what differs from the paper, device, seeds.

    Args:
        results: Rows of one table, as `lapnb.run` returns them.
        marks: How the spread over seeds is drawn; said where there are several seeds.

    Returns:
        One line, whose parts are separated by " · ".

    Raises:
        ValueError: These are not rows of one table.

    >>> import lapnb
    >>> print(lapnb.caption(lapnb.recorded("fcn_mnist", "paper"))[:54])
    paper scale · MNIST · 50,000 dense + 50,000 retraining
    """
    return words.how(one_source(results), marks)
