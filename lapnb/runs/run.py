"""Expand a Table into runs, skip what is recorded, compute the rest, record each run at once."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor

import pandas as pd
from filelock import FileLock

from lapnb.paper.tables import SCALES, Table
from lapnb.paper.tables import table as declare
from lapnb.progress import Progress
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.scores import METHODS
from lapnb.runs.cell import Task, compute, progress_file, starting_row
from lapnb.store import root, write_whole
from lapnb.training import sparse_stack as sparse
from lapnb.training.data import load_data
from lapnb.training.networks import build_model

NUMBERS = (
    "width", "round", "seed", "surviving", "error_before", "error", "train_error", "dense_error",
    "distortion", "dense_steps", "retrain_steps", "mask_seconds", "retrain_seconds",
)  # fmt: skip
COLUMNS = [
    "table", "scale", "network", "dataset", "source", "activation", "width", "method", "scope",
    "schedule", "round", "seed", "surviving", "error_before", "error", "train_error", "dense_error",
    "distortion", "empty_layers", "dense_steps", "retrain_steps", "mask_seconds", "retrain_seconds",
    "device", "status", "changed", "settings",
]  # fmt: skip
KEY = ["source", "settings", "method", "round", "seed"]
CONNECT_SECONDS = 5  # for a Dask scheduler to answer


def figures(scale: str, changed: str = "") -> pathlib.Path:
    """The folder of a scale's results; tables with changed settings keep out of it."""
    return root() / "figures" / (scale + ("-changed" if changed else ""))


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
        one per processor (one in all on a GPU). The number does not change any result. A script
        calls `run` under `if __name__ == "__main__":`, as Python's multiprocessing wants it.
    executor: any `concurrent.futures`-style executor to compute on instead, or the address of a
        Dask scheduler, "tcp://host:8786". It computes one run at a time in each process. Only the
        caller writes results; a folder shared with the workers saves them training a dense network
        each, lets them resume a run that another one began, and moves the bar within runs.
    recompute: compute rows that are recorded too, and replace them.

    A run that fails is recorded with the reason in `status`, not in the returned rows; the others
    go on, and the next call tries it again. A diverged run is recorded as such and kept.

    Raises ValueError naming a parameter that makes no sense, or a results file that does not;
    PermissionError where results cannot be written; ConnectionError where no scheduler answers; and
    RuntimeError when no run at all gave a result.
    """
    if str(recompute).lower() not in ("true", "false"):
        raise ValueError(f"recompute must be true or false; got {recompute!r}")
    if not (executor is None or isinstance(executor, str) or hasattr(executor, "submit")):
        raise ValueError(
            "executor must be an object with a method submit, as in concurrent.futures, or the "
            f"address of a Dask scheduler as text; got {executor!r}"
        )
    if not isinstance(table, Table):
        raise ValueError(f"table must be one that lapnb.table declares; got {table!r}")
    count = _workers(table, workers)
    data = load_data(table.dataset, table.image_size, table.channels)
    source, largest = data.source, len(data.train_labels)
    if table.batch_size > largest:
        raise ValueError(
            f"batch_size must be at most {largest}, the number of training images of {source}; "
            f"got {table.batch_size}"
        )
    path = figures(table.scale, table.changed) / f"{table.name}.csv"
    _check_writable(path)
    wanted = _wanted(table, source)
    if str(recompute).lower() == "true":
        done = read(path)[:0]
    else:
        _record(path, _taken_over(path, wanted))
        done = _matching(read(path), wanted)
        done = done[~done.status.str.startswith("failed")]
    tasks = _tasks(table, source, _keys(done))
    if tasks:
        total = sum(task.steps for task in tasks)
        title = f"{table.name} ({table.scale} scale)"
        with _opened(executor) as opened, Progress(total, title) as bar:
            computed = _compute_all(tasks, path, bar, opened, count)
            bar.done = "1 run computed" if computed == 1 else f"{computed} runs computed"
    rows = _matching(read(path), wanted)
    bad = rows[rows.status != "ok"]
    if not bad.empty:
        print(f"{len(bad)} of {len(wanted)} runs gave no result, the first of them:")
        print(bad[["method", "round", "seed", "status"]].head().to_string(index=False))
    _tell_mixed_seeds(rows[rows.status == "ok"])
    if len(bad) == len(rows):
        raise RuntimeError(f"no run of {table.name} gave a result; {path} says why in its rows")
    return _in_order(rows, table)


def _tell_mixed_seeds(rows: pd.DataFrame) -> None:
    """All rows of a seed should start from one dense network; other machines round otherwise."""
    for (_, seed), errors in rows.groupby(["activation", "seed"]).dense_error.unique().items():
        if len(errors) > 1:
            print(
                f"recorded rows of seed {seed} start from different dense networks, with "
                f"{' and '.join(f'{e:g}' for e in sorted(errors))} % error, as computed on "
                "different machines; recompute=True starts all of them from one"
            )
    for (_, seed), devices in rows.groupby(["activation", "seed"]).device.unique().items():
        if len(devices) > 1:
            print(f"recorded rows of seed {seed} were computed on {' and '.join(devices)}")


def recorded(name: str, scale: str | None = None) -> pd.DataFrame:
    """The recorded rows of table `name` at a scale, by default the largest that has any.

    Raises ValueError for an unknown table, FileNotFoundError when nothing is recorded.
    """
    for wanted in reversed(SCALES) if scale is None else [scale]:
        declared = declare(name, wanted)
        rows = read(figures(wanted) / f"{name}.csv")
        expected = {
            (plain.settings(method, round), method, round)
            for plain in declared.expand()
            for method in plain.methods
            for round in plain.rounds
        }
        known = [
            key in expected
            for key in rows[["settings", "method", "round"]].itertuples(index=False, name=None)
        ]
        rows = rows[pd.Series(known, index=rows.index, dtype=bool)]
        if (rows.status == "ok").any():
            return _in_order(rows, declared)
    raise FileNotFoundError(f"no run of {name} is recorded yet: lapnb.run(lapnb.table({name!r}))")


def _in_order(rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Results only, in the table's order of variants and methods."""
    order = {m: n for n, m in enumerate(table.methods)}
    for change in table.variants:
        for value in change.values():
            order.setdefault(value, len(order))
    rows = rows[rows.status == "ok"].sort_values(
        ["activation", "schedule", "method", "round", "seed"],
        key=lambda c: c if c.name in ("round", "seed") else c.map(order),
        kind="stable",
    )
    return rows.reset_index(drop=True)


