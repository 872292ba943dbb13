#include "espalier/ops/sparse_linear.h"

#include <torch/torch.h>

#include <algorithm>
#include <vector>

#include "espalier/core/error.h"
#include "espalier/kernels/dispatch.h"
#include "ops/dispatch_type.h"
#include "ops/sparse_function.h"

namespace espalier::ops {
namespace {

using kernels::CompressedSide;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kSparseLinear = "sparse linear layer";

int threads_for(std::int64_t entries, std::int64_t lanes) {
  return static_cast<int>(std::clamp<std::int64_t>(entries * lanes / kWorthAThread, 1, at::get_num_threads()));
}

template <class F>
void each_part(int parts, const F& f) {
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) f(p);
  });
}

/// The chunk whose begin is nearest to this share of the work.
std::int64_t chunk_at(const CompressedSide& side, double share) {
  const auto target = static_cast<std::int64_t>(share * static_cast<double>(side.work.back()));
  const auto after = std::lower_bound(side.work.begin(), side.work.end(), target);
  if (after == side.work.begin()) return 0;
  const auto before = after - 1;
  return (*after - target < target - *before ? after : before) - side.work.begin();
}

/// y on all tiles: tiles and chunks laid end to end and cut into equal shares of work.
template <class T>
void forward(const Compressed& m, const TileLayout& in, const T* values, const T* bias, const T* x, T* y, bool relu) {
  const auto& k = kernels::active().sparse_linear<T>();
  const CompressedSide& side = m.forward;
  const std::int64_t tiles = in.tiles(), chunks = side.chunks();
  const int parts = threads_for(side.work.back(), in.numel() / std::max<std::int64_t>(1, in.features));
  // A share's begin as tile and chunk; a function of the share alone, so ends meet begins.
  const auto begin_of = [&](std::int64_t part) {
    const double at = static_cast<double>(tiles) * static_cast<double>(part) / parts;
    const auto tile = std::min<std::int64_t>(tiles, static_cast<std::int64_t>(at));
    return tile * chunks + (tile < tiles ? std::min(chunks, chunk_at(side, at - static_cast<double>(tile))) : 0);
  };
  each_part(parts, [&](std::int64_t p) {
    const std::int64_t begin = begin_of(p), end = p + 1 == parts ? tiles * chunks : begin_of(p + 1);
    for (std::int64_t t = begin / chunks; t * chunks < end; ++t) {
      const kernels::SidePart part{0, side.blocks(), std::max<std::int64_t>(0, begin - t * chunks),
                                   std::min(chunks, end - t * chunks)};
      k.forward(side, part, values + side.segment(0, part.chunk_begin)->entry, bias, x + in.offset(t),
                y + t * kernels::kTileLanes * m.rows, relu, in.lanes(t));
    }
  });
}

/// What a thread has of a product: all blocks of these chunks on these tiles.
struct Share {
  std::int64_t chunk_begin, chunk_end, tile_begin, tile_end;
};

/// The same from values in canonical order. Some chunks of a block at a time have theirs taken, and then go through all
/// tiles.
template <class T>
void forward_taking(const Compressed& m, const TileLayout& in, const T* values, const T* bias, const T* x, T* y,
                    bool relu, const Share& share) {
  if (share.chunk_begin >= share.chunk_end || share.tile_begin >= share.tile_end) return;
  constexpr std::int64_t kTaken = 4096;  // entries at a time; with 8,192 and more a step takes up to 4 % longer
  const auto& k = kernels::active().sparse_linear<T>();
  const CompressedSide& side = m.forward;
  kernels::SidePart part{0, 1, share.chunk_begin, 0};
  std::vector<T, kernels::Unfilled<T>> taken;
  while (part.block_begin < side.blocks()) {
    const std::int64_t begin = side.segment(part.block_begin, part.chunk_begin)->entry;
    part.chunk_end = part.chunk_begin + 1;
    while (part.chunk_end < share.chunk_end &&
           side.segment(part.block_begin, part.chunk_end)[1].entry - begin <= kTaken)
      ++part.chunk_end;
    const std::int64_t end = side.segment(part.block_begin, part.chunk_end - 1)[1].entry;
    kernels::SidePart next{part.block_begin, part.block_end, part.chunk_end, 0};
    if (part.chunk_end == share.chunk_end) next = {part.block_begin + 1, part.block_end + 1, share.chunk_begin, 0};
    const bool is_last = next.block_begin == side.blocks();
    if (static_cast<std::int64_t>(taken.size()) < end - begin) taken.resize(static_cast<std::size_t>(end - begin));
    kernels::take_values(m, values, taken.data(), begin, end,
                         is_last ? -1 : next.block_begin * side.chunks() + next.chunk_begin,
                         next.chunk_begin == share.chunk_begin);
    for (std::int64_t t = share.tile_begin; t < share.tile_end; ++t) {
      k.forward(side, part, taken.data(), bias, x + in.offset(t), y + t * kernels::kTileLanes * m.rows, relu,
                in.lanes(t));
    }
    part = next;
  }
}

