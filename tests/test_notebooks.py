"""Every notebook runs at the smoke scale, with parameters as papermill hands them over.

In this process, which is quick; nbval runs each in a kernel of its own, as does papermill one here.
"""

import os
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from filelock import FileLock
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from lapnb.paper.tables import TABLES

QUICK = {"scale": "smoke", "repeats": 1}  # of parameters that a notebook may have


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory, checkout):
    """One results folder for all notebooks, in all of pytest's processes, as in a new checkout."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = base / "shared_root"
    with FileLock(base / "shared_root.lock"):
        for scale in ("paper", "reduced") if not root.exists() else ():
            shutil.copytree(checkout / "figures" / scale, root / "figures" / scale)
    return root


def test_notebook_runs_at_the_smoke_scale(notebook, shared_root, tmp_path, monkeypatch):
    monkeypatch.setenv("LAPNB_ROOT", str(shared_root))
    monkeypatch.chdir(tmp_path)
    listed = papermill.inspect_notebook(notebook)
    given = {name: value for name, value in QUICK.items() if name in listed}
    for network in ["fcn", "conv6"] if notebook.stem == "later_criteria" else [None]:
        more = {"network": network} if network else {}
        content = parameterize_notebook(load_notebook_node(str(notebook)), given | more)
        names = {}
        for cell in content.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{notebook.stem}: {cell.source[:40]}", "exec"), names)
    if notebook.stem in TABLES:
        assert (shared_root / "figures" / "smoke" / f"{notebook.stem}.csv").stat().st_size
    assert not [*tmp_path.glob("*.*")]


def test_papermill_runs_a_notebook_from_any_folder(checkout, lapnb_root, tmp_path):
    command = [sys.executable, "-m", "papermill", str(checkout / "notebooks" / "fcn_mnist.ipynb")]
    command += [
        "out.ipynb",
        "-p",
        "scale",
        "smoke",
        "-p",
        "methods",
        '["mp", "lap"]',
        "-p",
        "seeds",
        "1",
    ]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    shown = [output.data["text/plain"] for output in cells[-2].outputs if "data" in output]
    assert any("LAP beats MP" in text for text in shown)
    assert (lapnb_root / "figures" / "smoke" / "fcn_mnist.csv").exists()
