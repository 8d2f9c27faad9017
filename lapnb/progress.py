"""A progress bar that leaves one line behind, in a terminal and in a saved notebook."""

import os
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm


class Progress:
    """Shows steps, steps per second and the time left; in a notebook at the end `title`: `done`.

    `delay`: seconds before anything is shown. Without effect where TQDM_DISABLE is set.
    """

    def __init__(self, total: int, title: str, unit: str = "steps", delay: float = 0):
        self.title, self.done = title, f"{total:,} {unit}"
        off = bool(os.environ.get("TQDM_DISABLE"))
        self.cell = None if off or not _in_notebook() else _Cell()
        self.bar = tqdm(
            total=total,
            desc=title,
            unit=f" {unit}",
            unit_scale=True,
            leave=False,
            disable=off,
            file=self.cell or sys.stderr,
            ncols=100 if self.cell else None,
            mininterval=0.5,
            delay=delay,
        )

    def __enter__(self) -> "Progress":
        return self

    def at(self, steps: int) -> None:
        if steps > self.bar.n:
            self.bar.set_postfix_str("", refresh=False)
            self.bar.update(steps - self.bar.n)

    def say(self, text: str) -> None:
        """Show a few words behind the bar until it moves."""
        self.bar.set_postfix_str(text)

    def __exit__(self, *error) -> None:
        self.bar.close()
        if self.cell and self.cell.handle:
            self.cell.write(f"{self.title}: {self.done}")


def progress(items: Sequence, title: str, unit: str) -> Iterator:
    """The items, with a bar when they take more than two seconds."""
    with Progress(len(items), title, unit, delay=2) as bar:
        for n, item in enumerate(items, 1):
            yield item
            bar.at(n)


class _Cell:
    """One output of a notebook cell that each write replaces."""

    def __init__(self):
        from IPython import get_ipython

        # a widget's output area cannot change an output; it is cleared instead
        message = get_ipython().kernel.get_parent()["header"]
        self.in_widget = message["msg_type"] == "comm_msg"
        self.handle = None

    def write(self, text: str) -> None:
        from IPython.display import clear_output, display

        if not text.strip():
            return
        output = {"text/plain": text.strip()}
        if self.handle is None:
            self.handle = display(output, raw=True, display_id=True)
        elif self.in_widget:
            clear_output(wait=True)
            display(output, raw=True)
        else:
            self.handle.update(output, raw=True)

    def flush(self) -> None:
        pass


def _in_notebook() -> bool:
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
