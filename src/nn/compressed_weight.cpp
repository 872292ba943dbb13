#include "espalier/nn/compressed_weight.h"

#include <torch/torch.h>

#include <algorithm>
#include <numeric>

#include "espalier/core/error.h"
#include "espalier/ops/power.h"
#include "espalier/ops/sparse_linear.h"
#include "nn/positions.h"
#include "nn/running_top.h"

namespace espalier {
namespace {

/// Entries that a thread takes at least.
constexpr std::int64_t kGrain = 32768;

/// f(T{}) with T the C++ type of the values.
template <class F>
void with_type(at::ScalarType type, const F& f) {
  if (type == at::kFloat)
    f(float{});
  else
    f(double{});
}

/// out[to[i]] = values[i]: from row-major to canonical order.
at::Tensor scattered(const at::Tensor& values, const std::vector<std::uint32_t>& to) {
  const at::Tensor from = values.contiguous();
  at::Tensor out = torch::empty_like(from, torch::TensorOptions().requires_grad(false));
  with_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* source = from.data_ptr<T>();
    T* target = out.data_ptr<T>();
    at::parallel_for(0, from.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) target[to[static_cast<std::size_t>(i)]] = source[i];
    });
  });
  return out;
}

std::vector<std::int64_t> all_positions(std::int64_t n) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
  std::iota(positions.begin(), positions.end(), std::int64_t{0});
  return positions;
}

const at::Tensor* find(const NamedTensors& tensors, const std::string& key) {
  for (const auto& [name, tensor] : tensors)
    if (name == key) return &tensor;
  return nullptr;
}

}  // namespace

CompressedWeight::CompressedWeight(std::string name, std::vector<std::int64_t> shape, at::ScalarType type)
    : SparseWeight(std::move(name), std::move(shape), 0) {
  ESPALIER_CHECK(this->shape().size() >= 2 && numel() > 0, ErrorKind::usage,
                 "{}: compressed storage takes weights [out, in, …] of positive sizes; found [{}]", this->name(),
                 fmt::join(this->shape(), ", "));
  ESPALIER_CHECK(type == at::kFloat || type == at::kDouble, ErrorKind::usage,
                 "{}: compressed storage takes float32 or float64 weights; found {}", this->name(),
                 c10::toString(type));
  rows_ = this->shape()[0];
  columns_ = numel() / rows_;
  values_ = torch::empty({0}, type).set_requires_grad(true);
  phi_ = values_;
}

void CompressedWeight::set_draw(Draw draw) {
  ESPALIER_CHECK(is_virgin(), ErrorKind::usage, "{}: has entries already; values at step 0 come too late", name());
  draw_ = std::move(draw);
}

void CompressedWeight::adopt(std::string name, std::int64_t layer, const Reparametrisation& psi) {
  const torch::NoGradGuard no_grad;
  rename(std::move(name), layer);
  reparametrisation_ = psi;
  power_ = at::Tensor();
  if (!reparametrised()) {
    phi_ = values_;
    return;
  }
  phi_ = psi.inverse(values_.detach()).contiguous().set_requires_grad(psi.update() == Update::gradient);
  if (!is_virgin()) push();
}

at::Tensor CompressedWeight::draw(const std::vector<std::int64_t>& positions) const {
  if (draw_) return draw_(positions);
  return torch::zeros({static_cast<std::int64_t>(positions.size())}, values_.scalar_type());
}

std::vector<std::uint32_t> CompressedWeight::store(const std::vector<std::int64_t>& positions, const at::Tensor& phi) {
  const auto nnz = static_cast<std::int64_t>(positions.size());
  constexpr std::int64_t kMost = (std::int64_t{1} << 32) - 4096;  // places are 32 bits, and kernels look a little ahead
  ESPALIER_CHECK(nnz <= kMost, ErrorKind::usage, "{}: {} entries; compressed storage holds at most {} a layer", name(),
                 nnz, kMost);
  auto matrix = std::make_shared<kernels::Compressed>();
  std::vector<std::uint32_t> place;
  *matrix = kernels::compress(rows_, columns_, positions.data(), nnz, place, at::get_num_threads());
  matrix_ = std::move(matrix);
  phi_.set_data(scattered(phi, place));
  if (reparametrised()) values_.set_data(torch::empty_like(phi_, torch::TensorOptions().requires_grad(false)));
  forward_values_ = at::Tensor();
  power_ = at::Tensor();
  every_ = BitMask(nnz, true);
  return place;
}

