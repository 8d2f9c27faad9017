"""All tables together: claims, networks, and how often LAP is better. Only reads rows."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lapnb.checks import literal
from lapnb.paper.protocol import SCALES, Claim
from lapnb.paper.tables import LAP_BEATS_MP, TABLES, table
from lapnb.report import compare, words
from lapnb.report.show import Markdown, markdown, recorded_rows

BIG = ("paper", "reduced")
# The tables of one network and nothing else; their endpoints are put together
NETWORKS = [
    name
    for name, declared in TABLES.items()
    if LAP_BEATS_MP in declared["claims"] and "," not in declared["title"]
]
# The notebooks that show tables of other names
NOTEBOOKS = {
    "fcn_before_retraining": "fcn_activations",
    "fcn_later_criteria": "later_criteria",
    "conv6_later_criteria": "later_criteria",
}
# These groups were put together after the rows were looked at
AFTER_THE_FACT = {
    "VGGs on CIFAR-10": [name for name in NETWORKS if "vgg" in name and "cifar10" in name],
    "ResNets and Tiny-ImageNet": [name for name in NETWORKS if "resnet" in name or "tiny" in name],
}


# ---- claims --------------------------------------------------------------------------------------


def summary(scales: Sequence[str] | str = SCALES[::-1]) -> pd.DataFrame:
    """Judge every claim of every table, on the largest scale that has seeds of both methods.

    Args:
        scales: The scales to look at, the largest first; or the text of a list, as papermill
            hands it over.

    Returns:
        The columns of `verdicts`; repeats, whether an earlier table holds the same runs, which are
        counted once (runs of the same seeds on another machine are no repeats); and p_holm, for the
        first claim of each table, p adjusted for the number of tables (Holm). The verdict on a
        claim for which nothing is recorded is "not run".
    """
    scales = literal(scales)
    judged = [
        largest(name, claim, scales) for name in TABLES for claim in table(name, "paper").claims
    ]
    claims = pd.DataFrame(judged, columns=compare.VERDICT.split())
    first = claims.drop_duplicates("runs").set_index("runs").table
    claims["repeats"] = claims.runs.notna() & (claims.runs.map(first) != claims.table)
    endpoints = ~claims.repeats & ~claims.table.duplicated()
    claims["p_holm"] = compare.holm(claims.p.where(endpoints).astype(float))
    return claims


def largest(name: str, claim: Claim, scales: Sequence[str]) -> dict:
    """Judge a table's claim at the first of the scales that has seeds of both methods."""
    for rows in recorded_rows(name, *scales):
        verdict = compare.verdict(rows, claim)
        if verdict["n"]:
            return verdict
    claimed = words.in_words(claim)
    return {"table": name, "claim": claimed, "scale": "–", "n": 0, "verdict": "not run"}


def networks() -> pd.DataFrame:
    """Sum up LAP against MP, a row per network; README, RESULTS and the start page open with it.

    Returns:
        The columns of `verdicts`, where network names the data too; mp and lap, test errors (%)
        averaged over the fractions of the endpoint; published_mp and published_lap, the same of the
        paper at its own scale, and published, their difference; verdict, "yes" (LAP is better),
        "no" (MP is), "undecided" or "not run".
    """
    judged = [largest(name, LAP_BEATS_MP, BIG) for name in NETWORKS]
    rows = pd.DataFrame(judged, columns=compare.VERDICT.split())
    rows = rows.rename(columns={"method_mean": "lap", "baseline_mean": "mp"})
    rows["verdict"] = rows.verdict.replace({"reproduced": "yes", "not reproduced": "no"})
    return rows.join(pd.DataFrame(map(_published, rows.table, rows.scale)))


def _published(name: str, scale: str) -> dict:
    """Return the paper's test errors (%) of MP and LAP, averaged over a scale's endpoint."""
    paper = compare.published()[compare.published().table == name]
    errors = paper.pivot(index="round", columns="method", values="error_pct")
    rounds = table(name, scale if scale in BIG else "paper").rounds_of(LAP_BEATS_MP)
    mp, lap = errors.reindex(index=rounds, columns=["mp", "lap"]).mean(skipna=False)
    return {"published_mp": mp, "published_lap": lap, "published": lap - mp}


