"""All tables together: claims, networks, and how often LAP is better. Reads rows, never trains."""

import math
import re
from html import escape

import numpy as np
import pandas as pd

from lapnb.paper.protocol import SCALES, Claim
from lapnb.paper.tables import LAP_BEATS_MP, TABLES, table
from lapnb.report import compare as of
from lapnb.report import words
from lapnb.report.show import Shown, recordings, without_numbers
from lapnb.runs.rows import SCHEMA

BIG = ("paper", "reduced")
# The tables of one network and nothing else, whose endpoints are put together
NETWORKS = [
    name
    for name, declared in TABLES.items()
    if LAP_BEATS_MP in declared["claims"] and "," not in declared["title"]
]
# Put together after the rows were looked at
AFTER_THE_FACT = {
    "VGGs on CIFAR-10": [name for name in NETWORKS if "vgg" in name and "cifar10" in name],
    "ResNets and Tiny-ImageNet": [name for name in NETWORKS if "resnet" in name or "tiny" in name],
}


# ---- claims --------------------------------------------------------------------------------------


def summary(scales: tuple[str, ...] = SCALES[::-1]) -> pd.DataFrame:
    """Judge every claim of every table, on the largest scale that has seeds enough, or any.

    Args:
        scales: The scales to look at, the largest first.

    Returns:
        Columns as of `verdicts`; repeats, the table that holds the same runs and is counted for
        them (runs of the same seeds on another machine are no repeats); and p_holm, of the first
        claim of each table, p adjusted for the number of tables (Holm), shared runs counted once.
        The verdict on a claim of which nothing is recorded is "not run".
    """
    verdicts = [of.verdicts(rows) for name in TABLES for rows in recordings(name, *scales)]
    claimed = [(name, claim) for name in TABLES for claim in table(name, "paper").claims]
    names = {"table": [name for name, _ in claimed]}
    names["claim"] = [words.in_words(claim) for _, claim in claimed]
    nothing = pd.DataFrame(
        names
        | {
            "scale": "–",
            "n": 0,
            "verdict": "not run",
        }
    )
    found = pd.concat([*verdicts, nothing.reindex(columns=of.VERDICT)])
    found["seeds"] = found.n.clip(upper=of.LEAST_SEEDS)
    best = found.sort_values(
        "seeds",
        ascending=False,
        kind="stable",
    )
    best = best.drop_duplicates(["table", "claim"])[of.VERDICT]
    claims = nothing[["table", "claim"]].merge(best)
    first = claims.dropna(subset="runs").drop_duplicates("runs").set_index("runs").table
    claims["repeats"] = claims.runs.map(first).where(lambda name: name != claims.table)
    endpoints = claims.repeats.isna() & ~claims.table.duplicated()
    claims["p_holm"] = of.holm(claims.p.where(endpoints).astype(float))
    return claims


def networks(claims: pd.DataFrame | None = None) -> pd.DataFrame:
    """Sum up LAP against MP, a row per network: what README, RESULTS and the start page open with.

    Args:
        claims: What `summary(("paper", "reduced"))` returns, if already computed.

    Returns:
        Columns: table; network, with its data; scale; sparsity and surviving (%, text), the
        fractions of the endpoint; n; dense, the dense networks' test error, and published_dense;
        mp, lap, difference, low and high, test errors (%) averaged over these fractions;
        published_mp and published_lap, the same of the paper at its own scale, and published, their
        difference; verdict, "yes" (LAP is better), "no" (MP is), "undecided" or "not run";
        detectable; p, and p_holm over these rows.
    """
    if claims is None:
        claims = summary(BIG)
    is_endpoint = claims.table.isin(NETWORKS) & (claims.claim == words.in_words(LAP_BEATS_MP))
    rows = claims[is_endpoint].rename(columns={"method_mean": "lap", "baseline_mean": "mp"})
    titles = rows.table.map(lambda name: TABLES[name]["title"])
    rows["network"] = rows.network.astype(object).fillna(titles)
    rows["verdict"] = rows.verdict.replace({"reproduced": "yes", "not reproduced": "no"})
    rows["p_holm"] = of.holm(rows.p.astype(float))
    rows = rows.merge(pd.DataFrame([_published(name) for name in NETWORKS]), on="table")
    first = "table network scale sparsity surviving n dense published_dense mp lap difference low"
    last = "high published_mp published_lap published verdict detectable p p_holm"
    return rows[[*first.split(), *last.split()]]


