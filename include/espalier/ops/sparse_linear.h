/// The linear layer on a compressed weight: y = x W^T + b, and its gradients, without a dense W.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "espalier/kernels/compressed.h"
#include "espalier/ops/tiles.h"

namespace espalier::ops {

using kernels::Compressed;

/// Values in the order of the forward side: forward[j] = values[canonical[j]]. values: [nnz] contiguous, canonical
/// order; forward: as large, of the same type.
void refresh_forward(const Compressed& matrix, const at::Tensor& values, at::Tensor& forward);

/// Whether a product on these tiles that is the only one with its values had better take them in forward order piece by
/// piece, as it goes: a copy of all of them would leave the caches before they are used.
bool takes_values(const Compressed& matrix, const TileLayout& layout);

/// y = W x + b on tiles, or max(0, .) of it where `relu`, into `y`, and the gradients of W x + b into dx, dvalues and
/// dbias; an undefined one of these (or bias) is left out. forward: what `refresh_forward` has made of values; where it
/// is undefined, they are taken from `values`, with the same bits for a result. Where `of_relu`, x is max(0, z) and dx
/// becomes the gradient of z. All tensors contiguous, of one type, sized as `sparse_linear` says. The same bits for any
/// number of threads.
void linear_forward(const Compressed& matrix, const TileLayout& layout, const at::Tensor& values,
                    const at::Tensor& forward, const at::Tensor& bias, const at::Tensor& x, at::Tensor& y,
                    bool relu = false);
void linear_backward(const Compressed& matrix, const TileLayout& layout, const at::Tensor& values, const at::Tensor& x,
                     const at::Tensor& dy, at::Tensor& dx, at::Tensor& dvalues, at::Tensor& dbias,
                     bool of_relu = false);

/// Adds rows [begin, end) of dL/dW, at every column, to `rows` [end - begin, layout.features], contiguous: sum over the
/// samples of dy[r] x[c]. x: tiles as `layout` says; dy: tiles of `outputs` features of the same samples.
void linear_gradient_rows(const TileLayout& layout, std::int64_t outputs, const at::Tensor& x, const at::Tensor& dy,
                          std::int64_t begin, std::int64_t end, at::Tensor& rows);

/// Called in a backward pass with the layer's input x and the gradient of W x + b, both tiles.
using BackwardObserver = std::function<void(const at::Tensor& x, const at::Tensor& dy)>;

/// ReLUs beside a linear layer. Where layers stand in a line, the gradient of the ReLU between two of them costs
/// nothing in the one behind it, which has the input at hand when it stores dx: that has `before`, and the one that
/// computes the ReLU, and whose result nobody else takes, `masked_behind`.
struct BesideRelu {
  bool behind = false;         ///< y = max(0, W x + b)
  bool masked_behind = false;  ///< ... and what comes back for y is already the gradient of W x + b
  bool before = false;         ///< x = max(0, z), and what goes back for x is the gradient of z
};

/// y = W x + b on tiles, or max(0, .) of it. x: tiles of `columns` features; values: [nnz] in canonical order, what
/// gradients are formed for; forward: the same values as `refresh_forward` leaves them, or undefined (linear_forward);
/// bias: [rows] or undefined. Result: tiles of `rows` features. Differentiable once in x, values and bias. float32 or
/// float64 on the CPU; all of one type.
at::Tensor sparse_linear(const at::Tensor& x, const TileLayout& layout, std::shared_ptr<const Compressed> matrix,
                         const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                         const BesideRelu& relu = {}, BackwardObserver observer = {});

}  // namespace espalier::ops
