"""Runs: recorded once, resumed, never lost, never trusted when damaged."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

import lapnb
from lapnb import runs, store

VOLATILE = ["mask_seconds", "retrain_seconds"]


def tiny(**changes):
    return lapnb.table("fcn_mnist", "smoke", methods=["mp", "lap"], **changes)


def csv(root):
    return root / "figures" / "smoke" / "fcn_mnist.csv"


def test_rows_columns_and_resuming(lapnb_root, monkeypatch):
    results = lapnb.run(tiny(rounds=[2]))
    assert len(results) == 2
    expected = (
        "table scale network dataset method round seed surviving error_before error dense_error "
        "retrain_steps mask_seconds retrain_seconds device settings"
    )
    assert set(expected.split()) <= set(results.columns)
    assert results.error.between(0, 100).all()
    assert results.train_error.between(0, 100).all()
    assert results.surviving.tolist() == [results.surviving[0]] * 2

    monkeypatch.setattr(runs, "compute", lambda task: pytest.fail("recorded, yet computed"))
    pd.testing.assert_frame_equal(lapnb.run(tiny(rounds=[2])), results)


def test_a_row_computed_alone_equals_the_row_of_a_sweep(lapnb_root):
    sweep = lapnb.run(tiny())
    store.root().joinpath("figures/smoke/fcn_mnist.csv").unlink()
    alone = lapnb.run(lapnb.table("fcn_mnist", "smoke", methods=["lap"], rounds=[5]))
    row = sweep[(sweep["round"] == 5) & (sweep.method == "lap")].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.drop(columns=VOLATILE), row.drop(columns=VOLATILE))


def test_changed_settings_are_kept_apart(lapnb_root):
    lapnb.run(tiny(rounds=[2]))
    before = csv(lapnb_root).read_bytes()
    changed = lapnb.run(tiny(rounds=[2], retrain_steps=5))
    assert (changed.retrain_steps == 5).all()
    assert (changed.changed == "retrain_steps = 5").all()
    assert csv(lapnb_root).read_bytes() == before
    assert (lapnb_root / "figures" / "smoke-changed" / "fcn_mnist.csv").exists()


def test_recompute_replaces_rows(lapnb_root):
    first = lapnb.run(tiny(rounds=[2]))
    again = lapnb.run(tiny(rounds=[2]), recompute="true")
    pd.testing.assert_frame_equal(first.drop(columns=VOLATILE), again.drop(columns=VOLATILE))
    assert len(pd.read_csv(csv(lapnb_root))) == 2
    with pytest.raises(ValueError, match="recompute"):
        lapnb.run(tiny(), recompute="perhaps")


def test_two_workers_give_the_rows_of_one(lapnb_root, tmp_path, monkeypatch):
    one = lapnb.run(tiny(), workers=1)
    monkeypatch.setenv("LAPNB_ROOT", str(tmp_path / "other"))
    two = lapnb.run(tiny(), workers=2)
    pd.testing.assert_frame_equal(one.drop(columns=VOLATILE), two.drop(columns=VOLATILE))
    with pytest.raises(ValueError, match="workers"):
        lapnb.run(tiny(), workers=0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("mp", "magnitude"),
        lambda text: text.replace(",ok,", ",ok,9,"),
        lambda text: "\n".join([*text.splitlines(), text.splitlines()[1]]),
        lambda text: "hello\n",
        lambda text: "",
        lambda text: text.replace("0.25", "2.5"),
        lambda text: text.replace("surviving", "density"),
    ],
)
def test_a_results_file_of_nonsense_is_named_and_left_alone(lapnb_root, spoil):
    lapnb.run(tiny(rounds=[2]))
    nonsense = spoil(csv(lapnb_root).read_text())
    assert nonsense != csv(lapnb_root).read_text()
    csv(lapnb_root).write_text(nonsense)
    with pytest.raises(ValueError, match=r"fcn_mnist\.csv is not a results file"):
        lapnb.run(tiny())
    assert csv(lapnb_root).read_text() == nonsense


def test_a_folder_that_cannot_be_written_is_refused_before_training(lapnb_root, monkeypatch):
    monkeypatch.setattr(runs, "compute", lambda task: pytest.fail("trained all the same"))
    (lapnb_root / "figures").write_text("a file where the folder should be")
    with pytest.raises(PermissionError, match="results cannot be written to"):
        lapnb.run(tiny())


def test_a_full_disk_leaves_the_old_file(lapnb_root, monkeypatch):
    lapnb.run(tiny(rounds=[2]))
    before = csv(lapnb_root).read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*fcn_mnist.csv \(No space left"):
        runs._record(csv(lapnb_root), pd.read_csv(csv(lapnb_root)).to_dict("records"))
    assert csv(lapnb_root).read_bytes() == before
    assert [f.name for f in csv(lapnb_root).parent.iterdir()] == ["fcn_mnist.csv"]


def test_a_failed_run_is_recorded_with_its_reason_and_tried_again(lapnb_root, monkeypatch, capsys):
    real = runs.compute

    def breaks(task):
        if task.seed == 1:
            raise RuntimeError("the cat pulled the plug")
        return real(task)

    monkeypatch.setattr(runs, "compute", breaks)
    results = lapnb.run(tiny(seeds=2))
    assert set(results.seed) == {0}
    assert "the cat pulled the plug" in capsys.readouterr().out
    status = pd.read_csv(csv(lapnb_root)).status
    assert sum("the cat pulled the plug" in s for s in status) == 4
    monkeypatch.setattr(runs, "compute", real)
    assert set(lapnb.run(tiny(seeds=2)).seed) == {0, 1}
    assert (pd.read_csv(csv(lapnb_root)).status == "ok").all()


def test_a_diverged_run_is_no_result_and_is_not_repeated(lapnb_root, monkeypatch):
    table = tiny(rounds=[2], lr=1e30)
    with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
        lapnb.run(table)


def test_a_damaged_dense_network_is_named_and_trained_again(lapnb_root, capsys):
    first = lapnb.run(tiny(rounds=[2]))
    (dense,) = (lapnb_root / "runs" / "dense").glob("*.safetensors")
    content = bytearray(dense.read_bytes())
    content[-3] ^= 1
    dense.write_bytes(content)
    again = lapnb.run(tiny(rounds=[2]), recompute=True)
    assert f"{dense} is damaged" in capsys.readouterr().out
    pd.testing.assert_frame_equal(first.drop(columns=VOLATILE), again.drop(columns=VOLATILE))


SWEEP = """
import lapnb
if __name__ == "__main__":
    lapnb.run(lapnb.table("fcn_mnist", "smoke", methods=["mp", "lap"], seeds=3), workers=1)