template <class T>
void forward_taking(const Compressed& m, const TileLayout& in, const T* values, const T* bias, const T* x, T* y,
                    bool relu) {
  const CompressedSide& side = m.forward;
  const std::int64_t tiles = in.tiles();
  const int parts = threads_for(side.work.back(), in.numel() / std::max<std::int64_t>(1, in.features));
  // A share's begin: the tile of a chunk that is nearest to it, chunks one after the other.
  const auto begin_of = [&](std::int64_t part) {
    const double at = static_cast<double>(side.work.back()) * static_cast<double>(part) / parts;
    const auto after = std::upper_bound(side.work.begin() + 1, side.work.end() - 1, static_cast<std::int64_t>(at));
    const auto before = static_cast<double>(after[-1]);
    const double inside = (at - before) / std::max(1.0, static_cast<double>(*after) - before);
    return (after - 1 - side.work.begin()) * tiles +
           static_cast<std::int64_t>(std::min(1.0, inside) * static_cast<double>(tiles) + 0.5);
  };
  each_part(parts, [&](std::int64_t p) {
    const std::int64_t begin = begin_of(p), end = p + 1 == parts ? side.chunks() * tiles : begin_of(p + 1);
    const std::int64_t first = begin / tiles, last = end / tiles;
    const auto go = [&](const Share& share) { forward_taking(m, in, values, bias, x, y, relu, share); };
    if (first == last) return go({first, first + 1, begin % tiles, end % tiles});
    go({first, first + 1, begin % tiles, tiles});
    go({first + 1, last, 0, tiles});
    go({last, last + 1, 0, end % tiles});
  });
}

/// dx (unless null) and dvalues over all tiles: each thread has chunks of columns of its own.
template <class T>
void backward(const Compressed& m, const TileLayout& in, const T* values, const T* x, const T* dy, T* dx, T* dvalues,
              T* dbias, bool of_relu) {
  const auto& k = kernels::active().sparse_linear<T>();
  const CompressedSide& side = m.backward;
  const TileLayout out{in.samples, m.rows};
  const int parts = threads_for(side.work.back(), 2 * in.numel() / std::max<std::int64_t>(1, in.features));
  each_part(parts, [&](std::int64_t p) {
    const auto share = [&](std::int64_t part) { return static_cast<double>(part) / parts; };
    const std::int64_t begin = chunk_at(side, share(p)),
                       end = p + 1 == parts ? side.chunks() : chunk_at(side, share(p + 1));
    // The full tiles, then the ragged one.
    const std::int64_t full = in.samples / kernels::kTileLanes, tiles = in.tiles();
    const auto some = [&](std::int64_t first, std::int64_t last) {
      if (first == last) return;
      k.backward(side, values, x + in.offset(first), dy + out.offset(first),
                 dx != nullptr ? dx + in.offset(first) : nullptr, dvalues, first > 0, of_relu,
                 static_cast<int>(last - first), in.lanes(first), begin, end);
    };
    some(0, full);
    some(full, tiles);
    if (dbias == nullptr) return;
    // Rows by turns: those of the last block are in the caches still, and each part has as many of them.
    constexpr std::int64_t kRows = 64;
    for (std::int64_t row = p * kRows; row < m.rows; row += parts * kRows) {
      for (std::int64_t t = 0; t < tiles; ++t)
        k.row_sums(dy + out.offset(t), dbias, t > 0, in.lanes(t), row, std::min(m.rows, row + kRows));
    }
  });
}

/// dz = dy where y > 0, and dbias (unless null) = the sums of dz: each thread has rows of its own.
template <class T>
void relu_gradient(const TileLayout& out, const T* y, const T* dy, T* dz, T* dbias) {
  const auto& k = kernels::active().sparse_linear<T>();
  constexpr std::int64_t kEntries = 32768;  // that are worth a thread
  const std::int64_t grain =
      std::max<std::int64_t>(kernels::kLaneStep, kEntries / std::max<std::int64_t>(1, out.samples));
  at::parallel_for(0, out.features, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = 0; t < out.tiles(); ++t) {
      const std::int64_t at = out.offset(t);
      k.relu_gradient(y + at, dy + at, dz + at, dbias, t > 0, out.lanes(t), begin, end);
    }
  });
}

struct SparseLinear : torch::autograd::Function<SparseLinear> {
  /// The weight's structure as a tensor, so that it outlives a change of topology between forward and backward and goes
  /// with the other saved tensors when backward is done, though somebody still holds the loss.
  static at::Tensor held(const std::shared_ptr<const Compressed>& matrix) {
    auto* const address = const_cast<Compressed*>(matrix.get());
    return at::from_blob(
        address, {1}, [keep = matrix](void*) mutable { keep.reset(); }, at::kByte);
  }

