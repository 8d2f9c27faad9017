"""One run: dense network → scores → masks → retraining → a row. What a worker computes."""

import copy
import json
import pathlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from filelock import FileLock
from torch import Tensor, nn

from lapnb.paper.tables import Table, fingerprint
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.linear import relative_distortion
from lapnb.pruning.masks import apply_masks, prune_masks, surviving
from lapnb.pruning.scores import METHODS
from lapnb.store import CorruptFile, load_tensors, root, save_tensors
from lapnb.training import sparse_stack as sparse
from lapnb.training.data import Data, load_data
from lapnb.training.networks import build_model
from lapnb.training.train import evaluate, train

_ALONE = threading.RLock()


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
        start = [self.table.dense_settings(), self.source, self.seed, settings]
        return fingerprint([*start, *_precise(self)])

    @property
    def steps(self) -> int:
        """Training steps, added up over networks; without retraining, the number of networks."""
        if not self.cells:
            return self.table.dense_steps
        return (self.table.retrain_steps or 1) * len(self.cells)

    def cached(self) -> bool:
        """Whether the networks that other tasks start from are there."""
        if not self.cells:
            return _dense_file(self).exists()
        return all(_retrained_file(self, *cell).exists() for cell in self.cells)


_watch: Callable[[int], None] | None = None


def compute(task: Task, watch: Callable[[int], None] | None = None) -> list[dict]:
    """Compute the rows of one task; none for a dense network, which is only cached.

    On one thread, so that a result does not depend on how many workers there are, and one task
    after the other, as random numbers and the number of threads belong to the whole process.
    `watch`, of a caller in this process, is told the steps done.
    """
    global _watch
    with _ALONE:
        before, _watch = _watch, watch or _watch  # an earlier round is computed within a later one
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _compute(task)
        finally:
            torch.set_num_threads(threads)
            _watch = before
            progress_file(task).unlink(missing_ok=True)


def _compute(task: Task) -> list[dict]:
    table, rows = task.table, {cell: starting_row(task, *cell) for cell in task.cells}
    data = load_data(table.dataset, table.image_size, table.channels).to(table.device)
    if data.source != task.source:
        raise ValueError(f"this worker's data set is {data.source}, the caller's {task.source}")
    try:
        dense, dense_facts = dense_network(task, data)
    except FloatingPointError as error:
        return [row | {"status": f"diverged: {error}"} for row in rows.values()]
    models, masks = {}, {}
    for cell, row in rows.items():
        try:
            models[cell], masks[cell], facts = _prune(task, *cell, data, dense)
            row.update(dense_facts | facts)
        except FloatingPointError as error:  # an earlier round did
            row.update(status=f"diverged: {error}")
        except ValueError as error:
            row.update(status=f"failed: {error}")
    for cell, outcome in _retrain(task, data, models, masks).items():
        rows[cell].update(outcome)
    if table.schedule == "iterative":
        for cell, row in rows.items():
            if row["status"] == "ok":
                save_tensors(_retrained_file(task, *cell), models[cell].state_dict(), {})
            elif row["status"].startswith("diverged"):
                _save_diverged(_retrained_file(task, *cell), row["status"])
    return list(rows.values())


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


def dense_network(task: Task, data: Data) -> tuple[nn.Module, dict]:
    """The dense network of a seed and its test error (%), from the cache or trained and cached.

    Raises FloatingPointError when its training diverges, or is known to.
    """
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
    ).to(table.device, memory_format=torch.channels_last)  # faster for convolutions
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        try:
            tensors, metadata = _load(path)
            model.load_state_dict(tensors)
            return model.eval(), json.loads(metadata["facts"])
        except FileNotFoundError:
            pass
        except CorruptFile as error:
            print(f"{error}; the dense network is trained again")
        try:
            _train(model, data, task, "dense", path.stem)
        except FloatingPointError as error:
            _save_diverged(path, f"{error} of the dense network")
            raise FloatingPointError(f"{error} of the dense network") from None
        facts = {"dense_error": _errors(model, data)[0]}
        save_tensors(path, model.state_dict(), {"facts": json.dumps(facts)})
    return model, facts


