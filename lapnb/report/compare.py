"""Ours beside the paper's: tables, verdicts on the paper's claims, and plots. Reads rows only."""

import pathlib
from functools import cache

import pandas as pd

from lapnb.paper.tables import TABLES, Claim
from lapnb.pruning.scores import METHODS
from lapnb.store import root

VARIANTS = ["activation", "schedule", "scope"]
MEAN, RUNS = "mean ± 1 standard deviation", "one point per run"


@cache
def paper() -> pd.DataFrame:
    """The published test errors (%): transcribed by us, see the note in README.md."""
    return pd.read_csv(pathlib.Path(__file__).parents[1] / "paper" / "published.csv")


def compare(results: pd.DataFrame) -> pd.DataFrame:
    """Our test errors (%) beside the published ones, one row per method and surviving fraction.

    Columns: method; surviving (%); n, the number of seeds; error and std, mean and standard
    deviation over them; paper and paper_std, the published ones (empty where there are none);
    difference, ours − paper's; gain_over_mp, 100 · (error − MP's) / MP's, below 0 where the method
    is better; paper_gain. Settings that the table varies stand in front.
    """
    varied = _varied(results)
    rows = results.assign(surviving=100 * results.surviving)
    groups = rows.groupby([*varied, "method", "round"], sort=False)
    ours = groups.agg(
        surviving=("surviving", "mean"),
        n=("error", "count"),
        error=("error", "mean"),
        std=("error", "std"),
    ).reset_index()
    published = paper()[paper().table == results.table.iloc[0]][
        ["method", "round", "error_pct", "error_std"]
    ].rename(columns={"error_pct": "paper", "error_std": "paper_std"})
    both = ours.merge(published, on=["method", "round"], how="left")
    both["difference"] = both.error - both.paper
    for gain, column in (("gain_over_mp", "error"), ("paper_gain", "paper")):
        mp = both[both.method == "mp"][[*varied, "round", column]]
        base = both[[*varied, "round"]].merge(mp, on=[*varied, "round"], how="left")[column]
        both[gain] = 100 * (both[column] - base) / base
    return both.drop(columns="round")


