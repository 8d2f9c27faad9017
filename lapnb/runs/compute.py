"""One run: dense network → scores → masks → retraining → a row. What a worker computes."""

import contextlib
import copy
import math
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from lapnb.paper.protocol import Table
from lapnb.pruning.data_statistics import data_statistics
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.linear_product import relative_distortion
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.runs.provenance import provenance
from lapnb.runs.task import Task, stackable
from lapnb.store import CorruptFile, cached, content, load_tensors, remove_leftovers, save_tensors
from lapnb.surroundings import usual_torch
from lapnb.training.checkpoints import Checkpoint
from lapnb.training.data import Data, load_data
from lapnb.training.networks import build_model
from lapnb.training.stacks import SparseStack
from lapnb.training.train import evaluate, train

Tell = Callable[[int], None]  # is called with the number of finished steps
_ALONE = threading.RLock()


@dataclass
class Pruned:
    """A pruned network, its masks, and its row, which grows until it is retrained."""

    row: dict
    model: nn.Module
    masks: list[Tensor]


def compute(task: Task, tell: Tell | None = None) -> list[dict]:
    """Compute the rows of one task; a dense network has none, and is only cached.

    It runs on one thread, so that a result does not depend on how many workers there are, and one
    task after the other, as random numbers and the number of threads belong to the whole process.

    Args:
        task: What to compute.
        tell: Is called with the number of finished steps. By default it is written to a file.
    """
    provenance(task.table.device)  # now, as the checkout may move before the first row is made
    progress = task.file("progress")

    def note(steps: int) -> None:
        with contextlib.suppress(OSError):  # progress is never worth a run
            progress.parent.mkdir(parents=True, exist_ok=True)
            progress.write_text(str(steps))

    with _ALONE, usual_torch():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _rows(task, tell or note)
        finally:
            torch.set_num_threads(threads)
            progress.unlink(missing_ok=True)


def status_of(error: Exception) -> str:
    """Return the status, one line, of a row whose computation ended in an error."""
    reason = " ".join(str(error).split())
    if isinstance(error, FloatingPointError):
        return f"diverged: {reason}"
    return f"failed: {type(error).__name__}: {reason}"


def _rows(task: Task, tell: Tell) -> list[dict]:
    table = task.table
    data = load_data(table.dataset, table.image_size, table.channels).to(table.device)
    if data.source != task.source:
        raise ValueError(f"this worker's data set is {data.source}, the caller's {task.source}")
    dense, facts = dense_network(task, data, tell)
    origin = content(dense.state_dict())
    rows = []
    networks = []
    for method, t in task.runs:
        row = task.row(method, t)
        rows.append(row)
        try:
            networks.append(_prune(task, row, data, dense, origin))
            row.update(facts)
        except Exception as error:  # the others of its stack go on
            row["status"] = status_of(error)
    if networks:
        _retrain(task, data, networks, tell)
    if table.schedule == "iterative":
        for network in networks:
            run = network.row["method"], network.row["round"]
            path = replace(task, runs=(run,)).file("retrained", origin)
            save_tensors(path, network.model.state_dict(), {"status": network.row["status"]})
    return rows


def network_of(table: Table, classes: int = 10, seed: int | None = None) -> nn.Module:
    """Return the network of a table, freshly initialised."""
    settings = table.model_dump(include={"width", "activation", "image_size", "channels", "stride"})
    return build_model(table.network, num_classes=classes, seed=seed, **settings)


def dense_network(task: Task, data: Data, tell: Tell) -> tuple[nn.Module, dict]:
    """Return the dense network of a seed and its `dense_error` (%), from the cache or trained.

    Raises:
        FloatingPointError: Its training diverges, or has diverged before.
    """
    task = replace(task, runs=())
    model = network_of(task.table, data.classes, task.seed)
    model.to(task.table.device, memory_format=torch.channels_last)  # faster for convolutions

    def trained() -> tuple[dict, dict]:
        reason, _ = _train(model, data, task, tell)
        (error,) = _errors(model, data)
        if reason or math.isnan(error):
            reason = reason or "the loss is not finite"
            return {}, {"diverged": f"{reason} of the dense network"}
        return model.state_dict(), {"dense_error": error}

    tensors, facts = cached(task.file("dense"), trained)
    if "diverged" in facts:
        raise FloatingPointError(facts["diverged"])
    model.load_state_dict(tensors)
    return model.eval(), facts


