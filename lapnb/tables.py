"""Every table and figure of the paper, declared once, with its scales."""

import ast
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lapnb.data import DATASETS
from lapnb.models import ACTIVATIONS
from lapnb.scores import METHODS

SCALES = ("smoke", "quick", "reduced", "paper")


@dataclass(frozen=True)
class Claim:
    """The paper says: `better` has the smaller `column` than `worse`, at the sparsest `rounds`."""

    better: str
    worse: str
    rounds: int = 1
    column: str = "error"
    where: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper at one scale: what is trained, pruned and recorded.

    Layer l keeps the fraction (1 − rates[l])^t of its weights in round t. `variants` are changes
    of single settings that the table puts side by side, e.g. several activations.
    """

    name: str
    title: str
    scale: str
    network: str
    dataset: str
    methods: tuple[str, ...]
    rounds: tuple[int, ...]
    rates: tuple[float, ...]
    dense_steps: int
    retrain_steps: int
    seeds: int = 5
    lr: float = 3e-4
    batch_size: int = 60
    width: float = 1.0
    activation: str = "relu"
    stride: int = 1
    image_size: int = 32
    channels: int = 3
    scope: str = "layer"
    schedule: str = "oneshot"
    statistics: tuple[int, int] = (0, 0)
    device: str = "cpu"
    claims: tuple[Claim, ...] = ()
    variants: tuple[dict, ...] = ({},)
    changed: str = ""

    def expand(self) -> list["Table"]:
        """The plain tables, one per variant."""
        return [dataclasses.replace(self, **change, variants=({},)) for change in self.variants]

    def keep(self, round: int) -> tuple[float, ...]:
        """The surviving fraction of each layer in a round."""
        return tuple((1 - rate) ** round for rate in self.rates)

    def dense_settings(self) -> dict[str, Any]:
        """What a dense network depends on, beside its seed and the source of its data."""
        names = "network dataset width activation stride image_size channels lr batch_size"
        return {name: getattr(self, name) for name in [*names.split(), "dense_steps"]}

    def settings(self, method: str, round: int) -> str:
        """A short hash of all that a row depends on, beside method, round, seed and data source."""
        settings = self.dense_settings() | {
            "rates": self.rates,
            "retrain_steps": self.retrain_steps,
            "scope": self.scope,
            "schedule": self.schedule,
        }
        if self.schedule == "iterative":
            settings["rounds"] = [t for t in self.rounds if t <= round]
        if METHODS[method].weights in ("active", "curved"):
            settings["statistics"] = self.statistics
        return fingerprint(settings)


def fingerprint(settings: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


_LAP_BEATS_MP = Claim("lap", "mp", rounds=2)
_ONE_SIDED = tuple(
    Claim(*pair) for pair in [("lfp", "mp"), ("lbp", "mp"), ("lap", "lfp"), ("lap", "lbp")]
)
_FIVE = ("mp", "rp", "lfp", "lbp", "lap")
_VGG_ROUNDS = tuple(range(13, 28, 2))

_FCN = dict(
    network="fcn",
    dataset="mnist",
    rates=(0.5,) * 4 + (0.25,),
    rounds=tuple(range(4, 11)),
    image_size=28,
    channels=1,
    lr=1.2e-3,
    dense_steps=50_000,
    retrain_steps=50_000,
    statistics=(1000, 60),
    smoke=dict(width=0.1, seeds=1, rounds=(2, 5), dense_steps=60, retrain_steps=20),
    quick=dict(seeds=3, dense_steps=1000, retrain_steps=1000),
    reduced=dict(seeds=3, dense_steps=10_000, retrain_steps=10_000),
)


def _declare(base: dict, **more) -> dict:
    """A declaration: `base` with `more`; the settings of a scale are merged, not replaced."""
    merged = {scale: {**base.get(scale, {}), **more.pop(scale, {})} for scale in SCALES}
    return {**base, **more, **merged}


TABLES: dict[str, dict] = {
    "fcn_mnist": _declare(
        _FCN,
        title="FCN on MNIST",
        methods=(*_FIVE, "lap_forward", "lap_backward"),
        claims=(_LAP_BEATS_MP, *_ONE_SIDED),
    ),
}

# The bundled data set stands in at the two small scales, on every table.
_SMALL = dict(dataset="mnist5k", statistics=(10, 60))


def table(name: str, scale: str = "quick", **changes) -> Table:
    """The table `name` of the paper at a scale: "smoke", "quick", "reduced" or "paper".

    `changes` select or change: methods, rounds, seeds (how many: 0 … seeds−1), dataset, device
    ("auto", "cpu", "cuda"), dense_steps, retrain_steps, width, lr, batch_size, activation, scope,
    schedule. None leaves a setting as declared. Text as papermill hands it over ("[4, 5]", "3") is
    coerced. Raises ValueError naming the parameter, what was given and what is allowed.

    >>> import lapnb
    >>> lapnb.table("fcn_mnist", scale="quick", methods=["mp", "lap"]).methods
    ('mp', 'lap')
    """
    _choice("table", name, TABLES)
    _choice("scale", scale, SCALES)
    declared = TABLES[name]
    settings = {key: value for key, value in declared.items() if key not in SCALES}
    if scale in ("smoke", "quick"):
        settings |= _SMALL
    settings |= declared[scale]
    changes = {key: value for key, value in changes.items() if value is not None}
    for key in changes:
        _choice("setting", key, _CHECKS)
    changes = {key: _CHECKS[key](key, value) for key, value in changes.items()}
    different = []
    for key, value in changes.items():
        if key not in ("methods", "rounds", "seeds", "device") and value != settings.get(
            key, getattr(Table, key, None)
        ):
            different.append(f"{key} = {value}")
    varied = {key for change in settings.get("variants", ()) for key in change}
    if varied & changes.keys():
        settings["variants"] = ({},)
    settings["device"] = _device("device", "auto")
    return Table(
        name=name, scale=scale, **{**settings, **changes, "changed": ", ".join(different)}
    )


def _choice(parameter: str, value, allowed) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{parameter} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def _one_of(allowed):
    return lambda parameter, value: _choice(parameter, value, allowed)


def _literal(value):
    """Text that holds a Python or JSON literal, as that literal."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return value.strip()
    return value


