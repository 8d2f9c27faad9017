"""The line that a progress bar leaves behind in a notebook."""

import contextlib
from types import SimpleNamespace

from lapnb.progress import Progress


def test_the_last_line_says_how_far_it_came():
    lines = []
    cell = SimpleNamespace(handle=True, write=lines.append)
    with Progress(12_000, "training") as bar:
        bar.cell = cell
    with contextlib.suppress(KeyboardInterrupt), Progress(12_000, "training") as bar:
        bar.cell = cell
        bar.n = 150
        raise KeyboardInterrupt
    assert lines == ["training: 12,000 steps", "training: stopped at 150 of 12,000 steps"]
