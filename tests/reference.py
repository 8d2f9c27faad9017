"""Slow, literal versions of what the package computes fast: what the tests compare it with."""

import dataclasses
import functools
import hashlib
import itertools
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
from lapnb.pruning.scores import METHODS

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
    return torch.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]


def block_distortions(weights, i):
    """Of the block of layers i-1, i and i+1 of a fully-connected network without activations."""
    weights = [w.detach().double() for w in weights]
    return distortions(weights[i], lambda: product(weights[max(i - 1, 0) : i + 2]))


def largest(score, count):
    """Mask of the largest scores, ties to the lower index."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(score.shape)


def same(masks, others):
    return all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def dense_kernel(module):
    """Weight as (outputs, inputs, kernel positions), zero between the groups."""
    weight, groups = module.weight.detach(), getattr(module, "groups", 1)
    weight = weight.reshape(*weight.shape[:2], -1)
    outputs, inputs, positions = weight.shape
    kernel = weight.new_zeros(outputs, inputs * groups, positions)
    for k in range(outputs):
        first = k // (outputs // groups) * inputs
        kernel[k, first : first + inputs] = weight[k]
    return kernel


def parts(model):
    """Per layer: its dense kernel, what a batch norm between flatten and layer makes of its columns
    (in the kernel's shape) and the diagonal matrix of the batch norm after it, signs included.

    The linear layer after a flatten sees each channel at S positions: its kernel has the shape
    (outputs, channels, S).
    """
    kernels, columns, diagonals, flattened = [], [], [], None
    for module in model:
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            kernel = dense_kernel(module)
            scale = torch.ones_like(kernel) if flattened is None else flattened[None, :, None]
            flattened = None
            channels = len(kernels[-1]) if kernels else kernel.shape[1]
            kernels.append(kernel.reshape(len(kernel), channels, -1))
            columns.append(scale.expand_as(kernel).reshape(kernels[-1].shape))
            diagonals.append(torch.eye(len(kernel), dtype=torch.double))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            gamma = module.weight.detach() if module.affine else torch.ones(module.num_features)
            scale = gamma / (module.running_var + module.eps) ** 0.5
            if len(scale) == len(kernels[-1]):
                diagonals[-1] = torch.diag(scale)
            else:
                flattened = scale
    return kernels, columns, diagonals


def contraction(model, i):
    """T[o,p,q,r,c] of layers i-1, i, i+1, contracted over channels, kernel positions kept.

    Batch norms between the three layers and after the last layer of the model count, one before
    layer i-1 does not.
    """
    kernels, columns, diagonals = parts(model)
    kernel = torch.einsum("ak,kjq->ajq", diagonals[i], kernels[i] * columns[i])
    outputs, inputs = kernel.shape[:2]
    first, last = (torch.eye(n, dtype=torch.double)[:, :, None] for n in (inputs, outputs))
    if i > 0:
        first = torch.einsum("aj,jcr->acr", diagonals[i - 1], kernels[i - 1])
    if i + 1 < len(kernels):
        last = kernels[i + 1] * columns[i + 1]
    return torch.einsum("okp,kjq,jcr->opqrc", last, kernel, first)


def hessian_diagonals(model, names, batches):
    """Per parameter the diagonal of the mean loss's whole Hessian, summed over the batches."""
    weights = [dict(model.named_parameters())[name].detach() for name in names]
    totals = [torch.zeros_like(weight) for weight in weights]
    for images, labels in batches:

        def loss(*values, images=images, labels=labels):
            logits = functional_call(model, dict(zip(names, values, strict=True)), images)
            return F.cross_entropy(logits, labels)

        hessian = torch.autograd.functional.hessian(loss, tuple(weights))
        for i, weight in enumerate(weights):
            square = hessian[i][i].reshape(weight.numel(), weight.numel())
            totals[i] += square.diagonal().view(weight.shape)
    return totals


def train(model, data, steps, lr, batch_size, seed, stage, masks=None):
    """The protocol as a plain loop: Adam, batches drawn afresh for each step, the last step counts.

    Random numbers come in chunks of 25 steps, each from (seed, stage, chunk) alone.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    model.train()
    for step in range(steps):
        if step % 25 == 0:
            rng = np.random.default_rng([seed, zlib.crc32(stage.encode()), step // 25])
            rng.integers(2**63)  # the seed of dropout
        batch = rng.choice(len(data.train_labels), batch_size, replace=False, shuffle=False)
        logits = model(normalised(data, data.train_images[batch]))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.train_labels[batch]).backward()
        for layer, mask in zip(layers, masks or (), strict=False):
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
        about["example"] = normalised(data, data.train_images[:2])
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
    found = model(normalised(data, images)).argmax(1)
    return 100 * int((found != labels).sum()) / len(labels)


def normalised(data, images):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    return (images / 255 - mean) / std


def wired_distortions(model, layer, example):
    """Of the block [W_p1 | W_p2 | …] → layer → [W_c1; W_c2; …] of a network without activations.

    The output of every weighted layer is made a variable of its own, so that a derivative of a
    layer's input by one of them is what lies between the two. The model's input is a producer and
    its outputs are consumers, both of unit weight. Over the calls of the layer squares are added.
    """
    source = example.clone().requires_grad_()
    producers, consumers, calls = [(source, torch.eye(source.numel()).to(source))], [], []

    def cut(module, inputs, output):
        variable, matrix = output.detach().clone().requires_grad_(), as_matrix(module, inputs[0])
        producers.append((variable, matrix))
        consumers.append((inputs[0], matrix))
        if module is layer:
            calls.append((inputs[0], variable))
        return variable

    weighted = [m for m in model.modules() if getattr(m, "weight", torch.ones(1)).ndim > 1]
    hooks = [module.register_forward_hook(cut) for module in weighted]
    outputs = model(source)
    for hook in hooks:
        hook.remove()
    outputs = vars(outputs) if dataclasses.is_dataclass(outputs) else outputs
    for output in torch.utils._pytree.tree_leaves(outputs):
        consumers.append((output, torch.eye(output.numel()).to(output)))
    total = torch.zeros_like(layer.weight)
    for entered, left in calls:
        before = torch.cat([between(x, entered) @ matrix for x, matrix in producers], 1)
        after = torch.cat([matrix @ between(left, y) for y, matrix in consumers])
        block = functools.partial(block_of, after, layer, entered, before)
        total += distortions(layer.weight.data, block) ** 2
    return total.sqrt()


def block_of(after, layer, entered, before):
    return after @ as_matrix(layer, entered) @ before


def as_matrix(function, value):
    jacobian = torch.autograd.functional.jacobian(function.forward, value.detach())
    return jacobian.reshape(-1, value.numel())


def between(source, target):
    rows = [
        torch.autograd.grad(y, source, retain_graph=True, materialize_grads=True, allow_unused=True)
        for y in target.flatten()
        if target.requires_grad
    ]
    zeros = source.new_zeros(target.numel(), source.numel())
    return torch.stack([row.flatten() for (row,) in rows]) if rows else zeros


# Rows --------------------------------------------------------------------------------------------


def committed(ending):
    """The files with rows, or pictures, of the two scales that are committed."""
    figures = Path(__file__).parents[1] / "figures"
    return [
        p for scale in ("paper", "reduced") for p in sorted(figures.glob(f"{scale}/*.{ending}"))
    ]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def layer_sizes(network, width, activation, image_size, channels, stride, classes):
    """How many weights each prunable layer has."""
    about = dict(image_size=image_size, channels=channels, stride=stride, num_classes=classes)
    with torch.device("meta"):
        model = lapnb.build_model(network, width, activation, **about)
    return [layer.weight.numel() for layer in lapnb.prunable_layers(model)]


def kept(table, classes, t, scope, **changes):
    """How many weights survive round t, Σ round(keep_l · n_l) or globally round(Σ keep_l · n_l)."""
    about = table.model_dump(include={"network", "width", "activation", "image_size", "channels"})
    sizes = layer_sizes(**about | changes, stride=table.stride, classes=classes)
    each = [(1 - rate) ** t * n for rate, n in zip(table.rates, sizes, strict=True)]
    return round(sum(each)) if scope == "global" else sum(map(round, each)), sum(sizes)


def assert_surviving(rows):
    """`surviving` is exactly what the declared fractions leave of the network's weights."""
    first = rows.iloc[0]
    table = lapnb.table(first.table, first.scale)
    named = re.search(r"(\d+) classes", first.source)
    classes = int(named[1]) if named else classes_of(first.source)
    runs = rows.groupby(["width", "activation", "scope", "round"])
    for (width, activation, scope, t), surviving in runs.surviving:
        count, n = kept(table, classes, t, scope, width=width, activation=activation)
        assert surviving.to_numpy() * n == pytest.approx(count, abs=1e-3), (scope, t)


def classes_of(source):
    return 200 if "tiny" in source.lower() else 10


def fractions(table):
    """The surviving weights (%) of a table, round by round."""
    for t in table.rounds:
        count, n = kept(table, classes_of(table.dataset), t, table.scope)
        yield f"{100 * count / n:.2f}"
