"""One run: dense network → scores → masks → retraining → a row. What a worker computes."""

import contextlib
import copy
import functools
import math
import pathlib
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lapnb.paper.protocol import Table
from lapnb.pruning.data_statistics import data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.linear_product import relative_distortion
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.runs.task import Run, Task, stackable
from lapnb.store import CorruptFile, cached, content, load_tensors, remove_leftovers, save_tensors
from lapnb.surroundings import usual_torch
from lapnb.training.checkpoints import Checkpoint
from lapnb.training.data import Data, load_data
from lapnb.training.networks import build_model
from lapnb.training.stacks import SparseStack
from lapnb.training.train import evaluate, train

Tell = Callable[[int], None]  # is told the steps done
_ALONE = threading.RLock()


@dataclass
class Pruned:
    """A pruned network, its masks, and what its row says of them."""

    model: nn.Module
    masks: list[Tensor]
    facts: dict


def compute(task: Task, tell: Tell | None = None) -> list[dict]:
    """Compute the rows of one task; none for a dense network, which is only cached.

    It runs on one thread, so that a result does not depend on how many workers there are, and one
    task after the other, as random numbers and the number of threads belong to the whole process.

    Args:
        task: What to compute.
        tell: A caller in this process is told the steps done; by default `task.progress_file` is.
    """
    tell = tell or functools.partial(_note, task.progress_file)
    with _ALONE, usual_torch():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _rows(task, tell)
        finally:
            torch.set_num_threads(threads)


def _note(path: pathlib.Path, steps: int) -> None:
    with contextlib.suppress(OSError):  # progress is never worth a run
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(steps))


def _rows(task: Task, tell: Tell) -> list[dict]:
    table = task.table
    data = load_data(table.dataset, table.image_size, table.channels).to(table.device)
    if data.source != task.source:
        raise ValueError(f"this worker's data set is {data.source}, the caller's {task.source}")
    rows = {run: task.row(*run) for run in task.runs}
    try:
        dense, facts = dense_network(task, data, tell)
    except FloatingPointError as error:
        return [row | {"status": f"diverged: {error}"} for row in rows.values()]
    origin = content(dense.state_dict())
    pruned: dict[Run, Pruned] = {}
    for run, row in rows.items():
        try:
            pruned[run] = _prune(task, run, data, dense, origin)
            row.update(facts | pruned[run].facts)
        except FloatingPointError as error:  # an earlier round did
            row["status"] = f"diverged: {error}"
        except ValueError as error:
            row["status"] = f"failed: {error}"
    if pruned:
        for run, outcome in _retrain(task, data, pruned, tell).items():
            rows[run].update(outcome)
            if table.schedule == "iterative":
                weights = pruned[run].model.state_dict()
                save_tensors(
                    task.retrained_file(run, origin), weights, {"status": outcome["status"]}
                )
    return [*rows.values()]


def network_of(table: Table, classes: int = 10, seed: int | None = None) -> nn.Module:
    """Return the network of a table, freshly initialised."""
    settings = table.model_dump(include={"width", "activation", "image_size", "channels", "stride"})
    return build_model(table.network, num_classes=classes, seed=seed, **settings)


def dense_network(task: Task, data: Data, tell: Tell | None = None) -> tuple[nn.Module, dict]:
    """Return the dense network of a seed and its `dense_error` (%), from the cache or trained.

    Raises:
        FloatingPointError: Its training diverges, or is known to.
    """
    model = network_of(task.table, data.classes, task.seed)
    model.to(task.table.device, memory_format=torch.channels_last)  # faster for convolutions

    def trained() -> tuple[dict, dict]:
        reason, _ = _train(model, data, task, [], tell)
        if reason:
            return {}, {"diverged": f"{reason} of the dense network"}
        return model.state_dict(), {"dense_error": _errors(model, data)[0]}

    tensors, facts = cached(task.dense_file, trained)
    if "diverged" in facts:
        raise FloatingPointError(facts["diverged"])
    model.load_state_dict(tensors)
    return model.eval(), facts


def _prune(task: Task, run: Run, data: Data, dense: nn.Module, origin: str) -> Pruned:
    """Prune the dense network, or that of the earlier round of an iterative schedule.

    Raises:
        FloatingPointError: The earlier round diverged.
        ValueError: The earlier round failed, or the network cannot be pruned.
    """
    method, t = run
    table, model, criterion = task.table, copy.deepcopy(dense), METHODS[method]
    if table.schedule == "iterative" and t > min(table.rounds):
        model.load_state_dict(_earlier(task, run, origin))
    layers = prunable_layers(model)
    keep = table.keep(t)
    if table.scope == "global":
        sizes = [layer.weight.numel() for layer in layers]
        keep = sum(k * n for k, n in zip(keep, sizes, strict=True)) / sum(sizes)
    statistics, seconds, example = None, 0.0, None
    if criterion.looks_at:
        statistics, seconds = _statistics(task, criterion.looks_at, model, data)
    if criterion.neighbours == "flow":
        example = data.normalise(data.train_images[:2])
    more = dict(example=example, statistics=statistics, seed=task.seed)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # about empty layers, which the row names
        masks = prune_masks(model, method, keep, table.scope, **more)
    seconds += time.perf_counter() - start
    apply_masks(model, masks)
    empty = [layer.name for layer, mask in zip(layers, masks, strict=True) if not mask.any()]
    facts = {
        "surviving": surviving(masks),
        "error_before": _errors(model, data)[0],
        "distortion": relative_distortion(dense, model) if table.activation == "none" else None,
        "empty_layers": " ".join(empty),
        "mask_seconds": seconds,
    }
    return Pruned(model, masks, facts)


