"""Run notebooks through papermill, several at once, each into an executed copy."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
import papermill
from tqdm import tqdm
from traitlets.config import Config

# Without this, every kernel warns that its connection to papermill is not encrypted.
_ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def run_notebook(source: Path, copy: Path, parameters: dict, timeout: int | None) -> None:
    """Run one notebook into `copy`. What a cell raises is recorded there, not raised."""
    copy.unlink(missing_ok=True)
    start = time.perf_counter()
    failed = ""
    try:
        papermill.execute_notebook(
            source,
            copy,
            parameters,
            cwd=source.parent,
            progress_bar=False,
            start_timeout=120,
            execution_timeout=timeout,
            config=_ENCRYPTED,
        )
    except papermill.PapermillExecutionError as error:
        failed = f"{error.ename}: {error.evalue}"
    except Exception as error:  # a dead kernel, a timeout, a file that is no notebook
        failed = f"{type(error).__name__}: {error}"
    record(source, copy, failed, time.perf_counter() - start)


def record(source: Path, copy: Path, failed: str, seconds: float) -> None:
    """Note the outcome in the executed copy, which is the source where nothing was executed."""
    try:
        notebook = nbformat.read(copy if copy.exists() else source, as_version=4)
    except Exception:  # still gets its page
        notebook = nbformat.v4.new_notebook()
    notebook.metadata["lapnb"] = {"failed": failed.partition("\n")[0], "seconds": round(seconds, 1)}
    nbformat.write(notebook, copy)


def prepare_worker(threads: int) -> None:
    """Environment of the kernels that this worker process starts."""
    os.environ.pop("JUPYTER_PATH", None)  # this environment's kernel, not another one's
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # one bar over all; none in the pages
    os.environ.setdefault("LAPNB_WORKERS", str(threads))
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def run_all(jobs: list[tuple], workers: int, bar: tqdm) -> None:
    """Run (source, copy, parameters, timeout) jobs in parallel processes, whatever fails."""
    spawn = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, spawn, prepare_worker, (threads,))
    futures = {pool.submit(run_notebook, *job): job for job in jobs}
    try:
        for future in as_completed(futures):
            source, copy, *_ = futures[future]
            if error := future.exception():  # the worker process itself died
                record(source, copy, f"{type(error).__name__}: {error}", 0.0)
            bar.set_postfix_str(source.stem, refresh=False)
            bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