void CompressedWeight::materialise() {
  const torch::NoGradGuard no_grad;
  if (!is_virgin()) return;
  const auto positions = all_positions(numel());
  store(positions, reparametrisation_.inverse(draw(positions)));
  backward_ = every_;
  push();
}

void CompressedWeight::from_dense(const at::Tensor& dense) {
  const torch::NoGradGuard no_grad;
  ESPALIER_CHECK(dense.sizes() == at::IntArrayRef(shape()), ErrorKind::usage,
                 "{}: a dense weight of [{}] for a layer of [{}]", name(), fmt::join(dense.sizes(), ", "),
                 fmt::join(shape(), ", "));
  const at::Tensor flat = dense.detach().to(values_.scalar_type()).contiguous().view({-1});
  const at::Tensor kept = flat.nonzero().view({-1});
  set_entries(checked(kept, numel(), name(), "keep"), reparametrisation_.inverse(flat.index_select(0, kept)));
}

at::Tensor CompressedWeight::to_dense() const {
  const torch::NoGradGuard no_grad;
  at::Tensor flat = torch::zeros({numel()}, values_.scalar_type());
  flat.index_copy_(0, active(), weights());
  return flat.view(shape());
}

const at::Tensor& CompressedWeight::stored_values() {
  materialise();
  return values_;
}

std::shared_ptr<const kernels::Compressed> CompressedWeight::matrix() {
  materialise();
  return matrix_;
}

const at::Tensor& CompressedWeight::forward_values() {
  materialise();
  // An optimiser or a user may have written to the values since.
  if (forward_version_ != static_cast<std::int64_t>(values_._version())) refresh();
  return forward_values_;
}

void CompressedWeight::refresh() {
  const torch::NoGradGuard no_grad;
  if (!forward_values_.defined()) {
    forward_values_ = torch::empty_like(values_, torch::TensorOptions().requires_grad(false));
  }
  ops::refresh_forward(*matrix_, values_, forward_values_);
  forward_version_ = static_cast<std::int64_t>(values_._version());
}

void CompressedWeight::push() {
  const torch::NoGradGuard no_grad;
  if (reparametrised()) {
    if (reparametrisation_.update() == Update::gradient && ops::power_is_costly(reparametrisation_.alpha()) &&
        !power_.defined()) {
      power_ = torch::empty_like(values_, torch::TensorOptions().requires_grad(false));
    }
    ops::power_push(phi_, every_, reparametrisation_.alpha(), values_, power_);
  }
  refresh();
}

std::int64_t CompressedWeight::nnz() const { return is_virgin() ? numel() : matrix_->nnz(); }

at::Tensor CompressedWeight::active() const {
  if (is_virgin()) return torch::arange(numel(), torch::kInt64);
  std::vector<std::int64_t> positions;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, positions, place, at::get_num_threads());
  return to_tensor(positions);
}

at::Tensor CompressedWeight::row_major(const at::Tensor& canonical) const {
  const torch::NoGradGuard no_grad;
  std::vector<std::int64_t> positions;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, positions, place, at::get_num_threads());
  at::Tensor out = torch::empty_like(canonical, torch::TensorOptions().requires_grad(false));
  with_type(canonical.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = canonical.data_ptr<T>();
    T* to = out.data_ptr<T>();
    at::parallel_for(0, out.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) to[i] = from[place[static_cast<std::size_t>(i)]];
    });
  });
  return out;
}

at::Tensor CompressedWeight::weights() const {
  if (!is_virgin()) return row_major(values_);
  const at::Tensor phi = values();
  if (!reparametrised()) return phi;
  at::Tensor w = torch::empty_like(phi), no_power;  // what push will leave
  ops::power_push(phi, BitMask(numel(), true), reparametrisation_.alpha(), w, no_power);
  return w;
}

at::Tensor CompressedWeight::values() const {
  if (is_virgin()) return reparametrisation_.inverse(draw(all_positions(numel())));
  return row_major(phi_);
}

