"""Write what README.md and RESULTS.md say of the recorded rows, and draw the committed pictures.

`python docs/results.py` rewrites the blocks between `<!-- name:begin -->` and `<!-- name:end -->`
in both files, figures/{paper,reduced}/*.png. Rows of the quick and the smoke
scale are not used.
"""

import os
import re
import sys
from pathlib import Path

import pandas as pd

from lapnb.paper.tables import TABLES, table
from lapnb.report import compare as of
from lapnb.report import plots, summary
from lapnb.report import show as page
from lapnb.runs.rows import results_file

CHECKOUT = Path(__file__).resolve().parents[1]
SCALES = ("paper", "reduced")
# What is shown of a table, where it is not the error alone
COLUMNS = {
    "fcn_linear": ("error", "error_before", "distortion"),
    "fcn_before_retraining": ("error_before",),
    "fcn_generalization": ("error", "train_error", "gap"),
}
LATER = "later_criteria"
# The notebooks that are not called like their table
NOTEBOOKS = {
    "fcn_before_retraining": "fcn_activations",
    "fcn_later_criteria": LATER,
    "conv6_later_criteria": LATER,
}
# What LAP leaves dense in torchvision's networks, by family
LEFT = {
    "GoogLeNet, Inception v3": "auxiliary classifiers, which run in training only",
    "ViT": "query, key and value: a parameter of `nn.MultiheadAttention`, not a layer",
    "Swin v2": "the networks of position biases (`cpb_mlp`), which the input never reaches",
}
LEFT_IN_SHORT = "auxiliary classifiers", "query, key and value", "position biases"
SETTINGS = {
    "width": "of the width",
    "image_size": "pixels a side",
    "dense_steps": "dense steps",
    "retrain_steps": "retraining steps",
    "batch_size": "images a batch",
    "lr": "learning rate",
}


def committed(name: str) -> list[pd.DataFrame]:
    """The recorded rows of a table, the largest scale first."""
    return page.recordings(name, *SCALES)


def title(name: str, scale: str) -> str:
    """The table's title, of what was run where something was."""
    titles = {rows.scale.iloc[0]: of.title(rows) for rows in committed(name)}
    return titles.get(scale, TABLES[name]["title"])


def listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def fractions(surviving) -> str:
    """As in "0.43, 0.23 and 0.12 %"."""
    return f"{listed([page.percent(value) for value in surviving if value == value])} %"


# ---- verdicts ------------------------------------------------------------------------------------


def entries() -> pd.DataFrame:
    """Claims: a row per table, claim and verdict, each run counted once.

    `at` are the surviving fractions with this verdict; the numbers are those of the sparsest.
    """
    claims = summary.summary()
    claims.loc[~claims.scale.isin(SCALES), "verdict"] = "not run"
    groups = claims[claims.repeats.isna()].groupby(["table", "claim", "verdict"], sort=False)
    found = groups[["scale", "n", "better", "worse", "found"]].last()
    return found.join(groups.surviving.agg(fractions).rename("at")).reset_index()


def verdict() -> str:
    """For which networks LAP beats MP at the sparsest fractions, for which not; what is open."""
    found = entries()
    networks = [name for name in TABLES if "," not in TABLES[name]["title"]]
    own = found[(found.claim == "LAP beats MP") & found.table.isin(networks)]

    def those(verdict: str, nothing: str) -> str:
        lines = []
        for row in own[own.verdict == verdict].itertuples():
            sparsest = " at the sparsest" if " and " in row.at else ""
            numbers = f"{row.better:.2f} against {row.worse:.2f} % test error{sparsest}; "
            numbers = "" if verdict == "open" else numbers
            about = f"{numbers}{row.scale} scale, n = {row.n}"
            lines.append(f"{title(row.table, row.scale)} at {row.at} ({about})")
        return "; ".join(lines) or nothing

    waiting = [TABLES[name]["title"] for name in own[own.verdict == "not run"].table]
    missing = f" Not run on their own data: {listed(waiting)}." if waiting else ""
    return (
        f"- **It holds for** {those('reproduced', 'no network so far')}.\n"
        f"- **The reverse holds for** {those('not reproduced', 'no network so far')}.\n"
        f"- **It stays open for** {those('open', 'no other network that was run')}.{missing}"
    )


