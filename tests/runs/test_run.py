"""Runs: recorded once, resumed, never lost, never trusted when damaged."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import psutil
import pytest
from reference import odd_torch

import lapnb
from lapnb.runs import compute, schedule, workers
from lapnb.runs.rows import SCHEMA, read, record, results_file
from lapnb.store import load_tensors, save_tensors, write_whole

TIMES = ["mask_seconds", "retrain_seconds", "side_by_side"]  # these differ between computations
# Processes to be killed: forked off a process that has imported torch once for all of them
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["lapnb"])


def tiny(**changes):
    usual = dict(methods=["mp", "lap"], device="cpu")  # where networks are stacked
    return lapnb.table("fcn_mnist", "smoke", **usual | changes)


def iterative(**changes):
    usual = dict(rounds=[1, 3, 7], schedule="iterative", retrain_steps=75, device="cpu")
    usual |= dict(methods=["mp", "rp", "lap"])
    return lapnb.table("fcn_iterative", "smoke", **usual | changes)


def csv(changed=""):
    return results_file("fcn_mnist", "smoke", changed)


def assert_same_rows(first, second):
    first, second = (
        rows.sort_values(["method", "round", "seed"]).reset_index(drop=True)
        for rows in (first, second)
    )
    pd.testing.assert_frame_equal(first.drop(columns=TIMES), second.drop(columns=TIMES))


def forbidden(*_, **__):
    pytest.fail("computed all the same")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Computes the rows of a table in another folder, in one go."""

    def compute(table):
        with monkeypatch.context() as patch:
            patch.setenv("LAPNB_ROOT", str(tmp_path / "elsewhere"))
            return lapnb.run(table, workers=1)

    return compute


def start(function, folder, *arguments):
    """Call `function` in a process of its own, which leads a process group."""
    process = FORKED.Process(target=_call, args=(function, str(folder), *arguments))
    process.start()
    return process


def _call(function, folder, *arguments):
    os.setsid()
    os.environ["LAPNB_ROOT"] = folder
    function(*arguments)