# ---- what is recorded ----------------------------------------------------------------------------


def read(path: pathlib.Path) -> pd.DataFrame:
    """The rows of a results file; ValueError naming the file when it is not one."""
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        rows = pd.read_csv(
            path, dtype={c: str for c in COLUMNS if c not in NUMBERS}, keep_default_na=False,
            na_values={c: [""] for c in NUMBERS},
        )  # fmt: skip
        missing = [column for column in COLUMNS if column not in rows]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        rows = rows.astype({column: float for column in NUMBERS})
        ok = rows[rows.status == "ok"]
        percent = ["error_before", "error", "dense_error"]
        if not rows[["round", "seed"]].map(float.is_integer).all(axis=None):
            raise ValueError("its rounds and seeds are not all whole numbers")
        if not (ok[percent].ge(0) & ok[percent].le(100)).all(axis=None):
            raise ValueError("an error is not between 0 and 100 %")
        if not ok.surviving.between(0, 1).all() or not set(rows.method) <= set(METHODS):
            raise ValueError("a surviving fraction or a method's name makes no sense")
        if not rows.status.str.match("ok$|failed: |diverged: ").all():
            raise ValueError("a status is not ok, failed or diverged")
        if rows.duplicated(KEY).any():
            raise ValueError("it holds the same run twice")
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{path} is not a results file as lapnb writes it ({error}); "
            "mend it, or move it away to compute its rows again"
        ) from error
    return rows.astype({"round": int, "seed": int})[COLUMNS]


def _record(path: pathlib.Path, rows: list[dict]) -> None:
    """Add finished rows; a row of the same run is replaced, so that none is there twice.

    But a run that failed when it was computed again leaves its recorded result as it is.
    """
    if not rows:
        return
    with FileLock(root() / "runs" / f"{path.parent.name}-{path.stem}.lock"):
        old, new = read(path), pd.DataFrame(rows, columns=COLUMNS)
        failed = new[new.status.str.startswith("failed")]
        kept = _keys(old[old.status == "ok"]) & _keys(failed)
        if kept:
            print(f"{failed.status.iloc[0]}; the recorded rows of {len(kept)} runs are kept")
        new = _matching(new, _keys(new) - kept)
        if new.empty:
            return
        old = _matching(old, _keys(old) - _keys(new))
        both = new if old.empty else pd.concat([old, new], ignore_index=True)
        both = both.sort_values(
            ["activation", "schedule", "method", "seed", "round"], kind="stable"
        )
        write_whole(path, both.to_csv(index=False).encode())


