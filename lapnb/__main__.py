"""Run the notebooks through papermill, several at once, and build the report.

`python -m lapnb --help` lists the options. Executed copies go to build/notebooks, the report to
build/report; the sources in notebooks/ stay as they are.
"""

import argparse
import contextlib
import functools
import os
import signal
import subprocess
import sys
from concurrent.futures import as_completed
from pathlib import Path

import nbformat
import papermill
from traitlets.config import Config

from lapnb.checks import literal
from lapnb.progress import Progress
from lapnb.runs.workers import Processes, processors
from lapnb.store import root

BUILD = Path(__file__).resolve().parents[1] / "docs" / "build.py"
START = "00_start_here"  # reads what the others have recorded, so it runs after them
# without it every kernel warns that its connection to papermill is not encrypted
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})
Outcome = tuple[str, float]  # what went wrong, if anything, and seconds


def notebooks() -> dict[str, Path]:
    """Return the notebooks by name: those of the results folder if it has any, else ours."""
    names = "notebooks/*.ipynb"
    paths = sorted(root().glob(names)) or sorted(BUILD.parents[1].glob(names))
    return {path.stem: path for path in paths}


def parse(argv: list[str] | None, sources: dict[str, Path]) -> argparse.Namespace:
    """Return the command line's options; `chosen` holds each notebook's parameters by its name."""
    description = "Run the notebooks through papermill, several at once, and build the report."
    parser = argparse.ArgumentParser("python -m lapnb", description=description)
    parser.add_argument("notebooks", nargs="*", help="names, as in fcn_mnist; default: all")
    pair_help = "set a parameter in every notebook that has it, as in -p scale smoke"
    pair = dict(nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=pair_help)
    parser.add_argument("-p", "--parameter", **pair)
    parser.add_argument("--jobs", type=int, default=processors(), help="notebooks at once")
    timeout_help = "seconds for one cell; 0: no limit (%(default)s)"
    parser.add_argument("--timeout", type=int, default=1800, help=timeout_help)
    options = parser.parse_args(argv)
    if not (sources and BUILD.exists()):
        parser.error("the notebooks and the report need a checkout of the project: git clone it")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {options.jobs}")
    options.chosen = choose(parser, options, sources)
    return options


def choose(parser, options: argparse.Namespace, sources: dict[str, Path]) -> dict[str, dict]:
    """Return the parameters of each notebook that is to run; refuse one that no notebook has."""
    names = [Path(name).stem for name in options.notebooks] or [*sources]
    for name in names:
        if name not in sources:
            parser.error(f"no notebook named {name}; there are: {', '.join(sources)}")
    declared = {name: papermill.inspect_notebook(sources[name]) for name in names}
    parameters = sorted(set().union(*declared.values()))
    chosen = {name: {} for name in names}
    for parameter, value in options.parameter:
        if parameter not in parameters:
            parser.error(
                f"no notebook has a parameter {parameter}; there are: {', '.join(parameters)}"
            )
        for name in names:
            if parameter in declared[name]:
                chosen[name][parameter] = literal(value)
    return chosen


def run_all(
    sources: dict[str, Path], options: argparse.Namespace, outcomes: dict[str, Outcome]
) -> None:
    """Run the chosen notebooks into build/notebooks, several at once, even where some fail.

    `outcomes` is filled in as they end.
    """
    settings = dict(progress_bar=False, start_timeout=120, config=ENCRYPTED)
    settings["execution_timeout"] = options.timeout or None
    folder = root() / "build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    names = options.chosen.keys()
    with Progress(len(names), "notebooks", "notebooks") as bar:
        for part in (names - {START}, names & {START}):
            with Processes(options.jobs) as pool:
                running = {}
                for name in sorted(part):
                    settings |= dict(parameters=options.chosen[name], cwd=sources[name].parent)
                    paths = sources[name], folder / f"{name}.ipynb"
                    run = functools.partial(papermill.execute_notebook, *paths, **settings)
                    running[pool.submit(run)] = paths
                for future in as_completed(running):
                    source, copy = running[future]
                    outcomes[source.stem] = note(source, copy, future.exception())
                    bar.at(len(outcomes))


def note(source: Path, copy: Path, error: BaseException | None) -> Outcome:
    """Note the outcome in the executed copy, or in a copy of the source in its place."""
    notebook = nbformat.read(copy if copy.exists() else source, as_version=4)
    failure = ""
    if error:
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        failure = f"{name}: {text}".partition("\n")[0]
    seconds = notebook.metadata.get("papermill", {}).get("duration") or 0.0
    notebook.metadata["lapnb"] = {"failed": failure, "seconds": round(seconds, 1)}
    nbformat.write(notebook, copy)
    return failure, seconds


def set_environment(jobs: int) -> None:
    """Set the environment variables that the kernels read."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not another one's
    os.environ.setdefault("LAPNB_WORKERS", str(max(1, processors() // jobs)))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # see benchmarks/README.md


def main(argv: list[str] | None = None) -> int:
    """Run the notebooks, build the report, and print a line for each notebook.

    Return 0, or 1 when a notebook or the report failed, or 130 when stopped.
    """
    sources = notebooks()
    options = parse(argv, sources)
    set_environment(options.jobs)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcomes: dict[str, Outcome] = {}
    status = 130
    with contextlib.suppress(KeyboardInterrupt):
        run_all(sources, options, outcomes)
        status = subprocess.run([sys.executable, BUILD]).returncode
    report = {0: root() / "build" / "report" / "index.html", 130: "stopped"}.get(status, "failed")
    for name in options.chosen:
        failure, seconds = outcomes.setdefault(name, ("not finished", 0.0))
        print(f"{name:28} {seconds:7.1f} s  {f'FAILED: {failure}' if failure else 'ok'}")
    succeeded = sum(not failure for failure, _ in outcomes.values())
    print(f"{succeeded} of {len(options.chosen)} notebooks ran through. Report: {report}")
    return status or int(succeeded < len(options.chosen))


if __name__ == "__main__":
    sys.exit(main())
