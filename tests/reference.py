"""Slow, literal versions of what the package computes fast: what the tests compare it with."""

import contextlib
import copy
import hashlib
import itertools
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import lapnb
from lapnb.pruning.layers import prunable_layers
from lapnb.pruning.scores import METHODS
from lapnb.training.data import augment


@contextlib.contextmanager
def odd_torch():
    """Defaults and gradient mode as a user may have set them; they must stay as they are."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            yield
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


# Pruning ---------------------------------------------------------------------------------------


def randomised(model, seed=1):
    """In eval mode, with weights, biases and batch norms as after some training: none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator).mul_(0.4)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return model.eval()


@torch.no_grad()
def distortions(weight, function):
    """‖function() − function() with w = 0‖_F for every entry w of `weight`, one after the other."""
    reference, result = function(), torch.zeros_like(weight)
    for index in itertools.product(*map(range, weight.shape)):
        kept = weight[index].item()
        weight[index] = 0
        result[index] = (function() - reference).square().sum().sqrt()
        weight[index] = kept
    return result


def product(weights):
    """What linear layers compute together."""
    return torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0].clone()


def block_distortions(weights, i, before=1, after=1):
    """Of layer i with so many neighbours on each side, of a linear network without activations."""
    weights = [w.detach().double() for w in weights]
    block = slice(max(i - before, 0), i + after + 1)
    return distortions(weights[i], lambda: product(weights[block]))


def largest(score, count):
    """Mask of the largest scores, ties to the lower index."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(score.shape)


def same(masks, others):
    return all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def same_networks(one, other):
    return same(one.state_dict().values(), other.state_dict().values())


@contextlib.contextmanager
def unchanged(model):
    """What runs leaves weights, settings and hooks of a model, and torch's random state."""
    before, state = copy.deepcopy(model), torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)
    assert same_networks(before, model)
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert repr(vars(old)) == repr(vars(new))  # hooks, in place or not, training or not
    assert not any(vars(p) or p.grad is not None for p in model.parameters())


def dense_kernel(module):
    """Weight as (outputs, inputs, kernel positions), zero between the groups."""
    weight, groups = module.weight.detach(), getattr(module, "groups", 1)
    if isinstance(module, nn.ConvTranspose2d):  # inputs first
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    weight = weight.reshape(*weight.shape[:2], -1)
    outputs, inputs, positions = weight.shape
    kernel = weight.new_zeros(outputs, inputs * groups, positions)
    for k in range(outputs):
        first = k // (outputs // groups) * inputs
        kernel[k, first : first + inputs] = weight[k]
    return kernel


def hessian_diagonals(model, batches):
    """Per layer the diagonal of the mean loss's whole Hessian, summed over the batches."""
    model = copy.deepcopy(model).double()
    weights = {f"{x.name}.weight": x.weight.detach() for x in prunable_layers(model)}
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def loss(weights, images, labels):
        return F.cross_entropy(functional_call(model, weights, images.double()), labels)

    for batch in batches:
        hessian = torch.func.hessian(loss)(weights, *batch)
        for name, total in totals.items():
            square = hessian[name][name].reshape(total.numel(), total.numel())
            total += square.diagonal().view(total.shape)
    return [*totals.values()]


