"""One run: dense network → scores → masks → retraining → a row. What a worker computes."""

import copy
import json
import os
import pathlib
import time
from dataclasses import dataclass

import torch
from filelock import FileLock
from torch import Tensor, nn

from lapnb import sparse
from lapnb.chain import prunable_layers
from lapnb.data import Data, load_data
from lapnb.linear import relative_distortion
from lapnb.masks import apply_masks, prune_masks, surviving
from lapnb.models import build_model
from lapnb.scores import METHODS
from lapnb.store import CorruptFile, load_tensors, root, save_tensors
from lapnb.tables import Table, fingerprint
from lapnb.train import evaluate, train


@dataclass(frozen=True)
class Task:
    """Runs of one seed that are computed together: `cells` of (method, round), one row each.

    Without cells it is the dense network. `source` is what the data set was read from.
    """

    table: Table
    source: str
    seed: int
    cells: tuple[tuple[str, int], ...] = ()

    @property
    def key(self) -> str:
        settings = [(m, t, self.table.settings(m, t)) for m, t in self.cells]
        return fingerprint([self.table.dense_settings(), self.source, self.seed, settings])

    @property
    def steps(self) -> int:
        """Training steps, added up over networks."""
        return self.table.retrain_steps * len(self.cells) if self.cells else self.table.dense_steps

    def cached(self) -> bool:
        """Whether the networks that other tasks start from are there."""
        if not self.cells:
            return _dense_file(self).exists()
        return all(_retrained_file(self, *cell).exists() for cell in self.cells)


def compute(task: Task) -> list[dict]:
    """Compute the rows of one task; none for a dense network, which is only cached.

    On one thread, so that a result does not depend on how many workers there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = task.table
        data = load_data(table.dataset, table.image_size, table.channels).to(table.device)
        dense, facts = _dense(task, data)
        if not task.cells:
            return []
        models, masks, rows = _prune(task, data, dense)
        for row, outcome in zip(rows, _retrain(task, data, models, masks), strict=True):
            row.update(facts | outcome)
        if table.schedule == "iterative":
            for cell, model in zip(task.cells, models, strict=True):
                save_tensors(_retrained_file(task, *cell), model.state_dict(), {})
        return rows
    finally:
        torch.set_num_threads(threads)
        progress_file(task).unlink(missing_ok=True)


def starting_row(task: Task, method: str, round: int) -> dict:
    """What is known of a row before anything is computed."""
    table = task.table
    names = (
        "scale", "network", "dataset", "activation", "width", "scope", "schedule", "dense_steps",
        "retrain_steps", "changed",
    )  # fmt: skip
    return {name: getattr(table, name) for name in names} | {
        "table": table.name,
        "source": task.source,
        "method": method,
        "round": round,
        "seed": task.seed,
        "settings": table.settings(method, round),
    }


def progress_file(task: Task) -> pathlib.Path:
    """Where a worker writes how many steps of a task are finished."""
    return root() / "runs" / "progress" / task.key


def _dense(task: Task, data: Data) -> tuple[nn.Module, dict]:
    """The dense network of a seed and its test error (%), from the cache or trained and cached."""
    table, path = task.table, _dense_file(task)
    model = build_model(
        table.network,
        width=table.width,
        activation=table.activation,
        num_classes=data.classes,
        image_size=table.image_size,
        channels=table.channels,
        stride=table.stride,
        seed=task.seed,
    ).to(table.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        try:
            tensors, metadata = load_tensors(path)
            model.load_state_dict(tensors)
            return model.eval(), json.loads(metadata["facts"])
        except FileNotFoundError:
            pass
        except CorruptFile as error:
            print(f"{error}; the dense network is trained again")
        _train(model, data, task, "dense", path.stem)
        facts = {"dense_error": _errors(model, data)[0]}
        save_tensors(path, model.state_dict(), {"facts": json.dumps(facts)})
    return model, facts


def _prune(task: Task, data: Data, dense: nn.Module) -> tuple[list, list, list[dict]]:
    """Per cell of the task: the pruned network, its masks and the first half of its row."""
    table, models, masks, rows = task.table, [], [], []
    for method, round in task.cells:
        model = copy.deepcopy(dense)
        earlier = [t for t in table.rounds if t < round]
        if table.schedule == "iterative" and earlier:
            model.load_state_dict(load_tensors(_retrained_file(task, method, earlier[-1]))[0])
        keep = table.keep(round)
        if table.scope == "global":
            sizes = [layer.weight.numel() for layer in prunable_layers(model)]
            keep = sum(k * n for k, n in zip(keep, sizes, strict=True)) / sum(sizes)
        facts = _statistics(task, method, round, model, data)
        start = time.perf_counter()
        mask = prune_masks(model, method, keep, table.scope, statistics=facts, seed=task.seed)
        seconds = time.perf_counter() - start
        apply_masks(model, mask)
        models.append(model)
        masks.append(mask)
        rows.append(
            starting_row(task, method, round)
            | {
                "surviving": surviving(mask),
                "error_before": _errors(model, data)[0],
                "distortion": (
                    relative_distortion(dense, model) if table.activation == "none" else None
                ),
                "empty_layers": " ".join(
                    layer.name
                    for layer, m in zip(prunable_layers(model), mask, strict=True)
                    if not m.any()
                ),
                "mask_seconds": seconds,
                "device": _device_name(table.device),
            }
        )
    return models, masks, rows


def _retrain(task: Task, data: Data, models: list[nn.Module], masks: list) -> list[dict]:
    """Retrain in place, sparse networks in stacks, others one by one: the second halves of rows."""
    table, outcomes, finished = task.table, {}, 0
    stackable = [n for n in range(len(models)) if sparse.fits(models[n], masks[n])]
    groups = [
        [stackable[n] for n in stack] for stack in sparse.stacks([masks[n] for n in stackable])
    ]
    groups += [[n] for n in range(len(models)) if n not in stackable]
    while groups:
        group = groups.pop(0)
        start = time.perf_counter()
        stacked = group[0] in stackable
        if stacked:
            network = sparse.SparseStack([models[n] for n in group], [masks[n] for n in group])
        else:
            network = models[group[0]]
        name = f"{task.key}-{fingerprint([task.cells[n] for n in group])}"
        held = None if stacked else masks[group[0]]
        try:
            _train(network, data, task, "retrain", name, held, finished, len(group))
        except FloatingPointError as error:
            if len(group) > 1:  # each by itself, to find out which one diverged
                groups = [[n] for n in group] + groups
            else:
                outcomes[group[0]] = {"status": f"diverged: {error}"}
            continue
        seconds = (time.perf_counter() - start) / len(group)
        finished += table.retrain_steps * len(group)
        if stacked:
            network.unstack([models[n] for n in group])
        error = _errors(network, data)
        train_error = (
            _errors(network, data, "train") if table.network == "fcn" else [None] * len(group)
        )
        for position, n in enumerate(group):
            outcomes[n] = {
                "error": error[position],
                "train_error": train_error[position],
                "retrain_seconds": seconds,
                "status": "ok",
            }
    return [outcomes[n] for n in range(len(models))]


def _errors(network: nn.Module, data: Data, split: str = "test") -> list[float]:
    """Error (%) of a network, or of each in a stack."""
    accuracy = torch.as_tensor(evaluate(network, data, split)[1], dtype=torch.double)
    return [round(100 - float(a), 6) for a in torch.atleast_1d(accuracy)]


def _train(network, data, task, stage, name, masks=None, finished=0, networks=1) -> None:
    """Train with the table's settings; checkpointed as `name`, and telling how far it is."""
    table = task.table
    checkpoint = root() / "runs" / "checkpoints" / f"{name}.safetensors"
    train(
        network,
        data,
        table.dense_steps if stage == "dense" else table.retrain_steps,
        table.lr,
        table.batch_size,
        masks=masks,
        seed=task.seed,
        stage=stage,
        checkpoint=checkpoint,
        progress=_teller(task, finished, networks),
    )
    checkpoint.unlink(missing_ok=True)


