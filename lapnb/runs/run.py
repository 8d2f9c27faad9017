"""Compute a table's rows, and read recorded ones: what a notebook calls."""

import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from pydantic import Field

from lapnb.checks import checked, require
from lapnb.paper.protocol import SCALES, Table, Whole
from lapnb.paper.tables import table as declare
from lapnb.pruning.masks import check_method
from lapnb.runs.compute import network_of
from lapnb.runs.provenance import device_name
from lapnb.runs.rows import failed, keys, matching, pool, record, results_file, taken_over
from lapnb.runs.schedule import compute_all, graph_of
from lapnb.runs.workers import processors
from lapnb.surroundings import usual_torch
from lapnb.training.data import load_data

Workers = Annotated[Whole, Field(ge=1, strict=True)]


@usual_torch()
def run(
    table: Table,
    workers: int | str | None = None,
    executor: Executor | str | None = None,
    recompute: bool | str = False,
) -> pd.DataFrame:
    """Compute the rows of `table` that are not recorded yet, and return all of them.

    There is one row for each (variant, method, round, seed). It is recorded in
    `figures/<scale>/<table>.csv` as soon as it is finished, so a stopped run goes on where it was.
    A row that comes with the package counts as recorded. A row of the same settings in another
    table's file is taken over.

    A run that fails is recorded with the reason in `status`, and is not among the returned rows.
    The others go on, and the next call tries it again. A run that diverges is recorded as such and
    kept. Rows that were computed on another device, or in another precision, than the table asks
    for are returned, and a printed sentence says so.

    Args:
        table: What `lapnb.table` declares.
        workers: Processes of one thread each. By default the environment variable LAPNB_WORKERS,
            else one for each processor that this process may use; one in all on a GPU. The number
            does not change any result.
        executor: Any executor in the style of `concurrent.futures` to compute on instead, or the
            address of a Dask scheduler, "tcp://host:8786". Only the caller writes results. A folder
            shared with the workers saves them training a dense network each, lets them resume a
            run that another one began, and moves the bar within runs.
        recompute: Compute also the rows that are recorded, and replace them.

    Returns:
        The finished rows, in the table's order of variants, methods and rounds.

    Raises:
        ValueError: A parameter, method or results file is invalid. The message names it.
        PermissionError: Results cannot be written.
        ConnectionError: No scheduler answers.
        RuntimeError: No run at all gave a result.

    >>> import lapnb
    >>> results = lapnb.run(lapnb.table("fcn_mnist", methods=["mp", "lap"]))  # doctest: +SKIP
    """
    require(isinstance(table, Table), "table", "one that lapnb.table declares", table)
    recompute = checked("recompute", recompute, bool)
    if workers is None:
        workers = 1
        if table.device == "cpu":
            workers = os.environ.get("LAPNB_WORKERS") or processors()
    workers = checked("workers", workers, Workers)
    fits = executor is None or isinstance(executor, str) or hasattr(executor, "submit")
    allowed = "an object with a method submit, or the address of a Dask scheduler"
    require(fits, "executor", allowed, executor)
    _check_methods(table)
    data = load_data(table.dataset)
    most = len(data.train_labels)
    allowed = f"at most {most}, the number of training images of {data.source}"
    require(table.batch_size <= most, "batch_size", allowed, table.batch_size)
    source = data.source

    path = results_file(table.name, table.scale, table.changed)
    runs = {(source, *run) for run in table.runs()}
    missing = runs if recompute else _missing(path, runs)
    if missing:
        title = f"{table.name} ({table.scale} scale)"
        compute_all(graph_of(table, source, missing), title, path, executor, workers)
    rows = matching(pool(path), runs)
    bad = rows[rows.status != "ok"]
    if not bad.empty:
        print(f"{len(bad)} of {len(rows)} runs gave no result, the first of them:")
        print(bad[["method", "round", "seed", "status"]].head().to_string(index=False))
    if len(bad) == len(rows):
        raise RuntimeError(f"no run of {table.name} gave a result; {path} says why in its rows")
    results = _finished(rows, table)
    _tell_origins(results, table)
    return results


def recorded(name: str, scale: str | None = None, source: str | None = None) -> pd.DataFrame:
    """Return the recorded rows of a table: the user's own, and those that come with the package.

    Where both hold the same run, the user's own row counts.

    Args:
        name: The table's name.
        scale: By default the largest scale that has any rows.
        source: The source of the data set. By default the one with most rows; the others are named.

    Returns:
        One row per run, as `run` returns them.

    Raises:
        ValueError: The table, scale or source is unknown.
        FileNotFoundError: Nothing is recorded.

    >>> import lapnb
    >>> rows = lapnb.recorded("fcn_mnist", "paper")
    >>> rows[(rows.method == "lap") & (rows["round"] == 10)].error.round(2).tolist()
    [39.55, 25.71, 15.99, 13.79, 24.69]
    """
    all_sources: set[str] = set()
    for candidate in reversed(SCALES) if scale is None else [scale]:
        table = declare(name, candidate)
        rows = _finished(pool(results_file(name, candidate)), table)
        sources = [*rows.source.value_counts().index]  # the most frequent one first
        all_sources.update(sources)
        chosen = source
        if source is None and sources:
            chosen = sources[0]
            for other in sources[1:]:
                print(f"also recorded: {name} on {other}; recorded(…, source={other!r}) reads it")
        if chosen in sources:
            return rows[rows.source == chosen].reset_index(drop=True)
    require(not all_sources, "source", f"one of {', '.join(sorted(all_sources))}", source)
    raise FileNotFoundError(f"no run of {name} is recorded yet: lapnb.run(lapnb.table({name!r}))")


def _check_methods(table: Table) -> None:
    """Raise ValueError for a method that cannot prune the table's network."""
    for variant in table.split():
        with torch.device("meta"):  # its weights hold no numbers
            model = network_of(variant)
        for method in variant.methods:
            check_method(model, method, variant.scope)


def _missing(path: Path, runs: set[tuple]) -> set[tuple]:
    """Take over rows that other tables recorded; return the runs with no row, or a failed one."""
    rows = pool(path)
    missing = runs - keys(rows[~failed(rows)])
    if missing:
        shared = taken_over(path, missing)
        if not shared.empty:
            record(path, shared)
        missing -= keys(shared)
    return missing


def _finished(rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Return the rows that are results of `table`, in its order of variants, methods and rounds."""
    runs = pd.DataFrame(table.runs(), columns=["settings", "method", "round", "seed"])
    order = runs.drop(columns="seed").drop_duplicates()
    return order.merge(rows[rows.status == "ok"])[[*rows.columns]]


def _tell_origins(rows: pd.DataFrame, table: Table) -> None:
    """Say how many rows were computed on another device, or in another precision, than asked for.

    Say also for which seeds the rows start from several dense networks: machines round differently.
    """
    asked = device_name(table.device, table.precision)
    elsewhere = rows.device[rows.device != asked]
    if not elsewhere.empty:
        print(
            f"{len(elsewhere)} of {len(rows)} rows were recorded on "
            f"{' and '.join(elsewhere.unique())}; this table asks for {asked}: "
            "recompute=True computes them so"
        )
    networks = rows.groupby(["activation", "seed"]).dense_error.nunique()
    seeds = networks[networks > 1].index.unique("seed")
    if not seeds.empty:
        print(
            f"recorded rows of seed {', '.join(map(str, seeds))} come from several dense networks "
            "or machines: recompute=True recomputes all from one"
        )