def workers_of(folder):
    """The worker processes that compute for a folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                process.environ().get("LAPNB_ROOT") == str(folder)
                and "serve()" in process.cmdline()[-1]
            ):
                yield process


# ---- rows ----------------------------------------------------------------------------------------


def test_rows_are_recorded_and_not_computed_again(lapnb_root, monkeypatch):
    results = lapnb.run(tiny(rounds=[2]))
    assert [*results.columns] == [*SCHEMA] and len(results) == 2
    assert results.surviving.tolist() == [results.surviving[0]] * 2
    before = {path: path.stat().st_mtime_ns for path in lapnb_root.rglob("*")}
    monkeypatch.setattr(schedule, "compute", forbidden)
    pd.testing.assert_frame_equal(lapnb.run(tiny(rounds=[2])), results)
    pd.testing.assert_frame_equal(lapnb.recorded("fcn_mnist", "smoke"), results)
    assert before == {path: path.stat().st_mtime_ns for path in lapnb_root.rglob("*")}


def test_changed_settings_are_kept_apart(lapnb_root):
    lapnb.run(tiny(rounds=[2]))
    before = csv().read_bytes()
    changed = lapnb.run(tiny(rounds=[2], retrain_steps=5))
    assert (changed.retrain_steps == 5).all() and (changed.changed == "retrain_steps = 5").all()
    assert csv().read_bytes() == before and csv("changed").exists()


def test_rows_are_the_same_whatever_the_caller_has_set(lapnb_root, elsewhere):
    expected = elsewhere(tiny(rounds=[2]))
    with odd_torch():
        results = lapnb.run(tiny(rounds=[2]), workers=1)
    assert_same_rows(results, expected)


def test_seconds_of_masks_include_what_their_scores_look_at(lapnb_root):
    table = tiny(methods=["mp", "lap_act"], rounds=[2])
    lapnb.run(table)
    (file,) = (lapnb_root / "runs" / "statistics").glob("*.safetensors")
    tensors, facts = load_tensors(file)
    assert facts["seconds"] > 0
    save_tensors(file, tensors, {"seconds": 3600})
    seconds = lapnb.run(table, recompute=True).set_index("method").mask_seconds
    assert seconds["mp"] < 3600 < seconds["lap_act"]


def test_shipped_rows_and_own_rows_are_one_pool(lapnb_root, elsewhere, tmp_path, monkeypatch):
    table = tiny(seeds=2)
    shipped = elsewhere(table)
    there = tmp_path / "elsewhere" / "figures"
    before = {path: path.read_bytes() for path in there.rglob("*.csv")}
    monkeypatch.setattr("lapnb.runs.rows.SHIPPED", [there])
    monkeypatch.setattr("lapnb.runs.rows.SHIPPED_SCALES", ["smoke"])
    record(csv(), [])  # as a run that is stopped at once does
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "compute", forbidden)
        pd.testing.assert_frame_equal(lapnb.recorded("fcn_mnist", "smoke"), shipped)
        pd.testing.assert_frame_equal(lapnb.run(table), shipped)
        assert read(csv()).empty
    record(csv(), shipped[:1].assign(error=1.5))
    record(csv(), shipped[1:2].assign(status="failed: for some reason", error=None))
    changed = shipped.error.where(shipped.index > 0, 1.5)
    assert lapnb.recorded("fcn_mnist", "smoke").error.equals(changed)
    assert len(lapnb.run(tiny(seeds=3))) == 12 and read(csv()).seed.eq(2).sum() == 4
    assert before == {path: path.read_bytes() for path in there.rglob("*.csv")}


def test_rows_of_the_same_settings_are_taken_over_from_another_table(lapnb_root, monkeypatch):
    rows = lapnb.run(tiny(rounds=[2]))
    monkeypatch.setattr(schedule, "compute", forbidden)
    other = lapnb.run(lapnb.table("fcn_generalization", "smoke", rounds=[2]))
    pd.testing.assert_frame_equal(other, rows.assign(table="fcn_generalization"))


def test_recompute_replaces_rows_but_not_by_a_failure(lapnb_root, monkeypatch, capsys):
    first = lapnb.run(tiny(rounds=[2]))
    again = lapnb.run(tiny(rounds=[2]), recompute="true")
    assert_same_rows(first, again)
    assert again.mask_seconds.tolist() != first.mask_seconds.tolist()
    assert len(read(csv())) == 2

    def breaks(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(schedule, "compute", breaks)
    pd.testing.assert_frame_equal(lapnb.run(tiny(rounds=[2]), recompute=True), again)
    assert "MemoryError: no room; the recorded rows of 2 runs are kept" in capsys.readouterr().out


def test_rows_of_another_device_or_dense_network_are_told(lapnb_root, capsys):
    lapnb.run(tiny(rounds=[2]))
    assert capsys.readouterr().out == ""
    results = lapnb.run(tiny(rounds=[2, 5], precision="bfloat16"))
    assert (
        "2 of 4 rows were recorded on cpu; this table asks for cpu, bfloat16: recompute=True"
        in (capsys.readouterr().out)
    )
    assert results.device.tolist() == ["cpu", "cpu, bfloat16"] * 2
    assert results.settings.nunique() == 1
    gpu = "cuda (NVIDIA H100, TF32 convolutions), bfloat16"
    record(csv(), results.assign(device=gpu, dense_error=[1.5, 1.5, 2, 2]))
    lapnb.run(tiny())
    said = capsys.readouterr().out
    assert f"4 of 4 rows were recorded on {gpu}; this table asks for cpu: recompute=True" in said
    assert "rows of seed 0 come from several dense networks" in said


@pytest.mark.parametrize(
    ("table", "arguments", "words"),
    [
        (tiny(), dict(recompute="maybe"), "recompute must be a valid boolean.*; got 'maybe'"),
        (tiny(), dict(workers=0), "workers must be greater than or equal to 1; got 0"),
        (tiny(), dict(executor=2), "executor must be an object with a method submit.* got 2"),
        (tiny(batch_size=4001), {}, "batch_size must be at most 4000, .*; got 4001"),
        (tiny(methods=["lap_forward"], scope="global"), {}, "lap_forward.*global"),
        ("fcn_mnist", {}, "table must be one that lapnb.table declares"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(lapnb_root, table, arguments, words):
    with pytest.raises(ValueError, match=words):
        lapnb.run(table, **arguments)
    assert [*lapnb_root.iterdir()] == []


# ---- results files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded_text(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPNB_ROOT", str(tmp_path_factory.mktemp("recorded")))
        lapnb.run(tiny(rounds=[2]))
        return csv().read_text()


def edited(text, column, value):
    """A results file with one value of its first row changed."""
    rows = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    rows.loc[0, column] = value
    return rows.to_csv(index=False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "\n".join([*text.splitlines(), text.splitlines()[1]]),
        lambda text: edited(text, "round", "1.5"),
        lambda text: edited(text, "method", "magnitude"),
        lambda text: edited(text, "surviving", "2.5"),
        lambda text: edited(text, "error", ""),
        lambda text: f"<<<<<<< HEAD\n{text}=======\n",  # of a git merge
    ],
)
def test_a_results_file_of_nonsense_is_named_and_left_alone(lapnb_root, recorded_text, spoil):
    write_whole(csv(), spoil(recorded_text).encode())
    nonsense = csv().read_bytes()
    assert nonsense != recorded_text.encode()
    with pytest.raises(ValueError, match=r"fcn_mnist\.csv is not a results file"):
        lapnb.run(tiny())
    assert csv().read_bytes() == nonsense


def test_whole_numbers_and_own_columns_stay_and_files_of_before_are_read(lapnb_root, recorded_text):
    before = (
        pd.read_csv(io.StringIO(recorded_text))
        .drop(columns=["commit", "torch", "processor", "side_by_side"])
        .assign(note="mine")
    )
    write_whole(csv(), before.to_csv(index=False).encode())
    results = lapnb.run(tiny())
    assert (results.commit == "").tolist() == [True, False] * 2
    lines = csv().read_text().splitlines()[1:]
    assert sum(line.endswith(",mine") for line in lines) == 2
    assert all(",60,20," in line for line in lines)


def test_rows_of_two_sources_are_never_pooled(lapnb_root, capsys):
    rows = lapnb.run(tiny())
    other = rows.assign(source="my digits", error=rows.error + 1)[rows["round"] == 2]
    record(csv(), other.to_dict("records"))
    found = lapnb.recorded("fcn_mnist", "smoke")
    pd.testing.assert_frame_equal(found, rows)
    assert "also recorded: fcn_mnist on my digits" in capsys.readouterr().out
    assert set(lapnb.recorded("fcn_mnist", "smoke", source="my digits").source) == {"my digits"}
    with pytest.raises(ValueError, match="source must be one of MNIST, 5,000 digits, my digits"):
        lapnb.recorded("fcn_mnist", "smoke", source="yours")
    lapnb.verdicts(found)


@pytest.mark.parametrize("folder", ["figures", "runs"])
def test_a_folder_that_cannot_be_written_is_refused(lapnb_root, monkeypatch, folder):
    monkeypatch.setattr(schedule, "compute", forbidden)
    (lapnb_root / folder).write_text("a file where the folder should be")
    with pytest.raises(OSError, match=f"{lapnb_root}/{folder}/.*Not a directory|File exists"):
        lapnb.run(tiny())


# ---- runs that fail or diverge -------------------------------------------------------------------


def test_a_failed_run_is_recorded_with_its_reason_and_tried_again(lapnb_root, monkeypatch, capsys):
    before = []

    def breaks(task, *tell):
        before.append(len(read(csv())))
        if task.seed == 1:
            raise RuntimeError("the cat pulled the plug")
        return compute.compute(task, *tell)

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "compute", breaks)
        assert set(lapnb.run(tiny(seeds=2)).seed) == {0}
    assert before == [0, 0, 0, 4]  # each is recorded before the next one begins
    assert "the cat pulled the plug" in capsys.readouterr().out
    failed = read(csv()).status.eq("failed: RuntimeError: the cat pulled the plug")
    assert failed.sum() == 4
    assert set(lapnb.run(tiny(seeds=2)).seed) == {0, 1}
    assert read(csv()).status.eq("ok").all()


@pytest.mark.parametrize("steps", [1, 60])  # it diverges in the last step, or before
def test_a_dense_network_that_diverged_is_recorded_and_not_repeated(lapnb_root, monkeypatch, steps):
    table = tiny(rounds=[2], lr=1e30, dense_steps=steps)
    with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
        lapnb.run(table)
    rows = read(csv("changed"))
    assert rows.status.str.match("diverged: the loss .* of the dense network").all()
    assert rows.error.isna().all()
    monkeypatch.setattr(compute, "train", forbidden)
    for again in (table, tiny(rounds=[5], lr=1e30, dense_steps=steps)):
        with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
            lapnb.run(again)
    assert not [*(lapnb_root / "runs" / "checkpoints").rglob("*.safetensors")]


@pytest.fixture
def spoil_lap(monkeypatch):
    """LAP's networks of a round get huge weights, or cannot be pruned at all."""

    def spoil(in_round, how):
        def prune_masks(model, method, keep, *rest, **more):
            masks = lapnb.prune_masks(model, method, keep, *rest, **more)
            if method == "lap" and keep[0] == 0.5**in_round:
                if how == "failed":
                    raise ValueError("these weights are odd")
                for layer in model.layers[::2]:
                    layer.weight.data.mul_(1e30)
            return masks

        monkeypatch.setattr(compute, "prune_masks", prune_masks)

    return spoil