def claims() -> str:
    """The claims as a table, a line per table of the paper; below it what it leaves out."""
    found, lines, waiting = entries(), [], []
    for name, rows in found.groupby("table", sort=False):
        judged, rest = rows[rows.verdict != "not run"], rows[rows.verdict == "not run"]
        if len(rest):
            some = f" ({listed([*rest.claim])})" if len(judged) else ""
            waiting.append(TABLES[name]["title"] + some)
        for scale, some in judged.groupby("scale", sort=False):
            linked = f"[{title(name, scale)}](notebooks/{name}.ipynb)"
            verdicts = [
                f"**{row.verdict}** ({scale}, n = {row.n}): {row.claim} at {row.at}: {row.found}"
                for row in some.itertuples()
            ]
            lines.append([linked, "<br>".join(verdicts)])
    later = [rows for name in TABLES if NOTEBOOKS.get(name) == LATER for rows in committed(name)]
    if later:
        ahead = "<br>".join(f"{of.title(rows)}: {page.result(rows)}" for rows in later)
        lines.append([f"[Later criteria](notebooks/{LATER}.ipynb)", ahead])
    columns = ["network, data", "verdict (scale, n): claim and surviving weights, found [95 %]"]
    missing = f" Not run at these scales yet: {'; '.join(waiting)}." if waiting else ""
    return f"{markdown(pd.DataFrame(lines, columns=columns))}\n\n{leads()}{missing}"


def leads() -> str:
    """A sentence: how often LAP, and how often MP, has the lower error; each run counted once."""
    found = []
    for rows in (rows for name in TABLES for rows in committed(name)):
        if rows.retrain_steps.all() and {"mp", "lap"} <= {*rows.method}:
            keys = [*of.varied(rows), "round"]
            settings = rows[rows.method == "lap"].groupby(keys).settings.first()
            pairs = of.paired(rows, "lap", "mp").join(settings, on=keys)
            names = [", ".join([of.title(rows), *key]) for key in pairs[keys[:-1]].to_numpy()]
            found.append(pairs.assign(title=names, source=rows.source.iloc[0]))
    pairs = pd.concat(found).drop_duplicates(["source", "settings", "round"])
    pairs = pairs[pairs.n >= 3]
    behind = pairs[pairs.low > 0].groupby("title", sort=False).surviving.agg(fractions)
    where = "; ".join(f"{name} at {at}" for name, at in behind.items())
    return (
        "Over all surviving fractions with n ≥ 3, whether claimed or not, LAP has the lower error "
        f"in {(pairs.high < 0).sum()} of {len(pairs)} comparisons with MP and the higher one in "
        f"{(pairs.low > 0).sum()}{f' ({where})' if where else ''}; the rest cannot be told apart."
    )


# ---- RESULTS.md ----------------------------------------------------------------------------------


def tables() -> str:
    """A section for each table and scale; at the end what is not run."""
    found = {name: committed(name) for name in TABLES}
    sections = [section(name, rows) for name, parts in found.items() for rows in parts]
    missing = [f"- {TABLES[name]['title']}" for name, parts in found.items() if not parts]
    if missing:
        sections.append("## Not run at these scales yet\n\n" + "\n".join(missing))
    return "\n\n".join(sections)


