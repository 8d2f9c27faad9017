"""Write what README.md and RESULTS.md say of the recorded rows, and draw the committed pictures.

`python docs/results.py` rewrites the blocks between `<!-- name:begin -->` and `<!-- name:end -->`
in both files, and figures/{paper,reduced}/*.png. Rows of the quick and the smoke scale are not
used.
"""

import os
import re
import sys
import textwrap
from pathlib import Path

import pandas as pd

import lapnb
from lapnb.paper.tables import TABLES, table
from lapnb.report import advice, compare, plots, show, summary, words
from lapnb.report.show import markdown
from lapnb.runs.rows import results_file

CHECKOUT = Path(__file__).resolve().parents[1]
SCALES = ("paper", "reduced")
# The columns that are shown of a table, where they are not the error alone
COLUMNS = {
    "fcn_linear": ("error", "error_before", "distortion"),
    "fcn_before_retraining": ("error_before",),
    "fcn_generalization": ("gap", "error", "train_error"),
}
# The parts of torchvision's networks that LAP leaves dense, by family
LEFT = {
    "GoogLeNet, Inception v3": "auxiliary classifiers, which run in training only",
    "ViT": "query, key and value: a parameter of `nn.MultiheadAttention`, not a layer",
    "Swin v2": "the networks of position biases (`cpb_mlp`), which the input never reaches",
}
SETTINGS = {
    "width": "of the width",
    "image_size": "pixels a side",
    "dense_steps": "dense steps",
    "retrain_steps": "retraining steps",
    "batch_size": "images a batch",
    "lr": "learning rate",
}


def recorded(name: str) -> list[pd.DataFrame]:
    """Return the recorded rows of a table, the largest scale first."""
    return show.recorded_rows(name, *SCALES)


# ---- RESULTS.md ----------------------------------------------------------------------------------


def claims() -> str:
    """List all claims as a table, each on the largest scale that can judge it."""
    rows = summary.summary(SCALES)
    rows = rows[~rows.repeats]
    links = [
        f"[{TABLES[name]['title']}](notebooks/{summary.NOTEBOOKS.get(name, name)}.ipynb)"
        for name in rows.table
    ]
    columns = {
        "table": links,
        "claim": rows.claim,
        "verdict": "**" + rows.verdict + "**",
        "scale": rows.scale,
        "n": rows.n,
        "dense error (%)": map(words.beside, rows.dense, rows.published_dense),
        "surviving (%)": rows.surviving,
        "found [95 %]": rows.found,
        "over all fractions": [words.number(area, "+.2f") for area in rows.area],
        "by fraction": rows.by_fraction,
        "p (Holm)": rows.p_holm.map("{:.2g}".format),
        "detectable": rows.detectable.map("{:.2g}".format),
    }
    table = pd.DataFrame({name: [*texts] for name, texts in columns.items()})
    lost = rows[(rows.verdict == "reproduced") & (rows.p_holm >= 0.05)]
    text = (
        "p (Holm) belongs to the first claim of a table and is adjusted for the number of tables; "
        "verdicts are not adjusted. "
    )
    if len(lost):
        names = [f"{row.network} ({row.p_holm:.2g})" for row in lost.itertuples()]
        text += f"Reproduced, but not significant after the adjustment: {words.listed(names)}."
    return f"{markdown(table.replace('^[+]?nan$', '–', regex=True))}\n\n{text}"


def across() -> str:
    """Return the table of all networks put together, of groups of them, and of each."""
    rows = summary.across()
    names = rows.networks.map(lambda name: TABLES[name]["title"] if name in TABLES else name)
    after = rows.after_the_fact.map({True: " (put together after the fact)", False: ""})
    rows = rows.assign(difference=rows.iqm, n=rows.seeds)
    intervals = [words.interval_text(row) for _, row in rows.iterrows()]
    columns = {
        "networks": names + after,
        "LAP better, of seeds": map("{:.0f} of {:.0f}".format, rows.better, rows.seeds),
        "probability that LAP is better": rows.probability.map("{:.2f}".format),
        "interquartile mean of LAP − MP [95 %]": intervals,
        "p (sign flips)": rows.p.map("{:.2g}".format),
        "runs of MP worse than all of LAP": rows.collapsed.map("{:.0f}".format),
        "p (collapse)": rows.p_collapse.map("{:.2g}".format),
        "MP collapses, LAP does not": rows.collapse,
    }
    return markdown(pd.DataFrame({name: [*texts] for name, texts in columns.items()}))


def contents() -> str:
    """List links to the tables' sections."""
    lines = []
    for name in TABLES:
        for rows in recorded(name):
            heading = heading_of(rows)
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            lines.append(f"- [{heading}](#{anchor})")
    return "\n".join(lines)