void CompressedWeight::keep(const at::Tensor& positions) {
  const torch::NoGradGuard no_grad;
  auto kept = checked(positions, numel(), name(), "keep");
  if (is_virgin()) {
    store(kept, reparametrisation_.inverse(draw(kept)));
    backward_ = every_;
    // What was not kept was never there, so it is not listed: a list would be as long as the dense weight.
    change_ = TopologyChange{to_tensor({}), to_tensor({}), std::nullopt, {}};
    push();
    return;
  }
  std::vector<std::int64_t> old, drop;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, old, place, at::get_num_threads());
  std::set_difference(old.begin(), old.end(), kept.begin(), kept.end(), std::back_inserter(drop));
  ESPALIER_CHECK(old.size() - drop.size() == kept.size(), ErrorKind::usage, "{}: a position to keep is not active",
                 name());
  rewire({to_tensor(drop), {}, {}, {}});
}

void CompressedWeight::rewire(const Rewiring& change) {
  const torch::NoGradGuard no_grad;
  materialise();
  const auto drop = checked(change.drop, numel(), name(), "drop");
  const auto grow = checked(change.grow, numel(), name(), "grow");
  at::Tensor births = torch::zeros({static_cast<std::int64_t>(grow.size())}, values_.scalar_type());
  if (change.birth_values.defined()) {
    births = change.birth_values.detach().to(values_.scalar_type()).contiguous();
    ESPALIER_CHECK(births.dim() == 1 && births.size(0) == static_cast<std::int64_t>(grow.size()), ErrorKind::usage,
                   "{}: {} birth values for {} positions to grow", name(), births.numel(), grow.size());
  }
  std::vector<std::int64_t> old;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, old, place, at::get_num_threads());

  // A walk over the three ascending lists, cut at positions so that each thread knows where its part goes (if the lists
  // are what Rewiring says). `from`: the old canonical place, or ~(number of the birth).
  const auto nnz = static_cast<std::int64_t>(old.size() - std::min(old.size(), drop.size()) + grow.size());
  std::vector<std::int64_t> positions(static_cast<std::size_t>(nnz)), from(positions.size());
  const int parts = at::get_num_threads();
  std::vector<std::string> wrong(static_cast<std::size_t>(parts));
  at::parallel_for(0, parts, 1, [&](std::int64_t part_begin, std::int64_t part_end) {
    for (std::int64_t p = part_begin; p < part_end; ++p) {
      const auto cut = [&](const std::vector<std::int64_t>& list, std::int64_t part) {
        const std::int64_t limit = part == parts ? numel() : numel() / parts * part;
        return static_cast<std::size_t>(std::lower_bound(list.begin(), list.end(), limit) - list.begin());
      };
      std::size_t d = cut(drop, p), g = cut(grow, p);
      const std::size_t drop_end = cut(drop, p + 1), grow_end = cut(grow, p + 1), old_end = cut(old, p + 1);
      std::size_t to = cut(old, p) - std::min(cut(old, p), d) + g;
      std::string& error = wrong[static_cast<std::size_t>(p)];
      const auto put = [&](std::int64_t position, std::int64_t source) {
        if (to < positions.size()) {
          positions[to] = position;
          from[to++] = source;
        }
      };
      const auto grow_up_to = [&](std::int64_t limit) {
        for (; g < grow_end && grow[g] < limit; ++g) put(grow[g], ~static_cast<std::int64_t>(g));
      };
      for (std::size_t i = cut(old, p); i < old_end && error.empty(); ++i) {
        grow_up_to(old[i]);
        if (d < drop_end && drop[d] < old[i]) break;
        if (d < drop_end && drop[d] == old[i]) {
          ++d;  // grown again, if it is, by the next grow_up_to
        } else if (g < grow_end && grow[g] == old[i]) {
          error = fmt::format("{}: position {} to grow is active already", name(), grow[g]);
        } else {
          put(old[i], place[i]);
        }
      }
      if (error.empty() && d < drop_end) {
        error = fmt::format("{}: position {} to drop is not active", name(), drop[d]);
      }
      grow_up_to(numel());
    }
  });
  for (const auto& error : wrong) ESPALIER_CHECK(error.empty(), ErrorKind::usage, "{}", error);

  at::Tensor phi = torch::empty({nnz}, values_.scalar_type());
  with_type(values_.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* before = phi_.data_ptr<T>();
    const T* born = births.data_ptr<T>();
    T* now = phi.data_ptr<T>();
    at::parallel_for(0, nnz, kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t f = from[static_cast<std::size_t>(i)];
        now[i] = f >= 0 ? before[f] : born[~f];
      }
    });
  });
  const BitMask trainable = backward_;
  const auto new_place = store(positions, phi);
  at::Tensor carried = torch::empty({nnz}, torch::kInt64);  // where each entry came from, in the new canonical order
  auto* c = carried.data_ptr<std::int64_t>();
  at::parallel_for(0, nnz, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      c[new_place[static_cast<std::size_t>(i)]] = std::max<std::int64_t>(-1, from[static_cast<std::size_t>(i)]);
    }
  });
  backward_ = every_;
  if (!trainable.all()) {
    for (std::int64_t k = 0; k < nnz; ++k)
      if (c[k] >= 0 && !trainable.test(c[k])) backward_.set(k, false);
  }

  TopologyChange now{to_tensor(drop), to_tensor(grow), change.threshold, carried};
  if (change_) {
    now.dropped = torch::cat({change_->dropped, now.dropped});
    now.grown = torch::cat({change_->grown, now.grown});
    if (change_->carried.defined()) {
      const auto* before = change_->carried.data_ptr<std::int64_t>();
      for (std::int64_t k = 0; k < nnz; ++k) c[k] = c[k] < 0 ? -1 : before[c[k]];
    }
  }
  change_ = std::move(now);
  freeze();
  push();
}