@pytest.mark.parametrize("how", ["diverged", "failed"])
def test_what_starts_from_a_round_without_result_has_none(
    lapnb_root, spoil_lap, elsewhere, monkeypatch, how
):
    """The others, of the same stack too, are as ever; only what failed is tried again."""
    expected = elsewhere(iterative())
    spoil_lap(3, how)
    results = lapnb.run(iterative())
    assert_same_rows(results, expected[(expected.method != "lap") | (expected["round"] == 1)])
    rows = read(results_file("fcn_iterative", "smoke", "changed"))
    rows = rows[rows.status != "ok"]
    assert rows["round"].tolist() == [3, 7]
    reason = {"diverged": "the loss .* of round 3", "failed": ".*these weights are odd"}
    assert rows.status.str.match(f"{how}: {reason[how]}").all()
    again = []
    monkeypatch.setattr(schedule, "compute", lambda task, *_: again.extend(task.runs) or [])
    pd.testing.assert_frame_equal(lapnb.run(iterative()), results)
    assert again == ([("lap", 3), ("lap", 7)] if how == "failed" else [])


# ---- processes that die, are stopped, or meet ----------------------------------------------------


def _deadly(task):
    """Seed 1 kills its worker while seed 0 is computed by the other one."""
    if task.runs and task.seed == 1:
        os._exit(9)
    return compute.compute(task)


