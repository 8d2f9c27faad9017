"""Spreading runs over a real Dask cluster: two worker processes with a folder of their own."""

import os
from pathlib import Path

import pytest
from test_run import assert_same_rows, csv, elsewhere, iterative, status, tiny  # noqa: F401

import lapnb
from lapnb.runs import cell as experiment
from lapnb.runs import run as runs

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


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as client:
        yield client


def test_the_address_of_a_scheduler(cluster, lapnb_root, elsewhere):  # noqa: F811
    table = iterative(rounds=[3, 7])
    rows = lapnb.run(table, executor=cluster.scheduler_address)
    assert_same_rows(rows, elsewhere(table))
    assert [folder.name for folder in cluster.folder.iterdir()] == ["runs"]
    assert [*(cluster.folder / "runs" / "retrained").glob("*.safetensors")]
    assert not [*lapnb_root.rglob("*.safetensors")]
    others = [name for name in cluster.scheduler.clients if name.startswith("Client")]
    assert others == []  # the one that run() opened is closed


def test_an_executor_of_a_client_and_a_worker_that_dies(
    client,
    lapnb_root,
    elsewhere,  # noqa: F811
    monkeypatch,
):
    expected = elsewhere(tiny(seeds=2))
    workers = set(client.run(os.getpid).values())

    def deadly(task, *watch):  # sent to the workers as it is
        if task.seed == 1 and task.cells:
            os._exit(9)
        return experiment.compute(task)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "compute", deadly)
        rows = lapnb.run(tiny(seeds=2), executor=client.get_executor())
    assert_same_rows(rows, expected[expected.seed == 0])
    assert status(lapnb_root).str.startswith("failed: KilledWorker: ").sum() == 4
    rows = lapnb.run(tiny(seeds=2), executor=client.get_executor())
    assert_same_rows(rows, expected)
    client.wait_for_workers(2)
    assert workers - set(client.run(os.getpid).values())  # one is new
    assert client.status == "running"


def test_only_the_caller_writes_results(client, lapnb_root, cluster, monkeypatch):
    writers = []
    write = runs.write_whole
    monkeypatch.setattr(
        runs, "write_whole", lambda path, text: writers.append(path) or write(path, text)
    )
    lapnb.run(tiny(rounds=[2]), executor=client.get_executor())
    assert writers == [csv(lapnb_root)]
    assert not [path for path in Path(cluster.folder).rglob("*") if path.suffix == ".csv"]


@pytest.mark.parametrize("address", ["tcp://nowhere.invalid:1", "tcp://127.0.0.1:1", "nonsense"])
def test_no_scheduler_at_the_address(lapnb_root, monkeypatch, address):
    monkeypatch.setattr(runs, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("computed all the same"))
    with pytest.raises(ConnectionError, match=f"executor '{address}' is not the address"):
        lapnb.run(tiny(), executor=address)
    assert not csv(lapnb_root).exists()
