"""Retraining many pruned fully-connected networks at once on a CPU, at the cost of their weights.

The surviving weights of K networks form one block-diagonal sparse network, so that a step touches
only these weights and its fixed costs are shared by K. Activations lie feature-major, (units,
batch), followed by one row of ones: a bias is a weight from that row. A hidden unit with no path of
surviving weights to the output cannot change the loss, and its gradient is exactly zero; it is left
out and keeps its weights and bias.
"""

import warnings
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten

# activation, and its gradient from the gradient and the value of its output; both in place
ACTIVATIONS = {
    nn.ReLU: (torch.relu_, lambda g, out: aten.threshold_backward(g, out, 0, grad_input=g)),
    nn.Sigmoid: (torch.sigmoid_, lambda g, out: aten.sigmoid_backward(g, out, grad_input=g)),
    nn.Tanh: (torch.tanh_, lambda g, out: aten.tanh_backward(g, out, grad_input=g)),
    nn.Identity: (lambda x: x, lambda g, out: g),
}
LANES = 32  # the batch is padded to a multiple of this: sigmoid takes two vectors of floats at once
# Surviving fraction up to which sparse products beat dense ones, measured on two cores, one thread
# each: 784-500-500-500-500-10, batch 60
DENSEST = 0.26


class _Network(torch.autograd.Function):
    """All layers in one autograd node; its backward needs only the layers' inputs."""

    @staticmethod
    def forward(ctx, values: Tensor, x: Tensor, stack: "SparseStack") -> Tensor:
        batch = len(x)
        h = F.pad(x.t(), (0, -batch % LANES, 0, 1), value=1.0)
        inputs = [h]
        for weight in stack.weights[:-1]:
            h = torch.empty(len(weight) + 1, h.shape[1])
            h[-1] = 1
            units = h[:-1]
            torch.addmm(units, weight, inputs[-1], beta=0, out=units)
            stack.activation(units)
            inputs.append(h)
        ctx.stack = stack
        ctx.inputs = inputs
        logits = stack.weights[-1] @ inputs[-1]
        by_network = logits.unflatten(0, (len(stack.keep), -1))
        return by_network[..., :batch].transpose(1, 2)

    @staticmethod
    def backward(ctx, grad_logits: Tensor):
        stack = ctx.stack
        padding = -grad_logits.shape[1] % LANES
        grad = F.pad(grad_logits.transpose(1, 2), (0, padding)).flatten(0, 1)
        torch.index_select(stack.values.detach(), 0, stack.order, out=stack.transposed_values)
        for layer in reversed(range(len(ctx.inputs))):
            h = ctx.inputs[layer]
            gradient = stack.gradients[layer]
            torch.sparse.sampled_addmm(gradient, grad, h.t(), beta=0, out=gradient)
            if layer:
                units = torch.empty_like(h[:-1])
                torch.addmm(units, stack.transposed[layer - 1], grad, beta=0, out=units)
                grad = stack.slope(units, h[:-1])
        # Autograd takes a new view as it is, where it would copy a tensor that others hold. The
        # next backward overwrites it: after zero_grad nobody needs it.
        return stack.gradient.detach(), None, None