  /// Who wants to see x and dy, if anybody.
  struct Held : torch::CustomClassHolder {
    BackwardObserver observer;
  };

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& values,
                            const c10::optional<at::Tensor>& given_bias, const TileLayout& layout,
                            const std::shared_ptr<const Compressed>& matrix,
                            const c10::optional<at::Tensor>& given_forward, const BesideRelu& relu,
                            const BackwardObserver& observer) {
    const at::Tensor bias = given_bias.value_or(at::Tensor()), forward_values = given_forward.value_or(at::Tensor());
    const TileLayout out{layout.samples, matrix->rows};
    const at::Tensor in = x.contiguous();
    at::Tensor y = at::empty({out.numel()}, x.options());
    linear_forward(*matrix, layout, values, forward_values, bias, in, y, relu.behind);
    ctx->save_for_backward({in, values, bias, held(matrix), relu.behind && !relu.masked_behind ? y : at::Tensor()});
    ctx->saved_data["samples"] = layout.samples;
    ctx->saved_data["of_relu"] = relu.before;
    ctx->saved_data["input_gradient"] = x.requires_grad();
    if (observer) {
      auto held_observer = c10::make_intrusive<Held>();
      held_observer->observer = observer;
      ctx->saved_data["observer"] = c10::IValue::make_capsule(std::move(held_observer));
    }
    return y;
  }

  static void relu_gradient(const TileLayout& out, const at::Tensor& y, const at::Tensor& dy, const at::Tensor& dz,
                            at::Tensor& dbias) {
    if (out.samples == 0 && dbias.defined()) dbias.zero_();  // no tile writes the sums
    with_type(y, [&](auto zero) {
      using T = decltype(zero);
      ops::relu_gradient<T>(out, y.data_ptr<T>(), dy.data_ptr<T>(), dz.data_ptr<T>(),
                            dbias.defined() ? dbias.data_ptr<T>() : nullptr);
    });
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &values = saved[1], &bias = saved[2];
    const Compressed& matrix = *static_cast<const Compressed*>(saved[3].data_ptr());
    const TileLayout layout{ctx->saved_data["samples"].toInt(), matrix.columns};
    const at::Tensor& y = saved[4];  // of a ReLU whose gradient is to be formed here
    const bool over_dy = y.defined() && may_overwrite(gradients[0]);
    at::Tensor dy = gradients[0].contiguous();
    const bool want_bias = bias.defined() && bias.requires_grad();
    at::Tensor dx = ctx->saved_data["input_gradient"].toBool() ? at::empty_like(x) : at::Tensor();
    at::Tensor dvalues = at::empty_like(values);
    at::Tensor dbias = want_bias ? at::empty_like(bias) : at::Tensor();
    if (y.defined()) {
      const at::Tensor dz = over_dy ? dy : at::empty_like(dy);
      relu_gradient({layout.samples, matrix.rows}, y, dy, dz, dbias);
      dy = dz;
    }
    at::Tensor unset;
    linear_backward(matrix, layout, values, x, dy, dx, dvalues, y.defined() ? unset : dbias,
                    ctx->saved_data["of_relu"].toBool());
    if (ctx->saved_data.count("observer") != 0) {
      static_cast<const Held&>(*ctx->saved_data["observer"].toCapsule()).observer(x, dy);
    }
    return differentiable_once({dx, dvalues, dbias, {}, {}, {}, {}, {}}, kSparseLinear);
  }
};

}  // namespace

bool takes_values(const Compressed& matrix, const TileLayout& layout) {
  constexpr std::int64_t kEntries = std::int64_t{1} << 18;  // fewer values, a megabyte, stay in L2
  constexpr std::int64_t kInputs = std::int64_t{1} << 15;   // more of a block's, of all tiles, leave it too early
  return matrix.nnz() >= kEntries && matrix.forward.block * layout.samples <= kInputs;
}

void linear_forward(const Compressed& matrix, const TileLayout& layout, const at::Tensor& values,
                    const at::Tensor& forward_values, const at::Tensor& bias, const at::Tensor& x, at::Tensor& y,
                    bool relu) {
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    if (layout.samples == 0) return;
    const T* const b = bias.defined() ? bias.data_ptr<T>() : nullptr;
    if (forward_values.defined())
      forward<T>(matrix, layout, forward_values.data_ptr<T>(), b, x.data_ptr<T>(), y.data_ptr<T>(), relu);
    else
      forward_taking<T>(matrix, layout, values.data_ptr<T>(), b, x.data_ptr<T>(), y.data_ptr<T>(), relu);
  });
}