def _key_list(rows: pd.DataFrame) -> list[tuple]:
    return list(rows[KEY].itertuples(index=False, name=None))


def _keys(rows: pd.DataFrame) -> set[tuple]:
    return set(_key_list(rows))


def _matching(rows: pd.DataFrame, keys: set[tuple]) -> pd.DataFrame:
    return rows[pd.Series([k in keys for k in _key_list(rows)], index=rows.index, dtype=bool)]


def _wanted(table: Table, source: str) -> set[tuple]:
    return {
        (source, plain.settings(method, round), method, round, seed)
        for plain in table.expand()
        for method in plain.methods
        for round in plain.rounds
        for seed in range(plain.seeds)
    }


def _taken_over(path: pathlib.Path, wanted: set[tuple]) -> list[dict]:
    """Rows of the same settings that another table of this scale has recorded."""
    missing = wanted - _keys(read(path))
    rows = []
    for other in sorted(path.parent.glob("*.csv")) if missing else []:
        if other == path:
            continue
        with contextlib.suppress(ValueError):
            found = _matching(read(other), missing)
            rows += found[found.status == "ok"].assign(table=path.stem).to_dict("records")
            missing -= _keys(found)
    return rows


def _check_writable(path: pathlib.Path) -> None:
    read(path)
    for folder in (path.parent, root() / "runs"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise PermissionError(
                f"results cannot be written to {folder} ({error.strerror}); make it writable, or "
                "set LAPNB_ROOT to a folder that is"
            ) from error


# ---- what is missing, and who computes it --------------------------------------------------------


def _tasks(table: Table, source: str, done: set[tuple]) -> list[Task]:
    """The dense networks that are needed, then the cells that are not `done`."""
    tasks: list[Task] = []
    for plain in table.expand():
        groups = _together(plain)
        for seed in range(plain.seeds):
            cells = _cells(plain, source, seed, done)
            dense = Task(plain, source, seed)
            if cells and not dense.cached():
                tasks.append(dense)
            missing = [tuple(cell for cell in group if cell in cells) for group in groups]
            tasks += [Task(plain, source, seed, group) for group in missing if group]
    return tasks


def _together(plain: Table) -> list[list[tuple[str, int]]]:
    """All cells of a seed by round, in groups that are trained, and recorded, together.

    Sparse fully-connected networks train in stacks; in an iterative schedule only those of one
    round can. What is recorded already does not count, so that a stack which was interrupted is
    put together as before and finds its checkpoint.
    """
    rounds = [[(method, t) for method in plain.methods] for t in plain.rounds]
    if plain.network != "fcn" or plain.device != "cpu" or plain.precision != "float32":
        return [[cell] for cells in rounds for cell in cells]
    parts = rounds if plain.schedule == "iterative" else [[c for cells in rounds for c in cells]]
    shape = dict(width=plain.width, image_size=plain.image_size, channels=plain.channels)
    sizes = [layer.weight.numel() for layer in prunable_layers(build_model("fcn", **shape))]
    surviving = {
        t: sum(k * n for k, n in zip(plain.keep(t), sizes, strict=True)) / sum(sizes)
        if plain.retrain_steps
        else 0.0  # nothing is trained: as many at once as possible
        for t in plain.rounds
    }
    return [
        [cells[n] for n in stack]
        for cells in parts
        for stack in sparse.stacks([surviving[t] for _, t in cells], sum(sizes))
    ]


def _cells(plain: Table, source: str, seed: int, done: set[tuple]) -> list[tuple[str, int]]:
    """What to compute, by round: what is not `done`, and what an iterative run starts from."""
    cells, needed = [], set()
    for round in reversed(plain.rounds):
        for method in plain.methods:
            missing = (source, plain.settings(method, round), method, round, seed) not in done
            start = Task(plain, source, seed, ((method, round),))
            if missing or (method in needed and not start.cached()):
                cells.append((method, round))
                if plain.schedule == "iterative":
                    needed.add(method)
    return sorted(cells, key=lambda cell: cell[1])


def _blocks(first: Task, second: Task) -> bool:
    """Whether `second` starts from networks that `first` makes."""
    if (first.table, first.source, first.seed) != (second.table, second.source, second.seed):
        return False
    if not first.cells:
        return bool(second.cells)
    return first.table.schedule == "iterative" and any(
        method == other and round < later
        for method, round in first.cells
        for other, later in second.cells
    )


def _workers(table: Table, workers: int | str | None) -> int:
    default = 1 if table.device != "cpu" else os.environ.get("LAPNB_WORKERS", os.cpu_count())
    workers = default if workers is None else workers
    try:
        count = int(str(workers))
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(
            "workers (by default LAPNB_WORKERS) must be a whole number of at least 1; "
            f"got {workers!r}"
        )
    return count


@contextlib.contextmanager
def _opened(executor: Executor | str | None) -> Iterator[Executor | None]:
    """The executor to compute on, if one is given: as it is, or that of a Dask scheduler."""
    if not isinstance(executor, str) or not executor:
        yield executor or None
        return
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise ImportError(
            f"executor {executor!r} is text, the address of a Dask scheduler, which needs the "
            "package distributed: pip install lapnb[cluster]"
        ) from error
    try:
        client = Client(executor, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"executor {executor!r} is not the address of a Dask scheduler that answers, as in "
            f"tcp://host:8786 ({error})"
        ) from error
    with client:
        yield client.get_executor(pure=False)


class _Here(Executor):
    """Computes at once, in this process, and tells `watch` the steps done."""

    def __init__(self, watch: Callable[[int], None]):
        self.watch = watch

    def submit(self, function, /, *args) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, self.watch))
        except Exception as error:
            future.set_exception(error)
        return future