def _published(name: str) -> dict:
    """The paper's dense error, and its MP and LAP averaged over the rounds of the endpoint."""
    theirs = of.published()[of.published().table == name]
    rounds = table(name, "paper").rounds[-LAP_BEATS_MP.rounds :]
    errors = theirs.pivot(
        index="round",
        columns="method",
        values="error_pct",
    )
    mp, lap = errors.reindex(index=rounds, columns=["mp", "lap"]).mean(skipna=False)
    found = {
        "table": name,
        "published_mp": mp,
        "published_lap": lap,
        "published": lap - mp,
    }
    return found | {"published_dense": theirs.unpruned_error.mean()}


def networks_in_words(rows: pd.DataFrame) -> pd.DataFrame:
    """`networks` as text, with the columns that a reader sees; ** stands around bold words."""
    lines = []
    for row in rows.to_dict("records"):
        dense = f"{row['dense']:.1f}"
        published = f"{row['published_mp']:.1f} → {row['published_lap']:.1f}"
        if row["published_dense"] > 0:
            dense += f" (paper {row['published_dense']:.1f})"
        line = {
            "network and data": row["network"],
            "scale": row["scale"],
            "sparsity (%)": row["sparsity"],
            "n": row["n"],
            "dense": dense,
            "MP": f"{row['mp']:.1f}",
            "LAP": f"{row['lap']:.1f}",
            "LAP − MP [95 %]": words.interval_text(row),
            "paper: MP → LAP": published,
            "LAP better?": {"yes": "**yes**", "no": "**no**"}.get(row["verdict"], row["verdict"]),
        }
        lines.append({name: "–" if "nan" in str(text) else text for name, text in line.items()})
    return pd.DataFrame(lines)


# ---- all comparisons -----------------------------------------------------------------------------

# What two runs share that may be compared
PAIR = [
    "network",
    "scale",
    "source",
    "round",
    "seed",
    "dense_error",
    "device",
]


def everything() -> pd.DataFrame:
    """All retrained rows at the paper's and the reduced scale, with the network's title.

    Shared runs are counted once. Runs of the same seeds on another machine start
    from other dense networks; they count as seeds of their own.
    """
    parts = []
    for name in TABLES:
        for results in recordings(name, *BIG):
            rows = of.one_source(results)
            unusual = rows.activation.where(~rows.activation.isin(["relu", "none"]))
            rows["network"] = words.title(rows, whole=False) + (", " + unusual).fillna("")
            parts.append(rows[rows.retrain_steps > 0])
    rows = pd.concat(parts or [pd.DataFrame(columns=[*SCHEMA])], ignore_index=True)
    return rows.drop_duplicates([*PAIR, "method", "scope", "schedule"])


def matched(rows: pd.DataFrame, one: dict, other: dict, more: list[str]) -> pd.DataFrame:
    """Intervals of the errors of two choices, a row per network, scale, `more` and round.

    A choice is a dictionary of columns and their values. Pairs have the same dense network and
    device. Left out are fewer than 3 seeds, and fractions at which both choices are the same run.
    """
    keys = ["network", "scale", *more, "round"]
    left, right = of.those(rows, one), of.those(rows, other)
    both = left.merge(
        right,
        on=[*PAIR, *more],
        suffixes=("", "_other"),
    ).set_index(keys)
    found = of.intervals(both[["error", "error_other"]], keys)
    found["surviving"] = 100 * both.groupby(level=keys).surviving.mean()
    found = found.rename(columns={"error": "method_mean", "error_other": "baseline_mean"})
    same = (found.low == 0) & (found.high == 0)
    return found[(found.n >= of.LEAST_SEEDS) & ~same].reset_index()


