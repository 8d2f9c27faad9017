"""What a worker computes at once, and the files that belong to it."""

import pathlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lapnb.paper.protocol import DENSE, Table
from lapnb.runs.provenance import provenance
from lapnb.runs.rows import SCHEMA
from lapnb.store import fingerprint, root

Run = tuple[str, int]  # method and round


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker computes at once: runs of one seed that are trained together, one row each.

    Without runs it is their dense network. `table` is a plain one; `source` is what the data set
    was read from.
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
        """A file below runs/ that belongs to this table, seed and source, and to `more`."""
        table = self.table
        key = [table.model_dump(include=DENSE), self.source, self.seed, table.precision, *more]
        return root() / "runs" / folder / f"{fingerprint(key)}.safetensors"

    @property
    def dense_file(self) -> pathlib.Path:
        return self.file("dense")

    def unfinished(self, folder: str, runs: Iterable[Run]) -> pathlib.Path:
        """What is kept while runs are computed: their checkpoint, or how many steps are done."""
        return self.file(folder, [(*run, self.table.settings(*run)) for run in runs])

    @property
    def progress_file(self) -> pathlib.Path:
        """Where a worker writes how many steps are finished."""
        return self.unfinished("progress", self.runs).with_suffix("")

    def retrained_file(self, method: str, round: int, dense: str) -> pathlib.Path:
        """What the next round of an iterative schedule starts from; `dense` is what it came of."""
        return self.file("retrained", method, round, self.table.settings(method, round), dense)

    def row(self, method: str, round: int) -> dict:
        """What is known of a row before anything is computed."""
        table = self.table
        return (
            table.model_dump(include={*SCHEMA})
            | provenance(table.device)
            | {
                "table": table.name,
                "source": self.source,
                "method": method,
                "round": round,
                "seed": self.seed,
                "device": _device_name(table),
                "settings": table.settings(method, round),
            }
        )


def _device_name(table: Table) -> str:
    name = table.device
    if name != "cpu":
        tf32 = ", TF32 convolutions" if torch.backends.cudnn.allow_tf32 else ""
        name = f"cuda ({torch.cuda.get_device_name()}{tf32})"
    return name if table.precision == "float32" else f"{name}, {table.precision}"
