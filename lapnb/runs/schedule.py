"""Which tasks a table needs, in which order, and their computation on whatever executor."""

import contextlib
import time
from concurrent.futures import Future
from graphlib import TopologicalSorter
from pathlib import Path

from lapnb.paper.protocol import Table
from lapnb.progress import Progress
from lapnb.runs.compute import compute
from lapnb.runs.rows import record
from lapnb.runs.task import Run, Task, stackable
from lapnb.runs.workers import Where, opened

Graph = dict[Task, set[Task]]  # of each task, those that it starts from
STACK = 20  # networks, from which on more of them gain nothing


def graph_of(table: Table, source: str, missing: set[tuple]) -> Graph:
    """Return the tasks that compute the `missing` rows, and for each the tasks it starts from."""
    graph: Graph = {}
    for plain in table.plain():
        groups = _grouped(plain)
        for seed in plain.seeds:
            dense = Task(plain, source, seed)
            start = set() if dense.dense_file.exists() else {dense}
            latest: dict[str, Task] = {}  # the task of each method's round before, if any
            for group in groups:
                runs = tuple(
                    run for run in group if (source, plain.settings(*run), *run, seed) in missing
                )
                if not runs:
                    continue
                task = Task(plain, source, seed, runs)
                methods = {method for method, _ in runs}
                graph[task] = start | {latest[method] for method in methods & latest.keys()}
                if plain.schedule == "iterative":
                    latest |= dict.fromkeys(methods, task)
    return graph


def _grouped(table: Table) -> list[list[Run]]:
    """Return all runs of a seed by round, in groups that are trained, and recorded, together.

    Runs whose networks are trained in sparse stacks share a group; in an iterative schedule only
    those of one round can. What is recorded already does not count, so that a stack which was
    interrupted is put together as before and finds its checkpoint.
    """
    groups, stacked = [], []
    for t in table.rounds:
        runs = [(method, t) for method in table.methods]
        if stackable(table, t):
            stacked += runs
        else:
            groups += [[run] for run in runs]
    size = STACK if table.schedule == "oneshot" else len(table.methods)
    for first in range(0, len(stacked), size):
        groups.append(stacked[first : first + size])
    return groups


def compute_all(graph: Graph, title: str, path: Path, executor: Where, workers: int) -> None:
    """Compute tasks, what they start from first; record each at once.

    Where a task fails, those that start from it do its work again, or fail for the same reason.
    """
    sorter = TopologicalSorter(graph)
    tasks = {*graph}.union(*graph.values())
    sorter.prepare()
    finished = 0
    running: dict[Task, Future] = {}
    with (
        Progress(sum(task.steps for task in tasks), title) as bar,
        opened(executor, min(workers, len(tasks)), bar) as pool,
    ):
        record(path, [])  # a file that cannot be written is refused before anything is trained
        if workers > 1:
            bar.set_postfix_str("starting workers")
        try:
            while sorter.is_active():
                for task in sorter.get_ready():
                    running[task] = pool.submit(compute, task)
                ended = [task for task, future in running.items() if future.done()]
                for task in ended:
                    _record_outcome(path, task, running.pop(task))
                    sorter.done(task)
                    finished += task.steps
                    bar.at(finished)
                bar.at(finished + sum(map(_steps_done, running)))
                if not ended:
                    time.sleep(0.1)
        finally:
            for future in running.values():
                future.cancel()
        bar.done = f"runs computed: {sum(len(task.runs) for task in tasks)}"


def _record_outcome(path: Path, task: Task, future: Future) -> None:
    """Record the rows of a task that has ended; where it failed, the reason."""
    try:
        rows = future.result()
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason was given"
        status = f"failed: {type(error).__name__}: {reason}"
        rows = [task.row(*run) | {"status": status} for run in task.runs]
    if rows:
        record(path, rows)
    with contextlib.suppress(OSError):
        task.progress_file.unlink()


def _steps_done(task: Task) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(task.progress_file.read_text())
    return 0