def _prune(task: Task, row: dict, data: Data, dense: nn.Module, origin: str) -> Pruned:
    """Prune the dense network, or that of the earlier round of an iterative schedule.

    Raises:
        FloatingPointError: The earlier round diverged.
        ValueError: The earlier round failed, or the network cannot be pruned.
    """
    method, t = row["method"], row["round"]
    table, model, criterion = task.table, copy.deepcopy(dense), METHODS[method]
    if table.schedule == "iterative" and t > min(table.rounds):
        model.load_state_dict(_earlier(task, method, t, origin))
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
    options = dict(example=example, statistics=statistics, seed=task.seed)
    start = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):  # about empty layers, which the row names
        masks = prune_masks(model, method, keep, table.scope, **options)
    seconds += time.perf_counter() - start
    apply_masks(model, masks)
    empty = [layer.name for layer, mask in zip(layers, masks, strict=True) if not mask.any()]
    row.update(
        surviving=surviving(masks),
        error_before=_errors(model, data)[0],
        distortion=relative_distortion(dense, model) if table.activation == "none" else None,
        empty_layers=" ".join(empty),
        mask_seconds=seconds,
    )
    return Pruned(row, model, masks)


def _earlier(task: Task, method: str, t: int, origin: str) -> dict[str, Tensor]:
    """Return the retrained weights of the earlier round, from which an iterative schedule goes on.

    `origin` is a checksum of the dense network that they come from.
    """
    before = max(earlier for earlier in task.table.rounds if earlier < t)
    task = replace(task, runs=((method, before),))
    path = task.file("retrained", origin)

    def computed() -> tuple[dict, dict]:  # where it is damaged or in another worker's folder
        (row,) = compute(task, lambda steps: None)
        if row["status"].startswith("failed"):
            raise ValueError(f"round {before} {row['status']}")
        return load_tensors(path)

    tensors, facts = cached(path, computed)
    if facts["status"] != "ok":
        raise FloatingPointError(facts["status"].removeprefix("diverged: "))
    return tensors


def _statistics(task: Task, kind: str, model: nn.Module, data: Data) -> tuple[list[Tensor], float]:
    """Return the statistics that a data-dependent method looks at, and the seconds they took.

    Statistics from the cache come with the seconds of their first computation.
    """
    looks = task.table.looks[kind]

    def computed() -> tuple[dict, dict]:
        start = time.perf_counter()
        tensors = data_statistics(model, kind, data.batches(*looks, task.seed))
        named = {str(n): tensor for n, tensor in enumerate(tensors)}
        return named, {"seconds": time.perf_counter() - start}

    path = replace(task, runs=()).file("statistics", kind, looks, content(model.state_dict()))
    tensors, facts = cached(path, computed)
    return [tensors[str(n)] for n in range(len(tensors))], facts["seconds"]


def _retrain(task: Task, data: Data, networks: list[Pruned], tell: Tell) -> None:
    """Retrain pruned networks in place, several in one stack; write the outcome in their rows."""
    count = len(networks)
    models = [network.model for network in networks]
    masks = [network.masks for network in networks]
    stacked = stackable(task.table, task.runs[0][1])
    trained, fixed = models[0], masks[0]
    if stacked:
        trained, fixed = SparseStack(models, masks), None
    reason, seconds = _train(trained, data, task, lambda done: tell(done * count), fixed)
    errors = _errors(trained, data)
    train_errors = [None] * count
    if task.table.training_error:
        train_errors = _errors(trained, data, "train")
    if stacked:
        trained.unstack(models)
    for network, error, train_error in zip(networks, errors, train_errors, strict=True):
        row = network.row
        if reason or math.isnan(error):
            cause = reason or "the loss is not finite"
            row["status"] = f"diverged: {cause} of round {row['round']}"
        else:
            row.update(
                error=error,
                train_error=train_error,
                retrain_seconds=seconds / count,
                side_by_side=str(count),
                status="ok",
            )


def _errors(network: nn.Module, data: Data, split: str = "test") -> list[float]:
    """Return the error (%) of a network, or of each in a stack; NaN where a loss is not finite."""
    losses, accuracies = map(np.atleast_1d, evaluate(network, data, split))
    errors = np.where(np.isfinite(losses), 100 - accuracies, math.nan)
    return errors.round(6).tolist()


def _train(
    network: nn.Module, data: Data, task: Task, tell: Tell, masks: list[Tensor] | None = None
) -> tuple[str, float]:
    """Train the dense network, or those of the task's runs.

    Returns:
        Why training diverged, or an empty text; and its seconds, over all parts of a resumed run.
    """
    table = task.table
    options = dict(stage="dense", steps=table.dense_steps)
    if task.runs:
        options = dict(stage="retrain", steps=table.retrain_steps)
    options |= table.model_dump(include={"lr", "batch_size", "precision"})
    checkpoint = Checkpoint(task.file("checkpoints"))
    options |= dict(masks=masks, seed=task.seed, checkpoint=checkpoint, progress=tell)
    reason = ""
    try:
        train(network, data, **options)
    except FloatingPointError as error:
        reason = str(error)
    except CorruptFile as error:
        print(f"{error}; this run starts anew")
        checkpoint.path.unlink()
        return _train(network, data, task, tell, masks)
    checkpoint.path.unlink(missing_ok=True)
    remove_leftovers(checkpoint.path)
    return reason, time.monotonic() - checkpoint.begun
