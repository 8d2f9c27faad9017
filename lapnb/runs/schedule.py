"""Which tasks a table needs, in which order, and their computation on whatever executor."""

import contextlib
import itertools
import time
from concurrent.futures import Future
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from lapnb.paper.protocol import Table
from lapnb.progress import Progress
from lapnb.runs.compute import compute, status_of
from lapnb.runs.rows import record
from lapnb.runs.task import Run, Task, stackable
from lapnb.runs.workers import Where, opened

Graph = dict[Task, list[Task]]  # for each task, the tasks that it starts from
STACK = 20  # networks that are trained together, about: more of them gain nothing


def graph_of(table: Table, source: str, missing: set[tuple]) -> Graph:
    """Return the tasks that compute the `missing` rows, and for each the tasks it starts from."""
    graph: Graph = {}
    for variant in table.split():
        for seed in variant.seeds:
            stacks: dict[Any, list[Run]] = {}
            for t, method in itertools.product(variant.rounds, variant.methods):
                if (source, variant.settings(method, t), method, t, seed) in missing:
                    stacks.setdefault(_stack(variant, method, t), []).append((method, t))
            tasks = [Task(variant, source, seed, tuple(runs)) for runs in stacks.values()]
            dense = Task(variant, source, seed)
            if tasks and not dense.file("dense").exists():
                tasks.append(dense)
            for task in tasks:
                graph[task] = [other for other in tasks if other.stage < task.stage]
    return graph


def _stack(table: Table, method: str, pruning_round: int) -> Any:
    """Return a key that is the same for runs that are trained, and recorded, together.

    It does not depend on what is recorded already, so that a stack which was interrupted is put
    together as before and finds its checkpoint.
    """
    if not stackable(table, pruning_round):
        return method, pruning_round
    if table.schedule == "iterative":
        return pruning_round
    rounds = max(1, STACK // len(table.methods))
    return table.rounds.index(pruning_round) // rounds


def compute_all(graph: Graph, title: str, path: Path, executor: Where, workers: int) -> None:
    """Compute the tasks, each after those that it starts from; record each as soon as it ends.

    Where a task fails, those that start from it do its work again, or fail for the same reason.
    """
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    finished = 0
    running: dict[Task, Future] = {}
    with (
        Progress(sum(task.steps for task in graph), title) as bar,
        opened(executor, min(workers, len(graph)), bar) as pool,
    ):
        record(path, [])  # a file that cannot be written is refused before anything is trained
        try:
            while sorter.is_active():
                for task in sorter.get_ready():
                    running[task] = pool.submit(compute, task)
                ended = [task for task, future in running.items() if future.done()]
                for task in ended:
                    record(path, _rows_of(task, running.pop(task)))
                    sorter.done(task)
                    finished += task.steps
                    bar.at(finished)
                bar.at(finished + sum(map(_steps_done, running)))
                if not ended:
                    time.sleep(0.1)
        finally:
            for future in running.values():
                future.cancel()
        bar.done = f"runs computed: {sum(len(task.runs) for task in graph)}"


def _rows_of(task: Task, future: Future) -> list[dict]:
    """Return the rows of a task that has ended; if it failed, they say why."""
    try:
        return future.result()
    except Exception as error:
        return [task.row(*run) | {"status": status_of(error)} for run in task.runs]


def _steps_done(task: Task) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(task.file("progress").read_text())
    return 0
