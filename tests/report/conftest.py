"""Rows made up for tests of the report."""

import matplotlib
import pandas as pd
import pytest

import lapnb
from lapnb.runs.rows import SCHEMA, results_file

matplotlib.use("Agg")


@pytest.fixture
def made():
    """A function that makes rows as `run` returns them: errors per method, one per seed."""

    def rows(errors, name="fcn_mnist", scale="paper", nth=-1, **more):
        found = []
        for variant in lapnb.table(name, scale).split():
            round = variant.rounds[nth]
            about = {
                column: getattr(variant, column) for column in SCHEMA if hasattr(variant, column)
            }
            about |= {"table": name, "source": "MNIST", "round": round, "surviving": 0.5**round}
            about |= {"dense_error": 2.0, "error_before": 80.0, "train_error": 0.5}
            about |= {"device": "cpu", "status": "ok", "distortion": None}
            for method, values in errors.items():
                about |= {"method": method, "settings": variant.settings(method, round)}
                found += [about | {"seed": n, "error": e} | more for n, e in enumerate(values)]
        table = pd.DataFrame(found, columns=[*SCHEMA])
        return table.drop_duplicates(["settings", "method", "round", "seed"])

    return rows


@pytest.fixture
def record(made):
    """A function that adds such rows to a table's results file."""

    def write(errors, name, scale, **more):
        rows, path = made(errors, name, scale, **more), results_file(name, scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_csv(path, mode="a", header=not path.exists(), index=False)

    return write
