"""Data, networks, training."""

import math
from numbers import Integral
from typing import Any


def require(right: bool, name: str, allowed: str, given: Any) -> None:
    """Raise ValueError, in the one form that all parameters share, unless `right`."""
    if not right:
        raise ValueError(f"{name} must be {allowed}; got {given!r}")


def require_whole(name: str, given: Any, least: int, most: float = math.inf) -> None:
    """Raise ValueError unless `given` is a whole number from `least` to `most`."""
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    allowed = f"a whole number of at least {least}" + f" and at most {most}" * (most < math.inf)
    require(whole and least <= given <= most, name, allowed, given)
