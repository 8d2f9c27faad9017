"""A progress bar that leaves one line behind, in a terminal and in a saved notebook."""

import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm


class Progress(tqdm):
    """Shows steps, steps per second and the time left.

    In a notebook its last line is `title`: `done`, or how far it came when it was interrupted. It
    shows nothing where TQDM_DISABLE is set.

    Args:
        total: The number of steps.
        title: What the line begins with.
        unit: What the steps are.
        delay: Seconds before anything is shown.
    """

    def __init__(self, total: int, title: str, unit: str = "steps", delay: float = 0):
        self.title = title
        self.steps = f"{total:,} {unit}"
        self.done = self.steps
        self.cell = None
        options = dict(leave=False, mininterval=0.5, delay=delay, unit=f" {unit}", unit_scale=True)
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if hasattr(shell, "kernel"):  # tqdm's own widget would stay at 0 % in a saved notebook
            self.cell = _Cell(shell)
            options |= dict(file=self.cell, ncols=100)
        super().__init__(total=total, desc=title, **options)  # it reads TQDM_DISABLE

    def at(self, steps: int) -> None:
        """Show that this many steps are finished."""
        if steps > self.n:
            self.update(steps - self.n)

    def __exit__(self, error_type, error, trace) -> None:
        self.close()
        if error_type is not None:
            self.done = f"stopped at {self.n:,} of {self.steps}"
        if self.cell and self.cell.handle:
            self.cell.write(f"{self.title}: {self.done}")


def progress(items: Sequence, title: str, unit: str) -> Iterator:
    """Yield the items, with a bar when they take more than two seconds."""
    with Progress(len(items), title, unit, delay=2) as bar:
        for n, item in enumerate(items, 1):
            yield item
            bar.at(n)


class _Cell:
    """One output of a notebook cell that each write replaces."""

    def __init__(self, shell):
        # a widget's output area cannot change an output; it is cleared instead
        self.in_widget = shell.kernel.get_parent()["header"]["msg_type"] == "comm_msg"
        self.handle = None

    def write(self, text: str) -> None:
        from IPython.display import clear_output, display

        if not text.strip():
            return
        output = {"text/plain": text.strip()}
        if self.handle and not self.in_widget:
            self.handle.update(output, raw=True)
            return
        if self.handle:
            clear_output(wait=True)
        self.handle = display(output, raw=True, display_id=True)
