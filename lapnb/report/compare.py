"""Ours beside the paper's: means, paired differences, verdicts on its claims. Reads rows only."""

import pathlib
from functools import cache

import pandas as pd

from lapnb.paper.protocol import VARIED, Claim
from lapnb.paper.tables import TABLES, table
from lapnb.pruning.scores import METHODS
from lapnb.runs.rows import NUMBERS, SCHEMA, check

# What can be compared: its axis, and how a claim about it ends
MEASURED = {
    "error": ("test error (%)", ""),
    "error_before": ("test error before retraining (%)", " before retraining"),
    "train_error": ("training error (%)", " in training error"),
    "gap": ("training − test accuracy (points)", " in the gap of training and test accuracy"),
    "distortion": ("relative distortion ‖J(W̃) − J(W)‖ / ‖J(W)‖", " in distortion"),
}
NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
NAMES |= {"tiny_imagenet": "Tiny-ImageNet", "mnist5k": "MNIST"}
WIDTHS = {1: "", 0.125: " ×⅛", 0.25: " ×¼", 0.4: " ×⅖", 0.5: " ×½"}
VERDICT = ["table", "scale", "claim", "surviving", "better", "worse", "low", "high", "n"]
VERDICT += ["found", "verdict", "rows"]
BARS = "bars: ± 1 standard deviation, of differences 95 % intervals"


@cache
def published() -> pd.DataFrame:
    """The published test errors (%): transcribed by us, see the note in README.md."""
    return pd.read_csv(pathlib.Path(__file__).parents[1] / "paper" / "published.csv")


