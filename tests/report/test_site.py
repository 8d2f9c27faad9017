"""The report: the site that docs/build.py makes of notebooks, pages and docstrings."""

import base64
import os
import re
import subprocess
import sys

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, PngImagePlugin

import lapnb
from lapnb.pruning.scores import METHODS
from lapnb.training.datasets import DATASETS
from lapnb.training.networks import NETWORKS

SECRET = "the content of a file elsewhere"
pytestmark = pytest.mark.xdist_group("site")  # one build serves all tests


def png(path, **texts):
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return base64.b64encode(path.read_bytes()).decode()


def shown(kind, text):
    return new_output("display_data", {kind: text})


@pytest.fixture(scope="module")
def site(tmp_path_factory, checkout):
    """Parsed pages of a site of three notebooks, by name; and its folder."""
    elsewhere, root = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("root")
    for folder in ("notebooks", "build/notebooks", "figures"):
        (root / folder).mkdir(parents=True)
    secret, text = elsewhere / "secret.png", elsewhere / "secret.txt"
    png(secret, secret=SECRET)
    text.write_text(SECRET)
    (root / "figures" / "link.png").symlink_to(secret)
    inside = png(root / "figures" / "inside.png", Title="What was found", Description="scale")
    attack = f"![a]({secret}) ![b](../figures/link.png) [c]({text}) <img src='{secret}'>\n\n"
    attack += f"```{{include}} {text}\n```\n\n```{{raw}} html\n:file: {text}\n```"
    start = "# Start\n\n[good](good.ipynb#1.-Part) [gone](gone.ipynb) [r](../README.md)"
    good = "# Good <b>&</b>\n\n[s](00_start_here.ipynb)\n\n## 1. Part\n![in](../figures/inside.png)"
    caption = new_output("stream", text="the caption")
    notebooks = {
        "00_start_here": [
            new_markdown_cell(start),
            new_code_cell("1", outputs=[shown("text/html", '<a href="good.ipynb">linked</a>')]),
        ],
        "good": [
            new_markdown_cell(good),
            new_code_cell("level: int = 1", metadata={"tags": ["parameters"]}),
            new_code_cell("level = 2", metadata={"tags": ["injected-parameters"]}),
            new_code_cell("hidden = 3", outputs=[shown("image/png", inside)]),
            new_code_cell("x", outputs=[caption, shown("image/png", png(root / "a.png"))]),
        ],
        "bad": [
            new_markdown_cell("# Bad\n\n" + attack),
            new_code_cell("4", outputs=[shown("text/html", f'<img src="{secret}">')]),
        ],
    }
    for name, cells in notebooks.items():
        nbformat.write(new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    ran = nbformat.read(root / "notebooks" / "bad.ipynb", 4)
    ran.metadata["lapnb"] = {"failed": "ValueError: no <such> thing", "seconds": 3.2}
    nbformat.write(ran, root / "build" / "notebooks" / "bad.ipynb")
    (root / "notebooks" / "broken.ipynb").write_text("{")
    command = [sys.executable, checkout / "docs" / "build.py"]
    environment = {**os.environ, "LAPNB_ROOT": str(root)}
    subprocess.run(command, env=environment, check=True)
    folder = root / "build" / "report"
    pages = {p.stem: BeautifulSoup(p.read_text(), "html.parser") for p in folder.glob("*.html")}
    return pages, folder


def test_no_file_from_outside_gets_in(site):
    _, folder = site
    for path in folder.parent.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_links_lead_to_pages_and_nothing_needs_a_network(site):
    pages, folder = site
    for name, page in pages.items():
        for tag in page.select("[href], [src]"):
            target = (tag.get("href") or tag.get("src")).partition("#")[0].partition("?")[0]
            elsewhere = re.match(r"\w+:|//", target)
            assert not elsewhere or tag.name == "a" or target.startswith("data:"), (name, tag)
            assert elsewhere or (folder / target).exists(), (name, tag)
    article = pages["index"].article
    assert [a["href"] for a in article.select("p a, .text_html a")] == [
        "good.html#part",
        "readme.html",
        "good.html",
    ]
    assert "gone" in article.text and pages["good"].find(id="part")
    assert pages["good"].article.find("a", string="s")["href"] == "index.html"


def test_a_page_folds_code_and_describes_pictures(site):
    good = site[0]["good"]
    code = good.select("div.cell_input")
    folded = [cell.text.strip() for cell in code if cell.find_parent("details")]
    assert len(code) == 4 and folded == ["hidden = 3", "x"]
    alts = [image["alt"] for image in good.article.select("img")]
    assert alts == ["in", "What was found. scale", "the caption"]


def test_a_failed_notebook_is_marked_on_its_page_and_in_the_list(site):
    pages, _ = site
    assert "failed: ValueError: no <such> thing" in pages["bad"].article.text
    assert "This notebook failed" in pages["broken"].article.text
    side = pages["index"].select_one(".sidebar-tree").text
    assert "✗ failed: Bad" in side and "✗ failed: broken" in side and "✗ failed: Good" not in side


def test_the_api_page_documents_every_public_name_and_links_its_source(site):
    documented = {tag["id"]: tag for tag in site[0]["api"].select("dt[id]")}
    for name in lapnb.__all__:
        assert documented[f"lapnb.{name}"].select_one("a .viewcode-link"), name


def test_all_names_of_methods_networks_and_data_sets_are_listed(site):
    names = {code.text for code in site[0]["choices"].article.select("code")}
    assert {*METHODS, *NETWORKS, *DATASETS} <= names


def test_every_page_says_what_it_is_and_leads_to_paper_and_results(site):
    for name, page in site[0].items():
        if page.select_one("article"):
            (about,) = page.select('meta[name="description"]')
            assert len(about["content"]) > 40, name
            links = {link["href"] for link in page.select("p.run a[href]")}
            assert {"readme.html", "results.html"} <= links | {f"{name}.html"}, name
            assert any("arxiv.org" in link for link in links), name
            assert page.select_one('link[rel~="icon"]')["href"].endswith("favicon.svg"), name


def test_the_search_knows_what_readers_look_for(site):
    index = (site[1] / "searchindex.js").read_text()
    for stem in ("sparsiti", "accuraci", "prune"):
        assert f'"{stem}":' in index or f"{stem}:" in index