def _pool(count: int, watch: Callable[[int], None]) -> Executor:
    if count == 1:
        return _Here(watch)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _start_worker, (os.getpid(),))


def _start_worker(parent: int) -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the caller's bar tells of all workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who stops the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when the process that started it is gone, e.g. killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _submit(pool: Executor, task: Task) -> Future:
    try:
        return pool.submit(compute, task)
    except BrokenExecutor as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _compute_all(
    tasks: list[Task], path: pathlib.Path, bar: Progress, executor: Executor | None, workers: int
) -> int:
    """Compute tasks in an order that respects what they start from; record each at once.

    Returns the number of runs that gave rows.

    When one process of a pool dies, Python gives up all that the pool is computing. These tasks
    are tried once more, one at a time, so that only a task that kills its worker again has failed.
    """
    waiting, running, suspects, finished, computed = list(tasks), {}, [], 0, 0
    slots = min(workers, len(tasks)) if executor is None else len(tasks)
    pool, broken = executor or _pool(slots, lambda steps: bar.at(finished + steps)), False
    children = set(multiprocessing.active_children())
    try:
        while waiting or running:
            for task in list(waiting):
                pending = [*waiting, *running.values()]
                free = not broken and len(running) < (1 if suspects else slots)
                if free and not any(_blocks(t, task) for t in pending):
                    running[_submit(pool, task)] = task
                    waiting.remove(task)
            done = [future for future in running if future.done()]
            for future in done:
                task = running.pop(future)
                try:
                    rows = future.result()
                except BrokenExecutor as error:
                    broken = executor is None
                    if broken and task not in suspects:
                        suspects.append(task)
                        waiting.insert(0, task)
                        continue
                    _record_failure(path, task, f"its worker process died: {error}", waiting)
                except Exception as error:
                    _record_failure(path, task, f"{type(error).__name__}: {error}", waiting)
                else:
                    _record(path, rows)
                    computed += len(rows)
                suspects = [other for other in suspects if other is not task]
                finished += task.steps
            if broken and not running:
                pool, broken = _pool(slots, bar.at), False
            bar.at(finished + sum(_steps_done(task) for task in running.values()))
            if not done:
                time.sleep(0.1)
    finally:
        for future in running:
            future.cancel()
        if executor is None:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - children:
                child.terminate()
    return computed


def _record_failure(path: pathlib.Path, task: Task, reason: str, waiting: list[Task]) -> None:
    """Record a task, and what would have started from it, as failed."""
    reason = "failed: " + " ".join(reason.split())
    for other in [task, *(t for t in waiting if _blocks(task, t))]:
        _record(path, [starting_row(other, *c) | {"status": reason} for c in other.cells])
        if other in waiting:
            waiting.remove(other)


def _steps_done(task: Task) -> int:
    try:
        return int(progress_file(task).read_text())
    except (OSError, ValueError):
        return 0