def one_source(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """The rows with one column more, gap, when they may be compared with each other.

    Raises ValueError for anything else than rows of one table, scale and source of the data, each
    run once, and for a `column` that they do not record.
    """
    wanted = "results must be rows of one table, as lapnb.run and lapnb.recorded return them"
    if not isinstance(results, pd.DataFrame) or results.empty:
        raise ValueError(f"{wanted}; got {type(results).__name__} without rows")
    if missing := [name for name in SCHEMA if name not in results]:
        raise ValueError(f"{wanted}; these have no column {missing[0]}")
    kinds = results[["table", "scale", "network", "width", "source"]].drop_duplicates()
    again = results.duplicated([*VARIED, "method", "round", "seed"]).sum()
    if len(kinds) > 1 or again or results.table.iloc[0] not in TABLES:
        found = " and ".join(" ".join(map(str, kind)) for kind in kinds.to_numpy())
        raise ValueError(f"{wanted}, each run once; got {found}, {again} repeated runs")
    texts = results[["source", "device"]].map(type).eq(str).all(axis=1)
    right = texts & (results.status == "ok")
    if not right.all():
        raise ValueError(f"{wanted}, with a result each; row {right.idxmin()} is invalid")
    try:
        typed = results.astype(dict.fromkeys(NUMBERS, float))
        check(typed, *results[["table", "scale"]].iloc[0])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{wanted}; {error}") from error
    rows = results.assign(gap=results.error - results.train_error)
    known = [name for name in MEASURED if rows[name].notna().any()]
    if column not in known:
        raise ValueError(f"column must be one of {', '.join(known)}; got {column!r}")
    return rows


def varied(rows: pd.DataFrame) -> list[str]:
    """The settings that rows put side by side."""
    return [name for name in VARIED if rows[name].nunique() > 1]


def compare(results: pd.DataFrame, column: str = "error") -> pd.DataFrame:
    """Our means beside the published ones, one row per method and surviving fraction.

    Columns: method; `column` and std, its mean and standard deviation over seeds; n, the number of
    seeds; surviving (%); paper and paper_std, the published ones (empty where there are none, or of
    another network or data set); difference, ours − paper's; gain_over_mp, 100 · (error − MP's) /
    MP's, below 0 where the method is better; paper_gain. Settings that the table varies come
    first.
    """
    rows = one_source(results, column).assign(surviving=lambda rows: 100 * rows.surviving)
    first, keys = rows.iloc[0], [*varied(rows), "method", "round"]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    same = first.source.removesuffix(" (JPEG)") == NAMES[paper.dataset]
    same = same and ran.image_size == paper.image_size and column == "error"
    same = same and all(first[name] == getattr(paper, name) for name in ("width", *VARIED))
    theirs = published().rename(columns={"error_pct": "paper", "error_std": "paper_std"})
    theirs = theirs[(theirs.table == first.table) & same]
    groups = rows.groupby(keys, sort=False)
    found = groups[column].agg(**{column: "mean", "std": "std", "n": "count"})
    theirs = theirs[["method", "round", "paper", "paper_std"]]
    both = found.join(groups.surviving.mean()).reset_index().merge(theirs, "left")
    keys.remove("method")
    mp = both[keys].merge(both[both.method == "mp"], "left", keys)
    both["difference"] = both[column] - both.paper
    both["gain_over_mp"] = 100 * (both[column] / mp[column] - 1)
    both["paper_gain"] = 100 * (both.paper / mp.paper - 1)
    return both


def paired(results: pd.DataFrame, better: str, worse: str, column: str = "error") -> pd.DataFrame:
    """`column` of two methods on the seeds that both have, one row per surviving fraction.

    Columns: surviving (%); the two methods' means; difference, `better` − `worse`; low and high,
    its 95 % interval (Student's t over the seeds' differences); n, the number of seeds. Settings
    that the table varies, and the round, come first.
    """
    rows = one_source(results, column)
    for parameter, method in (("better", better), ("worse", worse)):
        if method not in (known := [*rows.method.unique()]):
            raise ValueError(f"{parameter} must be one of {', '.join(known)}; got {method!r}")
    keys = [*varied(rows), "round"]
    values = rows.pivot(index=[*keys, "seed"], columns="method", values=column)
    found = intervals(values, better, worse, keys)
    surviving = 100 * rows.groupby("round").surviving.mean()
    found.insert(0, "surviving", surviving.reindex(found.index, level="round"))
    return found.rename_axis(columns=None).reset_index()


def intervals(values: pd.DataFrame, better: str, worse: str, keys: list[str]) -> pd.DataFrame:
    """Two columns' means, their paired difference and its 95 % interval, by levels of the index."""
    from scipy.stats import t  # takes a second to import

    pairs = values.assign(difference=values[better] - values[worse])[[better, worse, "difference"]]
    groups = pairs.dropna().groupby(level=keys)
    found, n = groups.mean(), groups.size()
    half = t.ppf(0.975, n - 1) * groups.difference.sem()
    return found.assign(low=found.difference - half, high=found.difference + half, n=n)


def short(method: str) -> str:
    """A method's name in a table: LAP for lookahead (LAP)."""
    title = METHODS[method].title
    return title[title.find("(") + 1 :].rstrip(")")


def in_words(claim: Claim) -> str:
    """A claim as a sentence, as in "LAP beats MP before retraining"."""
    better, worse = short(claim.better), short(claim.worse)
    text = f"{better} and {worse} are alike" if claim.alike else f"{better} beats {worse}"
    return ", ".join([text + MEASURED[claim.column][1], *claim.where.values()])


def digits(column: str) -> str:
    """How its numbers are written."""
    return ".3f" if column == "distortion" else ".2f"


def numbers(pair, style: str = ".2f") -> str:
    """Means and interval of a pair, as in "1.00 against 2.00, difference −1.00 [−2.00, +0.00]"."""
    text = f"{pair['better']:{style}} against {pair['worse']:{style}}"
    if pair["n"] > 1:
        low, high = (f"{pair[name]:+{style}}" for name in ("low", "high"))
        text += f", difference {pair['difference']:+{style}} [{low}, {high}]"
    return text.replace("-", "−")


def verdicts(results: pd.DataFrame) -> pd.DataFrame:
    """Whether the paper's claims hold in `results`, one row per claim and surviving fraction.

    A claim says that one method has the smaller error (or other column) than another, at the
    sparsest rounds. It is *reproduced* when there are at least 3 seeds and the 95 % interval of the
    paired difference lies on the claimed side, *not reproduced* when it lies on the other side,
    *open* otherwise, and *not run* without seeds of both methods. A claim that two methods are
    alike is reproduced when the interval of at least 3 seeds holds 0, and not when it does not.

    Columns: table, scale, claim; surviving (%); better and worse, the two means; low and high; n;
    found, these numbers in words; verdict; rows, the same for two tables that hold the same runs.
    """
    rows, found = one_source(results), []
    first = rows.iloc[0]
    for claim in table(first.table, "paper").claims:
        methods, style = [claim.better, claim.worse], digits(claim.column)
        part = rows[rows.method.isin(methods)].dropna(subset=claim.column)
        part = part[(part[[*claim.where]] == pd.Series(claim.where)).all(axis=1)]
        missing = [short(method) for method in methods if method not in set(part.method)]
        pairs = part[:0] if missing else paired(part, *methods, claim.column).tail(claim.rounds)
        about = {"table": first.table, "scale": first.scale, "claim": in_words(claim)}
        if pairs.empty:
            why = f"no rows of {' or '.join(missing)}" if missing else "no seed of both"
            found.append(about | {"n": 0, "found": why, "verdict": "not run"})
        pairs = pairs.rename(columns={claim.better: "better", claim.worse: "worse"})
        for pair in pairs.to_dict("records"):
            low, high, verdict = pair["low"], pair["high"], "open"
            if pair["n"] >= 3 and (claim.alike or not low <= 0 <= high):
                holds = low <= 0 <= high if claim.alike else high < 0
                verdict = "reproduced" if holds else "not reproduced"
            settings = sorted({*part[part["round"] == pair["round"]].settings})
            same = " ".join([first.source, *methods, claim.column, str(pair["round"]), *settings])
            told = {"found": numbers(pair, style), "verdict": verdict, "rows": same}
            found.append(about | pair | told)
    return pd.DataFrame(found, columns=VERDICT)


def stands_in(results: pd.DataFrame) -> str:
    """The name of the table's own data set, when the rows are of another one."""
    first = results.iloc[0]
    own = NAMES[table(first.table, "paper").dataset]
    return "" if first.source.startswith(own) else own


def title(results: pd.DataFrame, whole: bool = True) -> str:
    """What was run, as in "VGG-19 ×¼ on CIFAR-10 (JPEG)"; `whole`: with the table's own subject."""
    first, away = results.iloc[0], stands_in(results)
    paper = table(first.table, "paper")
    width = WIDTHS.get(first.width, f" ×{first.width:g}")
    data = "5,000 MNIST digits" if first.dataset == "mnist5k" else first.source
    text = paper.title if whole else paper.title.split(",")[0]
    text = text.replace(f" on {NAMES[paper.dataset]}", f"{width} on {data}")
    return text + (f", standing in for {away}" if away else "")


def caption(results: pd.DataFrame, marks: str = BARS) -> str:
    """How it was computed: scale, data, what differs from the paper, device, number of seeds.

    `marks` says what the spread over seeds looks like, where there are several.
    """
    both, first = compare(results), results.iloc[0]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    n = both.groupby("method", sort=False).n
    told = n.agg(lambda n: "–".join(map(str, sorted({n.min(), n.max()}))))
    same = told.groupby(told, sort=False).groups.items()
    seeds = [f"{text} ({', '.join(map(short, methods))})" for text, methods in same]
    retraining = f" + {first.retrain_steps:,.0f} retraining" if first.retrain_steps else ""
    parts = [
        f"{first.scale} scale",
        first.source,
        f"{first.dense_steps:,.0f} dense{retraining} steps",
        f"learning rate {ran.lr:g}" if ran.lr != paper.lr and "lr = " not in first.changed else "",
        f"changed: {first.changed}" if first.changed else "",
        " and ".join(sorted(results.device.unique())),
        f"n = {', '.join(seeds if len(seeds) > 1 else told[:1])}",
        str(marks) if both.n.max() > 1 else "",
        "published: on CIFAR-10 itself" if "JPEG" in first.source and both.paper.any() else "",
    ]
    return " · ".join(filter(None, parts))
