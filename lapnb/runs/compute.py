"""One run: dense network → scores → masks → retraining → a row. What a worker computes."""

import contextlib
import copy
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lapnb.paper.protocol import Table
from lapnb.pruning.data_statistics import data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.linear_product import relative_distortion
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.runs.task import Run, Task
from lapnb.store import cached, content, load_tensors, remove_leftovers, save_tensors
from lapnb.training.data import Data, load_data
from lapnb.training.networks import build_model
from lapnb.training.stacks import SparseStack, fits
from lapnb.training.train import evaluate, train

Tell = Callable[[int], None]  # is told the steps done
_ALONE = threading.RLock()


def compute(task: Task, tell: Tell | None = None) -> list[dict]:
    """Compute the rows of one task; none for a dense network, which is only cached.

    On one thread, so that a result does not depend on how many workers there are, and one task
    after the other, as random numbers and the number of threads belong to the whole process.
    `tell`, of a caller in this process, is told the steps done; else `task.progress_file` is.
    """

    def note(steps: int) -> None:
        with contextlib.suppress(OSError):  # progress is never worth a run
            task.progress_file.parent.mkdir(parents=True, exist_ok=True)
            task.progress_file.write_text(str(steps))

    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _compute(task, tell or note)
        finally:
            torch.set_num_threads(threads)


def _compute(task: Task, tell: Tell) -> list[dict]:
    table = task.table
    data = load_data(table.dataset, table.image_size, table.channels).to(table.device)
    if data.source != task.source:
        raise ValueError(f"this worker's data set is {data.source}, the caller's {task.source}")
    rows, pruned = {run: task.row(*run) for run in task.runs}, {}
    try:
        dense, facts = dense_network(task, data, tell)
    except FloatingPointError as error:
        return [row | {"status": f"diverged: {error}"} for row in rows.values()]
    origin = content(dense.state_dict())
    for run, row in rows.items():
        try:
            *pruned[run], found = _prune(task, run, data, dense, origin)
            row.update(facts | found)
        except (FloatingPointError, ValueError) as error:
            word = "failed" if isinstance(error, ValueError) else "diverged"  # an earlier round did
            row.update(status=f"{word}: {error}")
    for run, outcome in _retrain(task, data, pruned, tell):
        rows[run].update(outcome)
        if table.schedule == "iterative":
            facts = {"status": outcome["status"]}
            save_tensors(task.retrained_file(*run, origin), pruned[run][0].state_dict(), facts)
    return [*rows.values()]


def network_of(table: Table, classes: int = 10, seed: int | None = None) -> nn.Module:
    """The network of a table, freshly initialised."""
    settings = table.model_dump(include={"width", "activation", "image_size", "channels", "stride"})
    return build_model(table.network, num_classes=classes, seed=seed, **settings)


def dense_network(task: Task, data: Data, tell: Tell | None = None) -> tuple[nn.Module, dict]:
    """The dense network of a seed and its `dense_error` (%), from the cache or trained and cached.

    Raises FloatingPointError when its training diverges, or is known to.
    """
    model = network_of(task.table, data.classes, task.seed)
    model.to(task.table.device, memory_format=torch.channels_last)  # faster for convolutions

    def trained() -> tuple[dict, dict]:
        if reason := _train(model, data, task, (), tell):
            return {}, {"diverged": f"{reason} of the dense network"}
        return model.state_dict(), {"dense_error": _errors(model, data)[0]}

    tensors, facts = cached(task.dense_file, trained)
    if "diverged" in facts:
        raise FloatingPointError(facts["diverged"])
    model.load_state_dict(tensors)
    return model.eval(), facts


def _prune(task: Task, run: Run, data: Data, dense: nn.Module, origin: str) -> tuple:
    """The pruned network, its masks and what its row says of them.

    Raises FloatingPointError when it would start from a round that diverged, ValueError when it
    would from one that failed or cannot be pruned itself.
    """
    (method, round), table, model = run, task.table, copy.deepcopy(dense)
    criterion = METHODS[method]
    if table.schedule == "iterative" and round > min(table.rounds):
        model.load_state_dict(_earlier(task, method, round, origin))
    keep = table.keep(round)
    if table.scope == "global":
        sizes = [layer.weight.numel() for layer in prunable_layers(model)]
        keep = sum(k * n for k, n in zip(keep, sizes, strict=True)) / sum(sizes)
    known = _statistics(task, criterion.looks_at, model, data) if criterion.looks_at else None
    example = data.normalise(data.train_images[:2]) if criterion.neighbours == "flow" else None
    more = dict(example=example, statistics=known, seed=task.seed)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # about empty layers, which the row names
        masks = prune_masks(model, method, keep, table.scope, **more)
    seconds = time.perf_counter() - start
    apply_masks(model, masks)
    layers = zip(prunable_layers(model), masks, strict=True)
    found = {
        "surviving": surviving(masks),
        "error_before": _errors(model, data)[0],
        "distortion": relative_distortion(dense, model) if table.activation == "none" else None,
        "empty_layers": " ".join(layer.name for layer, mask in layers if not mask.any()),
        "mask_seconds": seconds,
    }
    return model, masks, found


