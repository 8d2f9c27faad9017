"""`python -m lapnb`: the driver that runs all notebooks and builds the report."""

import os
import re
import subprocess
import sys

import nbformat
import pytest

from lapnb.__main__ import main
from lapnb.report.html import build_report, verdict

pytestmark = pytest.mark.xdist_group("main")  # one run serves nearly all tests

GOOD = """import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
display(pd.DataFrame({"surviving": [level]}))
plt.plot([0, 1])
plt.show()
print(f"lap < mp at {level} %: expected a, found b: reproduced (quick scale)")
print("lap < rp: expected a, found b: open (quick scale)")"""


def write(path, title, code):
    cells = [
        nbformat.v4.new_markdown_cell(title),
        nbformat.v4.new_code_cell("level: int = 1  # a level", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def drive(root, *arguments):
    environment = {**os.environ, "LAPNB_ROOT": str(root)}
    command = [sys.executable, "-m", "lapnb", *arguments]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A folder with four notebooks after one run, and the finished process."""
    root = tmp_path_factory.mktemp("root")
    (root / "notebooks").mkdir()
    start = "# Start\n\n[good](good.ipynb) ![](../shot.png)"
    listing = "import pathlib; print(sorted(p.name for p in pathlib.Path('.').glob('*.csv')))"
    write(root / "notebooks" / "00_start_here.ipynb", start, listing)
    write(root / "notebooks" / "bad.ipynb", "# Bad", "raise ValueError('no <such> thing')")
    write(root / "notebooks" / "dead.ipynb", "# Dead", "import os; os.kill(os.getpid(), 9)")
    write(root / "notebooks" / "good.ipynb", "# Good", GOOD + "\nopen('row.csv', 'w').close()")
    (root / "shot.png").write_bytes(b"png")
    return root, drive(root, "-p", "level", "7", "--jobs", "2")


@pytest.fixture
def run(driven):
    return driven[1]


@pytest.fixture
def pages(driven):
    return {path.name: path.read_text() for path in (driven[0] / "build" / "report").iterdir()}


def test_goes_on_after_failures_and_tells(run):
    assert run.returncode == 1
    assert "bad" in run.stdout and "FAILED: ValueError: no <such> thing" in run.stdout
    assert "FAILED: DeadKernelError" in run.stdout
    assert re.search(
        r"^good +[\d.]+  1 reproduced, 1 open \(quick scale\)$", run.stdout, re.MULTILINE
    )
    assert "2 of 4 notebooks ran through" in run.stdout
    assert "encrypt" not in run.stderr


def test_parameters_reach_the_notebooks_and_the_sources_stay(driven, pages):
    assert "lap &lt; mp at 7 %" in pages["good.html"]
    source = nbformat.read(driven[0] / "notebooks" / "good.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in source.cells)


def test_start_page_runs_last(pages):
    assert "row.csv" in pages["index.html"]


def test_pages_link_each_other_and_need_no_network(pages):
    assert set(pages) == {"index.html", "bad.html", "dead.html", "good.html"}
    for page in pages.values():
        links = re.findall(r"href=[\"']([\w.]+\.(?:html|ipynb))", page)
        assert links and set(links) <= set(pages)
        assert not re.search(r"(src|href)=[\"'](https?:)?//", page)
        assert 'name="viewport"' in page
    assert all(f"'{name}'" in pages["index.html"] for name in pages if name != "index.html")
    assert "'good.html'" in pages["dead.html"] and "'bad.html'" in pages["dead.html"]
    assert 'src="data:image/png;base64,' in pages["index.html"]
    assert 'src="data:image/png;base64,' in pages["good.html"]


def test_failed_notebook_has_a_page_that_says_so(pages):
    said = "This notebook failed:</b> ValueError: no &lt;such&gt; thing"
    assert said in pages["bad.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "levle", "7"], "no notebook has a parameter levle; there are: ['level']"),
        (["nothing"], "no notebook named nothing; there are: good"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(lapnb_root, capsys, arguments, message):
    (lapnb_root / "notebooks").mkdir()
    write(lapnb_root / "notebooks" / "good.ipynb", "# Good", GOOD)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err
    assert not (lapnb_root / "build").exists()


def test_verdict_counts_lines_that_end_in_one():
    text = (
        "a < b: reproduced (quick scale)\n1  not reproduced (quick scale)\nopen: yes\nreproduced\n"
    )
    texts = [text, text, "0  open (paper scale)  \n"]  # a table that is shown twice counts once
    outputs = [nbformat.v4.new_output("stream", text=text) for text in texts]
    cell = nbformat.v4.new_code_cell(outputs=outputs)
    expected = "1 reproduced, 1 not reproduced (quick scale); 1 open (paper scale)"
    assert verdict(nbformat.v4.new_notebook(cells=[cell])) == expected


def test_a_link_to_a_notebook_without_a_page_is_text(lapnb_root):
    copies = []
    for name, text in (
        ("00_start_here", "[a](a.ipynb#x) [b](b.ipynb)"),
        ("a", "[s](00_start_here.ipynb)"),
    ):
        cells = [nbformat.v4.new_markdown_cell(text)]
        copies.append(lapnb_root / f"{name}.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=cells), copies[-1])
    index = build_report(copies, lapnb_root / "report", lapnb_root)
    assert '<a href="a.html#x">a</a> b' in index.read_text()
    assert '<a href="index.html">s</a>' in (index.parent / "a.html").read_text()
