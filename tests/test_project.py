"""The project's files agree with each other, and what is committed with the recorded rows."""

import ast
import doctest
import importlib
import io
import pkgutil
import re
import runpy
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.report.summary import NOTEBOOKS

CHECKOUT = Path(__file__).parents[1]
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
LAYOUT |= {tokenize.ENDMARKER}
BRANCHES = ast.If | ast.IfExp | ast.For | ast.While | ast.ExceptHandler | ast.comprehension
BRANCHES |= ast.Assert | ast.match_case
MOST_TOKENS = 48_580
SHOWN = {name: NOTEBOOKS.get(name, name) for name in TABLES}  # table → its notebook


# ---- the package ---------------------------------------------------------------------------------


def versions(lines):
    """Requirement lines → {name: version range}, with conda-forge's name for torch undone."""
    found = {Requirement(line).name: str(Requirement(line).specifier) for line in lines}
    if "pytorch" in found:
        found["torch"] = found.pop("pytorch")
    return found


def test_environment_yml_lists_what_pyproject_lists():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    assert conda["dependencies"][-1] == {"pip": ["-e ."]}
    found = versions(conda["dependencies"][:-1])
    assert found.pop("python") == project["requires-python"]
    assert found.pop("pip") == ""
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["notebooks"] + extras["report"] + extras["test"]
    assert found == versions(line for line in lines if line != "lapnb[notebooks]")


def test_readme_is_short():
    text = (CHECKOUT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 1500
    assert max(map(len, text.splitlines())) <= 200


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#:]+)[)#]", (CHECKOUT / page).read_text("utf-8")):
        assert (CHECKOUT / link).exists(), link


def test_the_package_is_plain():
    """Tokens of code only become fewer (the goal is 40,000); no function has 12 decisions."""
    files = {path: path.read_text("utf-8") for path in (CHECKOUT / "lapnb").rglob("*.py")}
    assert sum(map(count_tokens, files.values())) <= MOST_TOKENS
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert sum(map(decisions, inside(node))) <= 11, f"{path.name}: {node.name}"


def count_tokens(text):
    """Tokens but for layout, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type not in LAYOUT and not t.string.startswith('"""') for t in tokens)


def inside(node):
    """The nodes below a node, but for those of functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
            yield from inside(child)


def decisions(node):
    return len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, BRANCHES)


def test_import_is_light():
    """Plotting, statistics, Hessians, clusters and the site are imported where they are used."""
    code = "import sys, lapnb; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "matplotlib seaborn backpack distributed papermill scipy.stats sphinx"
    assert {*heavy.split()}.isdisjoint(run.stdout.split())


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(lapnb.__path__, "lapnb.")])
def test_docstring_examples(name, checkout, monkeypatch):
    monkeypatch.setenv("LAPNB_ROOT", str(checkout))  # some show recorded rows
    assert doctest.testmod(importlib.import_module(name)).failed == 0


# ---- notebooks -----------------------------------------------------------------------------------


def tagged(path, tag):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def test_notebooks_have_one_parameters_cell_that_papermill_reads(notebook):
    assert not tagged(notebook, "injected-parameters")
    [cell] = tagged(notebook, "parameters")
    lines, listed = ast.parse(cell.source).body, papermill.inspect_notebook(notebook)
    assert [line.target.id for line in lines] == list(listed)
    for line in lines:
        ast.literal_eval(line.value)
        assert listed[line.target.id]["help"], f"{line.target.id} has no comment"


def test_notebooks_are_committed_clean(notebook):
    content = nbformat.read(notebook, as_version=4)
    assert content.metadata.kernelspec.name == "python3"
    assert {*content.metadata} <= {"kernelspec", "language_info"}, "run nbstripout, as pre-commit"
    for cell in content.cells:
        assert {*cell.metadata} <= {"tags"}
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_notebooks_are_committed_executed(notebook):
    code = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    compared = tagged(notebook, "nbval-check-output")
    assert compared and all(cell.outputs for cell in compared)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_notebook_that_shows_what_is_recorded(name):
    path = CHECKOUT / "notebooks" / f"{SHOWN[name]}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    show = f'lapnb.show("{name}"'
    assert any(show in cell.source for cell in cells)
    if name != "fcn_before_retraining":  # beside the table that the notebook is about
        assert any(show in cell.source for cell in tagged(path, "nbval-check-output"))


def test_the_notebooks_of_tables_have_the_same_parameters():
    paths = [CHECKOUT / "notebooks" / f"{name}.ipynb" for name in sorted({*SHOWN.values()})]
    found = {path.stem: papermill.inspect_notebook(path) for path in paths}
    assert found["later_criteria"].pop("network")["default"] == '"fcn"'
    first = found["fcn_mnist"]
    assert all(parameters == first for parameters in found.values())


# ---- what is recorded, and what is said of it ----------------------------------------------------


def test_readme_and_results_say_what_is_recorded(monkeypatch):
    """Otherwise run `python docs/results.py`; but not when somebody has changed a row by hand."""
    monkeypatch.setenv("LAPNB_ROOT", str(CHECKOUT))
    pages = runpy.run_path(str(CHECKOUT / "docs" / "results.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, path.name


def test_the_picture_of_the_idea_has_the_numbers_of_its_script(checkout):
    idea = runpy.run_path(checkout / "docs" / "idea.py")
    numbers = idea["example"]()
    assert numbers.lookahead.to_list() == pytest.approx(numbers.distortion.to_list())
    assert numbers.removed_by.to_dict() == {"w": "MP", "v": "LAP"}
    with Image.open(checkout / "figures" / "idea.png") as image:
        assert image.text["Description"] == idea["described"](numbers)
