"""Results files: figures/<scale>/<table>.csv, with one row for each finished run."""

import contextlib
import pathlib

import pandas as pd

from lapnb.pruning.scores import METHODS
from lapnb.store import locked, root, write_whole

SHIPPED_SCALES = ("reduced", "paper")
# Where the rows of these scales lie in an installed package, and in a checkout
SHIPPED = [pathlib.Path(__file__).resolve().parents[above] / "figures" for above in (1, 2)]
# The columns of a row and their types; columns of the user's own stay
SCHEMA = {
    "table": str,
    "scale": str,
    "network": str,
    "dataset": str,
    "source": str,
    "activation": str,
    "width": float,
    "method": str,
    "scope": str,
    "schedule": str,
    "round": int,
    "seed": int,
    "surviving": float,
    "error_before": float,
    "error": float,
    "train_error": float,
    "dense_error": float,
    "distortion": float,
    "empty_layers": str,
    "dense_steps": int,
    "retrain_steps": int,
    "mask_seconds": float,
    "retrain_seconds": float,
    "device": str,
    "status": str,
    "changed": str,
    "settings": str,
    # How it was made; empty in rows that are older than these columns
    "commit": str,
    "torch": str,
    "processor": str,
    "side_by_side": str,
}
RESULT = ["surviving", "error_before", "error", "dense_error"]  # where the status is ok
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
        return typed(pd.DataFrame())
    try:
        rows = typed(pd.read_csv(path, dtype=str, keep_default_na=False, na_values=""))
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
    """Return the rows with the columns and types of `SCHEMA`, whatever types they have.

    Raises:
        ValueError: It says what makes no sense in them.
    """
    columns = dict.fromkeys([*SCHEMA, *rows.columns])
    rows = rows.reset_index(drop=True).reindex(columns=[*columns])
    text = [column for column, kind in SCHEMA.items() if kind is str]
    rows[text] = rows[text].astype(object).fillna("")
    numbers = dict.fromkeys(SCHEMA.keys() - {*text}, float)
    rows = rows.astype(numbers)  # a whole number may stand there as 60.0
    whole = rows[[column for column, kind in SCHEMA.items() if kind is int]]
    uncounted = (whole % 1 != 0).any(axis=1)  # NaN and infinite ones, too
    result = rows[RESULT]
    incomplete = result.isna().any(axis=1) & (rows.status == "ok")
    impossible = ((result < 0) | (result > [1, 100, 100, 100])).any(axis=1)
    faults = {
        f"method must be one of {', '.join(METHODS)}": ~rows.method.isin(METHODS),
        "a row without a result has the status ok": incomplete,
        "counts are whole numbers": uncounted,
        "a fraction lies in [0, 1], an error in [0, 100]": impossible,
        "it holds the same run twice": rows.duplicated(KEY),
    }
    for fault, at_fault in faults.items():
        if at_fault.any():
            raise ValueError(f"{fault} (row {at_fault.idxmax()})")
    return rows.astype(SCHEMA)


def record(path: pathlib.Path, rows: list[dict] | pd.DataFrame) -> None:
    """Add finished rows to a results file, in place of rows of the same runs.

    A run that fails when it is computed again leaves its recorded result as it is.
    """
    newer = typed(pd.DataFrame(rows, columns=[*SCHEMA]))
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
    parts = [typed(pd.DataFrame())]
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
