"""Every notebook runs through papermill, from a folder of its own, at the smoke scale."""

import os
import subprocess
import sys

import nbformat
import papermill
import pytest

import lapnb


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory):
    """One results folder for all notebooks, in all of pytest's processes, as in real use."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = base / "shared_root"
    root.mkdir(exist_ok=True)
    return root


def test_notebook_runs_at_the_smoke_scale(notebook, shared_root, tmp_path):
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb"]
    if "scale" in papermill.inspect_notebook(notebook):
        command += ["-p", "scale", "smoke"]
    environment = {**os.environ, "LAPNB_ROOT": str(shared_root), "JUPYTER_PREFER_ENV_PATH": "1"}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550
    )
    assert run.returncode == 0, run.stderr[-3000:]

    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert any(cell.get("outputs") for cell in cells)
    if is_table(notebook.stem):
        for ending in ("png", "csv"):
            assert (shared_root / "figures" / "smoke" / f"{notebook.stem}.{ending}").stat().st_size


def is_table(name):
    try:
        lapnb.table(name, scale="smoke")
    except ValueError:
        return False
    return True
