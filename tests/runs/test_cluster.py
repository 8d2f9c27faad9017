"""Spreading runs over a real Dask cluster: two worker processes with a folder of their own."""

import pytest
from test_run import assert_same_rows, csv, elsewhere, forbidden, iterative, tiny  # noqa: F401

import lapnb
from lapnb.runs import schedule, workers

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Its workers write below `cluster.folder`; a run is not moved on from a worker that dies."""
    dask = pytest.importorskip("dask")
    folder = tmp_path_factory.mktemp("workers")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            env={"LAPNB_ROOT": str(folder), "OMP_NUM_THREADS": "1"},
        ) as cluster,
    ):
        cluster.folder = folder
        yield cluster


def test_the_address_of_a_scheduler(cluster, lapnb_root, elsewhere):  # noqa: F811
    table = iterative(rounds=[3, 7])
    rows = lapnb.run(table, executor=cluster.scheduler_address)
    assert_same_rows(rows, elsewhere(table))
    # only the caller writes results
    assert [folder.name for folder in cluster.folder.iterdir()] == ["runs"]
    assert not [*lapnb_root.rglob("*.safetensors")]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_no_scheduler_at_the_address(lapnb_root, monkeypatch, address):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(schedule, "compute", forbidden)
    with pytest.raises(ConnectionError, match=f"executor '{address}' is not the address"):
        lapnb.run(tiny(), executor=address)