def _teller(task: Task, finished: int, networks: int):
    """A function that notes the steps done where the caller reads them, twice a second at most."""
    path, last = progress_file(task), 0.0
    path.parent.mkdir(parents=True, exist_ok=True)

    def tell(done: int) -> None:
        nonlocal last
        if "LAPNB_PARENT" in os.environ and os.getppid() != int(os.environ["LAPNB_PARENT"]):
            raise SystemExit("the process that started this worker is gone")
        if time.monotonic() - last > 0.5:
            path.write_text(str(finished + done * networks))
            last = time.monotonic()

    return tell


def _statistics(
    task: Task, method: str, round: int, model: nn.Module, data: Data
) -> list[Tensor] | None:
    """What a data-dependent method knows of the data: from the cache, or computed and cached."""
    kind = METHODS[method].weights
    if kind not in ("active", "curved"):
        return None
    from lapnb.statistics import statistics

    count = getattr(task.table, f"{kind}_batches")
    # the network is the dense one, or that of an earlier round of the same schedule
    settings = task.table.settings(method, round)
    start = [] if task.table.schedule == "oneshot" else [round, method, settings]
    key = fingerprint([task.table.dense_settings(), task.source, task.seed, kind, count, *start])
    path = root() / "runs" / "statistics" / f"{key}.safetensors"
    try:
        return [*load_tensors(path)[0].values()]
    except (FileNotFoundError, CorruptFile):
        tensors = statistics(model, kind, data, *count, task.seed)
        save_tensors(path, {f"{n:03}": tensor for n, tensor in enumerate(tensors)}, {})
        return tensors


def _dense_file(task: Task) -> pathlib.Path:
    key = fingerprint([task.table.dense_settings(), task.source, task.seed])
    return root() / "runs" / "dense" / f"{key}.safetensors"


def _retrained_file(task: Task, method: str, round: int) -> pathlib.Path:
    settings = task.table.settings(method, round)
    key = fingerprint([settings, task.source, task.seed, round, method])
    return root() / "runs" / "retrained" / f"{key}.safetensors"


def _device_name(device: str) -> str:
    return device if device == "cpu" else f"cuda ({torch.cuda.get_device_name()})"
