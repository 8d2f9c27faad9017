"""Data, networks, training."""

from typing import Any


def require(right: bool, name: str, allowed: str, given: Any) -> None:
    """Raise ValueError, in the one form that all parameters share, unless `right`."""
    if not right:
        raise ValueError(f"{name} must be {allowed}; got {given!r}")
