"""Speed of the fast paths, beside the obvious way and beside the arithmetic alone: `make bench`."""

import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, MNIST

import lapnb
from lapnb.pruning.masks import surviving
from lapnb.training.data import augment
from lapnb.training.stacks import SparseStack

BATCH, STEPS = 60, 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN, PRODUCTS, LIBRARY = "plain PyTorch loop", "matrix products alone", "torch.nn.utils.prune"
TABLE = lapnb.table("fcn_mnist", scale="paper", methods=["mp", "rp", "lfp", "lbp", "lap"])

fcn = pytest.mark.benchmark(group="FCN: one network, one training step, batch 60")
masks = pytest.mark.benchmark(group="VGG-19, 20 million weights: masks, 10 % kept")
augmentation = pytest.mark.benchmark(group="augmentation of one CIFAR-10 image")
loading = pytest.mark.benchmark(group="full MNIST: load")


@pytest.fixture(scope="module")
def digits():
    return lapnb.load_data("mnist5k")


@pytest.fixture(scope="module")
def dense(digits):
    """A network that has learnt something, so that its masks look like those of the paper."""
    return lapnb.train(lapnb.build_model("fcn", seed=0), digits, steps=300)


@pytest.fixture(scope="module")
def vgg19():
    return lapnb.build_model("vgg19", seed=0)


