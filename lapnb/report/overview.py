"""All tables at a glance: what is claimed, what was found. Reads recorded rows, never trains."""

import base64
import contextlib
import io
import json
from html import escape

import pandas as pd

from lapnb.paper.tables import SCALES, TABLES
from lapnb.report.compare import COLOURS, STYLE, VARIANTS, claim_text, verdicts
from lapnb.runs.run import recorded
from lapnb.store import root


def summary() -> pd.DataFrame:
    """Every claim of every table, judged on the largest scale of which it has rows.

    One row per claim and surviving fraction, as in `verdicts`, with the scale in a column of its
    own. The verdict on a claim of which nothing is recorded is "not run".
    """
    rows = []
    for name, declared in TABLES.items():
        found = [verdicts(results).assign(scale=results.scale[0]) for results in _scales(name)]
        for claim in map(claim_text, declared["claims"]):
            row = {"table": name, "claim": claim, "surviving": "–", "scale": "–", "n": 0}
            judged = [part for part in (f[f.claim == claim] for f in found) if len(part)]
            for verdict in judged[0].to_dict("records") if judged else [{"verdict": "not run"}]:
                word = verdict["verdict"].partition(" (")[0]  # the scale has its own column
                rows.append(row | verdict | {"verdict": word})
    columns = ["table", "claim", "surviving", "scale", "n", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def index(thumbnail_width: int = 180):
    """All notebooks, those of tables first: link, small plot, one line of result; an HTML output.

    The plots show the largest scale recorded, and are `thumbnail_width` pixels wide; 0: none.
    """
    from IPython.display import HTML

    notebooks = {path.stem: path for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    notebooks.pop("00_start_here", None)
    rows = []
    for name in sorted(notebooks, key=lambda name: [*TABLES, name].index(name)):
        cells = json.loads(notebooks[name].read_text("utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].strip("# ")
        line, png = _result(name)
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        picture = f'<img src="{source}" width="{thumbnail_width}">'
        link = f'<a href="{name}.ipynb">{escape(title)}</a>'
        rows.append((link, picture if png and thumbnail_width else "", escape(line)))
    head = [f"<b>{word}</b>" for word in ("notebook", "", "result")]
    align = 'style="text-align: left"'  # JupyterLab aligns cells to the right
    lines = ["".join(f"<td {align}>{content}</td>" for content in row) for row in [head, *rows]]
    return HTML(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")


def one_line(results: pd.DataFrame) -> str:
    """What `results` say on the table's first claim at its sparsest round.

    Without claims: how far the dense network can be pruned within one point of its accuracy.
    """
    found = verdicts(results)
    if not found.empty:
        last = found[found.claim == found.claim[0]].iloc[-1]
        numbers = last["found [95 % of the difference]"]
        return f"{last.claim}, at {last.surviving}: {numbers}: {last.verdict}, n = {last.n}"
    if TABLES[results.table[0]]["claims"]:
        return f"no two methods to compare are recorded yet ({results.scale[0]} scale)"
    means = results.groupby(["method", "round"])[["surviving", "error", "dense_error"]].mean()
    near = means[means.error < means.dense_error + 1].groupby("method").surviving.min()
    least = ", ".join(f"{method} {100 * low:.3g} %" for method, low in near.items()) or "nothing"
    return f"within 1 point of the dense network down to {least} ({results.scale[0]} scale)"


def thumbnail(results: pd.DataFrame) -> bytes:
    """Accuracy against surviving weights, as in `plot` but without words; a small PNG."""
    import matplotlib.pyplot as plt

    parts = [rows for _, rows in results.groupby(VARIANTS, sort=False)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(parts), figsize=(2, 1.2), sharey=True, squeeze=False)
        for axis, rows in zip(axes[0], parts, strict=True):
            for method, own in rows.groupby("method", sort=False):
                means = own.groupby("round")[["surviving", "error"]].mean()
                axis.plot(means.surviving, 100 - means.error, ".-", color=COLOURS[method])
            axis.set_xscale("log")
            axis.invert_xaxis()
            axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        figure.savefig(file := io.BytesIO(), dpi=120, bbox_inches="tight", pad_inches=0.02)
        plt.close(figure)
    return file.getvalue()


def _scales(name: str) -> list[pd.DataFrame]:
    """The recorded rows of a table, the largest scale first."""
    found = []
    for scale in reversed(SCALES):
        with contextlib.suppress(FileNotFoundError):
            found.append(recorded(name, scale))
    return found


def _result(name: str) -> tuple[str, bytes]:
    """A notebook's line and picture in the index."""
    if name in TABLES:
        found = _scales(name)
        if not found:
            return "not run", b""
        results = next((rows for rows in found if len(verdicts(rows))), found[0])
        return one_line(results), thumbnail(results)
    if name != "pruning_cost":
        return "", b""
    for path in (root() / f"figures/{scale}/{name}.csv" for scale in reversed(SCALES)):
        if path.exists():
            seconds = pd.read_csv(path).pivot_table("seconds", ["device", "network"], "method")
            ratios = (seconds.lap / seconds.mp).describe()
            line = f"LAP masks: {ratios['min']:.2g} to {ratios['max']:.2g} times MP's seconds"
            png = path.with_suffix(".png")
            return f"{line} ({path.parent.name} scale)", png.read_bytes() if png.exists() else b""
    return "not run", b""