def test_a_worker_that_dies_is_a_failed_run_and_the_others_go_on(
    lapnb_root, elsewhere, monkeypatch
):
    expected = elsewhere(tiny(seeds=2))
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "compute", _deadly)
        by_two = lapnb.run(tiny(seeds=2), workers=2)
    assert_same_rows(by_two, expected[expected.seed == 0])
    assert read(csv()).status.str.endswith("a worker process died (exit 9)").sum() == 4
    assert_same_rows(lapnb.run(tiny(seeds=2)), expected)


def _stop_in_mid_sweep(how):
    # a shell starts background jobs with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def record_and_stop(path, rows):
        record(path, rows)
        if rows:  # as a terminal does, to caller and workers
            os.killpg(os.getpid(), how)

    schedule.record = record_and_stop
    lapnb.run(tiny(seeds=3), workers=2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stop_in_mid_sweep_then_resume(lapnb_root, elsewhere, how):
    process = start(_stop_in_mid_sweep, lapnb_root, how)
    process.join()
    psutil.wait_procs(workers_of(lapnb_root), timeout=10)
    assert not [*workers_of(lapnb_root)]
    assert 0 < len(read(csv())) < 12
    assert_same_rows(lapnb.run(tiny(seeds=3)), elsewhere(tiny(seeds=3)))


def _kill_in_mid_run(table, kind):
    checkpoints = sys.modules["lapnb.training.checkpoints"]

    def save_and_die(path, tensors, facts):
        save_tensors(path, tensors, facts)
        stack = "stack" if any("values" in name for name in tensors) else "network"
        if int(facts["step"]) == 50 and stack == kind:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.CHECKPOINT_SECONDS, checkpoints.save_tensors = 0, save_and_die
    lapnb.run(table, workers=1)


def killed_in_mid_run(folder, table, kind):
    """The checkpoint that a run leaves which is killed at its 50th step."""
    process = start(_kill_in_mid_run, folder, table, kind)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (checkpoint,) = (folder / "runs" / "checkpoints").rglob("*.safetensors")
    return checkpoint


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (tiny(retrain_steps=75, device="auto"), "network"),  # in dense training
        (tiny(retrain_steps=75), "stack"),
        (tiny(retrain_steps=75, dense_steps=25, rounds=[1], device="auto"), "network"),  # masks
        (iterative(), "stack"),
    ],
)
def test_kill_in_mid_run_then_resume(lapnb_root, elsewhere, monkeypatch, table, kind):
    expected = elsewhere(table)
    checkpoint = killed_in_mid_run(lapnb_root, table, kind)
    checkpoint.with_name(f".{checkpoint.name}.abc").write_text("a part")  # killed while it wrote
    tensors, facts = load_tensors(checkpoint)
    save_tensors(checkpoint, tensors, facts | {"seconds": 3600})
    steps, train = [], compute.train

    def watched(*arguments, **settings):
        return train(*arguments, **settings | {"progress": steps.append})

    monkeypatch.setattr(compute, "train", watched)
    rows = lapnb.run(table)
    assert steps[0] > 50  # it went on where it was
    assert not [*checkpoint.parent.iterdir()]
    assert_same_rows(rows, expected)
    if kind == "stack":  # of all parts of the resumed retraining
        assert rows.retrain_seconds.sum() > 3600


