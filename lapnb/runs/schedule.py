"""Which tasks a table needs, in which order, and their computation on whatever executor."""

import contextlib
import time
from graphlib import TopologicalSorter
from pathlib import Path

from lapnb.paper.protocol import Table
from lapnb.progress import Progress
from lapnb.runs.compute import compute
from lapnb.runs.rows import record
from lapnb.runs.task import Run, Task
from lapnb.runs.workers import Where, opened
from lapnb.training import stacks
from lapnb.training.networks import FCN, NETWORKS

Graph = dict[Task, set[Task]]  # of each task, those that it starts from
STACK = 20  # networks, from which on more of them gain nothing


def graph_of(table: Table, source: str, done: set[tuple]) -> Graph:
    """What is not `done`, as tasks, and for each of them the tasks that it starts from."""
    graph: Graph = {}
    for plain in table.plain():
        groups = _grouped(plain)
        for seed in plain.seeds:
            dense = Task(plain, source, seed)
            start = set() if dense.dense_file.exists() else {dense}
            last: dict[str, Task] = {}  # the latest round of each method, of an iterative schedule
            for stack in groups:
                missing = tuple(
                    run for run in stack if (source, plain.settings(*run), *run, seed) not in done
                )
                if missing:
                    task = Task(plain, source, seed, missing)
                    graph[task] = start | {last[method] for method, _ in missing if method in last}
                    if plain.schedule == "iterative":
                        last |= {method: task for method, _ in missing}
    return graph


def _grouped(plain: Table) -> list[list[Run]]:
    """All runs of a seed by round, in groups that are trained, and recorded, together.

    Sparse fully-connected networks train in stacks; in an iterative schedule only those of one
    round can. What is recorded already does not count, so that a stack which was interrupted is
    put together as before and finds its checkpoint.
    """
    able = NETWORKS[plain.network] is FCN and plain.device == "cpu" and plain.precision == "float32"
    most = STACK if plain.schedule == "oneshot" else len(plain.methods)
    sparse, groups = [], []
    for round in plain.rounds:
        runs = [(method, round) for method in plain.methods]
        if able and (min(plain.keep(round)) <= stacks.DENSEST or not plain.retrain_steps):
            sparse += runs
        else:
            groups += [[run] for run in runs]
    return groups + [sparse[n : n + most] for n in range(0, len(sparse), most)]


def compute_all(graph: Graph, title: str, path: Path, executor: Where, workers: int) -> None:
    """Compute tasks, what they start from first; record each at once.

    Where a task fails, those that start from it do its work again, or fail for the same reason.
    """
    tasks, sorter = {*graph, *set().union(*graph.values())}, TopologicalSorter(graph)
    sorter.prepare()
    finished, running = 0, {}
    with (
        Progress(sum(task.steps for task in tasks), title) as bar,
        opened(executor, min(workers, len(tasks)), lambda steps: bar.at(finished + steps)) as pool,
    ):
        record(path, [])  # a file that cannot be written is refused before anything is trained
        bar.set_postfix_str("starting workers" if workers > 1 else "")
        try:
            while sorter.is_active():
                for task in sorter.get_ready():
                    future = pool.submit(compute, task)
                    if not (hasattr(future, "done") and hasattr(future, "result")):
                        raise ValueError(
                            f"executor must return futures; its submit gave {future!r}"
                        )
                    running[task] = future
                ended = [task for task, future in running.items() if future.done()]
                for task in ended:
                    try:
                        rows = _those_of(task, running.pop(task).result())
                    except Exception as error:
                        rows = [task.row(*run) | {"status": _status(error)} for run in task.runs]
                    if rows:
                        record(path, rows)
                    with contextlib.suppress(OSError):
                        task.progress_file.unlink()
                    finished += task.steps
                    sorter.done(task)
                bar.at(finished + sum(_steps_done(task) for task in running))
                if not ended:
                    time.sleep(0.1)
        finally:
            for future in running.values():
                future.cancel()
        bar.done = f"runs computed: {sum(len(task.runs) for task in tasks)}"


def _status(error: Exception) -> str:
    name, text = type(error).__name__, " ".join(str(error).split())
    if name == "ProcessExpired":  # pebble's
        name = "its worker process died"
    if name == "CancelledError":
        text = text or "the executor gave it up, or its scheduler is gone"
    return f"failed: {name}: {text or 'no reason was given'}"


def _those_of(task: Task, rows: list[dict]) -> list[dict]:
    """What somebody's executor returned; ValueError unless it is the rows of the task."""
    wanted = [(*run, task.seed, task.table.settings(*run)) for run in task.runs]
    names = "method", "round", "seed", "settings", "status"
    dicts = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    found = [(*map(row.get, names),) for row in rows] if dicts else [()]
    if [key[:-1] for key in found] != wanted or not all(isinstance(key[-1], str) for key in found):
        raise ValueError(f"the executor returned {str(rows)[:80]} in place of this run's rows")
    return rows


def _steps_done(task: Task) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(task.progress_file.read_text())
    return 0
