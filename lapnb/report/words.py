"""What is said of rows: titles, captions, claims and numbers in words. Only reads rows."""

import math
import pathlib
from functools import cache

import pandas as pd

from lapnb.paper.protocol import VARIED, Claim, Table
from lapnb.paper.tables import table
from lapnb.pruning.scores import METHODS
from lapnb.training.datasets import DATASETS

# What can be compared: the label of its axis, and how a claim about it ends
MEASURED = {
    "error": ("test error (%)", ""),
    "error_before": ("test error before retraining (%)", " before retraining"),
    "train_error": ("training error (%)", " in training error"),
    "lost": ("accuracy lost before retraining (points)", ", before retraining"),
    "gap": ("training − test accuracy (points)", " in the gap of training and test accuracy"),
    "distortion": ("relative distortion ‖J(W̃) − J(W)‖ / ‖J(W)‖", " in distortion"),
}
NAMES = {name: dataset.title for name, dataset in DATASETS.items()}
WIDTHS = {1: "", 0.125: " ×⅛", 0.25: " ×¼", 0.4: " ×⅖", 0.5: " ×½"}
BARS = "bars: ± 1 standard deviation; differences: 95 % intervals"
JPEG = " (JPEG)"
LOW = ", bfloat16"  # the end of a device's name at this precision
MANY = 12  # more fractions than this are not listed
# The words for names in the code
WORDS = {
    "oneshot": "one-shot",
    "layer": "layer-wise",
    "relu": "ReLU",
    "none": "linear",
    "lap_all": "whole-network LAP",
    "published": "the paper",
    "difference": "LAP − MP [95 %]",
}


@cache
def published() -> pd.DataFrame:
    """Read the published test errors (%): transcribed by us, see the note in README.md."""
    return pd.read_csv(pathlib.Path(__file__).parents[1] / "paper" / "published.csv")


# ---- numbers -------------------------------------------------------------------------------------


def digits(column: str) -> str:
    """Return the format of a column's numbers."""
    return ".3f" if column == "distortion" else ".2f"


def number(value: float, style: str = ".2f") -> str:
    """Format a number with a minus in place of a hyphen."""
    return f"{value:{style}}".replace("-", "−")


def interval_text(row, style: str = ".2f") -> str:
    """Format a difference and its 95 % interval, as in "−1.00 [−2.00, +0.00]"."""
    difference, low, high = (number(row[x], f"+{style}") for x in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]" if row["n"] > 1 else difference


def percent(value: float) -> str:
    """Format a percentage with two decimals, as the paper does; below 0.1 with two digits."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def sparsity(surviving: float) -> str:
    """Format the sparsity (%) for surviving weights (%), with as many digits after the point."""
    decimals = len(percent(surviving).partition(".")[2])
    return f"{100 - surviving:.{decimals}f}"


def span(values) -> str:
    """Return the lowest and the highest number, as in "3–5", or one if they are equal."""
    return "–".join(dict.fromkeys([str(min(values)), str(max(values))]))


def listed(words) -> str:
    """Join texts, as in "0.43, 0.23 and 0.12"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def several(surviving, text=percent) -> str:
    """List surviving weights (%), as in "0.43, 0.23 and 0.12"; of many the first and the last."""
    texts = [text(value) for value in surviving]
    return listed(texts) if len(texts) <= MANY else f"{texts[0]} to {texts[-1]}"


def beside(ours: float, theirs: float) -> str:
    """Format a dense error (%), as in "15.37 (paper 11.97, +3.40)", or as in "15.37"."""
    text = f"{ours:.2f}"
    if theirs > 0:
        text += f" (paper {theirs:.2f}, {number(ours - theirs, '+.2f')})"
    return text


# ---- methods and claims --------------------------------------------------------------------------


def short(name: str) -> str:
    """Return a method as in a table, LAP for lookahead (LAP), or a setting's value in words."""
    if name in WORDS or name not in METHODS:
        return WORDS.get(name, name)
    title = METHODS[name].title
    return title[title.find("(") + 1 :].rstrip(")")


def in_words(claim: Claim) -> str:
    """Return a claim as a sentence, as in "LAP beats MP before retraining"."""
    method, baseline = short(claim.method), short(claim.baseline)
    margin = f"(within {points(claim.high)})"
    if claim.measure == "trend":
        text = f"{method}'s advantage over {baseline} grows with sparsity"
    elif claim.measure == "kept":
        fewest = f"fewer weights than {baseline}"
        if claim.baseline == "published":
            fewest = f"{claim.published:g} % of the weights {margin}"
        near = f"within {points(claim.loss)} of the dense network's"
        text = f"{method} keeps accuracy {near} down to {fewest}"
    elif claim.low > -math.inf:
        text = f"{method} and {baseline} are alike {margin}"
    else:
        text = f"{method} beats {baseline}"
    text = ", ".join([text + MEASURED[claim.column][1], *map(short, claim.where.values())])
    return text[0].upper() + text[1:]


def points(value: float) -> str:
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def found(row, claim: Claim) -> str:
    """State the numbers of a verdict, as in "LAP 23.95, MP 75.67, difference −51.72 […]"."""
    method, baseline = short(claim.method), short(claim.baseline)
    if claim.measure == "trend":
        return f"{interval_text(row)} points with each halving of the weights"
    if claim.measure == "kept":
        fewest = f"{method} down to {row['method_mean']:.2f} % of the weights"
        baseline_fewest = f"{baseline} down to {row['baseline_mean']:.2f} %"
        return f"{fewest}, {baseline_fewest}, difference {interval_text(row)}"
    style = digits(claim.column)
    mean, baseline_mean = number(row["method_mean"], style), number(row["baseline_mean"], style)
    return f"{method} {mean}, {baseline} {baseline_mean}, difference {interval_text(row, style)}"


