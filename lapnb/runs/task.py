"""What a worker computes at once, and the files that belong to it."""

import pathlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lapnb.paper.protocol import DENSE, Table
from lapnb.runs.provenance import provenance
from lapnb.runs.rows import SCHEMA
from lapnb.store import fingerprint, root
from lapnb.training.networks import FCN, NETWORKS
from lapnb.training.stacks import DENSEST

Run = tuple[str, int]  # method and pruning round


def stackable(table: Table, pruning_round: int) -> bool:
    """Return whether networks of this round train faster in a sparse stack than densely."""
    usual = table.device == "cpu" and table.precision == "float32"
    sparse = min(table.keep(pruning_round)) <= DENSEST
    return usual and sparse and NETWORKS[table.network] is FCN


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker computes at once: runs of one seed that are trained together, one row each.

    A task without runs is their dense network.

    Attributes:
        table: A table that varies nothing, one of `Table.plain`.
        source: What the data set was read from.
        seed: The seed of its random streams.
        runs: One run, or several that make a sparse stack.
    """

    table: Table
    source: str
    seed: int
    runs: tuple[Run, ...] = ()

    @property
    def steps(self) -> int:
        """Training steps, added up over networks; without retraining, the number of networks."""
        if not self.runs:
            return self.table.dense_steps
        return (self.table.retrain_steps or 1) * len(self.runs)

    def file(self, folder: str, *more) -> pathlib.Path:
        """Return a file below runs/ that belongs to this table, seed and source, and to `more`."""
        table = self.table
        key = [table.model_dump(include=DENSE), self.source, self.seed, table.precision, *more]
        return root() / "runs" / folder / f"{fingerprint(key)}.safetensors"

    @property
    def dense_file(self) -> pathlib.Path:
        """The cached dense network."""
        return self.file("dense")

    def unfinished(self, folder: str, runs: Iterable[Run]) -> pathlib.Path:
        """Return a file that is kept while runs are computed, such as their checkpoint."""
        return self.file(folder, [(*run, self.table.settings(*run)) for run in runs])

    @property
    def progress_file(self) -> pathlib.Path:
        """Where a worker writes how many steps are finished."""
        return self.unfinished("progress", self.runs).with_suffix("")

    def retrained_file(self, run: Run, dense: str) -> pathlib.Path:
        """Return what the next round of an iterative schedule starts from.

        `dense` is a checksum of the dense network that it came of.
        """
        return self.file("retrained", *run, self.table.settings(*run), dense)

    def row(self, method: str, pruning_round: int) -> dict:
        """Return what is known of a row before anything is computed."""
        table = self.table
        row = dict(
            table=table.name,
            source=self.source,
            method=method,
            round=pruning_round,
            seed=self.seed,
            device=_device_name(table),
            settings=table.settings(method, pruning_round),
        )
        return table.model_dump(include={*SCHEMA}) | provenance(table.device) | row


def _device_name(table: Table) -> str:
    name = table.device
    if name != "cpu":
        tf32 = ", TF32 convolutions" if torch.backends.cudnn.allow_tf32 else ""
        name = f"cuda ({torch.cuda.get_device_name()}{tf32})"
    return name if table.precision == "float32" else f"{name}, {table.precision}"
