"""The line that a progress bar leaves behind in a notebook."""

from types import SimpleNamespace

import pytest

from lapnb.progress import Progress


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_last_line_says_how_far_it_came(interrupted):
    lines = []
    try:
        with Progress(12_000, "training") as bar:
            bar.cell = SimpleNamespace(handle=True, write=lines.append)
            bar.n = 150
            if interrupted:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert lines == ["training: stopped at 150 of 12,000 steps"]
    else:
        assert lines == ["training: 12,000 steps"]
