"""Every notebook runs at the smoke scale, with parameters as papermill hands them over.

In this process, which is quick; nbval runs each in a kernel of its own, as does papermill one here.
"""

import os
import shutil
import subprocess
import sys

import pandas as pd
import papermill
import pytest
import reference
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

import lapnb

QUICK = {"scale": "smoke", "repeats": 1}  # of parameters that a notebook may have
COMPARED = ["table", "method", "scope", "schedule", "round", "seed", "surviving", "error_before"]
COMPARED += ["error", "train_error", "dense_error", "distortion"]


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory, checkout):
    """One results folder for all notebooks, as in a new checkout."""
    root = tmp_path_factory.mktemp("shared_root")
    for scale in ("paper", "reduced"):
        shutil.copytree(checkout / "figures" / scale, root / "figures" / scale)
    return root


def test_notebook_computes_what_a_fresh_run_does(notebook, shared_root, tmp_path, monkeypatch):
    """At the smoke scale, with the surviving weights that the table declares."""
    monkeypatch.chdir(tmp_path)
    for network in ["fcn", "conv6"] if notebook.stem == "later_criteria" else [None]:
        monkeypatch.setenv("LAPNB_ROOT", str(shared_root))
        results = executed(notebook, QUICK | {"network": network}).get("results")
        if results is not None:
            reference.assert_surviving(results)
            monkeypatch.setenv("LAPNB_ROOT", str(tmp_path / "fresh"))
            fresh = lapnb.run(lapnb.table(results.table[0], "smoke", methods=["lap"]))
            computed = results[results.method == "lap"].reset_index(drop=True)
            pd.testing.assert_frame_equal(computed[COMPARED], fresh[COMPARED])
    assert not [*tmp_path.glob("*.*")]


def executed(notebook, parameters):
    """The names that a notebook leaves, run with those of the parameters that it has."""
    listed = papermill.inspect_notebook(notebook)
    chosen = {name: value for name, value in parameters.items() if name in listed and value}
    content = parameterize_notebook(load_notebook_node(str(notebook)), chosen)
    names = {}
    for cell in content.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{notebook.stem}: {cell.source[:40]}", "exec"), names)
    return names


def test_papermill_runs_a_notebook_from_any_folder(checkout, lapnb_root, tmp_path):
    notebook = checkout / "notebooks" / "fcn_mnist.ipynb"
    options = ["-p", "scale", "smoke", "-p", "methods", '["mp", "lap"]', "-p", "seeds", "1"]
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", *options]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert "LAP beats MP" in (tmp_path / "out.ipynb").read_text("utf-8")
    assert len(pd.read_csv(lapnb_root / "figures" / "smoke" / "fcn_mnist.csv")) == 4