def plain_loop(model, masks, data, steps, lr):
    """The usual way: weights times masks in every forward pass, images one by one.

    Torchvision's own data sets over the bundled digits, with the usual transforms.
    """
    lapnb.to_torch_prune(model, masks)
    device = next(model.parameters()).device
    images = data.train_images.permute(0, 2, 3, 1).cpu()
    pipeline = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    if data.augmentation:
        crop = transforms.RandomCrop(images.shape[1], padding=4)
        pipeline = [crop, transforms.RandomHorizontalFlip(), *pipeline]
    kind = CIFAR10 if data.augmentation else MNIST
    dataset = kind.__new__(kind)  # it would look for the files of the data set
    dataset.data = images.numpy() if kind is CIFAR10 else images.squeeze(-1)
    dataset.targets, dataset.target_transform = data.train_labels.tolist(), None
    dataset.transform = transforms.Compose(pipeline)
    epochs = repeat(DataLoader(dataset, batch_size=BATCH, shuffle=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def train():
        for images, labels in islice(chain.from_iterable(epochs), steps):
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # a GPU is asked for a result, so that it has to finish

    return train


@fcn
def test_plain_loop(timed, digits, dense):
    masks = lapnb.prune_masks(dense, "mp", TABLE.keep(7))
    train = plain_loop(copy.deepcopy(dense), masks, digits, STEPS, TABLE.lr)
    timed(PLAIN, train, units=STEPS, reference=True)


def products(dense):
    """Forward, input gradients (none for the images), weight gradients: five layers, no more."""
    weights = [layer.weight.detach() for layer in lapnb.prunable_layers(dense)]
    inputs = [torch.randn(BATCH, w.shape[1]) for w in weights]
    grads = [torch.randn(BATCH, w.shape[0]) for w in weights]

    def multiply():
        for layer, (w, x, g) in enumerate(zip(weights, inputs, grads, strict=True)):
            x @ w.t()
            g.t() @ x
            if layer > 0:
                g @ w

    return multiply


@fcn
def test_matrix_products(timed, dense):
    multiply = products(dense)
    timed(PRODUCTS, lambda: [multiply() for _ in range(STEPS)], units=STEPS, reference=True)


@fcn
def test_matrix_products_and_adam(timed, dense):
    """What no dense step can do without, in memory that is there: a bound for PyTorch's kernels."""
    model = copy.deepcopy(dense)
    multiply, optimizer = products(model), torch.optim.Adam(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    def multiply_and_update():
        for _ in range(STEPS):
            multiply()
            optimizer.step()

    timed("matrix products and fused Adam alone", multiply_and_update, units=STEPS)


@fcn
def test_dense(timed, digits, dense):
    model, steps = copy.deepcopy(dense), 5 * STEPS  # a run's beginning should not count
    timed("dense", lambda: lapnb.train(model, digits, steps=steps, seed=1), units=steps)


def stacked(dense, rounds, digits):
    """How many networks of one seed a run trains in stacks of at most 20, and `STEPS` of all."""
    masks = [lapnb.prune_masks(dense, m, TABLE.keep(t)) for t in rounds for m in TABLE.methods]
    stacks = [
        SparseStack([copy.deepcopy(dense) for _ in some], some)
        for some in (masks[start : start + 20] for start in range(0, len(masks), 20))
    ]
    return len(masks), lambda: [lapnb.train(stack, digits, steps=STEPS) for stack in stacks]


@fcn
@pytest.mark.parametrize("t", (2, *TABLE.rounds), ids=lambda t: f"round {t}")
def test_sparse(timed, digits, dense, t):
    """From round 2 of a one-shot table on, which keeps almost as much as `sparse_stack.DENSEST`."""
    kept = surviving(lapnb.prune_masks(dense, "mp", TABLE.keep(t)))
    count, train = stacked(dense, (t,), digits)
    timed(f"sparse, {100 * kept:.2f} % ({count} networks)", train, units=STEPS * count)


@fcn
def test_sparse_table(timed, digits, dense):
    count, train = stacked(dense, TABLE.rounds, digits)
    timed(f"sparse, all rounds ({count} networks)", train, units=STEPS * count)


def prepare(barrier):
    """In a new process: the stacks of one seed, on one thread."""
    global together, work
    torch.set_num_threads(1)
    digits = lapnb.load_data("mnist5k")
    dense = lapnb.train(lapnb.build_model("fcn", seed=0), digits, steps=300)
    together, (_, work) = barrier, stacked(dense, TABLE.rounds, digits)


def train_together(_):
    together.wait()  # so that each process takes one seed
    work()


@fcn
def test_sparse_table_two_processes(timed):
    """Two seeds side by side, as `lapnb.run` trains them on two cores; wall time."""
    spawn = multiprocessing.get_context("spawn")
    count = 2 * len(TABLE.rounds) * len(TABLE.methods)
    with ProcessPoolExecutor(2, spawn, prepare, (spawn.Barrier(2),)) as pool:
        timed(
            f"sparse, all rounds, two processes ({count} networks)",
            lambda: list(pool.map(train_together, range(2))),
            units=STEPS * count,
        )


@masks
def test_library(timed, vgg19):
    def prune_all(model):
        for layer in lapnb.prunable_layers(model):
            prune.l1_unstructured(layer.module, "weight", amount=0.9)

    timed(LIBRARY, prune_all, rounds=3, setup=lambda: ([copy.deepcopy(vgg19)], {}), reference=True)


@masks
@pytest.mark.parametrize(
    ("method", "scope"), [("mp", "layer"), ("lap", "layer"), ("lap", "global")]
)
def test_masks(timed, vgg19, method, scope):
    label = method if scope == "layer" else f"{method}, global"
    timed(label, lambda: lapnb.prune_masks(vgg19, method, 0.1, scope), reference=label == "mp")


@pytest.fixture(scope="module")
def objects():
    """The bundled digits in the shape of CIFAR-10, and augmented like it."""
    data = lapnb.load_data("mnist5k", 32, 3).to(DEVICE)
    return replace(data, augmentation="crop_flip")


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "ours"])
@pytest.mark.parametrize("network", ["conv6", "vgg19", "resnet18"])
def test_convolutional_step(timed, benchmark, objects, network, plain):
    benchmark.group = f"{network}: one image of a training step, batch {BATCH}, {DEVICE}"
    steps = 4 if DEVICE == "cpu" else 50
    model = lapnb.build_model(network, seed=0).to(DEVICE)
    masks = lapnb.prune_masks(model, "mp", 0.1)
    if plain:
        label, train = PLAIN, plain_loop(model, masks, objects, steps, 3e-4)
    else:
        model = model.to(memory_format=torch.channels_last)  # as a run does
        label, train = "ours", partial(lapnb.train, model, objects, steps, 3e-4, masks=masks)
    timed(label, train, units=BATCH * steps, rounds=3, reference=plain)


@augmentation
def test_augmentation(timed, objects):
    images, rng = objects.train_images[:BATCH], np.random.default_rng(0)

    def work():
        augment(images, "crop_flip", rng)[0, 0, 0, 0].item()  # so that a GPU has to finish

    timed("ours", work, units=BATCH, rounds=20)


@loading
@pytest.mark.skipif("LAPNB_DATA" not in os.environ, reason="needs full MNIST in LAPNB_DATA")
def test_load_mnist(timed):
    timed("lapnb.load_data", lambda: lapnb.load_data("mnist"))
