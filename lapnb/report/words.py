"""What is said of rows: titles, captions, claims and numbers in words. Reads rows only."""

import math

import pandas as pd

from lapnb.paper.protocol import VARIED, Claim
from lapnb.paper.tables import table
from lapnb.pruning.scores import METHODS
from lapnb.training.datasets import DATASETS

# What can be compared: its axis, and how a claim about it ends
MEASURED = {
    "error": ("test error (%)", ""),
    "error_before": ("test error before retraining (%)", " before retraining"),
    "train_error": ("training error (%)", " in training error"),
    "lost": ("accuracy lost before retraining (points)", " before retraining"),
    "gap": ("training − test accuracy (points)", " in the gap of training and test accuracy"),
    "distortion": ("relative distortion ‖J(W̃) − J(W)‖ / ‖J(W)‖", " in distortion"),
}
NAMES = {name: dataset.title for name, dataset in DATASETS.items()}
WIDTHS = {
    1: "",
    0.125: " ×⅛",
    0.25: " ×¼",
    0.4: " ×⅖",
    0.5: " ×½",
}
BARS = "bars: ± 1 standard deviation, of differences 95 % intervals"
JPEG = " (JPEG)"
MANY = 12  # fractions: more are not listed
# Code words, in words
WORDS = {
    "oneshot": "one-shot",
    "layer": "layer-wise",
    "relu": "ReLU",
    "none": "linear",
    "lap_all": "whole-network LAP",
    "published": "published",
}


def short(method: str) -> str:
    """A method's name in a table: LAP for lookahead (LAP)."""
    if method in WORDS:
        return WORDS[method]
    title = METHODS[method].title
    return title[title.find("(") + 1 :].rstrip(")")


def in_words(claim: Claim) -> str:
    """A claim as a sentence, as in "LAP beats MP before retraining"."""
    method, baseline = short(claim.method), short(claim.baseline)
    if claim.measure == "trend":
        text = f"{method}'s advantage over {baseline} grows with sparsity"
    elif claim.measure == "kept" and claim.baseline == "published":
        text = f"{method} loses at most {points(claim.loss)} down to {claim.published:g} %"
        text += f" (within {points(claim.high)})"
    elif claim.measure == "kept":
        text = f"{method} loses at most {points(claim.loss)} down to fewer weights than {baseline}"
    elif claim.low > -math.inf:
        text = f"{method} and {baseline} are alike (within {points(claim.high)})"
    else:
        text = f"{method} beats {baseline}"
    variant = [WORDS.get(value, value) for value in claim.where.values()]
    text = ", ".join([text + MEASURED[claim.column][1], *variant])
    return text[0].upper() + text[1:]


def points(value: float) -> str:
    return f"{value:g} point" if value == 1 else f"{value:g} points"


def digits(column: str) -> str:
    """How its numbers are written."""
    return ".3f" if column == "distortion" else ".2f"


def number(value: float, style: str = ".2f") -> str:
    """A number with a minus in place of a hyphen."""
    return f"{value:{style}}".replace("-", "−")


def interval_text(row, style: str = ".2f") -> str:
    """A difference and its 95 % interval, as in "−1.00 [−2.00, +0.00]"."""
    difference, low, high = (number(row[x], f"+{style}") for x in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]" if row["n"] > 1 else difference


def numbers(row, method: str, baseline: str, style: str = ".2f") -> str:
    """Means and interval, as in "LAP 23.95, MP 75.67, difference −51.72 [−60.00, −43.44]"."""
    ours, theirs = number(row["method_mean"], style), number(row["baseline_mean"], style)
    return f"{method} {ours}, {baseline} {theirs}, difference {interval_text(row, style)}"


def verdict_line(row) -> str:
    """A row of `verdicts` in a line, as in "LAP beats MP: reproduced at 0.12 % of the weights"."""
    if row["n"] == 0:
        return f"{row['claim']}: not run"
    about = f"{row['scale']} scale, n = {row['n']}"
    line = f"{row['claim']}: {row['verdict']} at {row['surviving']} % of the weights ({about})"
    return f"{line}: {row['found']}"


