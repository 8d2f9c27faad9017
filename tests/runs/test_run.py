"""Runs: recorded once, resumed, never lost, never trusted when damaged."""

import dataclasses
import multiprocessing
import os
import resource
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pandas as pd
import psutil
import pytest

import lapnb
from lapnb.runs import cell as experiment
from lapnb.runs import run as runs
from lapnb.runs.cell import Task
from lapnb.store import load_tensors, write_whole

VOLATILE = ["mask_seconds", "retrain_seconds"]
# Processes to be killed: forked off a process that has imported torch once for all of them
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["lapnb"])


def tiny(**changes):
    return lapnb.table("fcn_mnist", "smoke", **{"methods": ["mp", "lap"], **changes})


def iterative(**changes):
    changes = {"rounds": [1, 3, 7], "schedule": "iterative", "retrain_steps": 75, **changes}
    return lapnb.table("fcn_iterative", "smoke", methods=["mp", "rp", "lap"], **changes)


def csv(root):
    return root / "figures" / "smoke" / "fcn_mnist.csv"


def status(root):
    return pd.read_csv(csv(root)).status


def assert_same_rows(first, second):
    first, second = (
        rows.sort_values(["method", "round", "seed"]).reset_index(drop=True)
        for rows in (first, second)
    )
    pd.testing.assert_frame_equal(first.drop(columns=VOLATILE), second.drop(columns=VOLATILE))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Computes the rows of a table in another folder, in one go."""

    def run(table):
        with monkeypatch.context() as patch:
            patch.setenv("LAPNB_ROOT", str(tmp_path / "elsewhere"))
            return lapnb.run(table, workers=1)

    return run


def start(function, root, *arguments):
    """Call `function` in a process of its own, which leads a process group."""
    process = FORKED.Process(target=_call, args=(function, str(root), *arguments))
    process.start()
    return process


def _call(function, root, *arguments):
    os.setsid()
    os.environ["LAPNB_ROOT"] = root
    function(*arguments)


def nothing_left_of(group):
    """Whether the processes of a group are gone, after waiting for that."""
    for _ in range(600):
        left = [p for p in psutil.pids() if _group(p) == group]
        if not left:
            return True
        time.sleep(0.05)
    return False


def _group(pid):
    try:
        dead = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return None if dead else os.getpgid(pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


# ---- rows ----------------------------------------------------------------------------------------


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

    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("recorded, yet computed"))
    pd.testing.assert_frame_equal(lapnb.run(tiny(rounds=[2])), results)


def test_a_row_computed_alone_equals_the_row_of_a_sweep(lapnb_root):
    sweep = lapnb.run(tiny())
    csv(lapnb_root).unlink()
    alone = lapnb.run(tiny(methods=["lap"], rounds=[5]))
    assert_same_rows(alone, sweep[(sweep["round"] == 5) & (sweep.method == "lap")])


def test_changed_settings_are_kept_apart(lapnb_root):
    lapnb.run(tiny(rounds=[2]))
    before = csv(lapnb_root).read_bytes()
    changed = lapnb.run(tiny(rounds=[2], retrain_steps=5))
    assert (changed.retrain_steps == 5).all()
    assert (changed.changed == "retrain_steps = 5").all()
    assert csv(lapnb_root).read_bytes() == before
    assert (lapnb_root / "figures" / "smoke-changed" / "fcn_mnist.csv").exists()


def test_recompute_replaces_rows_but_not_by_a_failure(lapnb_root, monkeypatch, capsys):
    first = lapnb.run(tiny(rounds=[2]))
    again = lapnb.run(tiny(rounds=[2]), recompute="true")
    assert_same_rows(first, again)
    assert again.mask_seconds.tolist() != first.mask_seconds.tolist()
    assert len(pd.read_csv(csv(lapnb_root))) == 2

    def breaks(task, *watch):
        raise MemoryError("no room")

    monkeypatch.setattr(runs, "compute", breaks)
    kept = lapnb.run(tiny(rounds=[2]), recompute=True)
    pd.testing.assert_frame_equal(kept, again)
    assert "MemoryError: no room; the recorded rows of 2 runs are kept" in capsys.readouterr().out


def test_rows_of_different_dense_networks_are_told(lapnb_root, capsys):
    lapnb.run(tiny())
    assert "dense networks" not in capsys.readouterr().out
    rows = pd.read_csv(csv(lapnb_root))
    rows.loc[rows["round"] == 5, "dense_error"] += 0.5  # as another machine may record it
    rows.to_csv(csv(lapnb_root), index=False)
    lapnb.run(tiny())
    assert "rows of seed 0 start from different dense networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(recompute="maybe"), "recompute must be true or false; got 'maybe'"),
        (dict(recompute=1), "recompute must be true or false; got 1"),
        (dict(workers="two"), "workers .* must be a whole number of at least 1; got 'two'"),
        (dict(workers=0), "workers"),
        (dict(workers=True), "workers"),
        (dict(executor=2), "executor must be an object with a method submit.* got 2"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(lapnb_root, arguments, words):
    with pytest.raises(ValueError, match=words):
        lapnb.run(tiny(), **arguments)
    assert [*lapnb_root.iterdir()] == []


@pytest.fixture(scope="module")
def recorded_text(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPNB_ROOT", str(root))
        lapnb.run(tiny(rounds=[2]))
    return csv(root).read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("mp", "magnitude"),
        lambda text: text.replace(",ok,", ",ok,9,"),
        lambda text: text.replace(",ok,", ",fine,"),
        lambda text: text.replace(",ok,", ",,"),
        lambda text: "\n".join([*text.splitlines(), text.splitlines()[1]]),
        lambda text: "hello\n",
        lambda text: "",
        lambda text: text.replace("0.25", "2.5"),
        lambda text: text.replace("surviving", "density"),
    ],
)
def test_a_results_file_of_nonsense_is_named_and_left_alone(lapnb_root, recorded_text, spoil):
    nonsense = spoil(recorded_text)
    assert nonsense != recorded_text
    csv(lapnb_root).parent.mkdir(parents=True)
    csv(lapnb_root).write_text(nonsense)
    with pytest.raises(ValueError, match=r"fcn_mnist\.csv is not a results file"):
        lapnb.run(tiny())
    assert csv(lapnb_root).read_text() == nonsense


@pytest.mark.parametrize("folder", ["figures", "runs"])
def test_a_folder_that_cannot_be_written_is_refused(lapnb_root, monkeypatch, folder):
    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("trained all the same"))
    (lapnb_root / folder).write_text("a file where the folder should be")
    with pytest.raises(PermissionError, match=f"results cannot be written to .*{folder}"):
        lapnb.run(tiny())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_refused(lapnb_root, monkeypatch):
    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("trained all the same"))
    lapnb_root.chmod(0o555)
    with pytest.raises(PermissionError, match=r"results cannot be written to .*LAPNB_ROOT"):
        lapnb.run(tiny())


def _run_with_small_files(table, largest):
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        lapnb.run(table, workers=1)
    except OSError as error:
        write_whole(runs.root() / "error.txt", str(error).encode())


def test_a_full_disk_leaves_the_old_file(lapnb_root):
    lapnb.run(tiny(rounds=[2]))
    before = csv(lapnb_root).read_bytes()
    process = start(_run_with_small_files, lapnb_root, tiny(), len(before) + 100)
    process.join()
    error = (lapnb_root / "error.txt").read_text()
    assert f"could not write {csv(lapnb_root)} (File too large); what it held is unch" in error
    assert csv(lapnb_root).read_bytes() == before
    assert [f.name for f in csv(lapnb_root).parent.iterdir()] == ["fcn_mnist.csv"]
    assert len(lapnb.run(tiny())) == 4


# ---- runs that fail or diverge -------------------------------------------------------------------


def test_a_failed_run_is_recorded_with_its_reason_and_tried_again(lapnb_root, monkeypatch, capsys):
    def breaks(task, *watch):
        if task.seed == 1:
            raise RuntimeError("the cat pulled the plug")
        return experiment.compute(task)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "compute", breaks)
        results = lapnb.run(tiny(seeds=2))
    assert set(results.seed) == {0}
    assert "the cat pulled the plug" in capsys.readouterr().out
    failed = status(lapnb_root).eq("failed: RuntimeError: the cat pulled the plug")
    assert failed.sum() == 4
    assert set(lapnb.run(tiny(seeds=2)).seed) == {0, 1}
    assert status(lapnb_root).eq("ok").all()


def test_a_dense_network_that_diverged_is_recorded_and_not_repeated(lapnb_root, monkeypatch):
    table = tiny(rounds=[2], lr=1e30)
    with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
        lapnb.run(table)
    rows = pd.read_csv(lapnb_root / "figures" / "smoke-changed" / "fcn_mnist.csv")
    assert rows.status.str.match("diverged: the loss was .* of the dense network").all()
    assert rows.error.isna().all()
    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("computed again"))
    with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
        lapnb.run(table)
    monkeypatch.undo()
    monkeypatch.setenv("LAPNB_ROOT", str(lapnb_root))
    monkeypatch.setattr(experiment, "train", lambda *a, **k: pytest.fail("trained again"))
    with pytest.raises(RuntimeError, match="no run of fcn_mnist gave a result"):
        lapnb.run(tiny(rounds=[5], lr=1e30))


def test_a_run_that_diverged_late_leaves_no_checkpoint(lapnb_root, monkeypatch):
    def train(*_, checkpoint, **__):
        write_whole(checkpoint, b"of step 25")
        raise FloatingPointError("the loss was nan at step 50")

    monkeypatch.setattr(experiment, "train", train)
    with pytest.raises(RuntimeError, match="gave a result"):
        lapnb.run(tiny())
    assert [*(lapnb_root / "runs" / "checkpoints").iterdir()] == []


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

        monkeypatch.setattr(experiment, "prune_masks", prune_masks)

    return spoil


def test_a_network_that_diverges_leaves_the_others_of_its_stack(
    lapnb_root, spoil_lap, elsewhere, monkeypatch
):
    expected = elsewhere(tiny())
    spoil_lap(5, "diverged")
    results = lapnb.run(tiny())
    assert_same_rows(results, expected[(expected.method != "lap") | (expected["round"] != 5)])
    assert (
        status(lapnb_root).str.match("diverged: the loss was .* at step .* of round 5").sum() == 1
    )
    assert not [*(lapnb_root / "runs" / "checkpoints").glob("*.safetensors")]
    monkeypatch.setattr(runs, "compute", lambda task, *watch: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(lapnb.run(tiny()), results)


@pytest.mark.parametrize("how", ["diverged", "failed"])
def test_what_starts_from_a_round_without_result_has_none(lapnb_root, spoil_lap, elsewhere, how):
    expected = elsewhere(iterative())
    spoil_lap(3, how)
    results = lapnb.run(iterative())
    assert_same_rows(results, expected[(expected.method != "lap") | (expected["round"] == 1)])
    rows = pd.read_csv(lapnb_root / "figures" / "smoke-changed" / "fcn_iterative.csv")
    rows = rows[rows.status != "ok"]
    assert rows["round"].tolist() == [3, 7]
    reason = {"diverged": "the loss was .* of round 3", "failed": ".*these weights are odd"}
    assert rows.status.str.match(f"{how}: {reason[how]}").all()


# ---- processes that die, are stopped, or meet ----------------------------------------------------


def _deadly(task, *watch):
    """Seed 1 kills its worker, the first time while seed 0 is computed by the other one."""
    met = runs.root() / "met"
    if task.cells and task.seed == 0 and not met.exists():
        met.touch()
        time.sleep(600)
    if task.cells and task.seed == 1:
        while not met.exists():
            time.sleep(0.01)
        os._exit(9)
    return experiment.compute(task)


def test_a_worker_that_dies_is_a_failed_run_and_the_others_go_on(
    lapnb_root, elsewhere, monkeypatch
):
    expected = elsewhere(tiny(seeds=2))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "compute", _deadly)
        by_two = lapnb.run(tiny(seeds=2), workers=2)
    assert_same_rows(by_two, expected[expected.seed == 0])
    assert status(lapnb_root).str.startswith("failed: its worker process died").sum() == 4
    assert_same_rows(lapnb.run(tiny(seeds=2)), expected)
    for child in multiprocessing.active_children():
        child.join(60)
        assert not child.is_alive()


def _stop_in_mid_sweep(how, workers):
    # a shell starts background jobs with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record = runs._record

    def record_and_stop(path, rows):
        record(path, rows)
        if rows and how == signal.SIGINT:  # as a terminal does: to caller and workers
            os.killpg(os.getpid(), how)
        elif rows:
            os.kill(os.getpid(), how)

    runs._record = record_and_stop
    lapnb.run(tiny(seeds=3), workers=workers)


@pytest.mark.parametrize(
    "how, workers", [(signal.SIGKILL, 2), (signal.SIGINT, 1), (signal.SIGINT, 2)]
)
def test_stop_in_mid_sweep_then_resume(lapnb_root, elsewhere, how, workers):
    process = start(_stop_in_mid_sweep, lapnb_root, how, workers)
    process.join()
    assert process.exitcode == (-how if how == signal.SIGKILL else 1)
    assert nothing_left_of(process.pid)
    assert 0 < len(runs.read(csv(lapnb_root))) < 12
    assert_same_rows(lapnb.run(tiny(seeds=3)), elsewhere(tiny(seeds=3)))
    assert not pd.read_csv(csv(lapnb_root)).duplicated(["method", "round", "seed"]).any()


def _kill_in_mid_run(table, stack):
    train = sys.modules["lapnb.training.train"]
    save = train.save_tensors

    def save_and_die(path, tensors, metadata):
        save(path, tensors, metadata)
        if metadata["step"] == "50" and ("model.values" in tensors) == stack:
            os.kill(os.getpid(), signal.SIGKILL)

    train.CHECKPOINT_SECONDS, train.save_tensors = 0, save_and_die
    lapnb.run(table, workers=1)


def kill_in_mid_run_then_resume(root, table, stack, monkeypatch):
    """The rows, and of which (stage, chunk) batches were drawn after the kill."""
    process = start(_kill_in_mid_run, root, table, stack)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (checkpoint,) = (root / "runs" / "checkpoints").glob("*.safetensors")
    assert load_tensors(checkpoint)[1]["step"] == "50"
    train, drawn = sys.modules["lapnb.training.train"], []
    stream = train.stream
    monkeypatch.setattr(train, "stream", lambda *a: drawn.append(a[1:]) or stream(*a))
    rows = lapnb.run(table)
    assert not checkpoint.exists()
    return rows, drawn


@pytest.mark.parametrize("stage", ["dense", "retrain"])
def test_kill_in_mid_run_then_resume(lapnb_root, elsewhere, monkeypatch, stage):
    table = tiny(retrain_steps=75)
    expected = elsewhere(table)
    rows, drawn = kill_in_mid_run_then_resume(lapnb_root, table, stage == "retrain", monkeypatch)
    assert drawn[0] == (stage, 2)
    assert_same_rows(rows, expected)


def test_kill_in_mid_schedule_then_resume(lapnb_root, elsewhere, monkeypatch):
    expected = elsewhere(iterative())
    assert expected.groupby("method")["round"].agg(list).tolist() == [[1, 3, 7]] * 3
    # only from round 3 on networks are sparse enough for a stack
    rows, drawn = kill_in_mid_run_then_resume(lapnb_root, iterative(), True, monkeypatch)
    assert drawn == [("retrain", 2), ("retrain", 0), ("retrain", 1), ("retrain", 2)]
    assert_same_rows(rows, expected)


def _sweep(table):
    lapnb.run(table, workers=1)


def test_two_callers_at_once_record_each_row_once(lapnb_root):
    both = [start(_sweep, lapnb_root, tiny(seeds=3)) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    rows = pd.read_csv(csv(lapnb_root))
    assert len(rows) == 12
    assert not rows.duplicated(["method", "round", "seed"]).any()


def _write_below(folder):
    os.environ["LAPNB_ROOT"] = folder


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors_of_the_user_give_the_rows_of_one_worker(lapnb_root, elsewhere, tmp_path, kind):
    if kind == "threads":
        executor = ThreadPoolExecutor(2)
    else:
        executor = ProcessPoolExecutor(2, FORKED, _write_below, (str(tmp_path / "worker"),))
    with executor:
        rows = lapnb.run(tiny(seeds=2), executor=executor)
    assert_same_rows(rows, elsewhere(tiny(seeds=2)))
    if kind == "processes":
        assert [*(tmp_path / "worker").iterdir()] == [tmp_path / "worker" / "runs"]


def test_threads_compute_one_run_at_a_time(lapnb_root, monkeypatch):
    """As random numbers and the number of threads belong to the process."""
    active, most, compute = 0, 0, experiment._compute

    def counted(task, *watch):
        nonlocal active, most
        active += 1
        most = max(most, active)
        time.sleep(0.05)
        active -= 1
        return compute(task)

    monkeypatch.setattr(experiment, "_compute", counted)
    with ThreadPoolExecutor(2) as executor:
        lapnb.run(tiny(seeds=2, rounds=[2]), executor=executor)
    assert most == 1


# ---- caches --------------------------------------------------------------------------------------


def damage(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["dense", "statistics"])
def test_a_damaged_cache_is_named_and_made_again(lapnb_root, capsys, kind):
    table = tiny(rounds=[2], methods=["lap_act"])
    first = lapnb.run(table)
    (file,) = (lapnb_root / "runs" / kind).glob("*.safetensors")
    damage(file)
    again = lapnb.run(table, recompute=True)
    assert f"{file} is damaged" in capsys.readouterr().out
    load_tensors(file)  # sound again
    assert_same_rows(first, again)


@pytest.mark.parametrize("spoil", [damage, os.unlink])
def test_an_earlier_round_that_is_damaged_or_gone_is_computed_again(lapnb_root, capsys, spoil):
    first = lapnb.run(iterative())
    path = lapnb_root / "figures" / "smoke-changed" / "fcn_iterative.csv"
    rows = pd.read_csv(path)
    rows[rows["round"] != 7].to_csv(path, index=False)
    task = Task(iterative().expand()[0], first.source[0], 0)
    file = experiment._retrained_file(task, "lap", 3)
    sound = file.read_bytes()
    spoil(file)
    assert_same_rows(lapnb.run(iterative()), first)
    assert file.read_bytes() == sound
    if spoil == damage:
        assert f"{file} is damaged" in capsys.readouterr().out


def test_weights_pruned_in_a_round_never_return(lapnb_root):
    # so sparse that LAP scores surviving weights 0, as high as pruned ones
    table = iterative(rounds=[1, 3, 5, 7, 8, 9, 10, 12], retrain_steps=50)
    rows = lapnb.run(table)
    task = Task(table.expand()[0], rows.source[0], 0)
    for method in ("mp", "rp", "lap"):
        before = None
        for round in table.rounds:
            tensors = load_tensors(experiment._retrained_file(task, method, round))[0]
            kept = {name: w != 0 for name, w in tensors.items() if name.endswith("weight")}
            for name in kept if before else ():
                assert not (kept[name] & ~before[name]).any(), (method, round, name)
            before = kept


def test_a_checkpoint_belongs_to_one_composition_with_its_settings():
    """Checkpoints are named by their task's key."""
    first = Task(tiny().expand()[0], "MNIST, 5,000 digits", 0, (("mp", 2), ("lap", 5)))
    others = [dict(seed=1), dict(source="MNIST")]
    others += [
        dict(cells=cells)
        for cells in [(), (("mp", 2),), (("mp", 5), ("lap", 5)), (("mp", 2), ("lbp", 5))]
    ]
    others += [
        dict(table=dataclasses.replace(first.table, **change))
        for change in [
            dict(lr=1e-3),
            dict(width=0.2),
            dict(batch_size=30),
            dict(dense_steps=70),
            dict(retrain_steps=70),
            dict(activation="tanh"),
            dict(scope="global"),
            dict(schedule="iterative"),
            dict(rates=(0.5,) * 5),
        ]
    ]
    keys = {dataclasses.replace(first, **change).key for change in others} | {first.key}
    assert len(keys) == len(others) + 1


