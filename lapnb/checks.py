"""Checks of arguments: one form of refusal for all of them."""

import ast
import contextlib
import itertools
import math
import re
import reprlib
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor


def require(condition: bool, name: str, allowed: str, given: Any) -> None:
    """Raise ValueError, in the one form that all parameters share, unless `condition` holds.

    >>> require(0 < 2 < 1, "keep", "a fraction from 0 to 1", 2)
    Traceback (most recent call last):
    ValueError: keep must be a fraction from 0 to 1; got 2
    """
    if not condition:
        raise ValueError(f"{name} must be {allowed}; got {given!r}")


def require_whole(name: str, given: Any, least: int, most: float = math.inf) -> None:
    """Raise ValueError unless `given` is a whole number from `least` to `most`."""
    is_whole = isinstance(given, Integral) and not isinstance(given, bool)
    allowed = f"a whole number of at least {least}"
    if most < math.inf:
        allowed += f" and at most {most}"
    require(is_whole and least <= given <= most, name, allowed, given)


def owns_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has memory for each number, which an expanded view lacks."""
    is_strided = tensor.layout == torch.strided and not tensor.is_quantized
    return is_strided and tensor.nbytes <= tensor.untyped_storage().nbytes()


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds real numbers, of 16 bits or more, with memory for each."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and owns_memory(tensor)


def literal(value: Any) -> Any:
    """Return the Python literal that a text holds, as papermill hands it over."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(value.strip()) if isinstance(value, str) else value
    return value.strip()


def checked(parameter: str, value: Any, kind: Any) -> Any:
    """Convert a value to the type `kind`; raise ValueError naming the parameter where that fails.

    >>> checked("seeds", "3", int)
    3
    """
    with one_sentence(parameter):
        return TypeAdapter(kind).validate_python(literal(value))


@contextlib.contextmanager
def one_sentence(parameter: str = "") -> Iterator[None]:
    """Turn an error of pydantic into a ValueError of one sentence that names the parameter."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = parameter or next((part for part in first["loc"] if isinstance(part, str)), "")
        reason = re.sub(r"^(Input|Tuple|Value) (should|error,)", "must", first["msg"])
        got = f"; got {reprlib.repr(first['input'])}" if name else ""
        raise ValueError(f"{name} {reason}{got}".strip()) from None


def refuse_unknown_parameters() -> None:
    """Refuse, in a notebook, a name that papermill has set and the parameters cell does not have.

    Papermill itself only warns of a misspelt name. It adds its cell, "# Parameters", right after
    the cell of typed parameters; a cell of the user's elsewhere may begin like this, too.
    """
    from IPython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    for typed, injected in itertools.pairwise(cells):
        names = re.findall(r"^(\w+): \w", typed, re.MULTILINE)
        if names and injected.startswith("# Parameters\n"):
            for name in re.findall(r"^(\w+) = ", injected, re.MULTILINE):
                require(name in names, "a parameter", f"one of {', '.join(names)}", name)