def by_fraction(verdicts: dict[float, str]) -> str:
    """Verdicts by surviving weights (%), as in "reproduced at 3.62 %, undecided at 4.32 %"."""
    fractions = pd.Series(verdicts)[::-1]
    groups = fractions.groupby(fractions, sort=False).groups.items()
    return ", ".join(f"{verdict} at {several(at)} %" for verdict, at in groups)


def devices(rows: pd.DataFrame) -> str:
    """What to say beside a verdict where the runs of a seed were computed on several devices."""
    if rows.groupby("seed").device.nunique().max() == 1:
        return ""
    places = rows.groupby("method").device.unique()
    return "; but " + listed([f"{short(m)} on {listed(sorted(places[m]))}" for m in places.index])


def percent(value: float) -> str:
    """Two digits after the point, as in the paper, or two that are not 0."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def sparsity(surviving: float) -> str:
    """The sparsity (%) beside the surviving weights (%), with as many digits."""
    decimals = len(percent(surviving).partition(".")[2])
    return f"{100 - surviving:.{decimals}f}"


def span(values, text=str) -> str:
    """The first and the last of numbers, or the one that they are, as in "3–5"."""
    return "–".join(dict.fromkeys([text(min(values)), text(max(values))]))


def listed(words) -> str:
    """As in "0.43, 0.23 and 0.12"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def several(surviving, text=percent) -> str:
    """Surviving weights (%), as in "0.43, 0.23 and 0.12"; of many the first and the last."""
    texts = [text(value) for value in surviving]
    return listed(texts) if len(texts) <= MANY else f"{texts[0]} to {texts[-1]}"


def stands_in(rows: pd.DataFrame) -> str:
    """The name of the table's own data set, when the rows are of another one."""
    first = rows.iloc[0]
    own = NAMES[table(first.table, "paper").dataset]
    return "" if first.source.startswith(own) else own


def as_published(rows: pd.DataFrame) -> bool:
    """Whether rows are of the published network and data set, of which JPEG files serve too."""
    first = rows.iloc[0]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    if first.source.removesuffix(JPEG) != NAMES[paper.dataset]:
        return False
    same = [first[name] == getattr(paper, name) for name in ("width", *VARIED)]
    return ran.image_size == paper.image_size and all(same)


def title(rows: pd.DataFrame, whole: bool = True) -> str:
    """What was run, as in "VGG-19 ×¼ on CIFAR-10 (JPEG)"; `whole`: with the table's own subject."""
    first, other = rows.iloc[0], stands_in(rows)
    paper = table(first.table, "paper")
    width = WIDTHS.get(first.width, f" ×{first.width:g}")
    data = "5,000 MNIST digits" if first.dataset == "mnist5k" else first.source
    text = paper.title if whole else paper.title.split(",")[0]
    text = text.replace(f" on {NAMES[paper.dataset]}", f"{width} on {data}")
    return f"{text}, standing in for {other}" if other else text


def how(rows: pd.DataFrame, marks: str = BARS) -> str:
    """The caption of typed rows; see `compare.caption`."""
    first = rows.iloc[0]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    steps = f"{first.dense_steps:,} dense"
    if first.retrain_steps:
        steps += f" + {first.retrain_steps:,} retraining"
    parts = [f"{first.scale} scale", first.source, f"{steps} steps"]
    if ran.lr != paper.lr and "lr = " not in first.changed:
        parts.append(f"learning rate {ran.lr:g}")
    if first.changed:
        parts.append(f"changed: {first.changed}")
    parts.append(listed(sorted(rows.device.unique())))
    parts.append(seeds(rows))
    if rows.seed.nunique() > 1:
        parts.append(str(marks))
    if JPEG in first.source:
        parts.append("images: JPEG files of quality 75")
    if JPEG in first.source and as_published(rows):
        parts.append("published: on CIFAR-10 itself")
    return " · ".join(filter(None, parts))


def seeds(rows: pd.DataFrame) -> str:
    """The number of seeds, by method where they differ, as in "n = 5 (MP, LAP), 3 (RP)"."""
    n = rows.groupby(["method", *VARIED, "round"], sort=False).seed.nunique()
    ranges = n.groupby("method", sort=False).agg(span)
    if ranges.nunique() == 1:
        return f"n = {ranges.iloc[0]}"
    same = ranges.groupby(ranges, sort=False).groups.items()
    return "n = " + ", ".join(f"{n} ({', '.join(map(short, names))})" for n, names in same)
