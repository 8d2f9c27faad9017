"""Every table and figure of the paper, declared once, with its scales."""

import ast
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lapnb.pruning.scores import METHODS
from lapnb.training.data import DATASETS
from lapnb.training.networks import ACTIVATIONS
from lapnb.training.train import PRECISIONS

SCALES = ("smoke", "quick", "reduced", "paper")
# What a caller may choose without changing what a row is: which rows, and how they are computed
FREE = ("methods", "rounds", "seeds", "device", "precision")


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
    active_batches: tuple[int, int] = (2000, 30)
    curved_batches: tuple[int, int] = (1000, 60)
    device: str = "cpu"
    precision: str = "float32"
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
            name = f"{METHODS[method].weights}_batches"
            settings[name] = getattr(self, name)
        return fingerprint(settings)


def fingerprint(settings: Any) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


_LAP_BEATS_MP = Claim("lap", "mp", rounds=2)
_ONE_SIDED = tuple(
    Claim(*pair) for pair in [("lfp", "mp"), ("lbp", "mp"), ("lap", "lfp"), ("lap", "lbp")]
)
_FIVE = ("mp", "rp", "lfp", "lbp", "lap")
_DATA_DEPENDENT = dict(
    methods=("mp", "lap", "obd", "obd_lap", "lap_act"),
    claims=(_LAP_BEATS_MP, Claim("obd_lap", "obd", 2), Claim("lap_act", "mp", 2)),
)

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
    smoke=dict(width=0.1, seeds=1, rounds=(2, 5), dense_steps=60, retrain_steps=20),
    quick=dict(seeds=3, dense_steps=800, retrain_steps=500),
    reduced=dict(seeds=3, dense_steps=10_000, retrain_steps=10_000),
)


def _declare(base: dict, **more) -> dict:
    """A declaration: `base` with `more`; the settings of a scale are merged, not replaced."""
    merged = {scale: {**base.get(scale, {}), **more.pop(scale, {})} for scale in SCALES}
    return {**base, **more, **merged}


_CONV6 = dict(
    network="conv6",
    dataset="cifar10",
    rates=(0.15,) * 6 + (0.2, 0.2, 0.1),
    rounds=tuple(range(12, 19)),
    dense_steps=30_000,
    retrain_steps=20_000,
    smoke=dict(width=0.05, seeds=1, rounds=(12, 18), dense_steps=10, retrain_steps=5),
    quick=dict(
        width=0.125,
        image_size=16,
        seeds=1,
        rounds=(4, 8, 12, 16),
        dense_steps=400,
        retrain_steps=150,
    ),
    reduced=dict(width=0.5, dense_steps=3000, retrain_steps=1000),
)


def _deep(depth: int, first: float, **more) -> dict:
    """A deep network: `depth` layers, of which the first may have its own pruning rate."""
    return (
        dict(
            rates=(first,) + (0.15,) * (depth - 2) + (0.1,),
            methods=("mp", "lap"),
            claims=(_LAP_BEATS_MP,),
            smoke=dict(width=0.05, seeds=1, dense_steps=5, retrain_steps=3),
            quick=dict(width=0.125, seeds=1, dense_steps=300, retrain_steps=100),
            reduced=dict(width=0.25, dense_steps=3000, retrain_steps=1500),
        )
        | more
    )


def _vgg_cifar10(depth: int, dense_steps: int, retrain_steps: int) -> dict:
    return _declare(
        _deep(depth - 2, first=0.15),
        title=f"VGG-{depth} on CIFAR-10",
        network=f"vgg{depth}",
        dataset="cifar10",
        rounds=tuple(range(13, 28, 2)),
        dense_steps=dense_steps,
        retrain_steps=retrain_steps,
        smoke=dict(rounds=(13, 27)),
        quick=dict(rounds=(7, 13, 19)),
        reduced=dict(rounds=(13, 21, 25, 27), dense_steps=6000, retrain_steps=4000),
    )


def _tiny_imagenet(
    network: str, title: str, depth: int, first: float, rounds: range, few: tuple, small: int = 16
) -> dict:
    """`few`: rounds of the reduced scale, `small`: image size of the quick scale."""
    rounds = tuple(rounds)
    return _declare(
        _deep(depth, first),
        title=f"{title} on Tiny-ImageNet",
        network=network,
        dataset="tiny_imagenet",
        image_size=64,
        stride=2,
        rounds=rounds,
        dense_steps=60_000,
        retrain_steps=40_000,
        smoke=dict(rounds=(rounds[0], rounds[-1])),
        quick=dict(image_size=small, rounds=(6, 12, 18), dense_steps=250, retrain_steps=80),
        reduced=dict(rounds=few),
    )


