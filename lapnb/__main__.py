"""Run the notebooks through papermill, several at once, and build the HTML report.

`python -m lapnb --help` lists the options. Executed copies go to build/notebooks, the report to
build/report; the sources in notebooks/ stay as they are.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import nbformat
import papermill
from tqdm import tqdm

from lapnb.report.html import START, build_report, verdict
from lapnb.report.notebooks import run_all
from lapnb.runs.run import root


def parse(argv: list[str] | None, sources: dict[str, Path]) -> tuple[list[tuple], int]:
    """Command line → jobs for `run_all`, notebooks at once."""
    parser = argparse.ArgumentParser("python -m lapnb", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="names, as in fcn_mnist; default: all")
    parser.add_argument(
        *("-p", "--parameter"),
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter in every notebook that has it, as in -p scale smoke",
    )
    parser.add_argument("--jobs", type=int, help="notebooks at once; default: the CPU cores")
    parser.add_argument(
        "--timeout", type=int, default=1800, help="seconds for one cell; 0: no limit (%(default)s)"
    )
    options = parser.parse_args(argv)
    names = [Path(name).stem for name in options.notebooks] or list(sources)
    for name in names:
        if name not in sources:
            parser.error(f"no notebook named {name}; there are: {', '.join(sources) or 'none'}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")

    wanted = {name: _literal(value) for name, value in options.parameter}
    listed = {name: papermill.inspect_notebook(sources[name]) if wanted else {} for name in names}
    for parameter in wanted:
        if not any(parameter in known for known in listed.values()):
            choices = sorted(set().union(*listed.values()))
            parser.error(f"no notebook has a parameter {parameter}; there are: {choices}")

    copies = root() / "build" / "notebooks"
    copies.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name in dict.fromkeys(names):
        parameters = {p: value for p, value in wanted.items() if p in listed[name]}
        jobs.append((sources[name], copies / f"{name}.ipynb", parameters, options.timeout or None))
    return jobs, options.jobs or os.cpu_count() or 1


def _literal(text: str):
    """`3` → 3, `1e-3` → 0.001, `["mp"]` → list; what is no JSON stays text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main(argv: list[str] | None = None) -> int:
    """Run, report, summarise; 1 if a notebook failed, else 0."""
    folder = root() / "notebooks"
    sources = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    jobs, workers = parse(argv, sources)
    if not jobs:
        print(f"There are no notebooks in {folder}.", file=sys.stderr)
        return 1

    silent = bool(os.environ.get("TQDM_DISABLE"))
    with tqdm(total=len(jobs), unit="notebook", disable=silent) as bar:
        # The start page reads what the others recorded, so it runs after them.
        for last in (False, True):
            if batch := [job for job in jobs if (job[0].stem == START) == last]:
                run_all(batch, min(workers, len(batch)), bar)

    # Copies of earlier calls stay in the report, as long as their notebook is there.
    copies = [root() / "build" / "notebooks" / path.name for path in sources.values()]
    index = build_report([c for c in copies if c.exists()], root() / "build" / "report", folder)

    width = max(len(source.stem) for source, *_ in jobs)
    failures = 0
    print(f"{'notebook':{width}}  seconds  claims")
    for source, copy, *_ in jobs:
        notebook = nbformat.read(copy, as_version=4)
        outcome = notebook.metadata["lapnb"]
        failures += bool(outcome["failed"])
        text = f"FAILED: {outcome['failed']}" if outcome["failed"] else verdict(notebook)
        print(f"{source.stem:{width}}  {outcome['seconds']:7.1f}  {text}")
    print(f"{len(jobs) - failures} of {len(jobs)} notebooks ran through. Report: {index}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