def heading_of(rows: pd.DataFrame) -> str:
    return f"{words.title(rows)}, {rows.scale.iloc[0]} scale"


def tables() -> str:
    """Return a section for each table and scale, and at the end the tables that are not run."""
    parts = {name: recorded(name) for name in TABLES}
    sections = [section(name, rows) for name, scales in parts.items() for rows in scales]
    missing = [f"- {TABLES[name]['title']}" for name, scales in parts.items() if not scales]
    if missing:
        sections.append("### Not run at these scales yet\n\n" + "\n".join(missing))
    return "\n\n".join(sections)


def section(name: str, rows: pd.DataFrame) -> str:
    """Return the result and the pictures of one table, and its numbers and verdicts, folded."""
    scale = rows.scale.iloc[0]
    notebook = f"[notebook](notebooks/{summary.NOTEBOOKS.get(name, name)}.ipynb)"
    result = show.result(rows)
    parts = [
        f"### {heading_of(rows)}",
        f"{result}. {differs(rows)} See the {notebook} and the [rows](figures/{scale}/{name}.csv).",
    ]
    for column in COLUMNS.get(name, ("error",)):
        if column in drawn(name):
            alt = (
                f"{words.MEASURED[column][0]}, {words.title(rows)}: {compare.finding(rows, column)}"
            )
            parts.append(f"![{alt}](figures/{scale}/{file_name(name, column)})")
    parts.append("<details><summary>Numbers and verdicts</summary>")
    parts.append(f"*{words.how(rows, 'mean ± standard deviation')}*")
    for column in COLUMNS.get(name, ("error",)):
        parts += numbers(rows, column)
    parts += [beside_lap(rows), agreement(rows), effects(rows)]
    if table(name, "paper").claims:
        parts.append(markdown(show.claims_table(rows)))
    parts.append("</details>")
    return "\n\n".join(filter(None, parts))


def numbers(rows: pd.DataFrame, column: str) -> list[str]:
    """Return the means of a column, ours beside the published ones, and the differences to MP."""
    beside = show.side_by_side(rows, column)
    parts = [f"{show.heading(beside, column)}.", markdown(beside)]
    others = {*rows.method} - {"mp", "lap"}  # of these two the difference stands in the table
    if others and "mp" in {*rows.method} and rows["round"].nunique() <= show.MOST_LINES:
        parts.append("The same minus MP on paired seeds [95 %]; bold: n ≥ 3, 0 is excluded.")
        parts.append(markdown(differences(rows, column)))
    return parts


def differs(rows: pd.DataFrame) -> str:
    """Say in a sentence what differs from the paper."""
    first = rows.iloc[0]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    parts = [
        f"{getattr(ran, name):,g} {text} (paper: {getattr(paper, name):,g})"
        for name, text in SETTINGS.items()
        if getattr(ran, name) != getattr(paper, name)
    ]
    if summary.NOTEBOOKS.get(first.table) == "later_criteria":
        parts.insert(0, "this table is ours")
    if first.table == "fcn_iterative":
        parts.insert(0, "the paper has no table of iterative pruning")
    if "JPEG" in first.source:
        parts.append("images saved as JPEG of quality 75")
    elif not first.source.startswith(paper_data(first.table)) or "classes" in first.source:
        parts.append(f"data: {first.source}")
    if words.computed(rows) != "CPU":
        parts.append(f"computed on {words.computed(rows)}")
    if ran.looks != paper.looks:
        parts.append("fewer batches for the scores that look at data")
    count = rows["round"].nunique()
    if count < len(paper.rounds):
        parts.append(f"{count} of {len(paper.rounds)} surviving fractions")
    seeds = rows.groupby(["method", "round"]).seed.nunique().groupby("method").min()
    few = [words.short(name) for name in rows.method.unique() if seeds[name] < len(paper.seeds)]
    if few:
        parts.append(f"fewer than {len(paper.seeds)} seeds of {words.listed(few)}")
    absent = [words.short(name) for name in paper.methods if name not in set(rows.method)]
    if absent:
        parts.append(f"without {words.listed(absent)}")
    return f"Differs from the paper: {'; '.join(parts) or 'nothing in the protocol'}."


def paper_data(name: str) -> str:
    return words.NAMES[table(name, "paper").dataset]