def train(model, data, steps, lr, batch_size, seed, stage, masks=None):
    """The protocol as a plain loop: Adam, batches drawn afresh for each step, the last step counts.

    Random numbers come in chunks of 25 steps, each from (seed, stage, chunk) alone.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    layers = prunable_layers(model)
    model.train()
    for step in range(steps):
        if step % 25 == 0:
            rng = np.random.default_rng([seed, zlib.crc32(stage.encode()), step // 25])
            rng.integers(2**63)  # the seed of dropout
        batch = rng.choice(len(data.train_labels), batch_size, replace=False, shuffle=False)
        images = augment(data.train_images[batch], data.augmentation, rng)
        logits = model(data.normalise(images))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.train_labels[batch]).backward()
        for layer, mask in zip(layers, masks or (), strict=False):
            if layer.weight.requires_grad:
                layer.weight.grad *= mask
        optimizer.step()


def train_dense(table, data, seed):
    """The dense network of a table."""
    about = table.model_dump(include={"width", "activation", "image_size", "channels", "stride"})
    model = lapnb.build_model(table.network, num_classes=data.classes, seed=seed, **about)
    model.to(memory_format=torch.channels_last)
    train(model, data, table.dense_steps, table.lr, table.batch_size, seed, "dense")
    return model


def prune_and_retrain(model, dense, table, method, t, data, seed):
    """A round of pruning and retraining, of the round before or of the dense network; its row."""
    if table.schedule == "oneshot":
        model.load_state_dict(dense.state_dict())
    keep = [(1 - rate) ** t for rate in table.rates]
    sizes = [layer.weight.numel() for layer in lapnb.prunable_layers(model)]
    if table.scope == "global":
        keep = sum(k * n for k, n in zip(keep, sizes, strict=True)) / sum(sizes)
    about = {"seed": seed}
    if method == "lap_flow":
        about["example"] = data.normalise(data.train_images[:2])
    if kind := METHODS[method].looks_at:
        about["batches"] = data.batches(*table.looks[kind], seed)
    model.eval()
    masks = lapnb.prune_masks(model, method, keep, table.scope, **about)
    lapnb.apply_masks(model, masks)
    row = {"surviving": sum(int(mask.sum()) for mask in masks) / sum(sizes)}
    row["error_before"] = error(model, data, "test")
    train(model, data, table.retrain_steps, table.lr, table.batch_size, seed, "retrain", masks)
    row["error"] = error(model, data, "test")
    if table.training_error:
        row["train_error"] = error(model, data, "train")
    return row


def bits(model):
    """All numbers of a model, to the bit."""
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


@torch.no_grad()
def error(model, data, split):
    """Error (%) on a split."""
    model.eval()
    images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
    found = model(data.normalise(images)).argmax(1)
    return 100 * int((found != labels).sum()) / len(labels)


def unit_distortions(model, example):
    """Per layer that of the block [W_p1 | W_p2 | …] → layer → [W_c1; W_c2; …] without activations.

    The output of every layer is made a variable of its own, so that a derivative of a layer's input
    by one of them is what lies between the two. Positions of a unit move together, different units
    independently. The model's input is a producer and its outputs are consumers, of unit weight.
    """
    layers = {layer.module: layer for layer in prunable_layers(model)}
    variables, entered, called = [example.clone().requires_grad_()], [], []

    def cut(module, inputs, output):
        called.append(layers[module])
        entered.append(inputs[0])
        variables.append(output.detach().clone().requires_grad_())
        return variables[-1]

    hooks = [module.register_forward_hook(cut) for module in layers]
    outputs = model(variables[0])
    for hook in hooks:
        hook.remove()
    entered += torch.utils._pytree.tree_leaves(outputs)
    between = [squared_slopes(units_first(ends), variables) for ends in entered]
    kernels = [dense_kernel(layer.module).square().sum(2) for layer in called]
    rows, columns = [1, *(k.sum(1) for k in kernels)], [k.sum(0) for k in kernels]
    totals = {}
    for i, layer in enumerate(called):
        before = sum((x * row).sum(1) for x, row in zip(between[i], rows, strict=True))
        after = sum(
            (x[i + 1].T * column).sum(1)
            for x, column in itertools.zip_longest(between, columns, fillvalue=1)
        )
        total = layer.per_output(after) * layer.per_input(before)
        totals[layer.name] = totals.get(layer.name, 0) + total * layer.weight.detach() ** 2
    return {name: total.sqrt() for name, total in totals.items()}


def units_first(values):
    return values.movedim(1 if values.ndim == 4 else -1, 0).flatten(1)


def squared_slopes(units, variables):
    """Of the mean of each unit, by each unit of each variable."""
    slopes = [
        torch.autograd.grad(x.mean(), variables, retain_graph=True, materialize_grads=True)
        for x in units
    ]
    return [
        torch.stack([units_first(x).sum(1) for x in of_one]).square()
        for of_one in zip(*slopes, strict=True)
    ]


# Random networks -------------------------------------------------------------------------------


def mask(x):
    return (torch.arange(x.shape[1]) > 0).float().view(-1, *[1] * (x.ndim - 2))


PIECES = [  # of an input x and two layers f and g; the last dimension holds units
    lambda x, f, g: g(f(x)),
    lambda x, f, g: x + g(f(x)),
    lambda x, f, g: torch.cat([f(x), x], -1),
    lambda x, f, g: torch.stack([f(x), g(x)], -1).flatten(-2),
    lambda x, f, g: x + g(f(x).flip(-1).roll(1, 1).movedim(1, 0).movedim(0, 1)),
    lambda x, f, g: F.pad(f(x), (1, 2)),
    lambda x, f, g: torch.cat([f(x).mean(1, True).expand_as(x), g(x)], -1),
    lambda x, f, g: g(x) + f(x).amax(1, True),
    lambda x, f, g: g(x) + (f(x) * mask(x)).sum(1, True) / mask(x).sum(),
    lambda x, f, g: torch.cat([f(x), g(x).mean(-1, True)], -1),
    lambda x, f, g: f(x) * torch.arange(1.0, 1 + x.shape[-1]),
]


class RandomNetwork(nn.Module):
    """A few of the pieces, drawn by a seed, between linear layers, on units of 4 or 8 positions."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        positions = draw.choice([(4,), (2, 2, 2)])
        x = self.example = torch.rand(1, *positions, draw.randint(2, 4))
        self.pieces = draw.choices(PIECES, k=3)
        self.layers = nn.ModuleList()
        for piece in self.pieces:
            f, g = (nn.Linear(x.shape[-1], x.shape[-1], bias=False) for _ in range(2))
            self.layers += [f, g]
            x = piece(x, f, g)
        self.flat = draw.random() < 0.5
        self.head = nn.Linear(x.numel() if self.flat else x.shape[-1], 2, bias=False)
        randomised(self, seed)

    def forward(self, x):
        for piece, f, g in zip(self.pieces, self.layers[::2], self.layers[1::2], strict=True):
            x = piece(x, f, g)
        return self.head(x.flatten(1) if self.flat else x.flatten(1, -2).mean(1))