def networks_in_words(rows: pd.DataFrame) -> Markdown:
    """Return `networks` as a table, in the columns that a reader sees."""
    columns = {
        "network and data": rows.network,
        "LAP better?": rows.verdict.replace({"yes": "**yes**", "no": "**no**"}),
        "LAP − MP [95 %]": [words.interval_text(row) for _, row in rows.iterrows()],
        "MP": rows.mp.map("{:.1f}".format),
        "LAP": rows.lap.map("{:.1f}".format),
        "dense": map(words.beside, rows.dense, rows.published_dense),
        "paper: MP → LAP": map("{:.1f} → {:.1f}".format, rows.published_mp, rows.published_lap),
        "n": rows.n,
        "scale": rows.scale,
        "sparsity (%)": rows.sparsity,
    }
    frame = pd.DataFrame({name: [*texts] for name, texts in columns.items()})
    return markdown(frame.replace(".*nan.*", "–", regex=True))


# ---- all comparisons -----------------------------------------------------------------------------


def everything() -> pd.DataFrame:
    """Return all retrained rows at the paper's and the reduced scale, with the network's title.

    Shared runs are counted once. Runs of the same seeds on another machine start from other dense
    networks; they count as seeds of their own.
    """
    parts = []
    for name in TABLES:
        for rows in recorded_rows(name, *BIG):
            usual = rows.activation.map({"relu": "", "none": ""})
            network = words.title(rows, whole=False) + usual.fillna(", " + rows.activation)
            parts.append(rows.assign(network=network)[rows.retrain_steps > 0])
    rows = pd.concat(parts, ignore_index=True)
    run = ["network", "scale", "method", "scope", "round", "seed", "dense_error", "error"]
    return rows.drop_duplicates(run)  # the first round of an iterative schedule is a one-shot run


def matched(rows: pd.DataFrame, one: dict, other: dict, more: list[str]) -> pd.DataFrame:
    """Compare two choices by `compare.matched`, a row per network, scale, `more` and round.

    The runs of a pair have the same dense network and device. Rows of fewer than 3 seeds are left
    out, and so are those for which both choices are the same runs.
    """
    keys = ["network", "scale", *more, "round"]
    pairs = compare.matched(rows, one, other, keys, ["source", "dense_error", "device"])
    same = (pairs.low == 0) & (pairs.high == 0)
    return pairs[(pairs.n >= compare.LEAST_SEEDS) & ~same]


def comparisons() -> pd.DataFrame:
    """Compare LAP with MP, claimed or not: a row per network, scale, variant and fraction."""
    return matched(everything(), {"method": "lap"}, {"method": "mp"}, ["scope", "schedule"])


def answer(rows: pd.DataFrame) -> Markdown:
    """Say in a few sentences whether LAP beats MP, from the rows of `networks`."""
    lines = []
    for verdict, start in {"yes": "LAP beats MP on", "no": "MP beats LAP on"}.items():
        names = rows[rows.verdict == verdict].network
        lines.append(f"**{start}** {words.listed(names) if len(names) else 'no network'}.")
    undecided = rows[rows.verdict == "undecided"]
    if len(undecided):
        scales = words.listed(undecided.scale.unique())
        lines.append(f"The other {len(undecided)}, run at the {scales} scale, are undecided.")
    return Markdown(" ".join([*lines, sentence()]))


def sentence() -> str:
    """Say how often LAP and MP are significantly better in `comparisons`, and which to take."""
    rows = comparisons()
    lap, mp = rows[rows.high < 0], rows[rows.low > 0]
    text = (
        "Over all tables, global and iterative pruning included, LAP is significantly better in "
        f"{len(lap)} of {len(rows)} comparisons{_by(lap)}, MP in {len(mp)}{_by(mp)}; "
        f"{len(rows) - len(lap) - len(mp)} are undecided. In practice: "
    )
    return text + ("take LAP." if len(lap) else "there is no reason yet to prefer LAP.")


def _by(rows: pd.DataFrame) -> str:
    return f" (by up to {rows.difference.abs().max():.1f} points)" if len(rows) else ""


# ---- across networks -----------------------------------------------------------------------------


def network_seeds(claim: Claim = LAP_BEATS_MP) -> pd.DataFrame:
    """Return the numbers by which a claim is judged, a row per network and seed.

    The columns are seed, those of `compare.endpoint`, table, network and scale.
    """
    parts = []
    for name in NETWORKS:
        for rows in recorded_rows(name, *BIG)[:1]:
            part = compare.endpoint(*compare.sides(rows, claim), claim).reset_index()
            network = words.title(rows)
            parts.append(part.assign(table=name, network=network, scale=rows.scale[0]))
    return pd.concat(parts, ignore_index=True)