def comparisons() -> pd.DataFrame:
    """All comparisons of LAP with MP, claimed or not: a row per network, variant and fraction."""
    return matched(
        everything(),
        {"method": "lap"},
        {"method": "mp"},
        ["scope", "schedule"],
    )


def sentence() -> str:
    """Say how often LAP, and how often MP, is significantly better, of `comparisons`."""
    rows = comparisons()
    lap, mp = (rows.high < 0).sum(), (rows.low > 0).sum()
    most = ""
    if mp:
        most = f" (by at most {rows[rows.low > 0].difference.max():.1f} points)"
    return (
        f"Over all tables, global and iterative pruning included, LAP is significantly better in "
        f"{lap} of {len(rows)} comparisons, MP in {mp}{most}; {len(rows) - lap - mp} are undecided."
    )


def answer(rows: pd.DataFrame) -> str:
    """Say in a few sentences whether LAP beats MP, of the rows of `networks`."""
    lines = []
    for verdict, start in {"yes": "LAP beats MP on", "no": "MP beats LAP on"}.items():
        names = rows[rows.verdict == verdict].network
        lines.append(f"**{start}** {words.listed(names) if len(names) else 'no network'}.")
    undecided = rows[rows.verdict == "undecided"]
    if len(undecided):
        scales = words.listed(undecided.scale.unique())
        lines.append(f"The other {len(undecided)}, run at the {scales} scale, are undecided.")
    return " ".join([*lines, sentence(), practice()])


def practice() -> str:
    """Say what the comparisons of LAP with MP mean to somebody who has to choose."""
    rows = comparisons()
    lap, mp = rows[rows.high < 0], rows[rows.low > 0]
    if lap.empty:
        return "In practice there is no reason yet to prefer LAP."
    best = lap.loc[lap.difference.idxmin()]
    worst = mp.difference.max() if len(mp) else 0
    scope = words.WORDS.get(best.scope, best.scope)
    where = f"{best.network}, {scope}, {words.percent(best.surviving)} % of the weights"
    return (
        "In practice: take LAP. Where the difference is significant, LAP is better by up to "
        f"{-best.difference:.0f} points ({where}) and MP by at most {worst:.1f}."
    )


def show_answer() -> None:
    """Show what the start page opens with: the answer, and a row per network."""
    from IPython.display import display

    rows = networks()
    text = answer(rows)
    html = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(text))
    display(Shown({"text/plain": text.replace("**", ""), "text/html": f"<p>{html}</p>"}))
    display(without_numbers(networks_in_words(rows)))


# ---- across networks -----------------------------------------------------------------------------


def network_seeds() -> pd.DataFrame:
    """The endpoint of each network by seed: columns table, network, scale, seed and difference.

    And mp and lap, the test errors (%) at the sparsest fraction alone.
    """
    parts = []
    for name in NETWORKS:
        for results in recordings(name, *BIG)[:1]:
            rows = of.one_source(results)
            last = rows[rows["round"] == rows["round"].max()]
            errors = last.pivot(
                index="seed",
                columns="method",
                values="error",
            )
            part = of.endpoint(rows, LAP_BEATS_MP)[["difference"]]
            part = part.join(errors.reindex(columns=["mp", "lap"])).reset_index()
            about = {
                "table": name,
                "network": words.title(rows),
                "scale": rows.scale[0],
            }
            parts.append(part.assign(**about))
    return pd.concat(parts or [pd.DataFrame(columns=["table"])], ignore_index=True)


def across() -> pd.DataFrame:
    """Put the endpoints of the networks together, as rliable does (Agarwal et al., NeurIPS 2021).

    Returns:
        A row for all networks, for groups of them, and for each; columns as of `together` and
        `collapse`, and after_the_fact, whether the group was made after the rows were looked at.
    """
    seeds, found = network_seeds(), []
    groups = {"all networks": NETWORKS} | AFTER_THE_FACT | {name: [name] for name in NETWORKS}
    for group, names in groups.items():
        part = seeds[seeds.table.isin(names)]
        if len(part):
            line = {"networks": group, "after_the_fact": group in AFTER_THE_FACT}
            found.append(line | together(part) | collapse(part))
    return pd.DataFrame(found)


