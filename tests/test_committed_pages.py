"""What pages say and pictures show is what is recorded, or published; found out without lapnb."""

import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import reference
from PIL import Image
from scipy.stats import t

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.report.words import title

CHECKOUT = Path(__file__).parents[1]
ROWS, PICTURES = reference.committed("csv"), reference.committed("png")
README, RESULTS = ((CHECKOUT / page).read_text("utf-8") for page in ("README.md", "RESULTS.md"))


# ---- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_picture_is_that_of_its_rows(path, monkeypatch):
    monkeypatch.setenv("LAPNB_ROOT", str(CHECKOUT))
    name, _, column = path.stem.partition("-")
    rows = lapnb.recorded(name, path.parent.name)
    said = Image.open(path).text
    assert said["Table"] == f"{path.parent.name}/{name}"
    assert said["Column"] == (column.removeprefix("mp-lap") or "error")
    assert said["Rows"] == reference.digest(path.with_name(f"{name}.csv"))
    assert said["Title"].endswith(f": {title(rows)}")
    assert {*lapnb.caption(rows, "").split(" · ")} <= {*said["Description"].split(" · ")}


# ---- numbers and verdicts ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_results_say_the_means_of_the_rows(path):
    rows = pd.read_csv(path)
    column = "error" if rows.retrain_steps.any() else "error_before"
    [section] = [
        part
        for part in RESULTS.split("\n## ")
        if f"(figures/{path.parent.name}/{path.name})" in part
    ]
    section = section.replace("\N{NO-BREAK SPACE}", " ")
    sparsest = rows[rows["round"] == rows["round"].max()]
    groups = sparsest.groupby(["method", "activation", "scope", "schedule"])[column]
    for mean, std in zip(groups.mean(), groups.std(), strict=True):
        assert (f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}") in section


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("paper/fcn_mnist", (9, 10)),
        ("paper/conv6_cifar10", (17, 18)),
        ("reduced/resnet18_cifar10", (32, 35)),
        ("reduced/vgg16_cifar10", (13, 15)),
    ],
)
def test_the_endpoint_is_the_mean_over_two_fractions(name, rounds):
    rows = pd.read_csv(CHECKOUT / "figures" / f"{name}.csv")
    rows = rows[rows["round"].isin(rounds) & rows.method.isin(["mp", "lap"])]
    errors = rows.pivot(index="seed", columns=["method", "round"], values="error").dropna()
    apart = errors.lap.mean(axis=1) - errors.mp.mean(axis=1)
    half = t.ppf(0.975, len(apart) - 1) * np.std(apart, ddof=1) / math.sqrt(len(apart))
    middle = np.mean(apart)
    text = f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]".replace("-", "−")
    assert text in README and text in RESULTS


# As in "LAP beats MP: undecided at 0.12 % of the weights (quick scale, n = 3): LAP 9.50, …"
SENTENCE = r"(?P<claim>.*): (?P<verdict>[a-z ]+) at .*n = (?P<n>\d+)\): (?P<found>[^<\n]*)"


def judgements(notebook):
    """Claim, verdict, n and numbers, in the sentences and tables of a notebook's stored outputs."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown", "")
            yield from (found.groupdict() for found in re.finditer(SENTENCE, text))
            for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
                head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
                names = [name.partition(" ")[0] for name in head]
                yield from (dict(zip(names, row, strict=True)) for row in rows)


def test_stored_verdicts_follow_from_the_stored_numbers(notebook):
    """The numbers are rounded: the word may be that of an interval half a digit aside."""
    for row in judgements(notebook):
        if "verdict" in row and "found" in row and row["n"] != "0":
            ends = re.findall(r"[−+]?[\d.]+", row["found"].partition("[")[2])[:2] or ["0", "0"]
            half = 0.5 * 10.0 ** -len(ends[0].partition(".")[2])
            low, high = (float(end.replace("−", "-")) for end in ends)
            words = [judged(row, low + x, high + x) for x in (-half, 0, half)]
            assert row["verdict"] in words, row


def judged(row, low, high):
    """The word for a claim that has this interval."""
    n = int(row["n"])
    margin = re.search(r"\(within ([\d.]+) point", row["claim"])
    most = float(margin[1]) if margin else 0
    least = -most if margin else -math.inf
    if n < 3:
        return "undecided"
    if high < least or low > most:
        return "not reproduced"
    if margin:  # two one-sided tests: the 90 % interval
        less = (high - low) / 2 * (1 - t.ppf(0.95, n - 1) / t.ppf(0.975, n - 1))
        low, high = low + less, high - less
    return "reproduced" if least < low and high < most else "undecided"


def test_all_that_the_start_page_says_is_compared():
    """By nbval: this page trains nothing, so that what it says follows from the committed rows."""
    for cell in nbformat.read(CHECKOUT / "notebooks/00_start_here.ipynb", as_version=4).cells:
        for output in cell.get("outputs", []):
            if "image/png" not in output.get("data", {}):
                assert "nbval-check-output" in cell.metadata.get("tags", []), cell.source


# ---- prose ---------------------------------------------------------------------------------------

# Decimals in prose that are neither published nor a table's surviving fraction, and why
OTHERS = {
    "3.11": "the oldest Python",
    "2002.04809": "the paper on arXiv",
    "0.05": "an example's keep",
    "0.95": "and 0.975: a step of fcn_before_retraining",
    "0.975": "see 0.95",
    "0.1": "0.12 % in a heading",
    "0.3": "WRN's dropout",
    "1.5": "our limit for the cost of masks",
}
LAP = "|w| · ‖W<sub>i−1</sub>[j, :]‖ · ‖W<sub>i+1</sub>[:, k]‖"


def prose(path):
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(
        r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", path.read_text("utf-8"), flags=re.S
    )


def known_decimals(name):
    """The published numbers of a table and its surviving fractions (%), as they are printed."""
    numbers = pd.read_csv(CHECKOUT / "lapnb/paper/published.csv", dtype=str)
    published = numbers[numbers.table == name].to_numpy().ravel()
    return {*published, *reference.fractions(lapnb.table(name, "paper"))}


PAGES = [*sorted(CHECKOUT.glob("notebooks/*.ipynb")), CHECKOUT / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_decimals_in_prose_are_published_or_declared(path):
    names = [path.stem] if path.stem in TABLES else TABLES
    known = {*OTHERS}.union(*map(known_decimals, names))
    assert {*re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", prose(path))} <= known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_formula_of_lap_is_the_same_everywhere(path):
    text = prose(path)
    assert text.count("‖W<sub>") == 2 * text.count(LAP)
    assert LAP in text or path.stem not in ("README", "00_start_here")
    assert {*re.findall("h ?· ?w.* ?/ ?2", text)} <= {"h·w²/2"}


def test_hours_in_readme_are_those_of_the_slowest_table():
    hours = [
        pd.read_csv(path).retrain_seconds.sum() / 3600 for path in ROWS if "paper/fcn" in str(path)
    ]
    assert int(re.search(r"FCN: up to (\d+) hours a table", README)[1]) == round(max(hours) / 2)
