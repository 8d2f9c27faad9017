"""Speed of the fast paths, beside the obvious way and beside the arithmetic alone: `make bench`."""

import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain, islice, repeat

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

import lapnb
from lapnb import sparse
from lapnb.data import augment
from lapnb.masks import surviving

BATCH, STEPS = 60, 200
PLAIN, PRODUCTS, LIBRARY = "plain PyTorch loop", "matrix products alone", "torch.nn.utils.prune"
TABLE = lapnb.table("fcn_mnist", scale="paper", methods=["mp", "rp", "lfp", "lbp", "lap"])

fcn = pytest.mark.benchmark(group="FCN: one network, one training step, batch 60")
masks = pytest.mark.benchmark(group="VGG-19, 20 million weights: masks, 10 % kept")
conv6 = pytest.mark.benchmark(group="Conv-6: one training step, batch 60")
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


class MaskedLinear(nn.Linear):
    """The usual way to keep a mask: multiply it into the weights in every forward pass."""

    def __init__(self, linear, mask):
        super().__init__(linear.in_features, linear.out_features)
        self.register_buffer("mask", mask.float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


def masked(model, masks):
    pairs = zip(model.layers[::2], masks, strict=True)
    layers = [layer for pair in pairs for layer in (MaskedLinear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def loader(data):
    """Torchvision's own MNIST class over the bundled digits, with the usual two transforms."""
    dataset = MNIST.__new__(MNIST)  # it would look for the files of full MNIST
    dataset.data, dataset.targets = data.train_images.squeeze(1), data.train_labels
    normalise = transforms.Normalize(data.mean, data.std)
    dataset.transform = transforms.Compose([transforms.ToTensor(), normalise])
    dataset.target_transform = None
    return DataLoader(dataset, batch_size=BATCH, shuffle=True)


@fcn
def test_plain_loop(timed, digits, dense):
    model = masked(dense, lapnb.prune_masks(dense, "mp", TABLE.keep(7)))
    optimizer = torch.optim.Adam(model.parameters(), lr=TABLE.lr)
    epochs = repeat(loader(digits))  # of 66 steps

    def train():
        for images, labels in islice(chain.from_iterable(epochs), STEPS):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    timed(PLAIN, train, units=STEPS, reference=True)


@fcn
def test_matrix_products(timed, dense):
    """Forward, input gradients (none for the images), weight gradients: five layers, no more."""
    weights = [layer.weight.detach() for layer in lapnb.prunable_layers(dense)]
    inputs = [torch.randn(BATCH, w.shape[1]) for w in weights]
    grads = [torch.randn(BATCH, w.shape[0]) for w in weights]

    def multiply():
        for _ in range(STEPS):
            for layer, (w, x, g) in enumerate(zip(weights, inputs, grads, strict=True)):
                x @ w.t()
                g.t() @ x
                if layer > 0:
                    g @ w

    timed(PRODUCTS, multiply, units=STEPS, reference=True)


@fcn
def test_dense(timed, digits, dense):
    model = copy.deepcopy(dense)
    timed("dense", lambda: lapnb.train(model, digits, steps=STEPS, seed=1), units=STEPS)


def stacked(dense, rounds):
    """The stacks in which a run trains the networks of one seed."""
    cells = [(method, t) for t in rounds for method in TABLE.methods]
    masks = [lapnb.prune_masks(dense, method, TABLE.keep(t)) for method, t in cells]
    parts = [
        masks[n : n + sparse.LARGEST_STACK] for n in range(0, len(masks), sparse.LARGEST_STACK)
    ]
    return [
        sparse.SparseStack([copy.deepcopy(dense) for _ in stack], [part[n] for n in stack])
        for part in parts
        for stack in sparse.stacks(part)
    ]


def time_stacks(timed, digits, dense, rounds, label):
    stacks, count = stacked(dense, rounds), len(rounds) * len(TABLE.methods)

    def train():
        for stack in stacks:
            lapnb.train(stack, digits, steps=STEPS)

    plural = "s" if len(stacks) > 1 else ""
    title = f"{label} ({count} networks, {len(stacks)} stack{plural})"
    timed(title, train, units=STEPS * count)


@fcn
@pytest.mark.parametrize("t", TABLE.rounds, ids=lambda t: f"round {t}")
def test_sparse(timed, digits, dense, t):
    kept = surviving(lapnb.prune_masks(dense, "mp", TABLE.keep(t)))
    time_stacks(timed, digits, dense, (t,), f"sparse, {100 * kept:.2f} %")


@fcn
def test_sparse_table(timed, digits, dense):
    time_stacks(timed, digits, dense, TABLE.rounds, "sparse, all rounds")


def prepare(barrier):
    """In a new process: the stacks of one seed, on one thread."""
    global together, work
    torch.set_num_threads(1)
    digits = lapnb.load_data("mnist5k")
    dense = lapnb.train(lapnb.build_model("fcn", seed=0), digits, steps=300)
    stacks = stacked(dense, TABLE.rounds)
    together, work = barrier, lambda: [lapnb.train(s, digits, steps=STEPS) for s in stacks]


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


@conv6
def test_conv6_step(timed):
    digits = replace(lapnb.load_data("mnist5k", 32, 3), augmentation="crop_flip")
    model = lapnb.build_model("conv6", seed=0)
    timed("dense", lambda: lapnb.train(model, digits, 2, 3e-4), units=2, rounds=3, reference=True)


@conv6
def test_conv6_augmentation(timed):
    images = lapnb.load_data("mnist5k", 32, 3).train_images[:BATCH]
    rng = np.random.default_rng(0)
    timed("augmentation alone", lambda: augment(images, "crop_flip", rng), rounds=20)


@loading
@pytest.mark.skipif("LAPNB_DATA" not in os.environ, reason="needs full MNIST in LAPNB_DATA")
def test_load_mnist(timed):
    timed("lapnb.load_data", lambda: lapnb.load_data("mnist"))
