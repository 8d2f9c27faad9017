"""`python -m lapnb`: the driver that runs all notebooks and builds the report."""

import os
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lapnb import __main__ as driver

one_run = pytest.mark.xdist_group("main")  # serves several tests

# `python -m lapnb` without a report, which has tests of its own and is slow to build
DRIVER = """
import pathlib, sys
from lapnb import __main__ as driver
driver.BUILD = pathlib.Path("stub.py").resolve()
sys.exit(driver.main())
"""
CODE = {
    "good": "print(f'level {level}'); open('row.csv', 'w').close()",
    "bad": "raise ValueError('no <such> thing\\nand more')",
    "dead": "import os; os.kill(os.getpid(), 9)",
    "00_start_here": "import pathlib; print(*sorted(p.name for p in pathlib.Path().glob('*.csv')))",
    "slow": "import pathlib, time; pathlib.Path('started').touch(); time.sleep(600)",
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that makes a root with notebooks of these names."""

    def root(*names):
        folder = tmp_path_factory.mktemp("root")
        (folder / "notebooks").mkdir()
        (folder / "stub.py").touch()
        for name in names:
            parameters = nbformat.v4.new_code_cell("level: int = 1  # a level")
            parameters.metadata["tags"] = ["parameters"]
            cells = [parameters, nbformat.v4.new_code_cell(CODE[name.rstrip("123")])]
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
            notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
            nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
        return folder

    return root


def start(root, *arguments, command=("-c", DRIVER)):
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=root,
        env={**os.environ, "LAPNB_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(root, name):
    """What an executed copy has printed, and what is noted about its run."""
    copy = nbformat.read(root / "build" / "notebooks" / f"{name}.ipynb", as_version=4)
    text = [output.get("text", "") for cell in copy.cells for output in cell.get("outputs", [])]
    return "".join(text), copy.metadata["lapnb"]


@pytest.fixture(scope="module")
def driven(make):
    """A root after one run with all kinds of notebooks, and the report; output, errors, status."""
    root = make("00_start_here", "bad", "dead", "good")
    process = start(root, "-p", "level", "7", "--jobs", "2", command=("-m", "lapnb"))
    return root, *process.communicate(timeout=300), process.returncode


@one_run
def test_goes_on_after_failures_and_tells(driven):
    root, output, errors, status = driven
    report = root / "build" / "report" / "index.html"
    assert status == 1 and report.exists() and f"Report: {report}" in output
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert lines["bad"].endswith("FAILED: ValueError: no <such> thing")
    assert "FAILED: DeadKernelError" in lines["dead"]
    assert lines["good"].endswith("ok") and lines["00_start_here"].endswith("ok")
    assert "2 of 4 notebooks ran through" in output
    assert "encrypt" not in errors and "Traceback" not in errors


@one_run
def test_parameters_reach_the_copies_and_the_sources_stay(driven):
    root = driven[0]
    text, noted = printed(root, "good")
    assert "level 7" in text and noted["failed"] == "" and noted["seconds"] > 0
    assert printed(root, "bad")[1]["failed"] == "ValueError: no <such> thing"
    for source in (root / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(source, as_version=4).cells
        assert len(cells) == 2 and not any(cell.outputs for cell in cells)


@one_run
def test_the_start_page_runs_last(driven):
    assert "row.csv" in printed(driven[0], "00_start_here")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "levle", "7"], "no notebook has a parameter levle; there are: level"),
        (["nothing"], "no notebook named nothing; there are: good"),
        (["--jobs", "0"], "--jobs must be at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    make, monkeypatch, capsys, arguments, message
):
    root = make("good")
    monkeypatch.setenv("LAPNB_ROOT", str(root))
    with pytest.raises(SystemExit, match="2"):
        driver.main(arguments)
    assert message in capsys.readouterr().err
    assert not (root / "build").exists()


def test_what_needs_a_checkout_says_so_at_once(make, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LAPNB_ROOT", str(make("good")))
    monkeypatch.setattr(driver, "BUILD", tmp_path / "docs" / "build.py")  # as in a wheel
    with pytest.raises(SystemExit, match="2"):
        driver.main([])
    assert "need a checkout of the project" in capsys.readouterr().err


def test_a_folder_of_results_gets_the_notebooks_of_the_checkout(checkout):
    folder = checkout / "notebooks"
    assert [*driver.notebooks().values()] == sorted(folder.glob("*.ipynb"))


def test_stopped_at_once_with_nothing_left(make):
    root = make("slow1", "slow2")
    process = start(root, "--jobs", "1")
    while not (root / "notebooks" / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    everything = psutil.Process(process.pid).children(recursive=True)
    assert len(everything) >= 2  # a worker and its kernel
    process.terminate()
    output, _ = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while any(map(alive, everything)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.returncode == 130
    assert output.count("FAILED: not finished") == 2
    assert "0 of 2 notebooks ran through. Report: stopped" in output


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