def _earlier(task: Task, method: str, round: int, origin: str) -> dict[str, Tensor]:
    """The retrained network of the round before, from which an iterative schedule goes on."""
    run = method, max(t for t in task.table.rounds if t < round)
    path = task.retrained_file(*run, origin)

    def again() -> tuple[dict, dict]:  # it is damaged, or in the folder of another worker
        (row,) = compute(replace(task, runs=(run,)), lambda steps: None)  # nobody waits for these
        if row["status"].startswith("failed"):
            raise ValueError(f"round {run[1]} {row['status']}")
        return load_tensors(path)

    tensors, facts = cached(path, again)
    if facts["status"] != "ok":
        raise FloatingPointError(facts["status"].removeprefix("diverged: "))
    return tensors


def _statistics(task: Task, kind: str, model: nn.Module, data: Data) -> list[Tensor]:
    """What a data-dependent method looks at: from the cache, or computed and cached."""
    count, size = task.table.looks[kind]

    def looked() -> tuple[dict, dict]:
        tensors = data_statistics(model, kind, data.batches(count, size, task.seed))
        return {f"{n:03}": tensor for n, tensor in enumerate(tensors)}, {}

    path = task.file("statistics", kind, count, size, content(model.state_dict()))
    tensors, _ = cached(path, looked)
    return [tensors[name] for name in sorted(tensors)]


def _retrain(task: Task, data: Data, pruned: dict[Run, list], tell: Tell) -> Iterator[tuple]:
    """Retrain in place, sparse networks in a stack, others one by one: what rows say of it."""
    table, finished = task.table, 0
    exact = table.precision == "float32"  # a stack computes in float32 only
    stack = [run for run, networks in pruned.items() if exact and fits(*networks)]
    for runs in filter(None, [stack, *([run] for run in pruned if run not in stack)]):
        models, masks = zip(*(pruned[run] for run in runs), strict=True)
        network = SparseStack(models, masks) if runs is stack else models[0]
        held = None if runs is stack else masks[0]

        def told(done: int, before: int = finished, networks: int = len(runs)) -> None:
            tell(before + done * networks)

        begun = time.perf_counter()
        reason = _train(network, data, task, runs, told, held)
        errors = _errors(network, data)
        seconds = (time.perf_counter() - begun) / len(runs)
        finished += table.retrain_steps * len(runs)
        if runs is stack:
            network.unstack(models)
        fitted = _errors(network, data, "train") if table.training_error else [None] * len(runs)
        for run, error, train_error in zip(runs, errors, fitted, strict=True):
            if reason or math.isnan(error):
                what = reason or "the loss is not finite"
                yield run, {"status": f"diverged: {what} of round {run[1]}"}
            else:
                found = {"error": error, "train_error": train_error, "retrain_seconds": seconds}
                yield run, found | {"side_by_side": str(len(runs)), "status": "ok"}


def _errors(network: nn.Module, data: Data, split: str = "test") -> list[float]:
    """Error (%) of a network, or of each in a stack; NaN of one whose loss is not finite."""
    found = evaluate(network, data, split)
    losses, accuracies = (torch.as_tensor(n, dtype=torch.double).view(-1) for n in found)
    errors = torch.where(losses.isfinite(), 100 - accuracies, math.nan)
    return [round(error, 6) for error in errors.tolist()]


def _train(
    network: nn.Module, data: Data, task: Task, runs: Iterable[Run], tell: Tell | None, masks=None
) -> str:
    """Train with the table's settings: without runs the dense network; why it diverged, if so."""
    table, stage, reason = task.table, "retrain" if runs else "dense", ""
    steps = getattr(table, f"{stage}_steps")
    checkpoint = task.unfinished("checkpoints", runs)
    about = dict(masks=masks, seed=task.seed, stage=stage, precision=table.precision)
    about |= dict(checkpoint=checkpoint, progress=tell)
    try:
        train(network, data, steps, table.lr, table.batch_size, **about)
    except FloatingPointError as error:
        reason = str(error)
    checkpoint.unlink(missing_ok=True)
    remove_leftovers(checkpoint)
    return reason