def _prune(
    task: Task, method: str, round: int, data: Data, dense: nn.Module
) -> tuple[nn.Module, list[Tensor], dict]:
    """The pruned network, its masks and what its row says of them.

    Raises FloatingPointError when it would start from a round that diverged, ValueError when it
    would from one that failed or cannot be pruned itself.
    """
    table, model = task.table, copy.deepcopy(dense)
    if table.schedule == "iterative" and round > min(table.rounds):
        model.load_state_dict(_earlier(task, method, round))
    keep = table.keep(round)
    if table.scope == "global":
        sizes = [layer.weight.numel() for layer in prunable_layers(model)]
        keep = sum(k * n for k, n in zip(keep, sizes, strict=True)) / sum(sizes)
    known = _statistics(task, method, round, model, data)
    start = time.perf_counter()
    mask = prune_masks(model, method, keep, table.scope, statistics=known, seed=task.seed)
    seconds = time.perf_counter() - start
    apply_masks(model, mask)
    return (
        model,
        mask,
        {
            "surviving": surviving(mask),
            "error_before": _errors(model, data)[0],
            "distortion": relative_distortion(dense, model) if table.activation == "none" else None,
            "empty_layers": " ".join(
                layer.name
                for layer, m in zip(prunable_layers(model), mask, strict=True)
                if not m.any()
            ),
            "mask_seconds": seconds,
            "device": _device_name(table),
        },
    )


def _earlier(task: Task, method: str, round: int) -> dict[str, Tensor]:
    """The retrained network of the round before, from which an iterative schedule goes on."""
    before = max(t for t in task.table.rounds if t < round)
    path = _retrained_file(task, method, before)
    try:
        return _load(path)[0]
    except FileNotFoundError:
        pass  # another worker made it, which does not share its folder
    except CorruptFile as error:
        print(f"{error}; round {before} of {method} is computed again")
    (row,) = compute(replace(task, cells=((method, before),)))
    if row["status"].startswith("failed"):
        raise ValueError(f"round {before} {row['status']}")
    return _load(path)[0]


def _retrain(
    task: Task, data: Data, models: dict[tuple, nn.Module], masks: dict[tuple, list[Tensor]]
) -> dict[tuple, dict]:
    """Retrain in place, sparse networks in a stack, others one by one: what rows say of it."""
    table, outcomes, finished = task.table, {}, 0
    stackable = [cell for cell in models if sparse.fits(models[cell], masks[cell])]
    if table.precision != "float32":  # a stack computes in float32 only
        stackable = []
    groups = [stackable] if stackable else []
    groups += [[cell] for cell in models if cell not in stackable]
    while groups:
        group = groups.pop(0)
        start = time.perf_counter()
        name = f"{task.key}-{fingerprint(group)}"
        if group[0] in stackable:
            network = sparse.SparseStack([models[c] for c in group], [masks[c] for c in group])
            held = None
        else:
            network, held = models[group[0]], masks[group[0]]
            name += "-dense"
        try:
            _train(network, data, task, "retrain", name, held, finished, len(group))
        except FloatingPointError as error:
            if len(group) > 1:  # each by itself, to find out which one diverged
                groups = [[cell] for cell in group] + groups
            else:
                outcomes[group[0]] = {"status": f"diverged: {error} of round {group[0][1]}"}
            continue
        seconds = (time.perf_counter() - start) / len(group)
        finished += table.retrain_steps * len(group)
        if held is None:
            network.unstack([models[cell] for cell in group])
        errors = _errors(network, data)
        train_errors = (
            _errors(network, data, "train") if table.network == "fcn" else [None] * len(group)
        )
        for cell, error, train_error in zip(group, errors, train_errors, strict=True):
            outcomes[cell] = {
                "error": error,
                "train_error": train_error,
                "retrain_seconds": seconds,
                "status": "ok",
            }
    return outcomes


