"""Executed notebooks → one HTML report that needs no network and reads well on a phone."""

import base64
import mimetypes
import re
from collections import Counter
from html import escape
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from lapnb.paper.tables import SCALES

START = "00_start_here"  # its page is the report's index

# nbconvert's "basic" template gives the body alone: no CDN scripts, no theme.
_TEMPLATE = """{%- extends "basic/index.html.j2" -%}
{% block input %}<details class="code"><summary>code</summary>{{ super() }}</details>{% endblock %}
{% block data_widget_view %}<p>Interactive: open this notebook in JupyterLab.</p>{% endblock %}"""

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1b1f24; background: #fff;
       max-width: 54rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: break-word; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline;
      padding: .7rem 0; border-bottom: 1px solid #d8dee4; }
nav button { margin-left: auto; font: inherit; font-size: .85rem; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2rem; }
a { color: #0550ae; }
img, svg { max-width: 100%; height: auto; }
td img { min-width: 6rem; }
.wide, pre { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #e4e8ec; }
th { background: #f5f7f9; }
.dataframe th, .dataframe td { text-align: right; white-space: nowrap; }
pre { font-size: .84rem; line-height: 1.4; }
.output_area > .output_subarea > pre { border-left: 3px solid #d8dee4; padding-left: .8rem; }
.output_stdout > pre { white-space: pre-wrap; } /* sentences, such as those of the check cells */
.text_cell span[style] { font-size: 1rem !important; } /* papermill's error notes */
details.code { margin: .5rem 0; }
details.code > summary { color: #59636e; font-size: .85rem; cursor: pointer; }
details.code .input_area { background: #f5f7f9; padding: .1rem .8rem; border-radius: 4px; }
.failed { background: #ffebe9; border-left: 4px solid #b3261e; padding: .6rem 1rem; }
.prompt { display: none; }
"""

_TOGGLE = (
    "const all = [...document.querySelectorAll('details.code')];"
    "const open = all.some(d => !d.open); all.forEach(d => d.open = open)"
)


def verdict(notebook) -> str:
    """What the checks of an executed notebook found, as "2 reproduced, 1 open (quick scale)".

    Counted are the lines that end as those of `lapnb.verdicts` do, scale by scale; a table that
    the notebook shows twice counts once.
    """
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    printed = {o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs}
    ending = r"\b(not reproduced|reproduced|open) \((\w+) scale\) *$"
    found = Counter(hit for text in printed for hit in re.findall(ending, text, re.MULTILINE))
    parts = []
    for scale in SCALES:
        kinds = [(found[kind, scale], kind) for kind in ("reproduced", "not reproduced", "open")]
        if text := ", ".join(f"{n} {kind}" for n, kind in kinds if n):
            parts.append(f"{text} ({scale} scale)")
    return "; ".join(parts)


def build_report(copies: list[Path], folder: Path, notebooks: Path) -> Path:
    """Write one page per executed notebook and the index; return the index.

    copies: executed notebooks, in reading order, as `python -m lapnb` leaves them: their metadata
        may hold lapnb = {"failed": reason, "seconds": …}.
    folder: where the pages go; made if absent.
    notebooks: the folder that relative image paths start from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    read = {copy.stem: nbformat.read(copy, as_version=4) for copy in copies}
    start = read.pop(START, None)
    pages = {"index", *read}
    rows = [_row(name, notebook) for name, notebook in read.items()]
    index = f"<table><tr><th>notebook<th>claims<th>run</tr>{''.join(rows)}</table>"
    if start:
        index = f"{_body(start, notebooks, pages)}<h2>All notebooks</h2>{index}"
    else:
        index = f"<h1>Lookahead pruning: the notebooks</h1>{index}"
    (folder / "index.html").write_text(_page("Lookahead pruning", index, []), encoding="utf-8")

    names = list(read)
    for i, (name, notebook) in enumerate(read.items()):
        links = [("index.html", "all notebooks")]
        links += [(f"{names[i - 1]}.html", f"← {names[i - 1]}")] if i > 0 else []
        links += [(f"{names[i + 1]}.html", f"{names[i + 1]} →")] if i + 1 < len(names) else []
        page = _page(_title(name, notebook), _body(notebook, notebooks, pages), links)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def _row(name, notebook) -> str:
    outcome = notebook.metadata.get("lapnb", {})
    status = "<b>failed</b>" if outcome.get("failed") else f"{outcome.get('seconds', 0):.0f} s"
    title = escape(_title(name, notebook))
    return f"<tr><td><a href='{name}.html'>{title}</a><td>{verdict(notebook)}<td>{status}</tr>"


def _title(name, notebook) -> str:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    return heading[1].strip() if heading else name


def _body(notebook, notebooks: Path, pages: set[str]) -> str:
    exporter = HTMLExporter(
        raw_template=_TEMPLATE, template_name="basic", exclude_anchor_links=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    link = r'<a href="(?:\./)?([\w-]+)\.ipynb([^"]*)"[^>]*>(.*?)</a>'
    body = re.sub(link, lambda m: _linked(*m.groups(), pages), body, flags=re.DOTALL)
    body = re.sub(r'src="(?!data:|https?:)([^"]+)"', lambda m: _embedded(m, notebooks), body)
    body = re.sub(r"<table.*?</table>", r"<div class='wide'>\g<0></div>", body, flags=re.DOTALL)
    if failed := notebook.metadata.get("lapnb", {}).get("failed"):
        body = f"<p class='failed'><b>This notebook failed:</b> {escape(failed)}</p>{body}"
    return body


def _linked(name: str, anchor: str, text: str, pages: set[str]) -> str:
    """A link to a notebook's page; its text alone where the notebook was not executed."""
    page = "index" if name == START else name
    return f'<a href="{page}.html{anchor}">{text}</a>' if page in pages else text


def _embedded(match, notebooks: Path) -> str:
    file = notebooks / match[1]
    if not file.is_file():
        return match[0]
    kind = mimetypes.guess_type(file.name)[0]
    return f'src="data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"'


def _page(title: str, body: str, links: list[tuple[str, str]]) -> str:
    anchors = "".join(f"<a href='{target}'>{text}</a>" for target, text in links)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{HtmlFormatter().get_style_defs(".highlight")}{_STYLE}</style></head>
<body><nav>{anchors}<button onclick="{_TOGGLE}">show or hide code</button></nav>
{body}
</body></html>
"""