class SparseStack(nn.Module):
    """K pruned fully-connected networks of the same layer sizes, trained on the same batches.

    models: `FCN`s in float32 on the CPU.
    masks: for each model one boolean mask per Linear, shaped as its weight; weights outside
        count as 0.

    The only parameter, `values`, holds layer by layer, and within a layer network by network,
    the surviving weights of each unit followed by its bias. A few unused zeros are at its end. The
    sum over networks of the mean loss over the batch trains each network as if it were alone, even
    beside one that diverges. The matrices share memory with `values`: training and
    `load_state_dict` change both, but a deep copy or a move to another device would part them.
    """

    def __init__(self, models: list[nn.Module], masks: list[list[Tensor]]):
        super().__init__()
        self.activation, self.slope = ACTIVATIONS[type(models[0].layers[1])]
        self.masks = masks
        self.keep = [_trained(network) for network in masks]
        layers = range(len(masks[0]))
        self.places = [*product(layers, range(len(masks)))]  # layer, network
        parts = []
        for layer, network in self.places:
            whole = _with_bias(models[network].layers[2 * layer])
            parts.append(whole[self.keep[network][layer]])
        # Padded to whole vectors: Adam rounds what is left over differently, and then a network's
        # result would depend on the rest of its stack.
        count = sum(len(part) for part in parts)
        parts.append(torch.zeros(-count % LANES))
        self.sizes = [len(part) for part in parts]
        self.values = nn.Parameter(torch.cat(parts))
        self.gradient = torch.zeros_like(self.values, requires_grad=False)

        indices = [self._indices(layer) for layer in layers]
        self.weights = _matrices(self.values.detach(), indices)
        self.gradients = _matrices(self.gradient, indices)
        # The transposed matrices have no column for the biases: nothing needs its gradient.
        orders = []
        transposed = []
        start = len(indices[0][0])
        for rows, columns, (n_out, n_in) in indices[1:]:
            order = columns.argsort(stable=True)
            order = order[: (columns < n_in - 1).sum()]
            orders.append(order + start)
            transposed.append((columns[order], rows[order], (n_in - 1, n_out)))
            start += len(rows)
        self.order = torch.cat(orders)
        self.transposed_values = self.values.detach()[self.order]
        self.transposed = _matrices(self.transposed_values, transposed)

    def _indices(self, layer: int) -> tuple[Tensor, Tensor, torch.Size]:
        """Return rows, columns and shape of a layer's block-diagonal matrix (units, inputs + 1)."""
        blocks = []
        for keep in self.keep:
            units = keep[layer][:, -1]
            block = keep[layer][units, :-1]
            if layer:  # it reads the units left in the layer before, else all features of an image
                units_before = keep[layer - 1][:, -1]
                block = block[:, units_before]
            blocks.append(block)
        whole = torch.block_diag(*blocks) if layer else torch.cat(blocks)
        whole = F.pad(whole, (0, 1), value=True)  # the biases
        rows, columns = whole.nonzero(as_tuple=True)
        return rows, columns, whole.shape

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (K, batch, classes).

        Args:
            x: Float32 images (batch, C, H, W) or (batch, features).
        """
        return _Network.apply(self.values, x.flatten(1), self)

    @torch.no_grad()
    def unstack(self, models: list[nn.Module]) -> None:
        """Write weights and biases back into the models; weights outside the masks become zero."""
        parts = self.values.detach().split(self.sizes)[:-1]
        for (layer, network), part in zip(self.places, parts, strict=True):
            linear = models[network].layers[2 * layer]
            whole = _with_bias(linear)
            whole[self.keep[network][layer]] = part
            linear.weight.copy_(whole[:, :-1] * self.masks[network][layer])
            linear.bias.copy_(whole[:, -1])


def _with_bias(linear: nn.Linear) -> Tensor:
    """Return a new matrix (units, inputs + 1): the weight with the bias as its last column."""
    return torch.cat([linear.weight, linear.bias[:, None]], 1).detach()


def _trained(masks: list[Tensor]) -> list[Tensor]:
    """Return for each layer what is trained, as a mask for the matrix of `_with_bias`.

    Rows of units without influence on the logits are False.
    """
    kept = []
    used = torch.ones(len(masks[-1]), dtype=torch.bool)
    for mask in reversed(masks):
        trained = F.pad(mask, (0, 1), value=True)  # the biases
        trained[~used] = False
        kept.insert(0, trained)
        used = trained[:, :-1].any(0)
    return kept


def _matrices(values: Tensor, indices: list) -> list[Tensor]:
    """Return CSR matrices that share memory with `values`, which is in order of matrix and row."""
    matrices = []
    begin = 0
    with warnings.catch_warnings(action="ignore"):  # CSR is new to PyTorch
        for rows, columns, shape in indices:
            end = begin + len(rows)
            starts = torch.searchsorted(rows, torch.arange(shape[0] + 1), out_int32=True)
            csr = starts, columns.int(), values[begin:end], shape
            matrices.append(torch.sparse_csr_tensor(*csr, check_invariants=False))
            begin = end
    return matrices