void CompressedWeight::set_trainable(const at::Tensor& positions) {
  materialise();
  const auto list = checked(positions, numel(), name(), "train");
  std::vector<std::int64_t> here;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, here, place, at::get_num_threads());
  backward_ = BitMask(nnz());
  std::size_t next = 0;
  for (std::size_t i = 0; i < here.size() && next < list.size(); ++i) {
    while (next < list.size() && list[next] < here[i]) ++next;  // not stored: nothing there can learn
    if (next < list.size() && list[next] == here[i]) backward_.set(place[i], true);
  }
  freeze();
}

at::Tensor CompressedWeight::trainable() const {
  if (is_virgin()) return torch::arange(numel(), torch::kInt64);
  std::vector<std::int64_t> here, out;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, here, place, at::get_num_threads());
  for (std::size_t i = 0; i < here.size(); ++i)
    if (backward_.test(place[i])) out.push_back(here[i]);
  return to_tensor(out);
}

at::Tensor CompressedWeight::parameter() {
  return reparametrised() && reparametrisation_.update() == Update::gradient ? phi_ : values_;
}

void CompressedWeight::pull(double decay) {
  at::Tensor& gradient = values_.mutable_grad();
  if (!gradient.defined()) return;
  const bool in_phi = reparametrised() && reparametrisation_.update() == Update::gradient;
  if (in_phi) {
    ops::power_pull(phi_, power_, backward_, reparametrisation_.alpha(), decay, gradient);
    phi_.mutable_grad() = gradient;
    gradient = at::Tensor();
  } else if (decay != 0) {
    ops::power_pull(values_, {}, backward_, 1, decay, gradient);  // in the space of w: alpha = 1
  } else if (!backward_.all()) {
    ops::keep(gradient, backward_, {});
  }
}

std::optional<SparseWeight::OnePass> CompressedWeight::one_pass() {
  const bool target = reparametrised() && reparametrisation_.update() == Update::target;
  if (is_virgin() || !backward_.all() || target || !values_.grad().defined()) return std::nullopt;
  return OnePass{phi_, values_, values_.grad(), power_};
}

void CompressedWeight::one_pass_done() {
  values_.mutable_grad() = at::Tensor();
  refresh();
}

void CompressedWeight::settle() {
  const torch::NoGradGuard no_grad;
  if (is_virgin()) return;
  if (reparametrised() && reparametrisation_.update() == Update::target) {
    ops::power_target(phi_, every_, backward_, reparametrisation_.alpha(), values_);
    refresh();
    return;
  }
  thaw();
  push();
}

void CompressedWeight::shrink(double factor) {
  const torch::NoGradGuard no_grad;
  materialise();
  phi_.mul_(factor);
  thaw();
  push();
}