def _number(parameter: str, value) -> float:
    number = _literal(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise ValueError(f"{parameter} must be a number above 0; got {value!r}")
    return float(number)


def _whole(at_least: int):
    def check(parameter: str, value) -> int:
        number = _literal(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < at_least:
            raise ValueError(
                f"{parameter} must be a whole number of at least {at_least}; got {value!r}"
            )
        return number

    return check


def _several(check):
    """A list without repetitions; text may be a literal list or words between commas or spaces."""

    def check_all(parameter: str, value) -> tuple:
        items = _literal(value)
        if isinstance(items, str):
            items = items.replace(",", " ").split()
        elif not isinstance(items, list | tuple | range):
            items = [items]
        if not items:
            raise ValueError(f"{parameter} must not be empty; got {value!r}")
        checked = tuple(check(parameter, item) for item in items)
        if len(set(checked)) < len(checked):
            raise ValueError(f"{parameter} must not repeat an entry; got {value!r}")
        return checked

    return check_all


def _rounds(parameter: str, value) -> tuple[int, ...]:
    return tuple(sorted(_several(_whole(1))(parameter, value)))


def _device(parameter: str, value) -> str:
    """The device to compute on: "auto" is the GPU where there is one."""
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _choice(parameter, value, ("auto", "cpu", "cuda"))
    if value == "cuda" and not torch.cuda.is_available():
        raise ValueError('device "cuda" was asked for, but this machine has no usable CUDA GPU')
    return value


_CHECKS = {
    "methods": _several(_one_of(METHODS)),
    "rounds": _rounds,
    "seeds": _whole(1),
    "dataset": _one_of(DATASETS),
    "device": _device,
    "dense_steps": _whole(1),
    "retrain_steps": _whole(0),
    "batch_size": _whole(1),
    "width": _number,
    "lr": _number,
    "activation": _one_of(ACTIVATIONS),
    "scope": _one_of(("layer", "global")),
    "schedule": _one_of(("oneshot", "iterative")),
}

__all__ = ["SCALES", "TABLES", "Claim", "Table", "fingerprint", "table"]