def differences(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return each method minus MP as text: a row per surviving fraction, a column per method."""
    pairs = compare.against_mp(rows, column)
    pairs["text"] = [difference(row, words.digits(column)) for _, row in pairs.iterrows()]
    return show.labelled(pairs, [*compare.varied(rows), "round"], [*pairs.method.unique()])


def difference(row: pd.Series, style: str) -> str:
    text = words.interval_text(row, style)
    decided = row.n >= compare.LEAST_SEEDS and not row.low <= 0 <= row.high
    return f"**{text}**" if decided else text


def beside_lap(rows: pd.DataFrame) -> str:
    """Say which other methods are better or worse than LAP, and at how many fractions."""
    rows = rows[rows.retrain_steps > 0]
    forms = rows[[*advice.LAP]].drop_duplicates().to_dict("records")
    other = advice.LAP if advice.LAP in forms else advice.LAP | {"scope": "global"}
    clauses = []
    for one in forms:
        pairs = summary.matched(rows, one, other, ["activation"])
        for activation, part in pairs.groupby("activation", sort=False):
            name = advice.named(one)
            if rows.activation.nunique() > 1:
                name += f", {words.short(activation)},"
            clauses.append(f"{name} is {advice.judged(part)[1]}")
    return f"Beside LAP (95 % intervals): {'; '.join(clauses)}." if clauses else ""


def agreement(rows: pd.DataFrame) -> str:
    """Say how far our mean errors are from the published ones, in standard errors."""
    both = compare.compare(rows).dropna(subset=["std", "paper", "paper_std"])
    both = both[both["std"] + both.paper_std > 0].reset_index()
    if both.empty:
        return ""
    off = both.difference / (both["std"] ** 2 / both.n + both.paper_std**2 / 5) ** 0.5
    far = both.loc[off.abs().idxmax()]
    side = "above" if off[far.name] > 0 else "below"
    return (
        f"Of {len(both)} mean errors with a published counterpart, {(off.abs() <= 2).sum()} lie "
        f"within 2 standard errors of the difference. The furthest is {words.short(far.method)} at "
        f"{words.percent(far.surviving)} %: ours {far.error:.2f}, published {far.paper:.2f}, "
        f"{off.abs().max():.1f} standard errors {side}."
    )


def compared_effects(rows: pd.DataFrame) -> pd.DataFrame:
    """Compare differences to MP with the published ones; z is their distance in standard errors.

    Where the images or the training differ, all errors shift, and effects say more than errors.
    """
    paper = compare.compare(rows).dropna(subset="paper")[["method", "round", "paper", "paper_std"]]
    both = compare.against_mp(rows).merge(paper)
    both = both.merge(paper[paper.method == "mp"], on="round", suffixes=("", "_mp"))
    both["paper_difference"] = both.paper - both.paper_mp
    variance = both.standard_error**2 + (both.paper_std**2 + both.paper_std_mp**2) / 5
    both["z"] = (both.difference - both.paper_difference) / variance**0.5
    return both


def effects(rows: pd.DataFrame) -> str:
    """Say how far our differences to MP are from the published ones."""
    both = compared_effects(rows)
    if both.empty:
        return ""
    far = both.loc[both.z.abs().idxmax()]
    return (
        f"Of {len(both)} differences to MP with a published counterpart, "
        f"{(both.z.abs() <= 2).sum()} lie within 2 standard errors. The furthest is "
        f"{words.short(far.method)} at {words.percent(far.surviving)} %: ours "
        f"{words.number(far.difference, '+.2f')}, published "
        f"{words.number(far.paper_difference, '+.2f')} (z = {words.number(far.z, '.2f')})."
    )


# ---- networks that LAP accepts -------------------------------------------------------------------


def accepted() -> tuple[str, str]:
    """Sum up benchmarks/networks.csv for README.md, and by family for RESULTS.md."""
    rows = pd.read_csv(CHECKOUT / "benchmarks" / "networks.csv")
    vision = rows[rows.family != "timm"]
    timm = rows[rows.family == "timm"]
    seconds = f"median {rows.seconds.median():.1f} s, at most {rows.seconds.max():.1f} s"
    short = (
        f"{share(vision)} classification networks of torchvision and {share(timm)} designs of timm "
        f"(seconds on one CPU core: {seconds}; [the list](RESULTS.md#networks-that-lap-accepts))."
    )
    lines = []
    for family, part in rows.groupby("family", sort=False):
        most = f"{part.seconds.max():.1f}"
        lines.append([family, share(part), LEFT.get(family, "–"), most])
    long = pd.DataFrame(lines, columns=["networks", "accepted", "left dense", "seconds"])
    refused = rows.dropna(subset="refused")
    refusals = []
    for row in refused.itertuples():
        message = re.sub(r"\), .*\):", ") and others:", row.refused)
        refusals.append(f"- `{row.network}`: {message}")
    if refusals:
        refusals = ["", "Refused, with the message:", "", *refusals]
    return short, "\n".join([markdown(long), *refusals])


def share(rows: pd.DataFrame) -> str:
    return f"{rows.refused.isna().sum()} of {len(rows)}"


# ---- pictures ------------------------------------------------------------------------------------


def drawn(name: str) -> list[str]:
    """Return the columns of a table that have a picture: where the gap is shown, only that one."""
    columns = COLUMNS.get(name, ("error",))
    return ["gap"] if "gap" in columns else [*columns]


def file_name(name: str, column: str) -> str:
    return f"{name}.png" if column == "error" else f"{name}-{column}.png"


def pictures() -> dict[Path, tuple[pd.DataFrame, str]]:
    """Return the committed pictures of tables: the rows and the column that each shows, by path."""
    shown = {}
    for name in TABLES:
        for rows in recorded(name):
            folder = results_file(name, rows.scale.iloc[0]).parent
            for column in drawn(name):
                shown[folder / file_name(name, column)] = rows, column
    return shown


def draw() -> None:
    """Draw all committed pictures, and delete those of tables that are not recorded."""
    shown = pictures()
    for rows, column in shown.values():
        if column == "distortion":
            plots.scatter(rows, "distortion", "error_before", save=True)
        else:
            plots.plot(rows, column, save=True)
    plots.plot_networks(summary.networks(), summary.network_seeds(), save=True)
    rows = compare.one_source(lapnb.recorded("fcn_mnist", "paper"))
    plots.plot(rows, methods=["mp", "lap"], save=True)
    for scale in SCALES:
        for path in (CHECKOUT / "figures" / scale).glob("*.png"):
            if path not in shown and not path.stem.endswith("-mp-lap"):
                path.unlink()


# ---- the pilot -----------------------------------------------------------------------------------


def pilot() -> str:
    """Return a line for each design that was tried, from the rows in docs/pilot/."""
    designs = []
    for path in sorted((CHECKOUT / "docs" / "pilot").glob("*.csv")):
        rows = compare.one_source(pd.read_csv(path))
        rounds = sorted(rows["round"].unique())
        for end in range(len(rounds), 0, -2):
            pair = rounds[max(end - 2, 0) : end]
            part = rows[rows["round"].isin(pair)]
            errors = part.pivot(index=["round", "seed"], columns="method", values="error")
            errors = errors.reindex(columns=["mp", "lap", "rp"])
            pairs = errors.dropna(subset=["mp", "lap"])
            endpoint = (pairs.lap - pairs.mp).groupby("seed").mean()
            # of a seed: one dense network, then MP and LAP at these fractions
            first = part.iloc[0]
            steps = first.dense_steps + 2 * len(pair) * first.retrain_steps
            effect = abs(endpoint.mean()) / endpoint.std()
            design = {
                "network": words.title(rows, whole=False),
                "dense steps": f"{first.dense_steps:,}",
                "retraining steps": f"{first.retrain_steps:,}",
                "surviving (%)": words.several(100 * part.groupby("round").surviving.mean()),
                "dense error": f"{words.dense_error(part):.1f}",
                "MP": f"{pairs.mp.mean():.1f}",
                "LAP": f"{pairs.lap.mean():.1f}",
                "RP − MP, by seed": by_seed(errors.rp - errors.mp),
                "LAP − MP, by seed": by_seed(errors.lap - errors.mp),
                "mean / sd": f"{effect:.2f}",
                "steps a seed": f"{steps:,}",
                "mean / sd for 100,000 steps": f"{effect * (1e5 / steps) ** 0.5:.2f}",
            }
            designs.append(design)
    return markdown(pd.DataFrame(designs).replace("^[+]?nan$", "–", regex=True))


def by_seed(differences: pd.Series) -> str:
    """Return the mean over two fractions, for each seed that has both."""
    whole = differences.dropna().groupby("seed").agg(["mean", "count"])
    return ", ".join(words.number(x, "+.1f") for x in whole["mean"][whole["count"] == 2]) or "–"


# ---- files ---------------------------------------------------------------------------------------


def written(text: str, **blocks: str) -> str:
    """Return `text` with the blocks between its marks replaced."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{begin} and {end} must be there once each")
        new = f"{begin}\n{block}\n{end}"
        text = re.sub(f"{begin}.*{end}", lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def pages() -> dict[Path, str]:
    """Return the pages with generated parts as they should be, by path."""
    short, long = accepted()
    rows = summary.networks()
    answer = textwrap.fill(summary.answer(rows), 120)
    networks = summary.networks_in_words(rows)
    blocks = {
        CHECKOUT / "README.md": dict(answer=answer, networks=networks, accepted=short),
        CHECKOUT / "RESULTS.md": dict(
            contents=contents(),
            answer=answer,
            networks=networks,
            across=across(),
            advice=advice.in_words(),
            claims=claims(),
            tables=tables(),
            accepted=long,
        ),
        CHECKOUT / "docs" / "pilot.md": dict(pilot=pilot()),
    }
    return {path: written(path.read_text("utf-8"), **texts) for path, texts in blocks.items()}


def main() -> int:
    os.environ["LAPNB_ROOT"] = str(CHECKOUT)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