void CompressedWeight::thaw() {
  if (!backward_.all()) ops::keep(phi_, backward_, frozen_);
}

void CompressedWeight::freeze() { frozen_ = backward_.all() ? at::Tensor() : phi_.detach().clone(); }

std::optional<TopologyChange> CompressedWeight::take_change() { return std::exchange(change_, std::nullopt); }

void CompressedWeight::reindex_state(at::Tensor& state, const TopologyChange& change) const {
  const torch::NoGradGuard no_grad;
  if (!change.carried.defined()) return;
  const at::Tensor before = state.contiguous();
  at::Tensor after = torch::empty({change.carried.numel()}, before.options());
  const auto* from = change.carried.data_ptr<std::int64_t>();
  with_type(before.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* old = before.data_ptr<T>();
    T* now = after.data_ptr<T>();
    at::parallel_for(0, after.numel(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) now[k] = from[k] >= 0 ? old[from[k]] : T(0);
    });
  });
  state = after;
  ESPALIER_ASSERT(state.numel() == nnz());
}

void CompressedWeight::want_dense_gradient(bool wanted) {
  wants_gradient_ = wanted;
  gradient_sources_.clear();
}

void CompressedWeight::add_gradient_source(std::shared_ptr<const GradientSource> source) {
  gradient_sources_.push_back(std::move(source));
}

at::Tensor CompressedWeight::top_gradients(std::int64_t k, const at::Tensor& except) const {
  const torch::NoGradGuard no_grad;
  ESPALIER_CHECK(!gradient_sources_.empty(), ErrorKind::usage, "{}: no backward pass has left a gradient", name());
  constexpr std::int64_t kEntries = std::int64_t{1} << 18;  // of the gradient that are there at a time
  const auto excepted = checked(except, numel(), name(), "leave out");
  const std::int64_t step = std::max<std::int64_t>(1, kEntries / columns_);
  RunningTop top(k);
  std::int64_t next = 0;
  for (std::int64_t begin = 0; begin < rows_; begin += step) {
    const std::int64_t end = std::min(rows_, begin + step);
    at::Tensor rows = torch::zeros({end - begin, columns_}, values_.scalar_type());
    for (const auto& source : gradient_sources_) source->add_rows(begin, end, rows);
    with_type(rows.scalar_type(), [&](auto zero) {
      add_magnitudes(rows.data_ptr<decltype(zero)>(), begin * columns_, rows.numel(), excepted.data(),
                     static_cast<std::int64_t>(excepted.size()), next, top);
    });
  }
  return to_tensor(enough(top.positions(), k, name()));
}

at::Tensor CompressedWeight::dense_gradient() const {
  fail(ErrorKind::usage,
       "{}: the gradient at all {} positions is asked for, which compressed storage does not hold; set model.storage = "
       "\"masked\"",
       name(), numel());
}

void CompressedWeight::add_gradient(const at::Tensor& positions, const at::Tensor& values) {
  const torch::NoGradGuard no_grad;
  materialise();
  const auto given = checked(positions, numel(), name(), "add to");
  ESPALIER_ASSERT(values.numel() == positions.numel());
  std::vector<std::int64_t> here;
  std::vector<std::uint32_t> place;
  kernels::row_major(*matrix_, here, place, at::get_num_threads());
  at::Tensor& gradient = values_.mutable_grad();
  if (!gradient.defined()) gradient = torch::zeros_like(values_.detach());
  if (!gradient.is_contiguous()) gradient = gradient.contiguous();
  const at::Tensor added = values.to(values_.scalar_type()).contiguous();
  with_type(values_.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = added.data_ptr<T>();
    T* to = gradient.data_ptr<T>();
    std::size_t i = 0;
    for (std::size_t g = 0; g < given.size(); ++g) {
      while (i < here.size() && here[i] < given[g]) ++i;
      if (i < here.size() && here[i] == given[g]) to[place[i]] += from[g];
    }
  });
}

namespace {

/// positions, row-major, as compressed rows.
std::pair<at::Tensor, at::Tensor> crow_and_col(const at::Tensor& positions, std::int64_t rows, std::int64_t columns) {
  const at::Tensor row = positions.div(columns, "floor");
  const at::Tensor crow = torch::searchsorted(row, torch::arange(rows + 1, torch::kInt64));
  return {crow, positions - row * columns};
}

}  // namespace

