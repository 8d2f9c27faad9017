"""Where tasks are computed: in this process, in workers, or on somebody else's executor."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess

try:
    from pebble import ProcessPool
except ModuleNotFoundError:  # of the extra "notebooks": one worker does without
    ProcessPool = object

Where = Executor | str | None  # to compute: None in processes of our own, text with Dask
# Python's tracker of semaphores then removes a killed caller's without a word.
QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"
CONNECT_SECONDS = 5  # for a Dask scheduler to answer


class Here:
    """Computes in this process, when a result is asked for; tells `watch` the steps done."""

    def __init__(self, watch: Callable[[int], None]):
        self.watch = watch

    def submit(self, function, /, *args) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            done=lambda: True, result=lambda: function(*args, self.watch), cancel=lambda: None
        )


class _Worker(SpawnProcess):
    """A new process that does not import the caller's script, which may lack a __main__ guard."""

    def start(self):
        script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = script


class _Context(SpawnContext):
    Process = _Worker


class Processes(ProcessPool):
    """Worker processes of one thread each; one that dies fails its own task and is replaced.

    None of them outlives the caller, however that ends.
    """

    def __init__(self, count: int):
        os.environ.setdefault("PYTHONWARNINGS", QUIET)
        resource_tracker.ensure_running()
        super().__init__(count, context=_Context(), initializer=_start_worker)
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


def _start_worker() -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the caller's bar tells of all workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who stops the workers
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    """End this worker when the process that started it is gone, e.g. killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def opened(executor: Where, workers: int, watch: Callable[[int], None]) -> Iterator[Executor]:
    """The given executor as it is, that of a Dask scheduler, or else `workers` of our own."""
    if executor and not isinstance(executor, str):
        yield executor
    elif not executor and workers == 1:
        yield Here(watch)
    elif not executor:
        with Processes(workers) as pool:
            yield pool
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