def paired(results: pd.DataFrame, better: str, worse: str, column: str = "error") -> pd.DataFrame:
    """`column` of two methods on the seeds that both have, one row per surviving fraction.

    Columns: surviving (%); the two methods' means; difference, `better` − `worse`; low and high,
    its 95 % interval (Student's t over the seeds' differences); n, the number of seeds.
    """
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    rows = []
    for _, part in results[results.method.isin([better, worse])].groupby("round"):
        pairs = part.pivot(index="seed", columns="method", values=column).dropna()
        if pairs.shape[1] < 2 or pairs.empty:
            continue
        difference = pairs[better] - pairs[worse]
        n, mean = len(pairs), difference.mean()
        half = stdtrit(n - 1, 0.975) * difference.std() / n**0.5 if n > 1 else float("nan")
        rows.append(
            {
                "surviving": 100 * part.surviving.mean(),
                better: pairs[better].mean(),
                worse: pairs[worse].mean(),
                "difference": mean,
                "low": mean - half,
                "high": mean + half,
                "n": n,
            }
        )
    columns = ["surviving", better, worse, "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(results: pd.DataFrame) -> pd.DataFrame:
    """Whether the paper's claims hold in `results`, one row per claim and surviving fraction.

    A claim says that one method has the smaller error (or other column) than another, at the
    sparsest rounds. It is *reproduced* when there are at least 3 seeds and the 95 % interval of the
    paired difference lies on the claimed side, *not reproduced* when it lies on the other side,
    and *open* otherwise.
    """
    scale, rows = results.scale.iloc[0], []
    for claim in TABLES[results.table.iloc[0]]["claims"]:
        chosen = results
        for column, value in claim.where.items():
            chosen = chosen[chosen[column] == value]
        pairs = paired(chosen, claim.better, claim.worse, claim.column)
        for pair in pairs.tail(claim.rounds).to_dict("records"):
            found = f"{pair[claim.better]:.4g} against {pair[claim.worse]:.4g}"
            if pair["n"] > 1:
                found += f" [{pair['low']:+.3g}, {pair['high']:+.3g}]"
            verdict = "open"
            if pair["n"] >= 3 and (pair["high"] < 0 or pair["low"] > 0):
                verdict = "reproduced" if pair["high"] < 0 else "not reproduced"
            rows.append(
                {
                    "claim": claim_text(claim),
                    "surviving": f"{pair['surviving']:.3g} %",
                    "found [95 % of the difference]": found,
                    "n": pair["n"],
                    "verdict": f"{verdict} ({scale} scale)",
                }
            )
    columns = ["claim", "surviving", "found [95 % of the difference]", "n", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def claim_text(claim: Claim) -> str:
    """A claim in short, as "lap < mp, error": the test error of LAP is below that of MP."""
    text = f"{claim.better} < {claim.worse}, {claim.column}"
    return text + "".join(f", {value}" for value in claim.where.values())


def plot(results: pd.DataFrame, column: str = "error"):
    """Test accuracy (%) against surviving weights (%), saved as figures/<scale>/<table>.png.

    One line per method, mean and a band of ± one standard deviation over seeds, the published
    means as hollow markers of the same colour, the dense network as a grey line. Settings that the
    table varies are side by side. `column` "error_before" shows the accuracy before retraining,
    "train_error" that on the training set.
    Returns the matplotlib Figure.
    """
    import matplotlib.pyplot as plt

    panels = _panels(results)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.6 + 2.6 * len(panels), 3.6), sharey=True, squeeze=False
        )
        for axis, (title, rows) in zip(axes[0], panels, strict=True):
            _draw(axis, rows, column)
            axis.set_title(title)
        for axis in axes[0][1:]:
            axis.set_ylabel("")
        _legend(axes[0][-1])
        figure.suptitle(TABLES[results.table.iloc[0]]["title"], fontsize=10)
        save(figure, results, "" if column == "error" else f"-{column}")
    return figure


def scatter(results: pd.DataFrame, x: str, y: str):
    """Each run as a point: the column `x` (log axis) against the error `y`, shown as accuracy.

    Saved as figures/<scale>/<table>-<x>.png. Returns the matplotlib Figure.
    """
    import matplotlib.pyplot as plt
    import seaborn

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.2, 3.6))
        seaborn.scatterplot(
            results.assign(accuracy=100 - results[y]),
            x=x,
            y="accuracy",
            hue="method",
            style="method",
            palette=COLOURS,
            markers=MARKERS,
            alpha=0.8,
            ax=axis,
        )
        axis.set_xscale("log")
        axis.set_xlabel(AXES.get(x, x))
        axis.set_ylabel(AXES.get(y, y))
        handles, methods = axis.get_legend_handles_labels()
        _legend(axis, handles=handles, labels=[METHODS[method].title for method in methods])
        axis.set_title(TABLES[results.table.iloc[0]]["title"])
        save(figure, results, f"-{x}", RUNS)
    return figure


def save(figure, results: pd.DataFrame, suffix: str = "", shown: str = MEAN) -> None:
    """Put the caption under a figure (scale, data, steps, n) and save it beside its rows."""
    import matplotlib.pyplot as plt

    folder = results.scale.iloc[0] + ("-changed" if results.changed.any() else "")
    path = root() / "figures" / folder / f"{results.table.iloc[0]}{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    words = caption(results, shown)
    figure.text(0.5, -0.01, words, ha="center", va="top", fontsize=6.5, color="0.3")
    figure.savefig(
        path, dpi=150, bbox_inches="tight", facecolor="white", metadata={"Description": words}
    )
    plt.close(figure)