# Rows --------------------------------------------------------------------------------------------


def committed(ending):
    """The files with rows, or pictures, of the two scales that are committed."""
    files = sorted((Path(__file__).parents[1] / "figures").glob(f"*/*.{ending}"))
    return [path for path in files if path.parent.name in ("paper", "reduced")]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def surviving(table, classes, rounds):
    """By scope and round, the exact fraction of the weights of a table's network that survives.

    Of a layer round(keep · n) of n weights survive, globally round(Σ keep · n) of all.
    """
    about = table.model_dump(include={"width", "image_size", "channels", "stride"})
    with torch.device("meta"):
        model = lapnb.build_model(table.network, num_classes=classes, **about)
    sizes = [layer.weight.numel() for layer in lapnb.prunable_layers(model)]
    fractions = {}
    for t in rounds:
        kept = [(1 - rate) ** t * n for rate, n in zip(table.rates, sizes, strict=True)]
        fractions["layer", t] = sum(map(round, kept)) / sum(sizes)
        fractions["global", t] = round(sum(kept)) / sum(sizes)
    return fractions


def assert_surviving(rows):
    """`surviving` is exactly what the declared fractions leave of the network's weights."""
    first = rows.iloc[0]
    named = re.search(r"(\d+) classes", first.source)
    classes = int(named[1]) if named else classes_of(first.source)
    table = lapnb.table(first.table, first.scale)
    expected = surviving(table, classes, rows["round"].unique())
    for run, fractions in rows.groupby(["scope", "round"]).surviving:
        assert fractions.to_numpy() == pytest.approx(expected[run], rel=1e-12), run


def classes_of(source):
    return 200 if "tiny" in source.lower() else 10


def fractions(table):
    """The surviving weights (%) of a table, round by round."""
    expected = surviving(table, classes_of(table.dataset), table.rounds)
    return [f"{100 * expected[table.scope, t]:.2f}" for t in table.rounds]