def test_each_stack_is_recorded_once_it_is_trained(lapnb_root, monkeypatch):
    monkeypatch.setattr(sys.modules["lapnb.training.sparse_stack"], "LARGEST_STACK", 3)
    events, checkpoints, train, record = [], set(), experiment._train, runs._record

    def trained(*arguments):
        events.append("train")
        checkpoints.add(arguments[4])
        train(*arguments)

    monkeypatch.setattr(experiment, "_train", trained)
    monkeypatch.setattr(
        runs, "_record", lambda path, rows: events.append(len(rows)) or record(path, rows)
    )
    lapnb.run(tiny(rounds=[5, 6]))
    # what other tables have recorded; the dense network; stacks of three and of one
    assert events == [0, "train", 0, "train", 3, "train", 1]
    assert len(checkpoints) == 3  # each its own


def test_an_interrupted_stack_is_put_together_as_before(lapnb_root, monkeypatch):
    """Whatever has been recorded beside it since: its checkpoint has the name of its runs."""
    monkeypatch.setattr(sys.modules["lapnb.training.sparse_stack"], "LARGEST_STACK", 3)
    table = tiny(rounds=[5, 6, 7, 8])
    tasks = runs._tasks(table, "MNIST", set())
    assert [len(task.cells) for task in tasks] == [0, 3, 3, 2]
    done = {("MNIST", table.settings(*cell), *cell, 0) for cell in tasks[1].cells[1:]}
    again = runs._tasks(table, "MNIST", done)
    assert again[1].cells == tasks[1].cells[:1]
    assert [task.key for task in again[2:]] == [task.key for task in tasks[2:]]


def test_a_batch_larger_than_the_data_set_is_refused_before_anything_is_written(lapnb_root):
    with pytest.raises(ValueError, match="batch_size must be at most 4000"):
        lapnb.run(tiny(batch_size=4001), workers=1)
    assert not any(lapnb_root.iterdir())
    with pytest.raises(ValueError, match="table must be one that"):
        lapnb.run("fcn_mnist")


def test_steps_are_told_while_an_earlier_round_is_computed_again(lapnb_root):
    (table,) = iterative(retrain_steps=300).expand()
    lapnb.run(table, workers=1)
    task = Task(table, "MNIST, 5,000 digits", 0, (("mp", 3),))
    experiment._retrained_file(task, "mp", 1).unlink()
    told = []
    experiment.compute(task, told.append)
    assert told
