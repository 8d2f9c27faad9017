"""What a worker computes at once, and the files that belong to it."""

import pathlib
from dataclasses import dataclass

from lapnb.paper.protocol import DENSE, Table
from lapnb.runs.provenance import device_name, provenance
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
        table: A table that varies nothing, one of `Table.split`.
        source: What the data set was read from.
        seed: The seed of its random streams.
        runs: One run, or several that make a sparse stack.
    """

    table: Table
    source: str
    seed: int
    runs: tuple[Run, ...] = ()

    @property
    def stage(self) -> int:
        """Return 0 for the dense network, else 1, or the round of an iterative schedule.

        A task starts from those of lower stages.
        """
        if not self.runs:
            return 0
        return self.runs[0][1] if self.table.schedule == "iterative" else 1

    @property
    def steps(self) -> int:
        """Return the training steps of all networks; without retraining, the number of networks."""
        if not self.runs:
            return self.table.dense_steps
        return (self.table.retrain_steps or 1) * len(self.runs)

    def file(self, folder: str, *more) -> pathlib.Path:
        """Return a file below runs/ that belongs to this task and the values in `more`."""
        table = self.table
        dense = [table.model_dump(include=DENSE), self.source, self.seed, table.precision]
        runs = [[*run, table.settings(*run)] for run in self.runs]
        return root() / "runs" / folder / f"{fingerprint(dense + runs + [*more])}.safetensors"

    def row(self, method: str, pruning_round: int) -> dict:
        """Return the columns of a row that are known before anything is computed."""
        table = self.table
        row = dict(
            table=table.name,
            source=self.source,
            method=method,
            round=pruning_round,
            seed=self.seed,
            device=device_name(table.device, table.precision),
            settings=table.settings(method, pruning_round),
        )
        return table.model_dump(include={*SCHEMA}) | provenance(table.device) | row
