"""No test reads or writes the checkout's own results, and no progress bar is drawn."""

import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LAPNB_WORKERS", "1")

import torch  # it reads OMP_NUM_THREADS, and imports tqdm, which reads TQDM_DISABLE

torch.set_num_threads(1)

CHECKOUT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def lapnb_root(tmp_path, monkeypatch):
    """An empty folder in place of the checkout for figures/, runs/ and build/."""
    root = tmp_path / "lapnb_root"
    root.mkdir()
    monkeypatch.setenv("LAPNB_ROOT", str(root))
    monkeypatch.setattr("lapnb.runs.rows.SHIPPED", [])
    return root


@pytest.fixture(scope="session")
def checkout():
    """The folder that holds pyproject.toml and notebooks/."""
    return CHECKOUT


def pytest_generate_tests(metafunc):
    """A test that takes `notebook` runs once for each committed notebook."""
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
