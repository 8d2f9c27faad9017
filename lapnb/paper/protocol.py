"""What a table is: its settings, their bounds, and what a row of it depends on."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from lapnb.checks import literal
from lapnb.pruning.scores import METHODS
from lapnb.store import fingerprint
from lapnb.training.data import DATASETS
from lapnb.training.networks import ACTIVATIONS, NETWORKS
from lapnb.training.train import PRECISIONS

MOST_SEEDS = 10_000
SCALES = ("smoke", "quick", "reduced", "paper")
# What a dense network depends on, besides its seed and the source of its data
DENSE = {
    *("network", "dataset", "width", "activation", "stride", "image_size", "channels"),
    *("lr", "batch_size", "dense_steps"),
}
VARIED = ("activation", "schedule", "scope")  # settings that a table may put side by side


@dataclass(frozen=True)
class Claim:
    """What the paper or we say of the paired difference in `column`, `method` minus `baseline`.

    Each seed gives one number, and the claim is that their mean lies between `low` and `high`:
    below 0 where the method is better, within a margin where the two are alike. `where` names the
    variant of the table that is meant.
    """

    method: str
    baseline: str
    rounds: int = 1  # how many, over which the number is taken: see `Table.rounds_of`
    column: str = "error"
    where: dict[str, str] = field(default_factory=dict)
    low: float = -math.inf
    high: float = 0.0
    # Of a method in a seed: "mean" over the rounds; "trend", the change with each halving of the
    # surviving weights; "area" below the curve over these halvings, by their number; "kept", the
    # surviving weights (%) down to which at most `loss` points of accuracy are lost
    measure: Literal["mean", "trend", "area", "kept"] = "mean"
    loss: float = 1.0
    published: float = math.nan  # the number that a baseline "published" stands for


def _listed(value: Any) -> Any:
    """Return one value, several, or the entries of a text with commas or spaces, as a tuple."""
    value = literal(value)
    if isinstance(value, str):
        value = [literal(word) for word in value.strip("[]()").replace(",", " ").split()]
    value = tuple(value) if isinstance(value, list | tuple | range) else (value,)
    if len({*map(repr, value)}) < len(value):
        raise ValueError("not repeat an entry")
    return value


def _seeds(value: Any) -> Any:
    """Return a tuple of seeds: those from 0 for a number of seeds, or those that a list names."""
    value = literal(value)
    if type(value) is int and 1 <= value <= MOST_SEEDS:
        return tuple(range(value))
    if isinstance(value, str | list | tuple | range):
        return _listed(value)
    raise ValueError(f"be a number of seeds from 1 to {MOST_SEEDS}, or a list of seeds")


def _device(name: str) -> str:
    """Return the device to compute on: "auto" is the GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("be cpu: this machine has no usable CUDA GPU")
    return ("cuda" if has_gpu else "cpu") if name == "auto" else name


# How many batches of what size the data-dependent methods look at, in the paper
LOOKS = {"activity": (2000, 30), "curvature": (1000, 60), "inputs": (2000, 30), "ones": (1, 1)}
Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Field(min_length=1), BeforeValidator(_listed)]
Round = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=10**9)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(_seeds)]
Whole = Annotated[int, BeforeValidator(literal)]
Steps = Annotated[Whole, Field(le=10**9)]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], AfterValidator(_device), Field(validate_default=True)
]
Number = Annotated[float, BeforeValidator(literal), Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A table or figure of the paper at one scale: what is trained, pruned and recorded.

    Layer l keeps the fraction (1 − rates[l])^t of its weights in round t. `variants` are changes
    of single settings that the table puts side by side, e.g. several activations. `looks` says how
    many batches of what size a data-dependent method looks at; `training_error`, that the error on
    the training set is recorded too. `endpoint` are the rounds that a claim about as many looks at,
    where they are not the sparsest.
    """

    name: str
    title: str
    scale: Literal[SCALES]
    network: Literal[*NETWORKS]
    dataset: Literal[*DATASETS]
    methods: Several[Literal[*METHODS]] = ("mp", "lap")
    rounds: Annotated[Several[Round], AfterValidator(lambda rounds: tuple(sorted(rounds)))]
    rates: tuple[float, ...]
    dense_steps: Annotated[Steps, Field(ge=1)]
    retrain_steps: Annotated[Steps, Field(ge=0)]
    seeds: Seeds = tuple(range(5))
    lr: Number = 3e-4
    batch_size: Annotated[Whole, Field(ge=1)] = 60
    width: Annotated[Number, Field(le=100)] = 1.0
    activation: Literal[*ACTIVATIONS] = "relu"
    stride: int = 1
    image_size: int = 32
    channels: int = 3
    scope: Literal["layer", "global"] = "layer"
    schedule: Literal["oneshot", "iterative"] = "oneshot"
    looks: dict[str, tuple[int, int]] = LOOKS
    device: Device = "auto"
    precision: Literal[PRECISIONS] = "float32"
    training_error: bool = False
    claims: tuple[Claim, ...] = ()
    endpoint: tuple[Round, ...] = ()
    variants: tuple[dict[str, Any], ...] = ({},)
    changed: str = ""

    def split(self) -> Iterator["Table"]:
        """Yield the tables that this one puts side by side, each with one value of what varies."""
        for change in self.variants:
            variant_methods = change.get("methods", self.methods)
            if methods := tuple(method for method in self.methods if method in variant_methods):
                yield self.model_copy(update=change | {"methods": methods, "variants": ({},)})

    def runs(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield every run, one row each: the hash of its settings, method, round and seed."""
        for variant in self.split():
            for method, t, seed in itertools.product(
                variant.methods, variant.rounds, variant.seeds
            ):
                yield variant.settings(method, t), method, t, seed

    def rounds_of(self, claim: Claim) -> tuple[int, ...]:
        """Return the rounds over which a claim takes its number: the endpoint, or the sparsest."""
        if claim.rounds == len(self.endpoint):
            return self.endpoint
        return self.rounds[-claim.rounds :]

    def keep(self, pruning_round: int) -> tuple[float, ...]:
        """Return the surviving fraction of each layer in a round."""
        return tuple((1 - rate) ** pruning_round for rate in self.rates)

    def settings(self, method: str, pruning_round: int) -> str:
        """Return a short hash of what a row depends on besides method, round, seed and source."""
        pruning = {"rates", "retrain_steps", "scope", "schedule"}
        settings = self.model_dump(include=DENSE | pruning)
        if self.schedule == "iterative":
            settings["rounds"] = [t for t in self.rounds if t <= pruning_round]
        if kind := METHODS[method].looks_at:
            # the names in the hashes of recorded rows
            name = {"activity": "active", "curvature": "curved"}.get(kind, kind)
            settings[f"{name}_batches"] = self.looks[kind]
        return fingerprint(settings)
