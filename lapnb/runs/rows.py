"""Results files: figures/<scale>/<table>.csv, with one row for each finished run."""

import contextlib
import pathlib
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field, TypeAdapter

from lapnb.checks import one_sentence, require
from lapnb.pruning.scores import METHODS
from lapnb.store import locked, root, write_whole
from lapnb.training.datasets import DATASETS
from lapnb.training.networks import ACTIVATIONS, NETWORKS

SHIPPED_SCALES = ("reduced", "paper")
# Where the rows of these scales lie in an installed package, and in a checkout
SHIPPED = [pathlib.Path(__file__).resolve().parents[above] / "figures" for above in (1, 2)]
Percent = Annotated[float | None, Field(ge=0, le=100)]
Amount = Annotated[float | None, Field(ge=0, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**9)]


class Row(BaseModel, extra="allow", coerce_numbers_to_str=True):
    """What a row holds, and which values make sense; columns of the user's own stay."""

    table: str
    scale: str
    network: Literal[*NETWORKS]
    dataset: Literal[*DATASETS]
    source: str
    activation: Literal[*ACTIVATIONS]
    width: Amount
    method: str
    scope: Literal["layer", "global"]
    schedule: Literal["oneshot", "iterative"]
    round: Count
    seed: Count
    surviving: Annotated[float | None, Field(ge=0, le=1)]
    error_before: Percent
    error: Percent
    train_error: Percent
    dense_error: Percent
    distortion: Amount
    empty_layers: str
    dense_steps: Count
    retrain_steps: Count
    mask_seconds: Amount
    retrain_seconds: Amount
    device: str
    status: Annotated[str, Field(pattern="^(ok$|failed: |diverged: )")]
    changed: str
    settings: str
    # How it was made; empty in rows that are older than these columns
    commit: str = ""
    torch: str = ""
    processor: str = ""
    side_by_side: str = ""


SCHEMA = [*Row.model_fields]
KINDS = {
    name: {float | None: float, int: int}.get(field.annotation, str)
    for name, field in Row.model_fields.items()
}
ALWAYS = ["surviving", "error_before", "error", "dense_error"]  # where the status is ok
ORDER = ["activation", "schedule", "method", "seed", "round"]
KEY = ["source", "settings", "method", "round", "seed"]  # what tells a run from all others


def results_file(name: str, scale: str, changed: str = "") -> pathlib.Path:
    """Return the file that a table's rows are written to.

    Rows of a table with changed settings go to a folder beside that of the scale.
    """
    folder = f"{scale}-changed" if changed else scale
    return root() / "figures" / folder / f"{name}.csv"


def pool(path: pathlib.Path) -> pd.DataFrame:
    """Read all rows of a table: those in its results file, and those that come with the package.

    Where both hold the same run, the results file counts.
    """
    return merged([read(folder / path.name) for folder in _folders(path)])


def read(path: pathlib.Path) -> pd.DataFrame:
    """Read the rows of one results file, whatever their status; none where it is absent.

    Raises:
        ValueError: It is not a results file. The message names it and what is wrong.
    """
    if not path.exists():
        return typed(pd.DataFrame(columns=SCHEMA))
    try:
        rows = typed(pd.read_csv(path, dtype=str, keep_default_na=False))
        name, scale = path.stem, path.parent.name.removesuffix("-changed")
        if not ((rows.table == name) & (rows.scale == scale)).all():
            raise ValueError("its rows are of another table or scale")
    except ValueError as error:
        raise ValueError(
            f"{path} is not a results file as lapnb writes it ({error}); correct it, as where "
            "a git merge left conflicts, or move it away to compute its rows again"
        ) from error
    return rows


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the types of `Row`, whatever types they have.

    Raises:
        ValueError: It says what makes no sense in them.
    """
    no_number = {column: {"": None} for column, kind in KINDS.items() if kind is not str}
    values = rows.astype(object).where(rows.notna(), "").replace(no_number)
    with one_sentence():
        checked = TypeAdapter(list[Row]).validate_python(values.to_dict("records"))
    columns = dict.fromkeys([*SCHEMA, *rows.columns])
    rows = pd.DataFrame([row.model_dump() for row in checked], columns=columns).astype(KINDS)
    for name in rows.method.unique():
        require(name in METHODS, "method", f"one of {', '.join(METHODS)}", name)
    if rows.loc[rows.status == "ok", ALWAYS].isna().any(axis=None):
        raise ValueError("a row without a result has the status ok")
    if rows.duplicated(KEY).any():
        raise ValueError("it holds the same run twice")
    return rows


def record(path: pathlib.Path, rows: list[dict] | pd.DataFrame) -> None:
    """Add finished rows to a results file, in place of rows of the same runs.

    A run that fails when it is computed again leaves its recorded result as it is.
    """
    newer = typed(pd.DataFrame(rows, columns=SCHEMA))
    with locked(root() / "runs" / f"{path.parent.name}-{path.stem}.lock", path):
        results = pool(path)
        bad = newer[failed(newer)]
        kept = matching(results[~failed(results)], keys(bad))
        if not kept.empty:
            print(f"{bad.status.iloc[0]}; the recorded rows of {len(kept)} runs are kept")
        write_whole(path, merged([read(path), newer]).to_csv(index=False).encode())


def merged(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return one row for each run: the last that has not failed, or else the last."""
    rows = pd.concat(parts)
    rows = pd.concat([rows[failed(rows)], rows[~failed(rows)]])
    rows = rows.drop_duplicates(KEY, keep="last")
    return rows.sort_values(ORDER, kind="stable", ignore_index=True)


def failed(rows: pd.DataFrame) -> pd.Series:
    """Return for each row whether its run failed; such a run is tried again."""
    return rows.status.str.startswith("failed")


def keys(rows: pd.DataFrame) -> set[tuple]:
    """Return the runs that the rows belong to, each as the values of `KEY`."""
    return set(rows[KEY].itertuples(index=False, name=None))


def matching(rows: pd.DataFrame, runs: set[tuple]) -> pd.DataFrame:
    """Return the rows of these runs."""
    return rows.loc[[run in runs for run in rows[KEY].itertuples(index=False, name=None)]]


def taken_over(path: pathlib.Path, runs: set[tuple]) -> pd.DataFrame:
    """Return results of these runs that other tables of this scale have recorded."""
    parts = [typed(pd.DataFrame(columns=SCHEMA))]
    for folder in _folders(path):
        for file in sorted(folder.glob("*.csv")):
            with contextlib.suppress(ValueError):  # not a results file, e.g. pruning_cost.csv
                rows = matching(read(file), runs)
                parts.append(rows[rows.status == "ok"])
    return merged(parts).assign(table=path.stem)


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders with rows of a results file's scale, the folder of that file last."""
    scale = path.parent.name
    shipped = [folder / scale for folder in SHIPPED if scale in SHIPPED_SCALES]
    return [*dict.fromkeys([*shipped, path.parent])]
