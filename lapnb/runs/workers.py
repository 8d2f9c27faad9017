"""Where tasks are computed: in this process, in workers, or on somebody else's executor."""

import contextlib
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from lapnb.progress import Progress
from lapnb.store import root
from lapnb.training.datasets import data_folder

Where = Executor | str | None  # to compute: None: here or in workers; text: Dask
CONNECT_SECONDS = 5  # for a Dask scheduler to answer
CPU_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")  # of a container


def processors() -> int:
    """Return how many processors this process may use, at least 1.

    On a slice of a cluster's node, or in a container, that is less than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or no limit: "max …"
        microseconds, period = map(int, CPU_LIMIT.read_text().split())
        count = min(count, max(1, microseconds // period))
    return count


class Here:
    """Computes in this process, when a result is asked for, and moves the bar meanwhile."""

    def __init__(self, bar: Progress):
        self.bar = bar

    def submit(self, function, /, *args) -> types.SimpleNamespace:
        def result():
            before = self.bar.n
            return function(*args, lambda steps: self.bar.at(before + steps))

        return types.SimpleNamespace(done=lambda: True, result=result, cancel=lambda: None)


class Processes(ThreadPoolExecutor):
    """Threads with a worker process each; one that dies fails its own task and is replaced.

    A worker is a new interpreter, which does not import the caller's script. It ends with the
    caller, however that ends.
    """

    def __init__(self, count: int):
        super().__init__(count)
        self.of_thread = threading.local()
        self.workers: list[subprocess.Popen] = []
        self.starting = threading.Lock()  # so that no worker starts after the others were killed
        self.is_closed = False

    def submit(self, function, /, *args) -> Future:
        return super().submit(self._compute, function, *args)

    def _compute(self, *call):
        worker = getattr(self.of_thread, "worker", None)
        if worker is None or worker.poll() is not None:
            with self.starting:
                if self.is_closed:
                    raise RuntimeError("the workers were stopped")
                worker = self.of_thread.worker = _started()
                self.workers.append(worker)
        try:
            worker.stdin.write(pickle.dumps(call))
            worker.stdin.flush()
            result, error = pickle.load(worker.stdout)
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"a worker process died (exit {worker.wait()})") from None
        if error:
            raise error
        return result

    def __exit__(self, *_) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        with self.starting:
            self.is_closed = True
            for worker in self.workers:
                worker.kill()
                worker.wait()
        self.shutdown()


def _started() -> subprocess.Popen:
    variables = {  # in full, as a worker's calls may run in other folders
        "LAPNB_ROOT": str(root()),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "LAPNB_DATA": str(data_folder()),
        "TQDM_DISABLE": "1",  # the caller's bar tells of all workers
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from lapnb.runs.workers import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | variables,
        process_group=0,  # Ctrl-C is for the caller, who stops the workers
    )


def serve() -> None:
    """Compute the calls that come in by the standard input, until it is closed.

    A worker process runs this.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed goes to the standard error
    calls = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(calls,), daemon=True).start()
    while True:
        function, *arguments = calls.get()
        try:
            answer = pickle.dumps((function(*arguments), None))
        except Exception as error:
            answer = pickle.dumps((None, error))
        answers.write(answer)
        answers.flush()


def _receive(calls: queue.SimpleQueue) -> None:
    """Receive calls; end this worker, whatever it computes, when its caller is gone."""
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(1)


@contextlib.contextmanager
def opened(executor: Where, workers: int, bar: Progress) -> Iterator[Executor]:
    """Yield the given executor, that of a Dask scheduler, or else one with `workers` of our own.

    Raises:
        ConnectionError: No Dask scheduler answers.
    """
    if not executor and workers == 1:
        yield Here(bar)
    elif not executor:
        with Processes(workers) as pool:
            yield pool
    elif not isinstance(executor, str):
        yield executor
    else:
        from dask.distributed import Client

        try:
            client = Client(executor, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"executor {executor!r} is not the address of a Dask scheduler that answers, as in "
                f"tcp://host:8786 ({error})"
            ) from error
        with client:
            yield client.get_executor(pure=False)