def section(name: str, rows: pd.DataFrame) -> str:
    """What differs from the paper, result, pictures, numbers and verdicts of one table."""
    scale, found = rows.scale.iloc[0], of.verdicts(rows)
    notebook = f"[notebook](notebooks/{NOTEBOOKS.get(name, name)}.ipynb)"
    result = page.result(rows)
    parts = [
        f"## {of.title(rows)} ({scale} scale)",
        f"{result[0].upper()}{result[1:]}. {differs(rows)} "
        f"See the {notebook} and the [rows](figures/{scale}/{name}.csv).",
        f"*{of.caption(rows, 'mean ± standard deviation')}*",
    ]
    for column in COLUMNS.get(name, ("error",)):
        measured = of.MEASURED[column][0].capitalize() if column != "distortion" else "Distortion"
        if drawn(column):
            alt = f"{measured}, {of.title(rows)}"
            parts.append(f"![{alt}](figures/{scale}/{file_name(name, column)})")
        numbers = page.side_by_side(rows, column)
        beside = " | published" if "|" in numbers.to_string() else ""
        parts += [f"{measured}: ours{beside}.", markdown(numbers)]
        if "mp" in set(rows.method) and rows["round"].nunique() <= plots.MANY:
            parts.append("The same minus MP on paired seeds [95 %]; bold: n ≥ 3, 0 is excluded.")
            parts.append(markdown(differences(rows, column)))
    parts.append(agreement(rows))
    if len(found):
        found["surviving (%)"] = found.surviving.map(page.percent, na_action="ignore")
        parts += ["Claims:"]
        parts += [markdown(found[["claim", "verdict", "surviving (%)", "found", "n"]])]
    return "\n\n".join(filter(None, parts))


