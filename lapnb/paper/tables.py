"""Every table and figure of the paper, declared once, with its scales."""

from typing import Any, Literal

from lapnb.checks import checked, one_sentence
from lapnb.paper import protocol
from lapnb.paper.protocol import LOOKS, SCALES, Claim, Table


def _declare(base: dict, **more) -> dict:
    """A declaration: `base` with `more`; the settings of a scale are merged, not replaced."""
    merged = {scale: {**base.get(scale, {}), **more.pop(scale, {})} for scale in SCALES}
    return {**base, **more, **merged}


def _side_by_side(setting: str, *values: str) -> dict:
    """Variants of one setting; of each it is claimed that LAP beats MP."""
    claims = tuple(Claim("lap", "mp", 2, where={setting: value}) for value in values)
    return dict(variants=tuple({setting: value} for value in values), claims=claims)


_BETTER = Claim("lap", "mp", 2)
_MP_AND_LAP = dict(methods=("mp", "lap"), claims=(_BETTER,))
_SIDES = [("lfp", "mp"), ("lbp", "mp"), ("lap", "lfp"), ("lap", "lbp")]
_ONE_SIDED = dict(
    methods=("mp", "rp", "lfp", "lbp", "lap"),
    claims=(_BETTER, *(Claim(*pair) for pair in _SIDES)),
)
_DATA_DEPENDENT = dict(
    methods=("mp", "lap", "obd", "obd_lap", "lap_act"),
    claims=(_BETTER, Claim("obd_lap", "obd", 2), Claim("lap_act", "mp", 2)),
)
# What came after the paper: criteria that rank layer by layer, and those that rank globally
_LATER = dict(
    methods=("mp", "lap", "lamp", "lamp_lap", "wanda", "ria", "ria_act", "synflow"),
    variants=(
        dict(scope="layer", methods=("mp", "lap", "wanda", "ria", "ria_act", "synflow")),
        dict(scope="global", methods=("mp", "lap", "lamp", "lamp_lap", "synflow")),
    ),
    claims=(),
)
# What the reduced scale of Conv-6 looks at, batches and images in each
_FEWER = LOOKS | {"curvature": (100, 25), "activity": (100, 30), "inputs": (100, 30)}

_FCN = _declare(
    _MP_AND_LAP,
    network="fcn",
    dataset="mnist",
    rates=(0.5,) * 4 + (0.25,),
    rounds=tuple(range(4, 11)),
    image_size=28,
    channels=1,
    lr=1.2e-3,
    dense_steps=50_000,
    retrain_steps=50_000,
    training_error=True,
    smoke=dict(width=0.1, seeds=1, rounds=(2, 5), dense_steps=60, retrain_steps=20),
    quick=dict(seeds=3, dense_steps=800, retrain_steps=500),
    reduced=dict(seeds=3, dense_steps=10_000, retrain_steps=10_000),
)
_CONV6 = _declare(
    _MP_AND_LAP,
    network="conv6",
    dataset="cifar10",
    rates=(0.15,) * 6 + (0.2, 0.2, 0.1),
    rounds=tuple(range(12, 19)),
    dense_steps=30_000,
    retrain_steps=20_000,
    smoke=dict(width=0.05, seeds=1, rounds=(12, 18), dense_steps=10, retrain_steps=5),
    quick=dict(width=0.125, image_size=16, seeds=1, dense_steps=400, retrain_steps=150)
    | dict(rounds=(4, 8, 12, 16)),
    reduced=dict(width=0.5, dense_steps=3000, retrain_steps=1000),
)


def _rates(layers: int, first: float = 0.15) -> tuple[float, ...]:
    """Pruning rates of a deep network, whose last layer is pruned less."""
    return (first,) + (0.15,) * (layers - 2) + (0.1,)


def _deep(title: str, network: str, rates: tuple, rounds: range, few: tuple) -> dict:
    """A deep network on CIFAR-10; `few`: rounds of the reduced scale."""
    smoke = dict(width=0.05, seeds=1, rounds=(rounds[0], rounds[-1]))
    return _declare(
        _MP_AND_LAP | dict(network=network, dataset="cifar10", rates=rates, rounds=(*rounds,)),
        title=f"{title} on CIFAR-10",
        smoke=smoke | dict(dense_steps=5, retrain_steps=3),
        quick=dict(width=0.125, seeds=1, dense_steps=300, retrain_steps=100),
        reduced=dict(width=0.25, dense_steps=3000, retrain_steps=1500, rounds=few),
    )