NamedTensors CompressedWeight::state() const {
  const auto [crow, col] = crow_and_col(active(), rows_, columns_);
  return {{name() + ".crow_indices", crow}, {name() + ".col_indices", col}, {name() + ".values", weights()}};
}

NamedTensors CompressedWeight::archive() const {
  const auto [crow, col] = crow_and_col(active(), rows_, columns_);
  NamedTensors tensors = {
      {name() + ".crow_indices", crow}, {name() + ".col_indices", col}, {name() + ".phi", values()}};
  if (!is_virgin() && !backward_.all()) tensors.emplace_back(name() + ".trainable", trainable());
  return tensors;
}

std::vector<std::int64_t> CompressedWeight::positions_of(const NamedTensors& tensors, const at::Tensor& values) const {
  const at::Tensor* crow = find(tensors, name() + ".crow_indices");
  const at::Tensor* col = find(tensors, name() + ".col_indices");
  ESPALIER_CHECK(crow != nullptr && col != nullptr, ErrorKind::data,
                 "{}: the saved state lacks its .crow_indices or .col_indices (what masked storage saved has none: set "
                 "model.storage = \"masked\")",
                 name());
  ESPALIER_CHECK(crow->scalar_type() == at::kLong && crow->dim() == 1 && crow->size(0) == rows_ + 1 &&
                     col->scalar_type() == at::kLong && col->dim() == 1 && values.dim() == 1 &&
                     values.size(0) == col->size(0) && values.scalar_type() == values_.scalar_type(),
                 ErrorKind::data, "{}: saved indices or values have another shape or type than [{}] needs", name(),
                 fmt::join(shape(), ", "));
  const at::Tensor crow_flat = crow->contiguous(), col_flat = col->contiguous();
  const auto* start = crow_flat.data_ptr<std::int64_t>();
  const auto* column = col_flat.data_ptr<std::int64_t>();
  const std::int64_t nnz = col->size(0);
  bool good = start[0] == 0 && start[rows_] == nnz;
  for (std::int64_t r = 0; good && r < rows_; ++r) good = start[r] <= start[r + 1];
  std::vector<std::int64_t> positions(static_cast<std::size_t>(good ? nnz : 0));
  for (std::int64_t r = 0; good && r < rows_; ++r) {
    for (std::int64_t k = start[r]; good && k < start[r + 1]; ++k) {
      good = column[k] >= 0 && column[k] < columns_ && (k == start[r] || column[k] > column[k - 1]);
      positions[static_cast<std::size_t>(k)] = r * columns_ + column[k];
    }
  }
  ESPALIER_CHECK(good, ErrorKind::data, "{}: the saved indices are not those of compressed rows of [{}, {}]", name(),
                 rows_, columns_);
  return positions;
}

void CompressedWeight::restore(const NamedTensors& tensors) {
  const torch::NoGradGuard no_grad;
  const at::Tensor* phi = find(tensors, name() + ".phi");
  const at::Tensor* trainable = find(tensors, name() + ".trainable");
  ESPALIER_CHECK(phi != nullptr, ErrorKind::data, "{}.phi: missing from the saved state", name());
  set_entries(positions_of(tensors, *phi), *phi);
  if (trainable != nullptr) set_trainable(*trainable);
}

bool CompressedWeight::load_state(const NamedTensors& tensors) {
  const torch::NoGradGuard no_grad;
  if (const at::Tensor* w = find(tensors, name() + ".values")) {
    set_entries(positions_of(tensors, *w), reparametrisation_.inverse(*w));
    return true;
  }
  const at::Tensor* dense = find(tensors, name());
  if (dense == nullptr) return false;
  ESPALIER_CHECK(dense->sizes() == at::IntArrayRef(shape()), ErrorKind::data,
                 "{}: has shape [{}]; the model needs [{}]", name(), fmt::join(dense->sizes(), ", "),
                 fmt::join(shape(), ", "));
  from_dense(*dense);
  return true;
}

void CompressedWeight::set_entries(const std::vector<std::int64_t>& positions, const at::Tensor& phi) {
  store(positions, phi);
  backward_ = every_;
  frozen_ = at::Tensor();
  change_.reset();
  push();
}

}  // namespace espalier
