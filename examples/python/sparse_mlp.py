"""Trains a sparse network from Python: 95 % of its weights never exist.

    python3 examples/python/sparse_mlp.py build/release/libespalier_torch.so

Ten classes of noisy patterns of 784 pixels, made here. Ends with status 0 if the network has learnt them.
"""

import sys

import torch

torch.ops.load_library(sys.argv[1])


class SparseLinear(torch.nn.Module):
    """y = x W^T + b, where W has nnz entries at random places."""

    def __init__(self, inputs, outputs, nnz):
        super().__init__()
        positions = torch.randperm(inputs * outputs)[:nnz].sort().values
        rows = torch.div(positions, inputs, rounding_mode="floor")
        crow_indices = torch.searchsorted(rows, torch.arange(outputs + 1))
        self.weight = torch.classes.espalier.SparseWeight([outputs, inputs], crow_indices, positions % inputs)
        # As variance-preserving as a dense layer's: each output has nnz / outputs inputs.
        self.values = torch.nn.Parameter(torch.randn(nnz) * (2 * outputs / nnz) ** 0.5)
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.ops.espalier.sparse_linear(x, self.weight, self.values, self.bias)


def samples(patterns, number):
    labels = torch.randint(len(patterns), (number,))
    return patterns[labels] + 4 * torch.randn(number, patterns.shape[1]), labels


def main():
    torch.manual_seed(1)
    patterns = torch.randn(10, 784)
    net = torch.nn.Sequential(
        SparseLinear(784, 300, 11760), torch.nn.ReLU(), SparseLinear(300, 100, 1500), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=0.002)
    for step in range(400):
        images, labels = samples(patterns, 128)
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    with torch.no_grad():
        images, labels = samples(patterns, 2000)
        accuracy = (net(images).argmax(1) == labels).double().mean().item()
    kept = sum(layer.weight.nnz() for layer in net if isinstance(layer, SparseLinear))
    print(f"accuracy {accuracy:.3f} with {kept} of {784 * 300 + 300 * 100} weights in the sparse layers")
    return 0 if accuracy > 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
