"""torch.ops.espalier against dense torch: sparse_ops_test.py LIBRARY [arguments of unittest]"""

import copy
import io
import os
import pickle
import sys
import unittest

import torch
from torch.autograd import gradcheck
from torch.nn import functional

LIBRARY = sys.argv.pop(1)


def mapped_libraries():
    """Path of every shared library of this process."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if len(line.split(maxsplit=5)) == 6}
    return {path for path in paths if ".so" in os.path.basename(path)}


LIBRARIES_BEFORE = mapped_libraries()
torch.ops.load_library(LIBRARY)
LIBRARIES_AFTER = mapped_libraries()

SparseWeight = torch.classes.espalier.SparseWeight
sparse_linear = torch.ops.espalier.sparse_linear
sparse_conv2d = torch.ops.espalier.sparse_conv2d


def random_csr(shape, density, dtype):
    """Exactly density * numel random entries of a matrix [shape[0], …], as torch's own CSR tensor."""
    numel = torch.Size(shape).numel()
    kept = torch.randperm(numel)[: round(density * numel)]
    dense = torch.zeros(numel, dtype=dtype)
    dense[kept] = torch.randn(len(kept), dtype=dtype) + 3  # never 0, or to_sparse_csr would drop it
    return dense.view(shape[0], -1).to_sparse_csr()


def weight_of(csr, shape, **conv):
    return SparseWeight(list(shape), csr.crow_indices(), csr.col_indices(), **conv)


def dense_of(csr, shape, values):
    """A dense weight of these values, differentiable in them; by torch's own means."""
    rows = torch.repeat_interleave(torch.arange(shape[0]), csr.crow_indices().diff())
    matrix = torch.zeros(shape[0], csr.shape[1], dtype=values.dtype)
    return matrix.index_put((rows, csr.col_indices()), values).view(shape)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


# [samples, in, height, width], [out, in / groups, kh, kw], density, stride, padding, dilation, groups
CONVS = [
    ([3, 4, 6, 5], [6, 4, 3, 3], 0.4, [1], [1], [1], 1),
    ([2, 4, 7, 6], [4, 4, 3, 2], 0.5, [2, 1], [1, 0], [1], 1),
    ([2, 4, 8, 7], [6, 2, 3, 3], 0.5, [2], [2], [2, 1], 2),
    ([17, 3, 5, 5], [3, 1, 3, 3], 0.7, [1], [1], [1], 3),
    ([1, 3, 4, 4], [5, 3, 1, 1], 1.0, [3, 2], [0], [1], 1),
]


def conv_arguments(stride, padding, dilation, groups):
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def expand(numbers):
    return numbers * 2 if len(numbers) == 1 else numbers


def dense_conv2d(x, dense, bias, stride, padding, dilation, groups):
    return functional.conv2d(x, dense, bias, expand(stride), expand(padding), expand(dilation), groups)