def _sweep(table):
    lapnb.run(table, workers=1)


def test_callers_at_once_record_each_row_once(lapnb_root):
    callers = [start(_sweep, lapnb_root, tiny(seeds=3)) for _ in range(3)]
    for process in callers:
        process.join()
    assert [process.exitcode for process in callers] == [0, 0, 0]
    assert len(read(csv())) == 12


SCRIPT = """
import lapnb
rows = lapnb.run(lapnb.table("fcn_mnist", "smoke", methods=["mp"], seeds=2), workers=2)
print(len(rows), "rows")
"""


def test_a_script_without_a_main_guard(lapnb_root):
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("4 rows\n", "")


def test_processors_are_those_that_may_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    for limit, count in {"max 100000": 3, "250000 100000": 2, "50000 100000": 1}.items():
        (tmp_path / "cpu.max").write_text(limit)
        assert workers.processors() == count


def test_executors_of_the_user_give_the_rows_of_one_worker(lapnb_root, elsewhere):
    with ThreadPoolExecutor(2) as executor:
        rows = lapnb.run(tiny(seeds=2), executor=executor)
    assert_same_rows(rows, elsewhere(tiny(seeds=2)))


# ---- caches --------------------------------------------------------------------------------------


def test_damaged_files_are_named_and_made_again(lapnb_root, elsewhere, capsys):
    table = iterative(methods=["lap_act"])
    killed_in_mid_run(lapnb_root, table, "stack")
    files = [*lapnb_root.glob("runs/*/*.safetensors")]
    folders = {file.parent.name for file in files}
    assert folders == {"dense", "statistics", "retrained", "checkpoints"}
    for file in files:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    assert_same_rows(lapnb.run(table), elsewhere(table))
    said = capsys.readouterr().out
    assert all(f"{file} is damaged" in said for file in files)


def test_what_came_of_another_dense_network_is_not_used(lapnb_root, tmp_path, elsewhere, capsys):
    """The dense network is lost and comes out otherwise, as on another machine."""
    table = iterative(methods=["lap_act"])
    killed_in_mid_run(lapnb_root, table, "stack")
    (dense,) = (lapnb_root / "runs" / "dense").glob("*.safetensors")
    tensors, _ = load_tensors(dense)
    other = {name: tensor * 1.25 for name, tensor in tensors.items()}
    for folder in (lapnb_root, tmp_path / "elsewhere"):
        save_tensors(folder / "runs" / "dense" / dense.name, other, {"dense_error": 12.5})
    rows = lapnb.run(table)
    later = rows["round"] > 1  # round 1 was recorded before
    assert "began from other weights" in capsys.readouterr().out
    assert (rows.dense_error[later] == 12.5).all()
    assert_same_rows(rows[later], elsewhere(table)[later])
