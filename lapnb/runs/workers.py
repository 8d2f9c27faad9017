"""Where tasks are computed: in this process, in workers, or on somebody else's executor."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from multiprocessing.context import SpawnContext, SpawnProcess

try:
    from pebble import ProcessPool
except ModuleNotFoundError:  # of the extra "notebooks": one worker does without
    ProcessPool = object

from lapnb.progress import Progress
from lapnb.store import root
from lapnb.training.datasets import data_folder

Where = Executor | str | None  # to compute: None in processes of our own, text with Dask
CONNECT_SECONDS = 5  # for a Dask scheduler to answer
CPU_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")  # of a container
_STARTING = threading.Lock()


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


class _Worker(SpawnProcess):
    """A new process that does not import the caller's script, which may lack a __main__ guard.

    It starts with Ctrl-C held back, so that one which still imports says nothing of it.
    """

    def start(self):
        with _STARTING:
            script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
            signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
                sys.modules["__main__"] = script


class _Context(SpawnContext):
    Process = _Worker


class Processes(ProcessPool):
    """Worker processes of one thread each; one that dies fails its own task and is replaced.

    None of them outlives the caller, however that ends.
    """

    def __init__(self, count: int):
        folders = {"LAPNB_ROOT": str(root())}
        if os.environ.get("LAPNB_DATA"):
            folders["LAPNB_DATA"] = str(data_folder())
        super().__init__(count, context=_Context(), initializer=_start_worker, initargs=(folders,))
        self.futures: list[Future] = []

    def submit(self, function, /, *args) -> Future:
        try:
            self.futures.append(self.schedule(function, args=args))
        except RuntimeError:  # it has given up
            self.futures.append(Future())
            self._fail()
        if len(self.futures) == 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self.futures[-1]

    def _watch(self) -> None:
        """Pebble gives up when an idle worker is killed, and forgets about some of its futures."""
        while self.active:
            time.sleep(0.2)
        self._fail()

    def _fail(self) -> None:
        for future in self.futures:
            with contextlib.suppress(InvalidStateError):  # it is done
                future.set_exception(RuntimeError("a worker process was killed before it began"))

    def __exit__(self, *_) -> None:
        self.stop()
        self.join()


def _start_worker(folders: dict[str, str]) -> None:
    os.environ.update(folders)
    os.environ["TQDM_DISABLE"] = "1"  # the caller's bar tells of all workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who stops the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    """End this worker when the process that started it is gone, e.g. killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def opened(executor: Where, workers: int, bar: Progress) -> Iterator[Executor]:
    """Yield the given executor as it is, that of a Dask scheduler, or else `workers` of our own.

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