def caption(results: pd.DataFrame, shown: str = MEAN) -> str:
    """What a figure or table shows: scale, data, what differs from the paper, number of seeds."""
    first = results.iloc[0]
    seeds = results.groupby(["method", *VARIANTS, "round"]).seed.nunique()
    n = f"n = {seeds.min()}" if seeds.min() == seeds.max() else f"n = {seeds.min()}–{seeds.max()}"
    width = "" if first.width == 1 else f", width × {first.width:g}"
    steps = f"{first.dense_steps:,.0f} dense + {first.retrain_steps:,.0f} retraining steps"
    lr = TABLES[first.table][first.scale].get("lr")  # only where it is not the paper's
    rate = f", learning rate {lr:g}" if lr and "lr = " not in first.changed else ""
    changed = f", changed: {first.changed}" if first.changed else ""
    precise = sorted({"bfloat16" if "bfloat16" in d else "float32" for d in results.device})
    bits = "" if precise == ["float32"] else f", {' and '.join(precise)}"
    return (
        f"{_scale(results)} · {first.source}{width} · {steps}{rate}{bits}{changed}\n"
        f"{shown}, {n} seed{'s' if seeds.max() > 1 else ''}"
        + (" · hollow: published means" if _published(results) else "")
    )


STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7,
    "figure.facecolor": "white",
}
# seaborn's "colorblind" palette with a darker yellow; a method looks the same in every figure.
COLOURS = {
    "mp": "#0173b2",
    "rp": "#949494",
    "lfp": "#029e73",
    "lbp": "#de8f05",
    "lap": "#d55e00",
    "lap_forward": "#cc78bc",
    "lap_backward": "#56b4e9",
    "lap_all": "#ca9161",
    "lap_act": "#bfa800",
    "obd": "#333333",
    "obd_lap": "#fbafe4",
}
MARKERS = dict(zip(COLOURS, "osv^DPXp*hd", strict=True))
AXES = {
    "error": "test accuracy (%)",
    "error_before": "test accuracy before retraining (%)",
    "train_error": "training accuracy (%)",
    "distortion": "relative distortion ‖J(W̃) − J(W)‖ / ‖J(W)‖",
}


def _draw(axis, rows: pd.DataFrame, column: str) -> None:
    weights = 100 * rows.groupby("round").surviving.mean()
    published = paper()[paper().table == rows.table.iloc[0]] if column == "error" else paper()[:0]
    if column != "train_error":
        axis.axhline(100 - rows.dense_error.mean(), color="0.5", linewidth=1, label="dense network")
    for method, runs in rows.groupby("method", sort=False):
        colour, marker = COLOURS[method], MARKERS[method]
        ours = (100 - runs[column]).groupby(runs["round"]).agg(["mean", "std"])
        x = weights[ours.index]
        axis.plot(
            x, ours["mean"], color=colour, marker=marker, markeredgecolor="white",
            markeredgewidth=0.6, label=METHODS[method].title,
        )  # fmt: skip
        low, high = ours["mean"] - ours["std"], ours["mean"] + ours["std"]
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        points = published[(published.method == method) & published["round"].isin(ours.index)]
        axis.plot(
            points.surviving_pct, 100 - points.error_pct, linestyle="", marker=marker,
            markerfacecolor="none", markeredgecolor=colour, markersize=7,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.invert_xaxis()
    ticks = sorted(weights)
    ticks = ticks if len(ticks) <= 9 else ticks[:: -(-len(ticks) // 8)]
    axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], rotation=45 if len(ticks) > 6 else 0)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("surviving weights (%)")
    axis.set_ylabel(AXES[column])


def _legend(axis, **entries) -> None:
    """The legend at the right of the axes, where it covers no point."""
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, **entries)


def _varied(results: pd.DataFrame) -> list[str]:
    return [column for column in VARIANTS if results[column].nunique() > 1]


def _panels(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    varied = _varied(results)
    if not varied:
        return [("", results)]
    groups = results.groupby(varied, sort=False)
    return [(", ".join(map(str, key)), rows) for key, rows in groups]


def _published(results: pd.DataFrame) -> bool:
    return bool((paper().table == results.table.iloc[0]).any())


def _scale(results: pd.DataFrame) -> str:
    return f"{results.scale.iloc[0]} scale"