def across() -> pd.DataFrame:
    """Put the endpoints of the networks together, as rliable does (Agarwal et al., NeurIPS 2021).

    Returns:
        A row for all networks, for groups of them, and for each; the columns of `together`, and of
        `collapse` at the sparsest fraction; and after_the_fact, whether the group was made after
        the rows were looked at.
    """
    seeds = network_seeds()
    sparsest = network_seeds(Claim("lap", "mp"))
    lines = []
    groups = {"all networks": NETWORKS} | AFTER_THE_FACT | {name: [name] for name in NETWORKS}
    for group, names in groups.items():
        part = seeds[seeds.table.isin(names)]
        if len(part):
            line = {"networks": group, "after_the_fact": group in AFTER_THE_FACT}
            line |= together(part) | collapse(sparsest[sparsest.table.isin(names)])
            lines.append(line)
    return pd.DataFrame(lines)


def together(seeds: pd.DataFrame) -> dict:
    """Sum up the endpoints of networks.

    Returns:
        seeds, their number; better, the number of seeds in which LAP is better; probability, that
        LAP is better, as the mean over networks; iqm, the interquartile mean of LAP − MP over all
        seeds; low and high, its 95 % interval (bootstrap, seeds drawn within each network); p,
        for a mean of 0, by flipping the signs of seeds.
    """
    from scipy.stats import permutation_test, trim_mean

    values, random = seeds.difference.to_numpy(float), np.random.default_rng(0)
    groups = [part.to_numpy(float) for _, part in seeds.groupby("table").difference]
    draws = np.hstack([random.choice(part, (10_000, len(part))) for part in groups])
    low, high = np.quantile(trim_mean(draws, 0.25, axis=1), [0.025, 0.975])
    flips = {"permutation_type": "samples", "n_resamples": 2**15, "rng": 0}
    test = permutation_test((values,), np.mean, vectorized=True, **flips)
    return {
        "seeds": len(values),
        "better": (values < 0).sum(),
        "probability": np.mean([(part < 0).mean() for part in groups]),
        "iqm": trim_mean(values, 0.25),
        "low": low,
        "high": high,
        "p": test.pvalue,
    }


def collapse(seeds: pd.DataFrame) -> dict:
    """Count the runs in which MP collapses and LAP does not.

    Args:
        seeds: A row per network and seed; the columns table, method_mean and baseline_mean, the
            errors of LAP and MP.

    Returns:
        collapsed, the runs of MP that are worse than the worst of LAP in their network;
        p_collapse, the probability of so many or more if the methods did not differ, so that the
        ranks of all runs of a network were in random order; and collapse, the verdict, "reproduced"
        where it is below 5 %, else "undecided".
    """
    from scipy.stats import nhypergeom

    count, chances = 0, np.ones(1)
    for _, part in seeds.groupby("table"):
        n = len(part)
        count += int((part.baseline_mean > part.method_mean.max()).sum())
        # how many runs of MP come before the first of LAP, with all in random order
        before_lap = nhypergeom.pmf(range(n + 1), 2 * n, n, 1)
        chances = np.convolve(chances, before_lap)
    p = chances[count:].sum()
    verdict = "reproduced" if p < 0.05 else "undecided"
    return {"collapsed": count, "p_collapse": p, "collapse": verdict}


def cost_of_masks(times: pd.DataFrame, most: float = 1.5) -> pd.DataFrame:
    """Judge whether LAP's masks cost about as much as MP's: at most `most` times the seconds.

    Args:
        times: Columns network, method and seconds, at the paper's widths; the methods take turns,
            so that their k-th rows are a pair.
        most: The ratio up to which the costs are alike.

    Returns:
        A row per network: ratio, the geometric mean, with its 95 % interval low and high; n, the
        number of pairs; and the verdict, as of `judge`.
    """
    claim = Claim("lap", "mp", high=math.log(most))
    lines = []
    for network, part in times.groupby("network"):
        seconds = [part.seconds[part.method == name].to_numpy() for name in ("lap", "mp")]
        logs = compare.interval(pd.Series(np.log(seconds[0] / seconds[1])))
        line = {
            "network": network,
            "ratio": math.exp(logs["difference"]),
            "low": math.exp(logs["low"]),
            "high": math.exp(logs["high"]),
            "n": logs["n"],
            "verdict": compare.judge(logs, claim),
        }
        lines.append(line)
    return pd.DataFrame(lines)


def index(claims: pd.DataFrame) -> Markdown:
    """List all tables: a link to the notebook, and the verdict on the first claim.

    Args:
        claims: What `summary` returns.
    """
    lines = []
    first = claims.drop_duplicates("table").set_index("table")
    for name, declared in TABLES.items():
        line = "compares later criteria, claims nothing"
        if name in first.index:
            row = first.loc[name]
            line = words.verdict_line(row)
            if row.n:
                line = f"{row.network}: {line}"
        notebook = NOTEBOOKS.get(name, name)
        lines.append([f"[{declared['title']}]({notebook}.ipynb)", line])
    return markdown(pd.DataFrame(lines, columns=["notebook", "result"]))
