"""Sphinx settings of the report; docs/build.py stages the pages and calls Sphinx."""

import base64
import html
import mimetypes
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx.transforms import SphinxTransform

from lapnb.store import root

project = "Lookahead pruning"
html_title = project
root_doc = "contents"
exclude_patterns = [".doctrees"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
suppress_warnings = ["myst.xref_missing"]  # links to files that are not on the site, see `links`

# Notebooks run under papermill, never here. GitHub's Markdown has no directives, so no text of a
# notebook or an output can include a file.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
nb_render_markdown_format = "gfm"
nb_ipywidgets_js = {}  # the scripts would be loaded from a CDN
myst_gfm_only = True

default_role = "py:obj"  # `name` in a docstring is a link where the name is documented
autodoc_typehints = "both"  # in the signature and beside each parameter
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_display_short_literal_types = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
templates_path = ["_templates"]
html_copy_source = False
html_show_copyright = False
html_domain_indices = False
html_show_search_summary = False  # browsers do not let a page on disk read the others


def machine() -> str:
    """Say where the report was made: processor, cores, GPU, versions."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (model := re.search(r"model name\s*: (.+)", info.read_text())):
        cpu = model[1]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{cpu}, {os.cpu_count()} cores{gpu}; {system}, PyTorch {torch.__version__}"


def commit() -> str:
    """Return the checkout's commit, with "-dirty" if files differ from it; "" outside git."""
    command = ["git", "-C", str(root()), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


PAPER = "https://arxiv.org/abs/2002.04809"
ABOUT = "Lookahead pruning (Park et al., ICLR 2020), reproduced: test error, accuracy, sparsity."


def repository() -> str:
    """Return the address that README.md tells readers to clone; "" where it names none."""
    readme = Path(__file__).parents[1] / "README.md"
    address = re.search(r"https://github\.com/[\w.-]+/[\w-]+", readme.read_text(encoding="utf-8"))
    return address[0] if address else ""


html_context = {
    "paper": PAPER,
    "repository": repository(),
    "master_doc": "index",  # where the templates' link "home" leads
    "built": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    "commit": commit(),
    "machine": machine(),
}


def picture(folder: Path, uri: str) -> Path | None:
    """Return the picture inside the checkout that `uri` names; None for every other file."""
    path = Path(os.path.realpath(folder / unquote(uri).lstrip("/")))
    is_picture = (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
    inside = is_picture and path.is_relative_to(root())
    # os.path.isfile raises no error for an impossible name
    return path if inside and os.path.isfile(path) else None


def located(uri: str) -> Path | None:
    """Return the picture that a notebook, or a page in the checkout's root, names."""
    return picture(root() / "notebooks", uri) or picture(root(), uri)


def description(path: Path) -> str:
    """Return the finding and the caption that a PNG carries."""
    try:
        with Image.open(path) as file:
            texts = [file.info.get(name, "") for name in ("Title", "Description")]
    except OSError:  # another kind of picture, or one that cannot be read
        return ""
    return ". ".join(" ".join(text.split()) for text in texts if text)


def captions(image: nodes.image) -> list[str]:
    """Return texts of the output that holds the picture, then of those before it in its cell."""
    bundle = image.parent.parent
    beside = [part.astext() for part in bundle if part["mime_type"] == "text/plain"]
    earlier = bundle.parent[: bundle.parent.index(bundle)]
    return [*beside, *(part.astext() for part in reversed(earlier) if len(part) == 1)]


class Pictures(SphinxTransform):
    """A transform that shows pictures of the checkout, with a text for those who cannot see them.

    No other file gets into the report, whatever a notebook names.
    """

    default_priority = 500

    def apply(self, **kwargs) -> None:
        title = next((node.astext() for node in self.document.findall(nodes.title)), "")
        for image in list(self.document.findall(nodes.image)):
            if urlsplit(image["uri"]).scheme in ("http", "https", "data"):
                continue
            output = bool(image.parent.get("mime_type"))  # MyST-NB has written its file
            uri = image["uri"]
            path = picture(Path(self.app.srcdir), uri) if output else located(uri)
            if path is None:
                image.replace_self(nodes.inline(text=image.get("alt", "")))
                continue
            image["uri"] = "/" + os.path.relpath(path, self.app.srcdir)
            texts = [image.get("alt", ""), description(path), *(captions(image) if output else [])]
            image["alt"] = next((t.strip() for t in texts if t.strip() and t[0] != "<"), title)


def links(app, pagename, templatename, context, doctree) -> None:
    """Point links to notebooks at their pages, and remove links to what is not on the site.

    Pictures that raw HTML names are treated like all others.
    """
    soup = BeautifulSoup(context.get("body", ""), "html.parser")
    for link in soup.select("a[href]"):
        target = urlsplit(link["href"])
        path = Path(target.path)
        if target.scheme or not target.path or path.suffix == ".html" or path.parts[0][0] == "_":
            continue
        page = {"00_start_here": "index"}.get(path.stem, path.stem.lower())
        if page in app.env.found_docs and path.suffix in (".ipynb", ".md", ".rst"):
            anchor = f"#{nodes.make_id(target.fragment)}" if target.fragment else ""
            link["href"] = f"{page}.html{anchor}"
        else:
            link.unwrap()
    for image in soup.select("img[src]"):
        if urlsplit(image["src"]).scheme or image["src"].startswith("_images/"):
            continue
        if path := located(image["src"]):
            content = base64.b64encode(path.read_bytes()).decode()
            image["src"] = f"data:{mimetypes.guess_type(path.name)[0]};base64,{content}"
        else:
            image.replace_with(image.get("alt", ""))
    context["body"] = str(soup)
    paragraphs = [" ".join(text.get_text().split()) for text in soup.select("p:not([class])")]
    summary = next((text for text in paragraphs if len(text) > 40), ABOUT)
    tag = f'<meta name="description" content="{html.escape(summary[:300])}">'
    context["metatags"] = context.get("metatags", "") + tag


def docstring(app, what, name, obj, options, lines) -> None:
    """Escape |w| and W_i in this project's docstrings, which reST would take for markup."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            parts = line.split("`")
            parts[::2] = [re.sub(r"([|_])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def setup(app) -> None:
    app.add_transform(Pictures)
    app.connect("html-page-context", links)
    app.connect("autodoc-process-docstring", docstring)