TABLES: dict[str, dict] = {
    "fcn_mnist": _declare(
        _FCN,
        title="FCN on MNIST",
        methods=(*_FIVE, "lap_forward", "lap_backward"),
        claims=(_LAP_BEATS_MP, *_ONE_SIDED),
        quick=dict(rounds=(4, 6, 8, 9, 10)),
    ),
    "fcn_linear": _declare(
        _FCN,
        title="Linear FCN on MNIST",
        activation="none",
        methods=("mp", "lap", "lap_all", "rp"),
        rounds=tuple(range(1, 11)),
        claims=(
            Claim("lap", "mp", 2, "distortion"),
            Claim("lap", "mp", 2, "error_before"),
            Claim("lap_all", "lap", 2, "distortion"),
            Claim("lap_all", "lap", 2, "error_before"),
        ),
        quick=dict(width=0.4, rounds=(1, 2, 4, 6, 8, 10), retrain_steps=300),
    ),
    "fcn_activations": _declare(
        _FCN,
        title="FCN on MNIST, three activations",
        methods=("mp", "lap"),
        variants=tuple({"activation": name} for name in ("sigmoid", "tanh", "relu")),
        claims=tuple(
            Claim("lap", "mp", 2, where={"activation": name})
            for name in ("sigmoid", "tanh", "relu")
        ),
        quick=dict(width=0.4, rounds=(4, 6, 8, 10)),
    ),
    # Small steps instead of halving, and no retraining: where does accuracy begin to fall?
    "fcn_before_retraining": _declare(
        _FCN,
        title="FCN on MNIST before retraining",
        methods=("mp", "lap"),
        rates=(0.05,) * 4 + (0.025,),
        rounds=tuple(range(1, 91)),
        retrain_steps=0,
        claims=(),
        smoke=dict(rounds=(1, 20, 40), retrain_steps=0),
        quick=dict(seeds=1, rounds=tuple(range(3, 91, 3)), retrain_steps=0),
        reduced=dict(retrain_steps=0),
    ),
    "fcn_data_dependent": _declare(
        _FCN,
        title="FCN on MNIST, data-dependent methods",
        **_DATA_DEPENDENT,
        quick=dict(rounds=(4, 6, 8, 10)),
    ),
    "fcn_global": _declare(
        _FCN,
        title="FCN on MNIST, global pruning",
        methods=("mp", "lap"),
        scope="global",
        claims=(_LAP_BEATS_MP,),
    ),
    "fcn_iterative": _declare(
        _FCN,
        title="FCN on MNIST, one-shot and iterative",
        methods=("mp", "lap"),
        variants=({"schedule": "oneshot"}, {"schedule": "iterative"}),
        claims=tuple(
            Claim("lap", "mp", 2, where={"schedule": name}) for name in ("oneshot", "iterative")
        ),
    ),
    "fcn_generalization": _declare(
        _FCN,
        title="FCN on MNIST, training and test accuracy",
        methods=("mp", "lap"),
        claims=(_LAP_BEATS_MP, Claim("lap", "mp", 2, "train_error")),
    ),
    "conv6_cifar10": _declare(
        _CONV6,
        title="Conv-6 on CIFAR-10",
        methods=_FIVE,
        claims=(_LAP_BEATS_MP, *_ONE_SIDED),
    ),
    "conv6_data_dependent": _declare(
        _CONV6,
        title="Conv-6 on CIFAR-10, data-dependent methods",
        **_DATA_DEPENDENT,
        curved_batches=(2000, 25),
        reduced=dict(curved_batches=(100, 25), active_batches=(100, 30)),
    ),
    "conv6_global": _declare(
        _CONV6,
        title="Conv-6 on CIFAR-10, global pruning",
        methods=("mp", "lap"),
        scope="global",
        claims=(_LAP_BEATS_MP,),
    ),
    "vgg11_cifar10": _vgg_cifar10(11, 35_000, 25_000),
    "vgg16_cifar10": _vgg_cifar10(16, 50_000, 35_000),
    "vgg19_cifar10": _vgg_cifar10(19, 60_000, 40_000),
    "resnet18_cifar10": _declare(
        _deep(18, first=0.0),
        title="ResNet-18 on CIFAR-10",
        network="resnet18",
        dataset="cifar10",
        rounds=tuple(range(14, 36, 3)),
        dense_steps=35_000,
        retrain_steps=25_000,
        smoke=dict(rounds=(14, 35)),
        quick=dict(image_size=16, rounds=(8, 14, 20)),
        reduced=dict(rounds=(14, 26, 32, 35), dense_steps=5000, retrain_steps=3000),
    ),
    "vgg19_tiny_imagenet": _tiny_imagenet(
        "vgg19", "VGG-19", 17, 0.15, range(13, 21), few=(13, 17, 19, 20), small=64
    ),
    # A narrow ResNet-50 learns slowly: more pixels, steps and learning rate, fewer rounds.
    "resnet50_tiny_imagenet": _declare(
        _tiny_imagenet("resnet50", "ResNet-50", 50, 0.0, range(17, 32, 2), few=(17, 25, 29, 31)),
        quick=dict(image_size=32, rounds=(6, 14), dense_steps=400, retrain_steps=80, lr=2e-3),
    ),
    "wrn16_8_tiny_imagenet": _tiny_imagenet(
        "wrn16_8", "WRN-16-8", 14, 0.0, range(13, 28, 2), few=(13, 21, 25, 27)
    ),
}

