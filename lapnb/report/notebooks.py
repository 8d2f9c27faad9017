"""Notebooks through papermill, several at once, each into an executed copy in build/notebooks."""

import time
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import nbformat
import papermill
from traitlets.config import Config

from lapnb.progress import Progress
from lapnb.runs.pool import Processes
from lapnb.store import root

START = "00_start_here"  # reads what the others have recorded, so it runs after them
# else every kernel warns that its connection to papermill is not encrypted
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def execute(source: Path, copy: Path, parameters: dict, timeout: int) -> tuple[str, float]:
    """Run one notebook into `copy`: what went wrong, if anything, and seconds. In a worker."""
    copy.unlink(missing_ok=True)
    start, failure = time.perf_counter(), ""
    limits = dict(start_timeout=120, execution_timeout=timeout or None, config=ENCRYPTED)
    where = dict(cwd=source.parent, progress_bar=False)
    try:
        papermill.execute_notebook(source, copy, parameters, **where, **limits)
    except papermill.PapermillExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
    except Exception as error:  # a dead kernel, a timeout, a file that is no notebook
        failure = f"{type(error).__name__}: {error}"
    return failure.partition("\n")[0], time.perf_counter() - start


def run_all(
    sources: dict[str, Path], chosen: dict[str, dict], timeout: int, jobs: int, outcomes: dict
) -> None:
    """Run the `chosen` notebooks, `jobs` at once, whatever fails.

    chosen: by name the parameters that change. timeout: seconds for one cell; 0: no limit.
    outcomes: is filled in as they end, by name: what went wrong, if anything, and seconds.
    """
    copies = root() / "build" / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    with Progress(len(chosen), "notebooks", "notebooks") as bar:
        for names in ([n for n in chosen if n != START], {START} & {*chosen}):
            with Processes(min(jobs, len(names) or 1)) as pool:
                running = {}
                for name in names:
                    call = (sources[name], copies / f"{name}.ipynb", chosen[name])
                    running[pool.submit(execute, *call, timeout)] = name
                while running:
                    for future in wait(running, 1, FIRST_COMPLETED).done:
                        name, error = running.pop(future), future.exception()
                        died = (f"{type(error).__name__}: {error}", 0.0)
                        outcomes[name] = died if error else future.result()
                        note(sources[name], copies / f"{name}.ipynb", *outcomes[name])
                        bar.at(len(outcomes))


def note(source: Path, copy: Path, failure: str, seconds: float) -> None:
    """Note the outcome in the executed copy, which is the source where nothing was executed."""
    try:
        notebook = nbformat.read(copy if copy.exists() else source, as_version=4)
    except Exception:  # still gets its page
        notebook = nbformat.v4.new_notebook()
    notebook.metadata["lapnb"] = {"failed": failure, "seconds": round(seconds, 1)}
    nbformat.write(notebook, copy)