def verdict_line(row) -> str:
    """State a verdict in a line, as in "LAP beats MP: reproduced at 0.12 % of the weights (…)"."""
    if row["n"] == 0:
        return f"{row['claim']}: not run"
    basis = f"{row['scale']} scale, n = {row['n']}"
    line = f"{row['claim']}: {row['verdict']} at {row['surviving']} % of the weights ({basis})"
    return f"{line}: {row['found']}"


def by_fraction(verdicts: dict[float, str]) -> str:
    """List verdicts by surviving weights (%), as in "reproduced at 3.62 %, undecided at 4.32 %"."""
    fractions = pd.Series(verdicts)[::-1]
    groups = fractions.groupby(fractions, sort=False).groups.items()
    return ", ".join(f"{verdict} at {several(at)} %" for verdict, at in groups)


# ---- titles and captions -------------------------------------------------------------------------


def in_the_paper(rows: pd.DataFrame) -> Table:
    """Return the table of rows as the paper has it."""
    return table(rows.table.iloc[0], "paper")


def stands_in(rows: pd.DataFrame) -> str:
    """Return the name of the table's own data set if the rows are of another one, else ""."""
    dataset = NAMES[in_the_paper(rows).dataset]
    return "" if rows.source.iloc[0].startswith(dataset) else dataset


def as_published(rows: pd.DataFrame) -> bool:
    """Return whether rows are of the published network and data set; JPEG files of it serve too."""
    first, paper = rows.iloc[0], in_the_paper(rows)
    ran = table(first.table, first.scale)
    same = (ran.width, ran.image_size) == (paper.width, paper.image_size) and not first.changed
    return same and first.source.removesuffix(JPEG) == NAMES[paper.dataset]


def published_dense(rows: pd.DataFrame) -> float:
    """Return the paper's dense error (%) for the network at full width and the data set, or NaN."""
    paper, errors = in_the_paper(rows), published()
    same = (errors.network == paper.network) & (errors.dataset == paper.dataset)
    if stands_in(rows) or {*rows.activation} != {"relu"}:
        return math.nan
    return errors[same].unpruned_error.mean()


def dense_error(rows: pd.DataFrame) -> float:
    """Return the mean over seeds of the dense networks' test error (%)."""
    return rows.drop_duplicates("seed").dense_error.mean()


def dense(rows: pd.DataFrame) -> str:
    """State the dense networks' mean error, as in "dense error (%): 15.37 (paper 11.97, +3.40)"."""
    parts = []
    for activation, part in rows.groupby("activation", sort=False):
        text = beside(dense_error(part), published_dense(part))
        if rows.activation.nunique() > 1:
            text = f"{short(activation)} {text}"
        parts.append(text)
    return f"dense error (%): {', '.join(parts)}"


def computed(rows: pd.DataFrame) -> str:
    """Name devices and precision, as in "CPU, part float32, part bfloat16"."""
    devices = rows.device.str.replace("cpu", "CPU").str.replace("cuda", "GPU")
    low = devices.str.endswith(LOW)
    places = listed(sorted({*devices.str.removesuffix(LOW)}))
    if low.all():
        return places + LOW
    return f"{places}, part float32, part bfloat16" if low.any() else places


def title(rows: pd.DataFrame, whole: bool = True) -> str:
    """Name what was run, as in "VGG-19 ×¼ on CIFAR-10 (JPEG)"; `whole` adds the table's subject."""
    first, paper, other = rows.iloc[0], in_the_paper(rows), stands_in(rows)
    width = WIDTHS.get(first.width, f" ×{first.width:g}")
    data = "5,000 MNIST digits" if first.dataset == "mnist5k" else first.source
    text = paper.title if whole else paper.title.split(",")[0]
    text = text.replace(f" on {NAMES[paper.dataset]}", f"{width} on {data}")
    return f"{text}, standing in for {other}" if other else text


def how(rows: pd.DataFrame, marks: str = BARS) -> str:
    """Return the caption of typed rows; see `compare.caption`."""
    first = rows.iloc[0]
    lr = table(first.table, first.scale).lr
    steps = f"{first.dense_steps:,} dense"
    if first.retrain_steps:
        steps += f" + {first.retrain_steps:,} retraining"
    parts = [f"{first.scale} scale", first.source, f"{steps} steps"]
    if lr != in_the_paper(rows).lr and "lr = " not in first.changed:
        parts.append(f"learning rate {lr:g}")
    if first.changed:
        parts.append(f"changed: {first.changed}")
    parts += [computed(rows), dense(rows), seeds(rows)]
    if rows.seed.nunique() > 1:
        parts.append(marks)
    if JPEG in first.source:
        parts.append("images: JPEG files of quality 75 (paper: CIFAR-10 itself)")
    return " · ".join(filter(None, parts))


def seeds(rows: pd.DataFrame) -> str:
    """Give the number of seeds, by method where it differs, as in "n = 5 (MP), 5 (LAP), 3 (RP)"."""
    n = rows.groupby(["method", *VARIED, "round"], sort=False).seed.nunique()
    ranges = n.groupby("method", sort=False).agg(span)
    if ranges.nunique() == 1:
        return f"n = {ranges.iloc[0]}"
    return "n = " + ", ".join(f"{n} ({short(name)})" for name, n in ranges.items())