def _vgg(depth: int, dense_steps: int, retrain_steps: int) -> dict:
    """A VGG on CIFAR-10."""
    rates, few = _rates(depth - 2), (13, 21, 25, 27)
    return _declare(
        _deep(f"VGG-{depth}", f"vgg{depth}", rates, range(13, 28, 2), few),
        dense_steps=dense_steps,
        retrain_steps=retrain_steps,
        quick=dict(rounds=(7, 13, 19)),
        reduced=dict(dense_steps=6000, retrain_steps=4000),
    )


def _tiny(title: str, network: str, rates: tuple, rounds: range, few: tuple) -> dict:
    """A deep network on Tiny-ImageNet."""
    return _declare(
        _deep(title, network, rates, rounds, few),
        title=f"{title} on Tiny-ImageNet",
        dataset="tiny_imagenet",
        image_size=64,
        stride=2,
        dense_steps=60_000,
        retrain_steps=40_000,
        quick=dict(image_size=16, rounds=(6, 12, 18), dense_steps=250, retrain_steps=80),
    )


TABLES: dict[str, dict] = {
    "fcn_mnist": _declare(
        _FCN | _ONE_SIDED,
        title="FCN on MNIST",
        methods=(*_ONE_SIDED["methods"], "lap_forward", "lap_backward"),
        quick=dict(rounds=(4, 6, 8, 9, 10)),
    ),
    "fcn_linear": _declare(
        _FCN,
        title="Linear FCN on MNIST",
        activation="none",
        methods=("mp", "lap", "lap_all", "rp"),
        rounds=tuple(range(1, 11)),
        claims=tuple(
            Claim(*pair, 2, column)
            for pair in [("lap", "mp"), ("lap_all", "lap")]
            for column in ("distortion", "error_before")
        ),
        quick=dict(width=0.4, rounds=(1, 2, 4, 6, 8, 10), retrain_steps=300),
    ),
    "fcn_activations": _declare(
        _FCN | _side_by_side("activation", "sigmoid", "tanh", "relu"),
        title="FCN on MNIST, three activations",
        quick=dict(width=0.4, rounds=(4, 6, 8, 10)),
    ),
    # Small steps instead of halving, and no retraining: where does accuracy begin to fall?
    "fcn_before_retraining": _declare(
        _FCN,
        title="FCN on MNIST before retraining",
        rates=(0.05,) * 4 + (0.025,),
        rounds=tuple(range(1, 91)),
        retrain_steps=0,
        claims=(),
        smoke=dict(rounds=(1, 20, 40), retrain_steps=0),
        quick=dict(seeds=1, rounds=tuple(range(3, 91, 3)), retrain_steps=0),
        reduced=dict(retrain_steps=0),
    ),
    "fcn_data_dependent": _declare(
        _FCN | _DATA_DEPENDENT,
        title="FCN on MNIST, data-dependent methods",
        quick=dict(rounds=(4, 6, 8, 10)),
    ),
    "fcn_global": _declare(_FCN, title="FCN on MNIST, global pruning", scope="global"),
    "fcn_iterative": _declare(
        _FCN | _side_by_side("schedule", "oneshot", "iterative"),
        title="FCN on MNIST, one-shot and iterative",
    ),
    "fcn_generalization": _declare(
        _FCN,
        title="FCN on MNIST, training and test accuracy",
        claims=(Claim("lap", "mp", 7, "gap", alike=True), Claim("lap", "mp", 2, "train_error"))
        + _FCN["claims"],
    ),
    "fcn_later_criteria": _declare(_FCN | _LATER, title="FCN on MNIST, later criteria"),
    "conv6_cifar10": _declare(_CONV6 | _ONE_SIDED, title="Conv-6 on CIFAR-10"),
    "conv6_data_dependent": _declare(
        _CONV6 | _DATA_DEPENDENT,
        title="Conv-6 on CIFAR-10, data-dependent methods",
        looks=LOOKS | {"curvature": (2000, 25)},
        reduced=dict(looks=_FEWER),
    ),
    "conv6_global": _declare(_CONV6, title="Conv-6 on CIFAR-10, global pruning", scope="global"),
    "conv6_later_criteria": _declare(
        _CONV6 | _LATER,
        title="Conv-6 on CIFAR-10, later criteria",
        reduced=dict(seeds=3, looks=_FEWER),
    ),
    "vgg11_cifar10": _vgg(11, 35_000, 25_000),
    "vgg16_cifar10": _vgg(16, 50_000, 35_000),
    "vgg19_cifar10": _vgg(19, 60_000, 40_000),
    "resnet18_cifar10": _declare(
        _deep("ResNet-18", "resnet18", _rates(18, 0.0), range(14, 36, 3), (14, 26, 32, 35)),
        methods=("mp", "lap", "lap_flow"),
        dense_steps=35_000,
        retrain_steps=25_000,
        quick=dict(image_size=16, rounds=(8, 14, 20)),
        reduced=dict(dense_steps=5000, retrain_steps=3000),
    ),
    "vgg19_tiny_imagenet": _declare(
        _tiny("VGG-19", "vgg19", _rates(17), range(13, 21), (13, 17, 19, 20)),
        quick=dict(image_size=64),
    ),
    # A narrow ResNet-50 learns slowly: more pixels, steps and learning rate, fewer rounds.
    "resnet50_tiny_imagenet": _declare(
        _tiny("ResNet-50", "resnet50", _rates(50, 0.0), range(17, 32, 2), (17, 25, 29, 31)),
        quick=dict(image_size=32, rounds=(6, 14), dense_steps=400, lr=2e-3),
    ),
    "wrn16_8_tiny_imagenet": _tiny(
        "WRN-16-8", "wrn16_8", _rates(14, 0.0), range(13, 28, 2), (13, 21, 25, 27)
    ),
}

