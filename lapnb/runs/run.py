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
from lapnb.runs.rows import keys, matching, read, record, results_file, taken_over
from lapnb.runs.schedule import compute_all, graph_of
from lapnb.training.data import load_data

BIG = ("reduced", "paper")  # scales whose rows come with the package, or with the checkout
COMMITTED = [Path(__file__).parents[above] / "figures" for above in (1, 2)]
Workers = Annotated[Whole, Field(ge=1, strict=True)]


def run(
    table: Table,
    workers: int | str | None = None,
    executor: Executor | str | None = None,
    recompute: bool | str = False,
) -> pd.DataFrame:
    """Compute the rows of `table` that are not recorded yet, and return all of them.

    One row per (variant, method, round, seed), recorded in `figures/<scale>/<table>.csv` as soon
    as it is finished; a row of the same settings in another table's file is taken over. So a
    stopped run goes on where it was, and a finished one only reads.

    workers: processes of one thread each; by default the environment variable LAPNB_WORKERS, else
        one per processor (one in all on a GPU). The number does not change any result.
    executor: any `concurrent.futures`-style executor to compute on instead, or the address of a
        Dask scheduler, "tcp://host:8786". It computes one run at a time in each process. Only the
        caller writes results; a folder shared with the workers saves them training a dense network
        each, lets them resume a run that another one began, and moves the bar within runs.
    recompute: compute rows that are recorded too, and replace them.

    A run that fails is recorded with the reason in `status`, not in the returned rows; the others
    go on, and the next call tries it again. A diverged run is recorded as such and kept.

    Raises ValueError naming an invalid parameter, method or results file; PermissionError where
    results cannot be written; ConnectionError where no scheduler answers; and RuntimeError when
    no run at all gave a result.
    """
    require(isinstance(table, Table), "table", "one that lapnb.table declares", table)
    submits = hasattr(executor, "submit") and not isinstance(executor, type)
    right = executor is None or isinstance(executor, str) or submits
    allowed = "an object with a method submit, as in concurrent.futures, or a scheduler's address"
    require(right, "executor", allowed, executor)
    again = checked("recompute", recompute, bool)
    default = 1 if table.device != "cpu" else os.environ.get("LAPNB_WORKERS") or os.cpu_count()
    count = checked("workers", default if workers is None else workers, Workers)
    for plain in table.plain():
        with torch.device("meta"):  # without numbers in its weights
            model = network_of(plain)
        for method in plain.methods:
            check_method(model, method, plain.scope)
    data = load_data(table.dataset, table.image_size, table.channels)
    most = len(data.train_labels)
    allowed = f"at most {most}, the number of training images of {data.source}"
    require(table.batch_size <= most, "batch_size", allowed, table.batch_size)
    path = results_file(table.name, table.scale, table.changed)
    wanted = {(data.source, plain.settings(m, t), m, t, s) for plain, m, t, s in table.runs()}
    done, others = set(), []
    if not again:
        if others := taken_over(path, wanted):
            record(path, others)
        known = read(path)
        done = keys(known[~known.status.str.startswith("failed")]) & wanted
    if done < wanted:
        graph = graph_of(table, data.source, done)
        compute_all(graph, f"{table.name} ({table.scale} scale)", path, executor, count)
    rows = matching(read(path), wanted)
    bad = rows[rows.status != "ok"]
    if not bad.empty:
        print(f"{len(bad)} of {len(wanted)} runs gave no result, the first of them:")
        print(bad[["method", "round", "seed", "status"]].head().to_string(index=False))
    if len(bad) == len(rows):
        raise RuntimeError(f"no run of {table.name} gave a result; {path} says why in its rows")
    results = _results(rows, table)
    _tell_mixed_seeds(results)
    whole = declare(table.name, table.scale)
    results.attrs["just_run"] = bool(others or done < wanted) and [*table.runs()] == [*whole.runs()]
    return results


def recorded(name: str, scale: str | None = None, source: str | None = None) -> pd.DataFrame:
    """The recorded rows of table `name` at a scale, by default the largest that has any.

    Rows of one `source` of the data set only, by default the one with most rows; others are named.
    Raises ValueError for an unknown table or source, FileNotFoundError when nothing is recorded.
    """
    known: set[str] = set()
    for wanted in reversed(SCALES) if scale is None else [scale]:
        declared = declare(name, wanted)
        path = results_file(name, wanted)
        places = [path, *(folder / wanted / path.name for folder in COMMITTED if wanted in BIG)]
        rows = _results(read(next((place for place in places if place.exists()), path)), declared)
        sources = rows.source.value_counts().index  # the most frequent one first
        chosen, known = source or next(iter(sources), None), known.union(sources)
        if chosen in sources:
            for other in sources.drop(chosen) if source is None else ():
                print(f"also recorded: {name} on {other}; recorded(…, source={other!r}) reads it")
            return rows[rows.source == chosen].reset_index(drop=True)
    require(not known, "source", f"one of {', '.join(sorted(known))}", source)
    raise FileNotFoundError(f"no run of {name} is recorded yet: lapnb.run(lapnb.table({name!r}))")


def _results(rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """The results of `table` among the rows, in its order of variants, methods and rounds."""
    runs = enumerate((plain.settings(m, t), m, t) for plain, m, t, _ in table.runs())
    order = {run: place for place, run in runs}
    found = rows[["settings", "method", "round"]].itertuples(index=False, name=None)
    rows = rows.assign(place=[order.get(run, -1) for run in found])
    rows = rows[(rows.status == "ok") & (rows.place >= 0)].sort_values(["place", "seed"])
    return rows.drop(columns="place").reset_index(drop=True)


def _tell_mixed_seeds(rows: pd.DataFrame) -> None:
    """All rows of a seed should start from one dense network; other machines round otherwise."""
    for column in ("dense_error", "device"):
        for (_, seed), found in rows.groupby(["activation", "seed"])[column].unique().items():
            if len(found) > 1:
                values = " and ".join(map(str, sorted(found)))
                print(
                    f"recorded rows of seed {seed} come from several dense networks or machines "
                    f"({column} {values}): recompute=True recomputes all from one"
                )