def _errors(network: nn.Module, data: Data, split: str = "test") -> list[float]:
    """Error (%) of a network, or of each in a stack."""
    accuracy = torch.as_tensor(evaluate(network, data, split)[1], dtype=torch.double)
    return [round(100 - float(a), 6) for a in torch.atleast_1d(accuracy)]


def _train(network, data, task, stage, name, masks=None, finished=0, networks=1) -> None:
    """Train with the table's settings; checkpointed as `name`, and telling how far it is."""
    table = task.table
    checkpoint = root() / "runs" / "checkpoints" / f"{name}.safetensors"
    try:
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
            precision=table.precision,
        )
    except FloatingPointError:
        checkpoint.unlink(missing_ok=True)
        raise
    checkpoint.unlink(missing_ok=True)


def _teller(task: Task, finished: int, networks: int):
    """A function that notes the steps done where the caller reads them, twice a second at most."""
    path, last = progress_file(task), 0.0
    path.parent.mkdir(parents=True, exist_ok=True)

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            steps = finished + done * networks
            path.write_text(str(steps))
            if _watch:
                _watch(steps)
            last = time.monotonic()

    return tell


def _statistics(
    task: Task, method: str, round: int, model: nn.Module, data: Data
) -> list[Tensor] | None:
    """What a data-dependent method knows of the data: from the cache, or computed and cached."""
    kind = METHODS[method].weights
    if kind not in ("active", "curved"):
        return None
    from lapnb.pruning.saliency import statistics

    count = getattr(task.table, f"{kind}_batches")
    # the network is the dense one, or that of an earlier round of the same schedule
    settings = task.table.settings(method, round)
    start = [] if task.table.schedule == "oneshot" else [round, method, settings]
    start += _precise(task)
    key = fingerprint([task.table.dense_settings(), task.source, task.seed, kind, count, *start])
    path = root() / "runs" / "statistics" / f"{key}.safetensors"
    try:
        return [*load_tensors(path)[0].values()]
    except FileNotFoundError:
        pass
    except CorruptFile as error:
        print(f"{error}; it is computed again")
    tensors = statistics(model, kind, data, *count, task.seed)
    save_tensors(path, {f"{n:03}": tensor for n, tensor in enumerate(tensors)}, {})
    return tensors


def _load(path: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A cached network; FloatingPointError when it is one that diverged."""
    tensors, metadata = load_tensors(path)
    if "diverged" in metadata:
        raise FloatingPointError(metadata["diverged"])
    return tensors, metadata


def _save_diverged(path: pathlib.Path, reason: str) -> None:
    """Note in place of a network that its training diverged, so that it is not tried again."""
    save_tensors(path, {}, {"diverged": reason.removeprefix("diverged: ")})


def _precise(task: Task) -> list[str]:
    """What tells cached networks of one precision from those of another."""
    return [] if task.table.precision == "float32" else [task.table.precision]


def _dense_file(task: Task) -> pathlib.Path:
    key = fingerprint([task.table.dense_settings(), task.source, task.seed, *_precise(task)])
    return root() / "runs" / "dense" / f"{key}.safetensors"


def _retrained_file(task: Task, method: str, round: int) -> pathlib.Path:
    settings = task.table.settings(method, round)
    key = fingerprint([settings, task.source, task.seed, round, method, *_precise(task)])
    return root() / "runs" / "retrained" / f"{key}.safetensors"


def _device_name(table: Table) -> str:
    name = table.device
    if name != "cpu":
        tf32 = ", TF32 convolutions" if torch.backends.cudnn.allow_tf32 else ""
        name = f"cuda ({torch.cuda.get_device_name()}{tf32})"
    return name if table.precision == "float32" else f"{name}, {table.precision}"
