"""A notebook that papermill runs refuses a misspelt parameter."""

import types

import pytest

from lapnb.checks import refuse_unknown_parameters

TYPED = 'keep: float = 0.3  # a fraction\nscope: str = "layer"  # or global\n'


@pytest.mark.parametrize(
    "cells",
    [
        [TYPED, "import lapnb"],
        [TYPED, "# Parameters\nkeep = 0.05\nscope = 'a\\nKeep = 1'\n"],
        ["import lapnb", "# Parameters\nlr: float = 0.1"],  # a user's own cells
        [TYPED, "x = 1", "# Parameters\nlr = 0.1"],
        [TYPED, "# Parameters\nlr: float = 0.1\nlapnb.x = 1"],
    ],
)
def test_what_papermill_sets_is_accepted(cells, monkeypatch):
    shell = types.SimpleNamespace(user_ns={"In": ["", *cells]})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    refuse_unknown_parameters()


def test_a_misspelt_name_is_refused(monkeypatch):
    cells = ["", TYPED, "# Parameters\nKeep = 0.05\n"]
    shell = types.SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with pytest.raises(ValueError, match="a parameter must be one of keep, scope; got 'Keep'"):
        refuse_unknown_parameters()