def markdown(frame: pd.DataFrame) -> str:
    """A table of texts as Markdown."""
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.fillna("–").to_numpy()]
    lines = (" | ".join(str(cell).replace("|", r"\|") for cell in row) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def differs(rows: pd.DataFrame) -> str:
    """A sentence: what is not as in the paper."""
    first = rows.iloc[0]
    ran, paper = (table(first.table, scale) for scale in (first.scale, "paper"))
    parts = [
        f"{getattr(ran, name):,g} {words} (paper: {getattr(paper, name):,g})"
        for name, words in SETTINGS.items()
        if getattr(ran, name) != getattr(paper, name)
    ]
    own, count = of.NAMES[paper.dataset], rows["round"].nunique()
    seeds = rows.groupby(["method", "round"]).seed.nunique().groupby("method").min()
    few = [of.short(method) for method in rows.method.unique() if seeds[method] < len(paper.seeds)]
    if first.source != own:
        parts.append(f"data: {first.source} (paper: {own})")
    if ran.looks != paper.looks:
        parts.append("fewer batches for the scores that look at data")
    if count < len(paper.rounds):
        parts.append(f"{count} of {len(paper.rounds)} surviving fractions")
    if few:
        parts.append(f"fewer than {len(paper.seeds)} seeds of {listed(few)}")
    if NOTEBOOKS.get(first.table) == LATER:
        parts.insert(0, "this table is ours")
    return f"Differs from the paper: {'; '.join(parts) or 'nothing in the protocol'}."


def differences(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Each method minus MP as text: a row per surviving fraction, a column per method."""
    style = of.digits(column)

    def told(apart: float, low: float, high: float, n: int) -> str:
        text = f"{apart:+{style}}" + (f" [{low:+{style}}, {high:+{style}}]" if n > 1 else "")
        text = f"**{text}**" if n >= 3 and not low <= 0 <= high else text
        return text.replace("-", "−")

    others = [method for method in rows.method.unique() if method != "mp"]
    pairs = [of.paired(rows, m, "mp", column).assign(method=of.short(m)) for m in others]
    pairs = pd.concat(pairs, ignore_index=True)
    numbers = pairs[["difference", "low", "high", "n"]].itertuples(index=False)
    pairs["cell"] = [told(*row) for row in numbers]
    pairs["surviving (%)"] = pairs.surviving.map(page.percent)
    keys = [*of.varied(rows), "surviving (%)"]
    wide = pairs.set_index([*keys, "method"]).cell.unstack(sort=False).reset_index()
    return page.side_by_side(rows, column)[keys].merge(wide, "left")


def agreement(rows: pd.DataFrame) -> str:
    """A sentence: how far our mean errors are from the published ones, in standard errors."""
    both = of.compare(rows).dropna(subset=["std", "paper", "paper_std"])
    both = both[both["std"] + both.paper_std > 0].reset_index()
    if both.empty:
        return ""
    off = both.difference / (both["std"] ** 2 / both.n + both.paper_std**2 / 5) ** 0.5
    far = both.loc[off.abs().idxmax()]
    return (
        f"Of {len(both)} mean errors with a published counterpart, {(off.abs() <= 2).sum()} lie "
        f"within 2 standard errors of the difference. The furthest is {of.short(far.method)} at "
        f"{page.percent(far.surviving)} %: {far.error:.2f} against {far.paper:.2f}, "
        f"{off.abs().max():.1f} standard errors {'above' if off[far.name] > 0 else 'below'}."
    )


# ---- networks that LAP accepts -------------------------------------------------------------------


def accepted() -> tuple[str, str]:
    """What benchmarks/networks.csv says, by family: for README.md, and at length for RESULTS.md."""
    rows = pd.read_csv(CHECKOUT / "benchmarks" / "networks.csv")

    def share(*names: str) -> str:
        part = rows[rows.family.isin(names)]
        return f"{part.refused.isna().sum()} of {len(part)}"

    seconds = {name: f"{most:.1f}" for name, most in rows.groupby("family").seconds.max().items()}
    own = [name for name in rows.family.unique() if name != "timm"]
    whole = [name for name in own if name not in LEFT]
    why = "refused: a layer with a `forward` of its own or a shared weight"
    short = [
        [f"torchvision's {', '.join(whole)}", share(*whole), "–"],
        ["its " + "; ".join(LEFT), "; ".join(map(share, LEFT)), "; ".join(LEFT_IN_SHORT)],
        [f"{len(rows[rows.family == 'timm'])} designs of timm", share("timm"), why],
    ]
    times = f"median {rows.seconds.median():.1f} s, at most {rows.seconds.max():.1f} s"
    heads = f"networks (one CPU core: {times})", "accepted", "left dense or refused"
    short = pd.DataFrame(short, columns=heads)
    lines = [[name, share(name), LEFT.get(name, "–"), seconds[name]] for name in own]
    lines.append(["**torchvision**", f"**{share(*own)}**", "", ""])
    lines.append(["timm, a network of each design", share("timm"), "", seconds["timm"]])
    long = pd.DataFrame(lines, columns=["networks", "accepted", "left dense", "seconds"])
    refused = [f"- `{r.network}`: {r.refused}" for r in rows.dropna(subset="refused").itertuples()]
    refused = "\n".join(["Refused, all from timm, with the message:", "", *refused])
    return markdown(short), f"{markdown(long)}\n\n{refused}"


# ---- pictures ------------------------------------------------------------------------------------


def drawn(column: str) -> bool:
    return column != "train_error"  # a panel of the gap's picture


def file_name(name: str, column: str) -> str:
    return f"{name}.png" if column == "error" else f"{name}-{column}.png"


def captions() -> dict[Path, str]:
    """The committed pictures of tables, and the caption that each carries."""
    return {
        results_file(name, rows.scale.iloc[0]).with_name(file_name(name, column)): of.caption(
            rows, *(["one point per run"] if column == "distortion" else [])
        )
        for name in TABLES
        for rows in committed(name)
        for column in filter(drawn, COLUMNS.get(name, ("error",)))
    }


def draw() -> None:
    """Draw all committed pictures, and delete those of tables that are not recorded."""
    for name in TABLES:
        for rows in committed(name):
            for column in filter(drawn, COLUMNS.get(name, ("error",))):
                if column == "distortion":
                    plots.scatter(rows, "distortion", "error_before", save=True)
                else:
                    plots.plot(rows, column, save=True)
    known = captions()
    for path in (path for scale in SCALES for path in (CHECKOUT / "figures" / scale).glob("*.png")):
        if path not in known:
            path.unlink()


# ---- files ---------------------------------------------------------------------------------------


def written(text: str, **blocks: str) -> str:
    """`text` with the blocks between its marks replaced."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{begin} and {end} must be there once each")
        new = f"{begin}\n{block}\n{end}"
        text = re.sub(f"{begin}.*{end}", lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def pages() -> dict[Path, str]:
    """README.md and RESULTS.md as they should be."""
    found, (short, long) = verdict(), accepted()
    blocks = {
        CHECKOUT / "README.md": dict(verdict=found, accepted=short, claims=claims()),
        CHECKOUT / "RESULTS.md": dict(verdict=found, tables=tables(), accepted=long),
    }
    return {path: written(path.read_text("utf-8"), **own) for path, own in blocks.items()}


def main() -> int:
    os.environ["LAPNB_ROOT"] = str(CHECKOUT)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
