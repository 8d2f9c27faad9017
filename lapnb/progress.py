"""A progress bar that leaves one line behind, in a terminal and in a saved notebook."""

import os
import sys

from tqdm import tqdm


class Progress:
    """Shows steps, steps per second and the time left; at the end the number of runs computed."""

    def __init__(self, total: int, title: str):
        self.title, self.runs = title, 0
        off = bool(os.environ.get("TQDM_DISABLE"))
        self.cell = None if off or not _in_notebook() else _Cell()
        self.bar = tqdm(
            total=total,
            desc=title,
            unit=" steps",
            unit_scale=True,
            leave=False,
            disable=off,
            file=self.cell or sys.stderr,
            ncols=100 if self.cell else None,
            mininterval=0.5,
        )

    def __enter__(self) -> "Progress":
        return self

    def at(self, steps: int) -> None:
        if steps > self.bar.n:
            self.bar.update(steps - self.bar.n)

    def __exit__(self, *error) -> None:
        self.bar.close()
        if self.cell:
            runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
            self.cell.write(f"{self.title}: {runs} computed")


class _Cell:
    """One output of a notebook cell that each write replaces."""

    def __init__(self):
        from IPython import get_ipython
        from IPython.display import display

        # a widget's output area cannot change an output; it is cleared instead
        message = get_ipython().kernel.get_parent()["header"]
        self.in_widget = message["msg_type"] == "comm_msg"
        self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        from IPython.display import clear_output, display

        if text.strip() and self.in_widget:
            clear_output(wait=True)
            display({"text/plain": text.strip()}, raw=True)
        elif text.strip():
            self.handle.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        pass


def _in_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
