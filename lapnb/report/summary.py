"""All tables at a glance: what is claimed, found and recorded. Reads rows, never trains."""

import base64
import contextlib
import json
import re
from html import escape
from urllib.parse import quote

import pandas as pd

from lapnb.paper.protocol import SCALES, VARIED
from lapnb.paper.tables import TABLES, table
from lapnb.report import compare as of
from lapnb.report.plots import STYLE, canvas, draw_means, png
from lapnb.report.show import recordings, result
from lapnb.runs.rows import read
from lapnb.store import root


def summary() -> pd.DataFrame:
    """Every claim of every table, judged on the largest scale that has seeds enough, or any.

    As `verdicts`, and repeats: the table that holds the same runs and is counted for them. The
    verdict on a claim of which nothing is recorded is "not run".
    """
    found = []
    for name in TABLES:
        judged = [of.verdicts(rows) for rows in recordings(name, *SCALES[::-1])]
        for claim in map(of.in_words, table(name, "paper").claims):
            parts = [part for v in judged if len(part := v[(v.claim == claim) & (v.n > 0)])]
            enough = [part for part in parts if (part.n >= 3).any()]
            nothing = {"table": name, "scale": "–", "claim": claim, "n": 0, "verdict": "not run"}
            found.append([*enough, *parts, pd.DataFrame([nothing], columns=of.VERDICT)][0])
    claims = pd.concat(found, ignore_index=True)
    first = claims.dropna(subset="rows").sort_values("n", ascending=False, kind="stable")
    first = first.drop_duplicates("rows").set_index("rows").table
    claims["repeats"] = claims["rows"].map(first).where(lambda name: name != claims.table)
    return claims.drop(columns="rows")


def score() -> pd.DataFrame:
    """How many verdicts there are by table and scale, each run counted once; at the end of all."""
    claims = summary()
    once = claims[claims.repeats.isna()]
    verdicts = ["reproduced", "not reproduced", "open", "not run"]
    sums = {"margins": True, "margins_name": "all tables", "fill_value": 0, "sort": False}
    board = once.pivot_table("n", ["table", "scale"], "verdict", "count", **sums)
    return board.reindex(columns=verdicts, fill_value=0).reset_index().rename_axis(columns=None)


def inventory() -> pd.DataFrame:
    """What is recorded, by table, scale and data set: how much, and the path of the CSV."""
    found = []
    for path in sorted(root().glob("figures/*/*.csv")):
        rows = read(path) if path.stem in TABLES else pd.DataFrame(columns=["status", "source"])
        for source, part in rows[rows.status == "ok"].groupby("source"):
            row = {"table": path.stem, "scale": path.parent.name, "data": source}
            row |= {f"{name}s": part[name].nunique() for name in ("method", "round", "seed")}
            found.append(row | {"rows": len(part), "path": f"{path.relative_to(root())}"})
    return pd.DataFrame(found)


def index(thumbnail_width: int = 180):
    """All notebooks, those of tables first: link, small plot, one line of result; an HTML output.

    The plots, `thumbnail_width` pixels wide (0: none), show the largest scale that is recorded on
    the table's own data set.
    """
    from IPython.display import HTML

    if not isinstance(thumbnail_width, int) or thumbnail_width < 0:
        raise ValueError(f"thumbnail_width must be a number of pixels; got {thumbnail_width!r}")
    notebooks = {path.stem: path for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    notebooks.pop("00_start_here", None)
    rows = []
    for name in sorted(notebooks, key=lambda name: [*TABLES, name].index(name)):
        heading = name  # of a broken notebook
        with contextlib.suppress(ValueError, LookupError, OSError):
            cells = json.loads(notebooks[name].read_text("utf-8"))["cells"]
            heading = "".join(cells[0]["source"]).splitlines()[0].strip("# ")
        line, instead, picture = _result(name)
        if picture and thumbnail_width:
            data = base64.b64encode(picture).decode()
            look = f'width="{thumbnail_width}" alt="{escape(heading)}"'
            instead = f'<img src="data:image/png;base64,{data}" {look}>'
        link = f'<a href="{quote(name)}.ipynb">{escape(heading)}</a>'
        rows.append([link, instead, escape(line)])
    with pd.option_context("display.max_colwidth", None):
        frame = pd.DataFrame(rows, columns=["notebook", "", "result"])
        html = frame.to_html(index=False, escape=False, border=0)
    return HTML(re.sub("<(t[hd])>", r'<\1 style="text-align: left; white-space: normal">', html))


def _result(name: str) -> tuple[str, str, bytes]:
    """A notebook's line in the index, and its picture or what is said in place of one."""
    if name in TABLES:
        found = recordings(name, *SCALES[::-1])
        if not found:
            return "not run", "", b""
        rows = next((rows for rows in found if (of.verdicts(rows).n > 0).any()), found[0])
        line, away = f"{of.title(rows)}: {result(rows)}", of.stands_in(rows)
        return line, f"not run on {away}" if away else "", b"" if away else _thumbnail(rows)
    for scale in SCALES[::-1] if name == "pruning_cost" else ():
        path = root() / f"figures/{scale}/{name}.csv"
        if path.exists():
            rows = pd.read_csv(path)
            if {"device", "network", "method", "seconds"} - {*rows}:
                return f"{path.name} is not what this notebook writes", "", b""
            seconds = rows.pivot_table("seconds", ["device", "network"], "method")
            ratios = seconds.lap / seconds.mp
            line = f"LAP masks: {ratios.min():.2g} to {ratios.max():.2g} times MP's seconds"
            drawn = path.with_suffix(".png")
            return f"{line} ({scale} scale)", "", drawn.read_bytes() if drawn.exists() else b""
    return "not run" if name == "pruning_cost" else "", "", b""


def _thumbnail(results: pd.DataFrame) -> bytes:
    """The error's panel of `plot`, without words."""
    parts = [rows for _, rows in of.one_source(results).groupby(list(VARIED), sort=False)]
    style = STYLE | {"lines.markersize": 3, "lines.linewidth": 1}
    with canvas(1, len(parts), style, figsize=(2, 1.2), sharey=True) as (figure, axes):
        for axis, rows in zip(axes[0], parts, strict=True):
            draw_means(axis, of.compare(rows), dense=rows.dense_error.mean())
            axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
            axis.set_ylabel("")
        return png(figure, 120)
