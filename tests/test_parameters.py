"""A notebook that papermill runs refuses a misspelt parameter."""

import contextlib
import types

import pytest

from lapnb.checks import refuse_unknown_parameters

TYPED = 'keep: float = 0.3  # a fraction\nscope: str = "layer"  # or global\n'
REFUSED = pytest.raises(ValueError, match="a parameter must be one of keep, scope; got 'Keep'")
ACCEPTED = contextlib.nullcontext()


@pytest.mark.parametrize(
    ("cells", "outcome"),
    [
        ([TYPED, "# Parameters\nKeep = 0.05\n"], REFUSED),
        ([TYPED, "# Parameters\nkeep = 0.05\nscope = 'a\\nKeep = 1'\n"], ACCEPTED),
        (["import lapnb", "# Parameters\nlr: float = 0.1"], ACCEPTED),  # a user's own cells
        ([TYPED, "x = 1", "# Parameters\nlr = 0.1"], ACCEPTED),
    ],
)
def test_a_misspelt_name_is_refused_where_papermill_sets_it(cells, outcome, monkeypatch):
    shell = types.SimpleNamespace(user_ns={"In": ["", *cells]})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    with outcome:
        refuse_unknown_parameters()
