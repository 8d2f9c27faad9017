"""Results files: figures/<scale>/<table>.csv, with one row for each finished run."""

import contextlib
import functools
import io
import pathlib
import re
from collections import defaultdict
from typing import get_args

import pandas as pd

from lapnb.paper.protocol import Table
from lapnb.pruning.scores import METHODS
from lapnb.store import locked, root, write_whole

SHIPPED_SCALES = ("reduced", "paper")
# Where the rows of these scales lie in an installed package, and in a checkout
SHIPPED = [pathlib.Path(__file__).resolve().parents[above] / "figures" for above in (1, 2)]
PERCENT, COUNT, AMOUNT = (float, 0, 100), (int, 0, 10**9), (float, 0, 1e12)
# What a row holds: text, or a kind of number with the least and the largest that makes sense
SCHEMA = {
    "table": str, "scale": str, "network": str, "dataset": str, "source": str, "activation": str,
    "width": AMOUNT, "method": str, "scope": str, "schedule": str, "round": COUNT, "seed": COUNT,
    "surviving": (float, 0, 1), "error_before": PERCENT, "error": PERCENT, "train_error": PERCENT,
    "dense_error": PERCENT, "distortion": AMOUNT, "empty_layers": str, "dense_steps": COUNT,
    "retrain_steps": COUNT, "mask_seconds": AMOUNT, "retrain_seconds": AMOUNT, "device": str,
    "status": str, "changed": str, "settings": str, "commit": str, "torch": str, "processor": str,
    "side_by_side": str,
}  # fmt: skip
# How a row was made; empty in rows that are older than these columns
PROVENANCE = ["commit", "torch", "processor", "side_by_side"]
NUMBERS = [column for column, kind in SCHEMA.items() if kind is not str]
ALWAYS = ["surviving", "error_before", "error", "dense_error"]  # where the status is ok
ORDER = ["activation", "schedule", "method", "seed", "round"]
CHOICES = {"method": METHODS.keys()} | {
    name: {*get_args(Table.model_fields[name].annotation)}
    for name in ("network", "dataset", "activation", "scope", "schedule")
}
KEY = ["source", "settings", "method", "round", "seed"]  # what tells a run from all others


def results_file(name: str, scale: str, changed: str = "") -> pathlib.Path:
    """Return where a table's own rows are written.

    Tables with changed settings keep out of a scale's own folder.
    """
    folder = f"{scale}-changed" if changed else scale
    return root() / "figures" / folder / f"{name}.csv"


def pool(path: pathlib.Path) -> pd.DataFrame:
    """Read all rows of a table: those in its results file, and those that come with the package.

    Where both hold the same run, the results file counts.
    """
    parts = [read(folder / path.name) for folder in _folders(path)]
    return functools.reduce(merged, parts)


def read(path: pathlib.Path) -> pd.DataFrame:
    """Read the rows of one results file, whatever their status; none where it is absent.

    Raises:
        ValueError: It is not a results file. The message names it and what is wrong.
    """
    content = path.read_bytes() if path.exists() else ",".join(SCHEMA).encode()
    kinds = {column: str if kind is str else kind[0] for column, kind in SCHEMA.items()}
    missing = {column: [""] for column in NUMBERS}
    try:
        if re.search(rb"^(<<<<<<<|=======|>>>>>>>)", content, re.MULTILINE):
            raise ValueError("it holds the conflict markers of a git merge")
        kinds = defaultdict(lambda: str, kinds)  # columns of the user's own are text
        file = io.BytesIO(content)
        rows = pd.read_csv(file, dtype=kinds, keep_default_na=False, na_values=missing)
        rows = rows.assign(**{column: "" for column in PROVENANCE if column not in rows})
        check(rows, path.stem, path.parent.name.removesuffix("-changed"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a results file as lapnb writes it ({error}); "
            "correct it, or move it away to compute its rows again"
        ) from error
    return rows


def check(rows: pd.DataFrame, table: str, scale: str) -> None:
    """Raise ValueError with what makes no sense in the rows of a table."""
    for column, kind in SCHEMA.items():
        if column not in rows:
            raise ValueError(f"it has no column {column}")
        if kind is not str:
            number, low, high = kind
            valid = rows[column].between(low, high) | (rows[column].isna() & (number is float))
            if not valid.all():
                value = rows[column][~valid].iloc[0]
                raise ValueError(f"{column} {value:g} is not from {low} to {high:g}")
    if rows.loc[rows.status == "ok", ALWAYS].isna().any(axis=None):
        raise ValueError("a row without a result has the status ok")
    for column, choices in ({"table": {table}, "scale": {scale}} | CHOICES).items():
        unknown = {*map(str, rows[column])} - choices
        if unknown:
            raise ValueError(f"its {column} is {min(unknown)!r}")
    if not rows.status.str.match("ok$|failed: |diverged: ").all():
        raise ValueError("a status is not ok, failed or diverged")
    if rows.duplicated(KEY).any():
        raise ValueError("it holds the same run twice")


def record(path: pathlib.Path, rows: list[dict] | pd.DataFrame) -> None:
    """Add finished rows to a results file, in place of rows of the same runs.

    A run that fails when it is computed again leaves its recorded result as it is.
    """
    with locked(root() / "runs" / f"{path.parent.name}-{path.stem}.lock", path):
        newer = pd.DataFrame(rows, columns=[*SCHEMA])
        results = pool(path)
        kept = keys(newer[_failed(newer)]) & keys(results[~_failed(results)])
        if kept:
            print(f"{newer.status.iloc[0]}; the recorded rows of {len(kept)} runs are kept")
        write_whole(path, merged(read(path), newer).to_csv(index=False).encode())


def merged(older: pd.DataFrame, newer: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both, one for each run: the newer one, unless it alone has failed."""
    rows = pd.concat([older, newer])
    failed = _failed(rows)
    rows = pd.concat([rows[failed], rows[~failed]])
    rows = rows.drop_duplicates(KEY, keep="last")
    return rows.sort_values(ORDER, kind="stable", ignore_index=True)


def keys(rows: pd.DataFrame) -> set[tuple]:
    """Return the runs that rows belong to, each as the values of `KEY`."""
    return set(rows[KEY].itertuples(index=False, name=None))


def matching(rows: pd.DataFrame, runs: set[tuple]) -> pd.DataFrame:
    """Return the rows of these runs."""
    return rows.loc[[run in runs for run in rows[KEY].itertuples(index=False, name=None)]]


def taken_over(path: pathlib.Path, runs: set[tuple]) -> pd.DataFrame:
    """Return results of these runs that other tables of this scale have recorded."""
    parts = [pd.DataFrame(columns=[*SCHEMA])]
    for folder in _folders(path):
        for file in sorted(folder.glob("*.csv")):
            if file.name == path.name:
                continue
            with contextlib.suppress(ValueError):  # not a results file, e.g. pruning_cost.csv
                parts.append(matching(read(file), runs))
    rows = pd.concat(parts)
    return rows[rows.status == "ok"].assign(table=path.stem)


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Return where rows of a results file's scale are read from, its own folder last."""
    scale = path.parent.name
    if scale not in SHIPPED_SCALES:
        return [path.parent]
    shipped = {folder / scale for folder in SHIPPED} - {path.parent}
    return [*sorted(shipped), path.parent]


def _failed(rows: pd.DataFrame) -> pd.Series:
    return rows.status.astype(str).str.startswith("failed")