class Test(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(1)

    def assert_results_close(self, sparse, dense, x, csr, shape, bias, dtype, terms):
        """y, dx, dvalues and dbias of both, within gamma_n |a| |b| of sums of at most `terms` products."""
        unit = 2.0**-24 if dtype == torch.float32 else 2.0**-52  # the reference rounds in double itself
        gamma = terms * unit / (1 - terms * unit)

        def results(product, weight, x, values, bias, dy=None):
            x, values, bias = leaf(x), leaf(values), leaf(bias)
            y = product(x, weight(values), values, bias)
            dy = torch.randn_like(y) if dy is None else dy
            y.backward(dy)
            return dy, [y.detach(), x.grad, values.grad, bias.grad]

        x, bias, values = x.to(dtype), bias.to(dtype), csr.values().to(dtype)
        weight = weight_of(csr, shape, **self.conv)
        dy, found = results(lambda x, w, v, b: sparse(x, w, v, b), lambda v: weight, x, values, bias)
        wide = [tensor.double() for tensor in (x, values, bias, dy)]
        as_dense = (lambda x, w, v, b: dense(x, w, b), lambda v: dense_of(csr, shape, v))
        _, expected = results(*as_dense, *wide)
        _, sizes = results(*as_dense, *[tensor.abs() for tensor in wide])
        for a, b, size in zip(found, expected, sizes):
            self.assertEqual(a.dtype, dtype)
            self.assertEqual(a.shape, b.shape)
            self.assertTrue(((a.double() - b).abs() <= gamma * size).all(), f"{shape}: {(a - b).abs()} above {gamma * size}")

    def test_linear_worked_by_hand(self):
        # W = [[0, 2, 0], [5, 0, 7]]
        weight = SparseWeight([2, 3], torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]))
        values = torch.tensor([2.0, 5.0, 7.0], requires_grad=True)
        x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
        bias = torch.tensor([10.0, 20.0], requires_grad=True)
        y = sparse_linear(x, weight, values, bias)
        self.assertEqual(y.tolist(), [[14, 46], [20, 82]])
        y.backward(torch.tensor([[1.0, 10.0], [2.0, 20.0]]))
        self.assertEqual(x.grad.tolist(), [[50, 2, 70], [100, 4, 140]])
        self.assertEqual(values.grad.tolist(), [1 * 2 + 2 * 5, 10 * 1 + 20 * 4, 10 * 3 + 20 * 6])
        self.assertEqual(bias.grad.tolist(), [3, 30])
        self.assertEqual(weight.to_dense(values).tolist(), [[0, 2, 0], [5, 0, 7]])

    def test_conv2d_worked_by_hand(self):
        # A kernel [[1, 0], [0, 10]] on a 3x3 image.
        weight = SparseWeight([1, 1, 2, 2], torch.tensor([0, 2]), torch.tensor([0, 3]))
        values = torch.tensor([1.0, 10.0], requires_grad=True)
        x = torch.arange(1.0, 10.0).view(1, 1, 3, 3).requires_grad_()
        y = sparse_conv2d(x, weight, values)
        self.assertEqual(y.tolist(), [[[[51, 62], [84, 95]]]])
        y.backward(torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]]))
        self.assertEqual(values.grad.tolist(), [1 * 1 + 2 * 5, 1 * 5 + 2 * 9])
        self.assertEqual(x.grad.tolist(), [[[[1, 0, 0], [0, 12, 0], [0, 0, 20]]]])

    def test_gradients_of_linear_by_differences(self):
        shape = [5, 7]
        csr = random_csr(shape, 0.4, torch.double)
        weight = weight_of(csr, shape)
        x, bias = torch.randn(3, 7, dtype=torch.double), torch.randn(5, dtype=torch.double)
        for given in (leaf(bias), None):
            inputs = (leaf(x), leaf(csr.values()))
            self.assertTrue(gradcheck(lambda x, v: sparse_linear(x, weight, v, given), inputs))
        self.assertTrue(gradcheck(lambda b: sparse_linear(x, weight, csr.values(), b), leaf(bias)))
        self.assertTrue(gradcheck(weight.to_dense, leaf(csr.values())))

    def test_gradients_of_conv2d_by_differences(self):
        for size, shape, density, *conv in CONVS:
            with self.subTest(shape=shape, conv=conv):
                csr = random_csr(shape, density, torch.double)
                weight = weight_of(csr, shape, **conv_arguments(*conv))
                x, bias = torch.randn(size, dtype=torch.double), torch.randn(shape[0], dtype=torch.double)
                inputs = (leaf(x), leaf(csr.values()), leaf(bias))
                self.assertTrue(gradcheck(lambda x, v, b: sparse_conv2d(x, weight, v, b), inputs))

    def test_linear_is_the_dense_product(self):
        self.conv = {}
        cases = [(70, [130, 150], 0.1), (33, [300, 400], 0.3), (1, [9, 1], 0.5), (64, [257, 70], 0.01), (5, [4, 6], 0)]
        for dtype in (torch.float32, torch.double):
            for samples, shape, density in cases:
                csr = random_csr(shape, density, torch.float32)
                x, bias = torch.randn(samples, shape[1]), torch.randn(shape[0])
                terms = max(samples, *shape) + 1
                self.assert_results_close(sparse_linear, functional.linear, x, csr, shape, bias, dtype, terms)

    def test_conv2d_is_the_dense_convolution(self):
        more = [([20, 16, 9, 8], [24, 16, 3, 3], 0.1, [1], [1], [1], 1), ([33, 20, 5, 5], [18, 20, 3, 3], 0.02, [2], [1], [1], 1)]
        for dtype in (torch.float32, torch.double):
            for size, shape, density, *conv in CONVS + more:
                with self.subTest(shape=shape, conv=conv):
                    self.conv = conv_arguments(*conv)
                    csr = random_csr(shape, density, torch.float32)
                    x, bias = torch.randn(size), torch.randn(shape[0])
                    dense = lambda x, w, b: dense_conv2d(x, w, b, *conv)
                    terms = size[0] * size[2] * size[3] + size[1] * 9 + shape[0] * 9
                    self.assert_results_close(sparse_conv2d, dense, x, csr, shape, bias, dtype, terms)

    def test_tensors_of_other_strides(self):
        shape = [6, 8]
        csr = random_csr(shape, 0.5, torch.double)
        weight, values = weight_of(csr, shape), csr.values()
        x, bias = torch.randn(8, 5, dtype=torch.double).t(), torch.randn(12, dtype=torch.double)[::2]
        apart = torch.stack([values, values], 1)[:, 0]
        self.assertFalse(apart.is_contiguous() or x.is_contiguous() or bias.is_contiguous())
        expected = sparse_linear(x.contiguous(), weight, values, bias.contiguous())
        self.assertTrue(torch.equal(sparse_linear(x, weight, apart, bias), expected))
        images = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
        csr = random_csr([2, 4, 3, 3], 0.5, torch.float32)
        weight = weight_of(csr, [2, 4, 3, 3])
        expected = sparse_conv2d(images.contiguous(), weight, csr.values())
        self.assertTrue(torch.equal(sparse_conv2d(images, weight, csr.values()), expected))

    def test_empty_batch(self):
        csr = random_csr([4, 6], 0.5, torch.float32)
        values = leaf(csr.values())
        y = sparse_linear(torch.zeros(0, 6), weight_of(csr, [4, 6]), values, None)
        self.assertEqual(y.shape, (0, 4))
        y.sum().backward()
        self.assertEqual(values.grad.tolist(), [0] * 12)

    def test_one_weight_for_images_of_many_sizes(self):
        csr = random_csr([4, 3, 3, 3], 0.5, torch.double)
        weight, dense = weight_of(csr, [4, 3, 3, 3], padding=[1]), dense_of(csr, [4, 3, 3, 3], csr.values())
        for size in ([2, 3, 8, 8], [17, 3, 8, 8], [2, 3, 5, 9], [2, 3, 8, 8]):
            x = torch.randn(size, dtype=torch.double)
            difference = sparse_conv2d(x, weight, csr.values()) - functional.conv2d(x, dense, padding=1)
            self.assertLess(difference.abs().max().item(), 1e-13)  # 27 products of numbers up to 20, 2^-53 each

    def test_same_bits_for_any_number_of_threads(self):
        linear = random_csr([300, 400], 0.2, torch.float32)
        conv = random_csr([32, 16, 3, 3], 0.2, torch.float32)
        weights = [(sparse_linear, weight_of(linear, [300, 400]), linear.values(), torch.randn(130, 400))]
        weights.append((sparse_conv2d, weight_of(conv, [32, 16, 3, 3]), conv.values(), torch.randn(40, 16, 12, 12)))
        before = torch.get_num_threads()
        for product, weight, values, x in weights:
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                self.assertEqual(torch.get_num_threads(), threads)
                x, values = leaf(x), leaf(values)
                y = product(x, weight, values, None)
                y.backward(torch.sin(y.detach()))
                found.append([y.detach(), x.grad, values.grad])
            torch.set_num_threads(before)
            for other in found[1:]:
                for a, b in zip(found[0], other):
                    self.assertTrue(torch.equal(a, b))

    def test_training_is_that_of_a_masked_dense_network(self):
        shapes = [[20, 12], [3, 20]]
        csrs = [random_csr(shape, 0.3, torch.double) for shape in shapes]
        weights = [weight_of(csr, shape) for csr, shape in zip(csrs, shapes)]
        sparse = [leaf(0.4 * (csr.values() - 3)) for csr in csrs]
        dense = [leaf(dense_of(csr, shape, values)) for csr, shape, values in zip(csrs, shapes, sparse)]
        masks = [(w != 0).double().detach() for w in dense]
        x = torch.randn(50, 12, dtype=torch.double)
        labels = x[:, :3].argmax(1)
        for optimiser in (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)):
            steps = [optimiser(sparse), optimiser(dense)]
            losses = [[], []]
            for _ in range(30):
                hidden = torch.relu(sparse_linear(x, weights[0], sparse[0], None))
                logits = [sparse_linear(hidden, weights[1], sparse[1], None)]
                logits.append(torch.relu(x @ (dense[0] * masks[0]).t()) @ (dense[1] * masks[1]).t())
                for i in range(2):
                    steps[i].zero_grad()
                    loss = functional.cross_entropy(logits[i], labels)
                    loss.backward()
                    steps[i].step()
                    losses[i].append(loss.item())
            self.assertLess(losses[0][-1], 0.8 * losses[0][0])
            for w, values, reference in zip(weights, sparse, dense):
                # Both round in double; 30 steps amplify that a little.
                self.assertLess((w.to_dense(values) - reference).abs().max().item(), 1e-11)

    def test_weight_tells_what_it_was_made_of(self):
        csr = random_csr([300, 400], 0.1, torch.float32)
        weight = weight_of(csr, [300, 400])
        self.assertEqual(weight.shape(), [300, 400])
        self.assertEqual(weight.nnz(), 12000)
        self.assertTrue(torch.equal(weight.crow_indices(), csr.crow_indices()))
        self.assertTrue(torch.equal(weight.col_indices(), csr.col_indices()))
        self.assertTrue(torch.equal(weight.to_dense(csr.values()), csr.to_dense()))

    def test_copies_pickles_and_scripts(self):
        conv = conv_arguments([2, 1], [1], [1, 2], 2)
        shape = [4, 2, 3, 2]
        csr = random_csr(shape, 0.5, torch.float32)
        weight = weight_of(csr, shape, **conv)
        x = torch.randn(3, 4, 6, 6)
        expected = sparse_conv2d(x, weight, csr.values())
        for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
            self.assertTrue(torch.equal(sparse_conv2d(x, other, csr.values()), expected))

        class Layer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = weight
                self.values = torch.nn.Parameter(csr.values())

            def forward(self, x):
                return torch.ops.espalier.sparse_conv2d(x, self.weight, self.values)

        file = io.BytesIO()
        torch.jit.save(torch.jit.script(Layer()), file)
        file.seek(0)
        self.assertTrue(torch.equal(torch.jit.load(file)(x), expected))

    def test_refuses_second_derivatives(self):
        csr = random_csr([4, 6], 0.5, torch.double)
        x = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
        y = sparse_linear(x, weight_of(csr, [4, 6]), leaf(csr.values()), None)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "sparse linear layer: differentiable once"):
            dx.sum().backward()

    def test_one_libtorch(self):
        self.assertEqual(LIBRARIES_AFTER - LIBRARIES_BEFORE, {os.path.realpath(LIBRARY)})

    def test_wrong_input(self):
        crow, col = torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2])
        weight, values = SparseWeight([2, 3], crow, col), torch.ones(3)
        conv = SparseWeight([2, 1, 3, 1], crow, col)
        x, images = torch.ones(4, 3), torch.ones(4, 1, 5, 5)
        cases = [
            ("the input has 5 features, the weight [2, 3] takes 3", lambda: sparse_linear(torch.ones(4, 5), weight, values)),
            ("a matrix [samples, features] on the CPU; found [4]", lambda: sparse_linear(torch.ones(4), weight, values)),
            ("has 3 entries, so values is [3] on the CPU; found [2] on cpu", lambda: sparse_linear(x, weight, values[:2])),
            ("has 3 entries, so values is [3] on the CPU; found [1, 3] on cpu", lambda: weight.to_dense(values[None])),
            ("the input is Double, the weight Float", lambda: sparse_linear(x.double(), weight, values)),
            ("float32 and float64; found Half", lambda: sparse_linear(x.half(), weight, values.half())),
            ("the bias is Float [3] on cpu; expected Float [2]", lambda: sparse_linear(x, weight, values, torch.ones(3))),
            ("the bias is Double [2] on cpu; expected Float [2]", lambda: sparse_linear(x, weight, values, torch.ones(2).double())),
            ("that of a convolution, [2, 1, 3, 1], is for sparse_conv2d", lambda: sparse_linear(x, conv, values)),
            ("[2, 3] is for sparse_linear", lambda: sparse_conv2d(images, weight, values)),
            ("the images have 2 channels, the weight takes 1", lambda: sparse_conv2d(torch.ones(4, 2, 5, 5), conv, values)),
            ("smaller than the kernel, 3x1", lambda: sparse_conv2d(torch.ones(4, 1, 2, 5), conv, values)),
            ("the bias is Float [1] on cpu; expected Float [2]", lambda: sparse_conv2d(images, conv, values, torch.ones(1))),
            ("found [2, 3, 4]", lambda: SparseWeight([2, 3, 4], crow, col)),
            ("sizes are from 1 to 2147483647; found [2, 0]", lambda: SparseWeight([2, 0], crow, col)),
            ("crow_indices has 3 entries; a matrix [3, 3] needs 4", lambda: SparseWeight([3, 3], crow, col)),
            ("found 2 at number 2, in row 1", lambda: SparseWeight([2, 2], crow, col)),
            ("found 0 at number 2, in row 1", lambda: SparseWeight([2, 3], crow, torch.tensor([1, 2, 0]))),
            ("found 4 before 3 at row 1", lambda: SparseWeight([2, 3], torch.tensor([0, 4, 3]), col)),
            ("begins with 0 and ends with 3; expected 0 and the number of col_indices, 2", lambda: SparseWeight([2, 3], crow, col[:2])),
            ("col_indices must be a one-dimensional int64 tensor on the CPU; found Int [3]", lambda: SparseWeight([2, 3], crow, col.int())),
            ("are of a convolution; found the shape [2, 3]", lambda: SparseWeight([2, 3], crow, col, stride=[2])),
            ("stride is one number or two", lambda: SparseWeight([2, 1, 3, 1], crow, col, stride=[1, 1, 1])),
            ("must be positive", lambda: SparseWeight([2, 1, 3, 1], crow, col, dilation=[0])),
            ("groups = 3 must divide", lambda: SparseWeight([2, 1, 3, 1], crow, col, groups=3)),
        ]
        for text, call in cases:
            with self.subTest(text):
                with self.assertRaises(RuntimeError) as caught:
                    call()
                self.assertIn(text, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