# The bundled data set stands in at the two small scales, on every table.
_SMALL = dict(dataset="mnist5k", active_batches=(10, 60), curved_batches=(10, 60))


def table(name: str, scale: str = "quick", **changes) -> Table:
    """The table `name` of the paper at a scale: "smoke", "quick", "reduced" or "paper".

    `changes` select or change: methods, rounds, seeds (how many: 0 … seeds−1), dataset, device
    ("auto", "cpu", "cuda"), precision ("float32", "bfloat16": see `train`), dense_steps,
    retrain_steps, width, lr, batch_size, activation, scope, schedule. None leaves a setting as
    declared. Text as papermill hands it over ("[4, 5]", "3") is coerced. Raises ValueError naming
    the parameter, what was given and what is allowed.

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
        if key not in FREE and value != settings.get(key, getattr(Table, key, None)):
            different.append(f"{key} = {value}")
    varied = {key for change in settings.get("variants", ()) for key in change}
    if varied & changes.keys():
        settings["variants"] = ({},)
    settings["device"] = _device("device", "auto")
    return Table(name=name, scale=scale, **{**settings, **changes, "changed": ", ".join(different)})


def _choice(parameter: str, value, allowed) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{parameter} must be one of {', '.join(allowed)}; got {value!r}")
    return value


def one_of(allowed):
    """A check of a parameter: it must be one of `allowed`."""
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


def whole(at_least: int):
    """A check of a parameter: a whole number of at least `at_least`."""

    def check(parameter: str, value) -> int:
        number = _literal(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < at_least:
            raise ValueError(
                f"{parameter} must be a whole number of at least {at_least}; got {value!r}"
            )
        return number

    return check


def several(check):
    """A check of a parameter: a list of what `check` accepts, without repetitions.

    Text may be a literal list or words between commas or spaces.
    """

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
    return tuple(sorted(several(whole(1))(parameter, value)))


def _device(parameter: str, value) -> str:
    """The device to compute on: "auto" is the GPU where there is one."""
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _choice(parameter, value, ("auto", "cpu", "cuda"))
    if value == "cuda" and not torch.cuda.is_available():
        raise ValueError('device "cuda" was asked for, but this machine has no usable CUDA GPU')
    return value


_CHECKS = {
    "methods": several(one_of(METHODS)),
    "rounds": _rounds,
    "seeds": whole(1),
    "dataset": one_of(DATASETS),
    "device": _device,
    "precision": one_of(PRECISIONS),
    "dense_steps": whole(1),
    "retrain_steps": whole(0),
    "batch_size": whole(1),
    "width": _number,
    "lr": _number,
    "activation": one_of(ACTIVATIONS),
    "scope": one_of(("layer", "global")),
    "schedule": one_of(("oneshot", "iterative")),
}
