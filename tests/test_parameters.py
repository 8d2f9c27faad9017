"""A notebook that papermill runs refuses a misspelt parameter."""

import types

import pytest

from lapnb.checks import refuse_unknown_parameters

TYPED = 'keep: float = 0.3  # a fraction\nscope: str = "layer"  # or global\n'


def test_a_misspelt_name_is_refused_where_papermill_sets_it(monkeypatch):
    cells = ["", TYPED, "# Parameters\nkeep = 0.05\n", "# Parameters\nlr = 1"]  # a user's own
    shell = types.SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    refuse_unknown_parameters()
    cells[2] = "# Parameters\nKeep = 0.05\n"
    with pytest.raises(ValueError, match="a parameter must be one of keep, scope; got 'Keep'"):
        refuse_unknown_parameters()
