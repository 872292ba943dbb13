#include "espalier/ops/cross_entropy.h"

#include <torch/torch.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "ops/dispatch_type.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Logits that a thread takes at least.
constexpr std::int64_t kLogits = 16384;

/// Logits as they lie, contiguous, and what belongs to them.
struct Samples {
  at::Tensor logits;  // [samples, features], or tiles
  bool tiled;
  TileLayout layout;
  at::Tensor labels;  // [samples]
  double smoothing;
};

/// The mean loss; the gradient too where it is defined.
at::Tensor mean_loss(const Samples& s, at::Tensor& gradient, std::int64_t* correct) {
  const std::int64_t samples = s.layout.samples, classes = s.layout.features;
  std::vector<double> loss(static_cast<std::size_t>(samples));
  std::vector<std::uint8_t> is_correct(static_cast<std::size_t>(samples));
  const double scale = 1 / static_cast<double>(samples);
  with_type(s.logits, [&](auto zero) {
    using T = decltype(zero);
    const auto& k = kernels::active().cross_entropy<T>();
    const T* const x = s.logits.data_ptr<T>();
    T* const g = gradient.defined() ? gradient.data_ptr<T>() : nullptr;
    const auto* const labels = s.labels.data_ptr<std::int64_t>();
    const auto grain = [&](std::int64_t rows) { return std::max<std::int64_t>(1, kLogits / (rows * classes)); };
    if (!s.tiled) {
      at::parallel_for(0, samples, grain(1), [&](std::int64_t begin, std::int64_t end) {
        k.cross_entropy(x, labels, classes, s.smoothing, scale, g, loss.data(), is_correct.data(), begin, end);
      });
      return;
    }
    constexpr std::int64_t kStep = kernels::kLaneStep, kTile = kernels::kTileLanes;
    const std::int64_t steps = (samples + kStep - 1) / kStep;
    at::parallel_for(0, steps, grain(kStep), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t first = begin * kStep, last = 0; first < end * kStep; first = last) {
        const std::int64_t tile = first / kTile, sample = tile * kTile, at = s.layout.offset(tile);
        last = std::min(end * kStep, sample + kTile);
        k.cross_entropy_of_tile(x + at, s.layout.lanes(tile), labels + sample, s.layout.valid(tile), classes,
                                s.smoothing, scale, g != nullptr ? g + at : nullptr, loss.data() + sample,
                                is_correct.data() + sample, static_cast<int>(first - sample),
                                static_cast<int>(last - sample));
      }
    });
  });
  if (correct != nullptr) *correct = std::accumulate(is_correct.begin(), is_correct.end(), std::int64_t{0});
  const double sum = std::accumulate(loss.begin(), loss.end(), 0.0);
  return torch::scalar_tensor(sum / static_cast<double>(samples), s.logits.options().requires_grad(false));
}

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  /// s.logits is `logits`, the argument that autograd sees.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& logits, const Samples& s, std::int64_t* correct) {
    at::Tensor gradient = at::empty(logits.sizes(), logits.options().requires_grad(false));
    at::Tensor loss = mean_loss(s, gradient, correct);
    ctx->save_for_backward({gradient});
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const at::Tensor gradient = ctx->get_saved_variables()[0];
    const double factor = gradients[0].item<double>();
    return differentiable_once({factor == 1 ? gradient : gradient * factor, {}, {}}, "cross-entropy",
                               "torch::cross_entropy_loss");
  }
};

/// Of contiguous logits; everything else is checked here.
at::Tensor checked(Samples s, std::int64_t* correct) {
  const std::int64_t samples = s.layout.samples, classes = s.layout.features;
  ESPALIER_CHECK(s.labels.dim() == 1 && s.labels.size(0) == samples && s.labels.scalar_type() == at::kLong,
                 ErrorKind::usage, "cross-entropy: labels are {} [{}]; expected {} [{}]",
                 c10::toString(s.labels.scalar_type()), fmt::join(s.labels.sizes(), ", "), c10::toString(at::kLong),
                 samples);
  ESPALIER_CHECK(s.smoothing >= 0 && s.smoothing <= 1, ErrorKind::usage,
                 "cross-entropy: smoothing = {}; expected 0 to 1", s.smoothing);
  s.labels = s.labels.contiguous();
  const auto* const first = s.labels.data_ptr<std::int64_t>();
  const auto [least, most] = std::minmax_element(first, first + samples);
  ESPALIER_CHECK(*least >= 0 && *most < classes, ErrorKind::usage,
                 "cross-entropy: a label is {}; expected 0 to {}, one less than there are logits",
                 *least < 0 ? *least : *most, classes - 1);
  if (at::GradMode::is_enabled() && s.logits.requires_grad()) return CrossEntropy::apply(s.logits, s, correct);
  at::Tensor none;
  return mean_loss(s, none, correct);
}

}  // namespace

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& labels, double smoothing, std::int64_t* correct) {
  ESPALIER_CHECK(logits.dim() == 2 && logits.size(0) > 0 && logits.size(1) > 0, ErrorKind::usage,
                 "cross-entropy: logits of [{}]; expected [samples, classes], one of each at least",
                 fmt::join(logits.sizes(), ", "));
  return checked({logits.contiguous(), false, {logits.size(0), logits.size(1)}, labels, smoothing}, correct);
}

at::Tensor cross_entropy(const at::Tensor& tiles, const TileLayout& layout, const at::Tensor& labels, double smoothing,
                         std::int64_t* correct) {
  ESPALIER_CHECK(tiles.dim() == 1 && tiles.numel() == layout.numel() && tiles.numel() > 0, ErrorKind::usage,
                 "cross-entropy: tiles of {} samples with {} classes have {} entries, one at least; found {}",
                 layout.samples, layout.features, layout.numel(), tiles.numel());
  return checked({tiles.contiguous(), true, layout, labels, smoothing}, correct);
}

}  // namespace espalier::ops