def together(seeds: pd.DataFrame) -> dict:
    """Sum up the endpoints of networks.

    Returns:
        seeds; better, the seeds in which LAP is; probability that LAP is better, the mean over
        networks; iqm, the interquartile mean of LAP − MP over all seeds; low and high, its 95 %
        interval (bootstrap, seeds drawn within each network); p that the mean is 0, by flipping
        the signs of seeds.
    """
    from scipy.stats import permutation_test, trim_mean

    values, random = seeds.difference.to_numpy(float), np.random.default_rng(0)
    groups = [part.to_numpy(float) for _, part in seeds.groupby("table").difference]
    draws = np.hstack([random.choice(part, (10_000, len(part))) for part in groups])
    low, high = np.quantile(
        trim_mean(
            draws,
            0.25,
            axis=1,
        ),
        [0.025, 0.975],
    )
    flips = {
        "permutation_type": "samples",
        "n_resamples": 2**15,
        "rng": 0,
    }
    return {
        "seeds": len(values),
        "better": (values < 0).sum(),
        "probability": np.mean([(part < 0).mean() for part in groups]),
        "iqm": trim_mean(values, 0.25),
        "low": low,
        "high": high,
        "p": permutation_test(
            (values,),
            np.mean,
            vectorized=True,
            **flips,
        ).pvalue,
    }


def collapse(seeds: pd.DataFrame) -> dict:
    """Judge whether MP collapses at the sparsest fraction where LAP does not.

    Returns:
        collapsed, the runs of MP that are worse than the worst of LAP in their network;
        p_collapse, the probability of so many or more if the methods did not differ, so that the
        ranks of all runs of a network were in random order; and the verdict, "reproduced" where it
        is below 5 %, else "undecided".
    """
    count, chances = 0, np.ones(1)
    for _, part in seeds.groupby("table"):
        n = len(part)
        count += int((part.mp > part.lap.max()).sum())
        at_least = [math.comb(2 * n - k, n) / math.comb(2 * n, n) for k in range(n + 2)]
        chances = np.convolve(chances, -np.diff(at_least))
    p = chances[count:].sum()
    verdict = "reproduced" if p < 0.05 else "undecided"
    return {
        "collapsed": count,
        "p_collapse": p,
        "collapse": verdict,
    }


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
    times = times.assign(turn=times.groupby(["network", "method"]).cumcount())
    wide = np.log(
        times.pivot(
            index=["network", "turn"],
            columns="method",
            values="seconds",
        )
    )
    found = of.intervals(wide[["lap", "mp"]], ["network"])
    claim = Claim(
        "lap",
        "mp",
        high=math.log(most),
    )
    verdict = [of.judge(row, claim) for row in found.to_dict("records")]
    ratios = np.exp(found[["difference", "low", "high"]]).rename(columns={"difference": "ratio"})
    return ratios.assign(n=found.n, verdict=verdict).reset_index()


def index(claims: pd.DataFrame | None = None):
    """All tables: a link to the notebook, and the verdict on the first claim; as HTML.

    Args:
        claims: What `summary` returns, if already computed.
    """
    from IPython.display import HTML

    if claims is None:
        claims = summary()
    lines = []
    for name, declared in TABLES.items():
        line = "compares later criteria, claims nothing"
        for row in claims[claims.table == name].to_dict("records")[:1]:
            line = words.verdict_line(row)
            if row["n"]:
                line = f"{row['network']}: {line}"
        link = f'<a href="{name}.ipynb">{declared["title"]}</a>'
        lines.append([link, escape(line)])
    frame = pd.DataFrame(lines, columns=["notebook", "result"])
    with pd.option_context("display.max_colwidth", None):
        return HTML(
            frame.to_html(
                index=False,
                escape=False,
                border=0,
                justify="left",
            )
        )