void linear_backward(const Compressed& matrix, const TileLayout& layout, const at::Tensor& values, const at::Tensor& x,
                     const at::Tensor& dy, at::Tensor& dx, at::Tensor& dvalues, at::Tensor& dbias, bool of_relu) {
  if (layout.samples == 0) {  // no tile writes the sums
    dvalues.zero_();
    if (dbias.defined()) dbias.zero_();
    return;
  }
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    backward<T>(matrix, layout, values.data_ptr<T>(), x.data_ptr<T>(), dy.data_ptr<T>(),
                dx.defined() ? dx.data_ptr<T>() : nullptr, dvalues.data_ptr<T>(),
                dbias.defined() ? dbias.data_ptr<T>() : nullptr, of_relu);
  });
}

void linear_gradient_rows(const TileLayout& layout, std::int64_t outputs, const at::Tensor& x, const at::Tensor& dy,
                          std::int64_t begin, std::int64_t end, at::Tensor& rows) {
  const torch::NoGradGuard no_grad;
  const TileLayout out{layout.samples, outputs};
  ESPALIER_ASSERT(x.numel() == layout.numel() && dy.numel() == out.numel() && begin >= 0 && end <= outputs);
  ESPALIER_ASSERT(rows.numel() == (end - begin) * layout.features && rows.is_contiguous());
  // Blocks of one size, each on one thread: no sum depends on the number of threads. Products of 16 rows take 1.8 times
  // as long as those of 64 (1024 columns, tiles of 64); but a few rows are to be shared out, too.
  constexpr std::int64_t kColumns = 2048;
  const std::int64_t block_rows = std::clamp<std::int64_t>((end - begin) / 16, 16, 128);
  const std::int64_t down = (end - begin + block_rows - 1) / block_rows,
                     across = (layout.features + kColumns - 1) / kColumns;
  at::parallel_for(0, down * across, 1, [&](std::int64_t first, std::int64_t last) {
    const torch::NoGradGuard here_too;  // a thread of its own has a mode of its own
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t r0 = block / across * block_rows, r1 = std::min(end - begin, r0 + block_rows);
      const std::int64_t c0 = block % across * kColumns, c1 = std::min(layout.features, c0 + kColumns);
      at::Tensor sum = rows.view({end - begin, layout.features}).slice(0, r0, r1).slice(1, c0, c1);
      for (std::int64_t t = 0; t < layout.tiles(); ++t) {
        const std::int64_t lanes = layout.lanes(t);
        const auto features = [&](const at::Tensor& tiles, const TileLayout& l, std::int64_t a, std::int64_t b) {
          return tiles.slice(0, l.offset(t) + a * lanes, l.offset(t) + b * lanes).view({b - a, lanes});
        };
        sum.addmm_(features(dy, out, begin + r0, begin + r1), features(x, layout, c0, c1).t());
      }
    }
  });
}

void refresh_forward(const Compressed& matrix, const at::Tensor& values, at::Tensor& forward) {
  ESPALIER_ASSERT(values.numel() == matrix.nnz() && forward.numel() == matrix.nnz() && values.is_contiguous());
  with_type(values, [&](auto zero) {
    using T = decltype(zero);
    const T* from = values.data_ptr<T>();
    T* to = forward.data_ptr<T>();
    at::parallel_for(0, matrix.nnz(), 32768, [&](std::int64_t begin, std::int64_t end) {
      kernels::in_forward_order(matrix, from, to, begin, end);
    });
  });
}

at::Tensor sparse_linear(const at::Tensor& x, const TileLayout& layout, std::shared_ptr<const Compressed> matrix,
                         const at::Tensor& values, const at::Tensor& forward, const at::Tensor& bias,
                         const BesideRelu& relu, BackwardObserver observer) {
  ESPALIER_CHECK(layout.features == matrix->columns && x.numel() == layout.numel(), ErrorKind::usage,
                 "sparse linear layer: the input has {} features, the weight [{}, {}] takes {}", layout.features,
                 matrix->rows, matrix->columns, matrix->columns);
  ESPALIER_CHECK(x.scalar_type() == values.scalar_type(), ErrorKind::usage,
                 "sparse linear layer: the input is {}, the weight {}; convert one of them",
                 c10::toString(x.scalar_type()), c10::toString(values.scalar_type()));
  check_bias(bias, x, matrix->rows, kSparseLinear);
  ESPALIER_ASSERT(values.numel() == matrix->nnz() && values.is_contiguous());
  ESPALIER_ASSERT(!forward.defined() || forward.numel() == matrix->nnz());
  // An undefined tensor cannot be an input of a function of autograd; an empty optional can.
  const auto optional = [](const at::Tensor& t) { return t.defined() ? c10::optional<at::Tensor>(t) : c10::nullopt; };
  return SparseLinear::apply(x, values, optional(bias), layout, matrix, optional(forward), relu, observer);
}

}  // namespace espalier::ops
