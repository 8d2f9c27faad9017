"""The project's files agree with each other, and the committed notebooks are fit to be read."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib

import nbformat
import numpy as np
import papermill
import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import lapnb
from lapnb.report.compare import MEAN, RUNS
from lapnb.runs.run import read


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
    assert found == versions(project["dependencies"] + project["optional-dependencies"]["test"])


def test_import_is_light():
    """Plotting, OBD's Hessians and clusters are imported where they are used."""
    code = "import sys, lapnb; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"matplotlib", "seaborn", "backpack", "distributed", "papermill"}
    assert heavy.isdisjoint(run.stdout.split())


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(lapnb.__path__)])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"lapnb.{name}")).failed == 0


def test_notebooks_have_one_parameters_cell_that_papermill_reads(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert not [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    [cell] = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    lines = ast.parse(cell.source).body
    listed = papermill.inspect_notebook(notebook)
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
    for cell in code:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            assert cell.outputs, f"nothing to compare with in {cell.source!r}"


def test_committed_rows_of_a_seed_start_from_one_dense_network(checkout):
    for path in checkout.glob("figures/*/*.csv"):
        if path.parent.name in ("paper", "reduced"):
            assert (read(path).groupby(["activation", "seed"]).dense_error.nunique() == 1).all()


def test_committed_plots_show_the_recorded_rows(checkout, monkeypatch):
    """As far as their captions tell, which say scale, data and number of seeds."""
    monkeypatch.setenv("LAPNB_ROOT", str(checkout))
    for path in checkout.glob("figures/*/*.png"):
        if path.parent.name in ("paper", "reduced"):
            rows = lapnb.recorded(path.stem.split("-")[0], path.parent.name)
            shown = RUNS if path.stem.endswith("-distortion") else MEAN
            assert Image.open(path).text["Description"] == lapnb.caption(rows, shown), path


@pytest.mark.parametrize(
    "methods", [["mp", "rp", "lfp", "lbp", "lap"], ["lap", "lap_forward", "lap_backward"]]
)
def test_the_readme_shows_the_recorded_rows(checkout, methods):
    rows = read(checkout / "figures" / "paper" / "fcn_mnist.csv")
    table = lapnb.compare(rows[rows.method.isin(methods)]).set_index(["surviving", "method"])
    for surviving in table.index.unique("surviving"):
        line = f"| {surviving:.2f} |"
        for cell in (table.loc[surviving, method] for method in methods):
            assert cell.n == 5
            published = (
                "" if np.isnan(cell.paper) else f" ∣ {cell.paper:.2f} ± {cell.paper_std:.2f}"
            )
            line += f" {cell.error:.2f} ± {cell['std']:.2f}{published} |"
        assert line in (checkout / "README.md").read_text().splitlines()
