"""The project's files agree with each other, and what is committed with the recorded rows."""

import ast
import doctest
import hashlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image, ImageColor

import lapnb
from lapnb.paper.tables import TABLES
from lapnb.report import words
from lapnb.report.compare import one_source
from lapnb.report.plots import COLOURS, finding
from lapnb.runs.rows import read

SCALES = ("paper", "reduced")
# Tables that share a notebook
SHARED = {
    "fcn_before_retraining": "fcn_activations",
    "fcn_later_criteria": "later_criteria",
    "conv6_later_criteria": "later_criteria",
}
SHOWN = {name: SHARED.get(name, name) for name in TABLES}  # table → its notebook


# ---- the package ---------------------------------------------------------------------------------


def versions(lines):
    """Requirement lines → {name: version range}, with conda-forge's name for torch undone."""
    found = {Requirement(line).name: str(Requirement(line).specifier) for line in lines}
    if "pytorch" in found:
        found["torch"] = found.pop("pytorch")
    return found


def test_environment_yml_lists_what_pyproject_lists(checkout):
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((checkout / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge", "nodefaults"]
    assert conda["dependencies"][-1] == {"pip": ["-e ."]}
    found = versions(conda["dependencies"][:-1])
    assert found.pop("python") == project["requires-python"]
    assert found.pop("pip") == ""
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["notebooks"] + extras["report"] + extras["test"]
    assert found == versions(line for line in lines if line != "lapnb[notebooks]")


def test_readme_is_short_and_links_lead_to_files(checkout):
    assert len((checkout / "README.md").read_text("utf-8").splitlines()) <= 120
    for page in ("README.md", "RESULTS.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)[)#]", (checkout / page).read_text("utf-8")):
            assert (checkout / link).exists(), f"{page} links {link}"


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
    assert set(content.metadata) <= {"kernelspec", "language_info"}
    assert "version" not in content.metadata.get("language_info", {})
    for cell in content.cells:
        assert set(cell.metadata) <= {"tags"}
        assert "attachments" not in cell
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_notebooks_are_committed_executed(notebook):
    code = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert any(c.outputs for c in code)


def test_notebooks_have_something_that_nbval_compares(notebook):
    compared = tagged(notebook, "nbval-check-output")
    assert compared and all(cell.outputs for cell in compared)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_a_notebook_that_shows_what_is_recorded(name, checkout):
    path = checkout / "notebooks" / f"{SHOWN[name]}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    show = f'lapnb.show("{name}"'
    assert any(show in cell.source for cell in cells)
    if name != "fcn_before_retraining":  # beside the table that the notebook is about
        assert any(show in cell.source for cell in tagged(path, "nbval-check-output"))


def test_the_notebooks_of_tables_have_the_same_parameters(checkout):
    paths = [checkout / "notebooks" / f"{name}.ipynb" for name in sorted({*SHOWN.values()})]
    found = {path.stem: papermill.inspect_notebook(path) for path in paths}
    assert found["later_criteria"].pop("network")["default"] == '"fcn"'
    first = found["fcn_mnist"]
    assert all(parameters == first for parameters in found.values())


# ---- what is recorded, and what is said of it ----------------------------------------------------


@pytest.fixture
def results(checkout, lapnb_root, tmp_path, monkeypatch):
    """docs/results.py, to which a copy of the committed rows and texts is the checkout."""
    spec = importlib.util.spec_from_file_location("results", checkout / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for scale in SCALES:
        shutil.copytree(checkout / "figures" / scale, lapnb_root / "figures" / scale)
    shutil.copytree(checkout / "benchmarks", lapnb_root / "benchmarks")
    for page in ("README.md", "RESULTS.md"):
        shutil.copy(checkout / page, lapnb_root)
    monkeypatch.setattr(module, "CHECKOUT", lapnb_root)
    return module


def test_readme_and_results_say_what_is_recorded(results, lapnb_root):
    """Otherwise run `python docs/results.py`; but not when somebody has changed a row by hand."""
    for path, text in results.pages().items():
        assert path.read_text("utf-8") == text, path.name


def test_a_changed_row_changes_what_is_said(results, lapnb_root, capsys):
    path = lapnb_root / "figures" / "paper" / "fcn_mnist.csv"
    rows = read(path)
    rows.loc[(rows.method == "lap") & (rows["round"] == 10), "error"] = 99.0
    rows.to_csv(path, index=False)
    after = results.pages()
    assert "was changed by hand" in capsys.readouterr().out
    for page, text in after.items():
        assert page.read_text("utf-8") != text
        assert "FCN on MNIST at 0.12 % (99.00 against" in text


@pytest.fixture
def pictures(checkout, monkeypatch):
    """The committed pictures of tables, and what their metadata say."""
    monkeypatch.setenv("LAPNB_ROOT", str(checkout))
    found = {}
    for path in sorted(checkout.glob("figures/[pr]*/*.png")):
        with Image.open(path) as image:
            found[path] = image.text
    return found


def test_committed_pictures_are_those_of_the_recorded_rows(pictures):
    """Title, caption and the checksum of the rows, which are in the metadata."""
    for path, about in pictures.items():
        name = path.stem.partition("-")[0]
        rows = path.with_name(f"{name}.csv")
        assert about["Table"] == f"{path.parent.name}/{name}", path
        assert about["Rows"] == hashlib.sha256(rows.read_bytes()).hexdigest(), path
        recorded = lapnb.recorded(name, path.parent.name)
        assert about["Title"].endswith(words.title(recorded)), path
        if about["Column"] != "distortion":
            chosen = {"mp", "lap"} if path.stem.endswith("-mp-lap") else {*recorded.method}
            part = one_source(recorded[recorded.method.isin(chosen)], about["Column"])
            assert about["Title"].startswith(finding(part, about["Column"])), path


def test_committed_rows_are_those_that_were_recorded(checkout):
    paths = [path for scale in SCALES for path in checkout.glob(f"figures/{scale}/*.csv")]
    assert paths
    for path in paths:
        recorded = path.with_suffix(".csv.sha256").read_text().split()[0]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded, path


def test_committed_pictures_show_every_method(pictures):
    for path, about in pictures.items():
        if about["Column"] != "distortion" and not path.stem.endswith("-mp-lap"):
            colours = Image.open(path).getcolors(1 << 24)
            seen = {colour[:3] for _, colour in colours if colour[3] == 255}
            rows = lapnb.recorded(path.stem.partition("-")[0], path.parent.name)
            for method in rows.method.unique():
                assert ImageColor.getrgb(COLOURS[method]) in seen, (path, method)


def test_the_picture_of_the_idea_has_the_numbers_of_its_script(checkout):
    spec = importlib.util.spec_from_file_location("idea", checkout / "docs" / "idea.py")
    idea = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(idea)
    numbers = idea.example()
    assert numbers.lookahead.to_list() == pytest.approx(numbers.distortion.to_list())
    assert numbers.removed_by.to_dict() == {"w": "MP", "v": "LAP"}
    with Image.open(checkout / "figures" / "idea.png") as image:
        assert image.text["Description"] == idea.described(numbers)