"""


def test_kill_in_mid_sweep_then_resume(lapnb_root, tmp_path, monkeypatch):
    (tmp_path / "sweep.py").write_text(SWEEP)
    whole = {**os.environ, "LAPNB_ROOT": str(tmp_path / "whole")}
    subprocess.run([sys.executable, tmp_path / "sweep.py"], env=whole, check=True, timeout=120)
    sweep = subprocess.Popen([sys.executable, tmp_path / "sweep.py"])
    deadline = time.monotonic() + 60
    while not csv(lapnb_root).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    assert len(pd.read_csv(csv(lapnb_root))) < 12
    resumed = lapnb.run(tiny(seeds=3))
    expected = runs.read(tmp_path / "whole" / "figures" / "smoke" / "fcn_mnist.csv")
    expected = expected.sort_values(["method", "round", "seed"]).drop(columns=VOLATILE)
    resumed = resumed.sort_values(["method", "round", "seed"]).drop(columns=VOLATILE)
    pd.testing.assert_frame_equal(resumed.reset_index(drop=True), expected.reset_index(drop=True))


def test_two_callers_at_once_record_each_row_once(lapnb_root):
    script = [sys.executable, "-c", SWEEP]
    both = [subprocess.Popen(script) for _ in range(2)]
    assert [process.wait(timeout=180) for process in both] == [0, 0]
    rows = pd.read_csv(csv(lapnb_root))
    assert len(rows) == 12
    assert not rows.duplicated(["method", "round", "seed"]).any()


def test_a_worker_that_dies_is_a_failed_run(lapnb_root, tmp_path):
    code = f"""
import os, lapnb
from lapnb import runs
def compute(task):
    if task.seed == 1 and task.cells and not os.path.exists({str(tmp_path / "died")!r}):
        open({str(tmp_path / "died")!r}, "w").close()
        os._exit(9)
    return original(task)
original = runs.compute
runs.compute = compute
if __name__ == "__main__":
    lapnb.run(lapnb.table("fcn_mnist", "smoke", methods=["mp", "lap"], seeds=2), workers=2)
"""
    (tmp_path / "dies.py").write_text(code)
    subprocess.run([sys.executable, tmp_path / "dies.py"], check=True, timeout=180)
    status = pd.read_csv(csv(lapnb_root)).status
    assert status.str.contains("worker process died").any()
    assert len(lapnb.run(tiny(seeds=2))) == 8
    assert multiprocessing.active_children() == []