# The bundled data set stands in at the two small scales, on every table.
_SMALL = dict(dataset="mnist5k", looks={kind: (10, 60) for kind in LOOKS} | {"ones": LOOKS["ones"]})
# What may be chosen without changing what a row is: which rows, and how they are computed
FREE = ("methods", "rounds", "seeds", "device", "precision")
CHANGEABLE = (
    *FREE, "dataset", "dense_steps", "retrain_steps", "batch_size", "width", "lr", "activation",
    "scope", "schedule",
)  # fmt: skip


@one_sentence()
def table(name: str, scale: str = "quick", **changes: Any) -> Table:
    """The table `name` of the paper at a scale: "smoke", "quick", "reduced" or "paper".

    `changes` select or change: methods, rounds, seeds (how many, or a list), dataset, device
    ("auto", "cpu", "cuda"), precision ("float32", "bfloat16": see `train`), dense_steps,
    retrain_steps, width, lr, batch_size, activation, scope, schedule. None leaves a setting as
    declared. Text as papermill hands it over ("[4, 5]", "3") is coerced. Raises ValueError naming
    the parameter, what was given and what is allowed.

    >>> import lapnb
    >>> lapnb.table("fcn_mnist", scale="quick", methods=["mp", "lap"]).methods
    ('mp', 'lap')
    """
    protocol.refuse_unknown_parameters()
    changes = {key: value for key, value in changes.items() if value is not None}
    checked("table", name, Literal[*TABLES])
    checked("scale", scale, Literal[SCALES])
    for key in changes:
        checked("setting", key, Literal[CHANGEABLE])
    settings = {key: value for key, value in TABLES[name].items() if key not in SCALES}
    small = _SMALL if scale in ("smoke", "quick") else {}
    settings |= {"name": name, "scale": scale} | small | TABLES[name][scale]
    declared = Table(**settings)
    if any({*changes} & {*change} - {"methods"} for change in declared.variants):
        settings["variants"] = ({},)
    table = Table(**settings | changes)
    different = [
        f"{key} = {getattr(table, key)}"
        for key in changes
        if key not in FREE and getattr(table, key) != getattr(declared, key)
    ]
    return table.model_copy(update={"changed": ", ".join(different)})