def _earlier(task: Task, run: Run, origin: str) -> dict[str, Tensor]:
    """Return the retrained weights of the round before, where an iterative schedule goes on."""
    method, t = run
    before = max(earlier for earlier in task.table.rounds if earlier < t)
    path = task.retrained_file((method, before), origin)

    def again() -> tuple[dict, dict]:  # it is damaged, or in the folder of another worker
        (row,) = compute(replace(task, runs=((method, before),)), lambda steps: None)
        if row["status"].startswith("failed"):
            raise ValueError(f"round {before} {row['status']}")
        return load_tensors(path)

    tensors, facts = cached(path, again)
    if facts["status"] != "ok":
        raise FloatingPointError(facts["status"].removeprefix("diverged: "))
    return tensors


def _statistics(task: Task, kind: str, model: nn.Module, data: Data) -> tuple[list[Tensor], float]:
    """Return what a data-dependent method looks at, and the seconds that it took to compute.

    From the cache, it is as many seconds as when it was computed.
    """
    count, size = task.table.looks[kind]

    def looked() -> tuple[dict, dict]:
        start = time.perf_counter()
        tensors = data_statistics(model, kind, data.batches(count, size, task.seed))
        names = [f"{n:03}" for n in range(len(tensors))]
        seconds = time.perf_counter() - start
        return dict(zip(names, tensors, strict=True)), {"seconds": seconds}

    # "timed", as files of before do not hold their seconds
    path = task.file("statistics", "timed", kind, count, size, content(model.state_dict()))
    tensors, facts = cached(path, looked)
    return [tensors[name] for name in sorted(tensors)], facts["seconds"]


def _retrain(task: Task, data: Data, pruned: dict[Run, Pruned], tell: Tell) -> dict[Run, dict]:
    """Retrain pruned networks in place, several in one stack; return what their rows say of it."""
    runs = [*pruned]
    models = [pruned[run].model for run in runs]
    masks = [pruned[run].masks for run in runs]
    stacked = stackable(task.table, runs[0][1])
    if stacked:
        network, fixed = SparseStack(models, masks), None
    else:
        (network,), (fixed,) = models, masks
    start = time.perf_counter()
    reason, earlier = _train(network, data, task, runs, lambda done: tell(done * len(runs)), fixed)
    errors = _errors(network, data)
    seconds = (earlier + time.perf_counter() - start) / len(runs)
    train_errors = [None] * len(runs)
    if task.table.training_error:
        train_errors = _errors(network, data, "train")
    if stacked:
        network.unstack(models)
    outcomes = {}
    for run, error, train_error in zip(runs, errors, train_errors, strict=True):
        if reason or math.isnan(error):
            what = reason or "the loss is not finite"
            outcomes[run] = {"status": f"diverged: {what} of round {run[1]}"}
        else:
            outcomes[run] = {
                "error": error,
                "train_error": train_error,
                "retrain_seconds": seconds,
                "side_by_side": str(len(runs)),
                "status": "ok",
            }
    return outcomes


def _errors(network: nn.Module, data: Data, split: str = "test") -> list[float]:
    """Return the error (%) of a network, or of each in a stack; NaN where a loss is not finite."""
    losses, accuracies = evaluate(network, data, split)
    accuracies = torch.as_tensor(accuracies, dtype=torch.double)
    finite = torch.as_tensor(losses).isfinite()
    errors = torch.where(finite, 100 - accuracies, math.nan)
    return [round(error, 6) for error in errors.view(-1).tolist()]


def _train(
    network: nn.Module,
    data: Data,
    task: Task,
    runs: list[Run],
    tell: Tell | None,
    masks: list[Tensor] | None = None,
) -> tuple[str, float]:
    """Train the dense network, or those of `runs`.

    Returns:
        Why it diverged, or an empty text, and the seconds of the earlier parts of a resumed run.
    """
    table, stage, steps = task.table, "dense", task.table.dense_steps
    if runs:
        stage, steps = "retrain", table.retrain_steps
    path = task.unfinished("checkpoints", runs)
    more = dict(seed=task.seed, stage=stage, precision=table.precision, progress=tell)
    checkpoint = Checkpoint(path)
    reason = ""
    try:
        train(
            network,
            data,
            steps,
            table.lr,
            table.batch_size,
            masks=masks,
            checkpoint=checkpoint,
            **more,
        )
    except FloatingPointError as error:
        reason = str(error)
    except CorruptFile as error:
        print(f"{error}; this run starts anew")
        path.unlink()
        return _train(network, data, task, runs, tell, masks)
    path.unlink(missing_ok=True)
    remove_leftovers(path)
    return reason, checkpoint.earlier_seconds
