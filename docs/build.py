"""Build the report: the notebooks, the pages of this folder and the API as one site.

`python docs/build.py` writes build/report/index.html. A notebook is shown as it last ran
(build/notebooks, written by `python -m lapnb`), or as it is committed where it did not run.
"""

import base64
import html
import re
import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.cmd.build import build_main

from lapnb.__main__ import notebooks
from lapnb.paper.tables import TABLES
from lapnb.pruning.scores import METHODS
from lapnb.store import root
from lapnb.training.datasets import DATASETS
from lapnb.training.networks import NETWORKS

DOCS = Path(__file__).resolve().parent
START = "00_start_here"  # the index page
# Pages that are not notebooks
OWN = [
    "readme",
    "results",
    "choices",
    "pilot",
    "several_machines",
    "add_a_method",
    "api",
    "changelog",
]

# The side bar: heading → notebooks whose names begin like this.
THEMES = {
    "FCN": "fcn_",
    "Conv-6": "conv6_",
    "VGG": "vgg",
    "ResNet": ("resnet", "wrn"),
    "Methods": "later_criteria",
    "Cost": "pruning_cost",
    "Explore": ("explore", "your_own_network"),
    "More": "",
}


def load(source: Path, copy: Path) -> tuple[nbformat.NotebookNode, str, str]:
    """Return the notebook to show, a sentence about its run, and the reason if that failed."""
    ran = copy.exists() and copy.stat().st_mtime >= source.stat().st_mtime
    try:
        notebook = nbformat.read(copy if ran else source, as_version=4)
        for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
            base64.b64decode(output.get("data", {}).get("image/png", ""))
    except Exception as error:  # the other pages are built nevertheless
        return nbformat.v4.new_notebook(), "", f"{type(error).__name__}: {error}"
    if not ran:
        return notebook, "Not run for this report: shown as committed.", ""
    outcome = notebook.metadata.get("lapnb", {})
    end = notebook.metadata.get("papermill", {}).get("end_time") or ""
    run = f"Run {end[:16].replace('T', ' ')} UTC, {outcome.get('seconds', 0):.0f} seconds."
    return notebook, run, outcome.get("failed", "")


def stage(name: str, notebook: nbformat.NotebookNode, run: str, failed: str, folder: Path) -> str:
    """Write the notebook as Sphinx is to read it; return its line in the list of pages."""
    note = "papermill-error-cell-tag"  # papermill's cell about the failure; ours stands at the top
    notebook.cells = [c for c in notebook.cells if note not in c.metadata.get("tags", [])]
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    if not (texts and texts[0].source.startswith("# ")):
        texts = [nbformat.v4.new_markdown_cell(f"# {name}")]
        notebook.cells.insert(0, texts[0])
    heading, _, rest = texts[0].source.partition("\n")
    if failed:
        failure = f"<b>This notebook failed:</b> {html.escape(failed)}"
        rest = f'<p class="failed">{failure}</p>\n{rest}'
    texts[0].source = f'{heading}\n\n<p class="run">{html.escape(run)}</p>\n{rest}'
    for cell in notebook.cells:
        shown = {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
        cell.metadata = {"tags": [] if shown or cell.cell_type != "code" else ["hide-input"]}
    notebook.metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    page = "index" if name == START else name + "_" * (name in [*OWN, "index", "contents"])
    nbformat.write(notebook, folder / f"{page}.ipynb")
    title = re.sub(r"<[^>]*>|[`*<>]", "", heading.removeprefix("# ")).strip()
    return f"{'✗ failed: ' * bool(failed)}{title} <{page}>"


def contents(lines: dict[str, str]) -> str:
    """Return the page that lists all pages by theme; the side bar is made of it."""
    left = dict(sorted(lines.items(), key=lambda line: [*TABLES, line[0]].index(line[0])))
    groups = {"Report": [left.pop(name) for name in [START] if name in left]}
    for theme, beginning in THEMES.items():
        groups[theme] = [left.pop(name) for name in [*left] if name.startswith(beginning)]
    groups["The package"] = OWN
    trees = (
        f"\n.. toctree::\n   :caption: {theme}\n   :titlesonly:\n\n   " + "\n   ".join(pages) + "\n"
        for theme, pages in groups.items()
        if pages
    )
    return "All pages\n=========\n" + "".join(trees)


def choices() -> str:
    """Return the page of all names of methods, networks and data sets in the package."""
    methods = ["| name | criterion | looks at the data | neighbours |", "| --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        data = "no" if method.looks_at in ("", "ones") else "yes"
        methods.append(f"| `{name}` | {method.title} | {data} | {method.neighbours or 'none'} |")
    return "\n".join(
        [
            "# Methods, networks and data sets",
            "",
            "The names that `lapnb.prune_masks`, `lapnb.build_model`, `lapnb.load_data` and",
            "`lapnb.table` take, at any sparsity. Results compare test error and accuracy.",
            "",
            "## Methods",
            "",
            *methods,
            "",
            "## Networks",
            "",
            *(f"- `{name}`" for name in NETWORKS),
            "",
            "## Data sets",
            "",
            *(f"- `{name}`" for name in DATASETS),
            "",
        ]
    )


def main() -> int:
    """Stage everything in build/site, run Sphinx on it, and return its exit status."""
    build = root() / "build"
    site, report = build / "site", build / "report"
    for folder in (site, report, build / "jupyter_execute"):
        shutil.rmtree(folder, ignore_errors=True)
    site.mkdir(parents=True)
    lines = {}
    for source in notebooks().values():
        loaded = load(source, build / "notebooks" / source.name)
        lines[source.stem] = stage(source.stem, *loaded, site)
    (site / "contents.rst").write_text(contents(lines), encoding="utf-8")
    for page in (*DOCS.glob("*.md"), *DOCS.glob("*.rst")):
        shutil.copy(page, site)
    (site / "choices.md").write_text(choices(), encoding="utf-8")
    for page in ("README", "RESULTS", "CHANGELOG"):
        shutil.copy(DOCS.parent / f"{page}.md", site / f"{page.lower()}.md")
    return build_main(
        ["-q", "-c", str(DOCS), "-d", str(site / ".doctrees"), str(site), str(report)]
    )


if __name__ == "__main__":
    sys.exit(main())
