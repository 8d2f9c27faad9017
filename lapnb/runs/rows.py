"""Results files: figures/<scale>/<table>.csv, a row per finished run, a checksum beside it."""

import contextlib
import hashlib
import io
import pathlib
from collections import defaultdict
from typing import get_args

import pandas as pd

from lapnb.paper.protocol import Table
from lapnb.pruning.scores import METHODS
from lapnb.store import check_regular, locked, root, write_whole

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
NAMED = {"method": METHODS.keys()} | {
    name: {*get_args(Table.model_fields[name].annotation)}
    for name in ("network", "dataset", "activation", "scope", "schedule")
}
KEY = ["source", "settings", "method", "round", "seed"]  # what tells a run from all others


def results_file(name: str, scale: str, changed: str = "") -> pathlib.Path:
    """Where a table's rows are; tables with changed settings keep out of a scale's own folder."""
    return root() / "figures" / (scale + ("-changed" if changed else "")) / f"{name}.csv"


def read(path: pathlib.Path) -> pd.DataFrame:
    """The rows of a results file, whatever their status; ValueError naming it when it is not one.

    Says so when the content is not what was recorded.
    """
    check_regular(path)
    if not path.exists():
        return pd.DataFrame(columns=[*SCHEMA])
    text = path.read_bytes()
    kinds = defaultdict(lambda: str, dict.fromkeys(NUMBERS, float))
    missing = {column: [""] for column in NUMBERS}
    try:
        rows = pd.read_csv(io.BytesIO(text), dtype=kinds, keep_default_na=False, na_values=missing)
        rows = rows.assign(**{column: "" for column in PROVENANCE if column not in rows})
        check(rows, path.stem, path.parent.name.removesuffix("-changed"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a results file as lapnb writes it ({error}); "
            "correct it, or move it away to compute its rows again"
        ) from error
    sums = _sums_file(path)
    check_regular(sums)
    if sums.exists() and _sum(text) not in sums.read_text(errors="replace"):
        print(f"{path} was changed by hand: it is not what `lapnb.run` recorded")
    return rows.astype({column: SCHEMA[column][0] for column in NUMBERS})


def check(rows: pd.DataFrame, table: str, scale: str) -> None:
    """Raise ValueError with what makes no sense in the rows of a table."""
    if absent := [column for column in SCHEMA if column not in rows]:
        raise ValueError(f"it has no column {absent[0]}")
    for column in NUMBERS:
        kind, low, high = SCHEMA[column]
        given = rows[column] if kind is int else rows[column].dropna()
        odd = given[~given.between(low, high) | ((kind is int) & (given % 1 != 0))]
        if not odd.empty:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{column} {odd.iloc[0]:g} is not {what} from {low} to {high:g}")
    if rows.loc[rows.status == "ok", ALWAYS].isna().any(axis=None):
        raise ValueError("a row without a result has the status ok")
    for column, allowed in ({"table": {table}, "scale": {scale}} | NAMED).items():
        if unknown := {*map(str, rows[column])} - allowed:
            raise ValueError(f"its {column} is {min(unknown)!r}")
    if not rows.status.str.match("ok$|failed: |diverged: ").all():
        raise ValueError("a status is not ok, failed or diverged")
    if rows.duplicated(KEY).any():
        raise ValueError("it holds the same run twice")


def record(path: pathlib.Path, rows: list[dict]) -> None:
    """Add finished rows; a row of the same run is replaced, so that none is there twice.

    But a run that failed when it was computed again leaves its recorded result as it is. At no
    moment, and after no kill, is there a file that the checksums beside it do not know.
    """
    with locked(root() / "runs" / f"{path.parent.name}-{path.stem}.lock", path):
        old, new = read(path), pd.DataFrame(rows, columns=[*SCHEMA])
        fine, failed = old.status == "ok", new.status.astype(str).str.startswith("failed")
        kept = matching(old[fine], keys(new[failed]))
        if len(kept):
            print(f"{new.status[failed].iloc[0]}; the recorded rows of {len(kept)} runs are kept")
        rows = pd.concat([old[~fine], new[failed], old[fine], new[~failed]])  # the last counts
        rows = rows.drop_duplicates(KEY, keep="last").sort_values(ORDER, kind="stable")
        text = rows.to_csv(index=False).encode()
        known = [_sum(text), *([_sum(path.read_bytes())] if path.exists() else [])]
        lines = [f"{known_sum}  {path.name}\n" for known_sum in dict.fromkeys(known)]
        write_whole(_sums_file(path), "".join(lines).encode())
        write_whole(path, text)


def keys(rows: pd.DataFrame) -> set[tuple]:
    return set(rows[KEY].itertuples(index=False, name=None))


def matching(rows: pd.DataFrame, wanted: set[tuple]) -> pd.DataFrame:
    """The rows of the runs in `wanted`, as `keys` names them."""
    return rows.loc[[key in wanted for key in rows[KEY].itertuples(index=False, name=None)]]


def taken_over(path: pathlib.Path, wanted: set[tuple]) -> list[dict]:
    """Rows of the same settings that another table of this scale has recorded."""
    missing, rows = wanted - keys(read(path)), []
    for other in sorted({*path.parent.glob("*.csv")} - {path}) if missing else ():
        with contextlib.suppress(ValueError):  # not a results file, e.g. pruning_cost.csv
            found = matching(read(other), missing)
            rows += found[found.status == "ok"].assign(table=path.stem).to_dict("records")
    return rows


def _sums_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".csv.sha256")


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
