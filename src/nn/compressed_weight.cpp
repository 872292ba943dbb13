#include "espalier/nn/compressed_weight.h"

#include <torch/torch.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "espalier/core/error.h"
#include "espalier/ops/csr.h"
#include "espalier/ops/power.h"
#include "espalier/ops/sparse_linear.h"
#include "nn/change_alpha.h"
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

/// f(T{}, begin, end) over parts of 0 .. n-1, with T the C++ type of the values.
template <class F>
void each_part(at::ScalarType type, std::int64_t n, const F& f) {
  with_type(type, [&](auto zero) {
    at::parallel_for(0, n, kGrain, [&](std::int64_t begin, std::int64_t end) { f(zero, begin, end); });
  });
}

/// out[i] = values[from[i]], zero for what is newborn.
at::Tensor gathered(const at::Tensor& values, const kernels::EntryIndices& from) {
  const at::Tensor source = values.contiguous();
  const auto n = static_cast<std::int64_t>(from.size());
  if (source.numel() == 0) return torch::zeros({n}, source.options().requires_grad(false));
  at::Tensor out = torch::empty({n}, source.options().requires_grad(false));
  each_part(source.scalar_type(), out.numel(), [&](auto zero, std::int64_t begin, std::int64_t end) {
    using T = decltype(zero);
    const T* before = source.data_ptr<T>();
    T* now = out.data_ptr<T>();
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
    for (std::int64_t i = begin; i < end; ++i) {  // without a branch: who is newborn cannot be predicted
      const std::uint32_t f = from[static_cast<std::size_t>(i)];
      const bool carried = f != TopologyChange::kNewborn;
      Bits bits;
      std::memcpy(&bits, before + (f & (0u - static_cast<std::uint32_t>(carried))), sizeof bits);
      bits &= Bits{0} - static_cast<Bits>(carried);
      std::memcpy(now + i, &bits, sizeof bits);
    }
  });
  return out;
}

/// Of the bits of the values and where they stand: others give another one, but for one case in 2^64.
std::uint64_t fingerprint(const at::Tensor& values) {
  const auto words = static_cast<std::int64_t>(values.nbytes() / sizeof(std::uint64_t));
  const auto* data = static_cast<const unsigned char*>(values.data_ptr());
  const auto mixed = [](std::uint64_t word, std::uint64_t at) {
    word = (word ^ (at * 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu;
    return (word ^ (word >> 32)) * 0xc4ceb9fe1a85ec53u;
  };
  std::atomic<std::uint64_t> sum{0};
  at::parallel_for(0, words, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::uint64_t part = 0, word;
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(&word, data + i * static_cast<std::int64_t>(sizeof word), sizeof word);
      part += mixed(word, static_cast<std::uint64_t>(i));
    }
    sum += part;
  });
  std::uint64_t rest = 0;
  const auto whole = static_cast<std::size_t>(words) * sizeof rest;
  if (values.nbytes() > whole) std::memcpy(&rest, data + whole, values.nbytes() - whole);
  return sum + mixed(rest, static_cast<std::uint64_t>(words));
}

/// A row of a weight, and what a rewiring makes of it.
class RowMerge {
 public:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();  // no column

  /// The row's share of the lists: `drops` and `grows` flat positions, ascending, of a row that begins at row_begin.
  void set(const std::int64_t* drop, std::int64_t drops, const std::int64_t* grow, std::int64_t grows,
           std::int64_t row_begin) {
    const auto columns = [&](const std::int64_t* from, std::int64_t n, std::vector<std::uint32_t>& to) {
      to.resize(static_cast<std::size_t>(n) + 1);
      for (std::int64_t i = 0; i < n; ++i)
        to[static_cast<std::size_t>(i)] = static_cast<std::uint32_t>(from[i] - row_begin);
      to.back() = kNone;
    };
    columns(drop, drops, drop_);
    columns(grow, grows, grow_);
  }

  /// n entries, their columns ascending, become `size` ones: n - drops + grows if the lists are right. `source` goes
  /// with what stays; the newborn have kNewborn. False if the lists are wrong: see not_there() and there().
  bool run(const std::uint32_t* column, const std::uint32_t* source, std::uint32_t n, std::uint32_t* to_column,
           std::uint32_t* to_source, std::uint32_t size) {
    static_assert(TopologyChange::kNewborn == kNone);
    const std::uint32_t *const drop = drop_.data(), *const grow = grow_.data();
    std::uint32_t i = 0, d = 0, g = 0, to = 0;
    std::uint32_t clash = 0;
    // In arithmetic, without a branch on who comes next, which cannot be predicted.
    while (i < n && to < size) {
      const std::uint32_t c = column[i], born = grow[g];
      const auto old = static_cast<std::uint32_t>(c <= born);
      const std::uint32_t dropped = old & static_cast<std::uint32_t>(c == drop[d]);
      clash |= static_cast<std::uint32_t>(c == born) & (dropped ^ 1u);
      to_column[to] = born ^ ((c ^ born) & (0u - old));
      to_source[to] = source[i] | (old - 1u);
      i += old;
      g += old ^ 1u;
      d += dropped;
      to += dropped ^ 1u;
    }
    for (; i < n && column[i] == drop[d]; ++i) ++d;  // no room is left: nothing else may come
    not_there_ = there_ = kNone;
    if (drop[d] != kNone) {
      not_there_ = first_not_there(column, n);
      return false;
    }
    if (clash != 0) there_ = first_clash(column, n);
    for (; to < size; ++to, ++g) {
      to_column[to] = grow[g];
      to_source[to] = TopologyChange::kNewborn;
    }
    return clash == 0;
  }

  std::uint32_t not_there() const { return not_there_; }  ///< the first column to drop that has no entry, or kNone
  std::uint32_t there() const { return there_; }          ///< else the first one to grow that has one, or kNone

 private:
  std::uint32_t first_not_there(const std::uint32_t* column, std::uint32_t n) const {
    return *std::find_if(drop_.begin(), drop_.end(),
                         [&](std::uint32_t d) { return !std::binary_search(column, column + n, d); });
  }
  std::uint32_t first_clash(const std::uint32_t* column, std::uint32_t n) const {
    for (const std::uint32_t g : grow_) {
      if (std::binary_search(column, column + n, g) && !std::binary_search(drop_.begin(), drop_.end(), g)) return g;
    }
    return kNone;
  }

  std::vector<std::uint32_t> drop_, grow_;  // kNone follows
  std::uint32_t not_there_ = kNone, there_ = kNone;
};

const at::Tensor* find(const NamedTensors& tensors, const std::string& key) {
  for (const auto& [name, tensor] : tensors)
    if (name == key) return &tensor;
  return nullptr;
}

}  // namespace

CompressedWeight::CompressedWeight(std::string name, std::vector<std::int64_t> shape, at::ScalarType type,
                                   std::optional<kernels::ConvShape> conv)
    : SparseWeight(std::move(name), std::move(shape), 0), conv_(conv) {
  ESPALIER_CHECK(this->shape().size() >= 2 && numel() > 0, ErrorKind::usage,
                 "{}: compressed storage takes weights [out, in, …] of positive sizes; found [{}]", this->name(),
                 fmt::join(this->shape(), ", "));
  ESPALIER_CHECK(type == at::kFloat || type == at::kDouble, ErrorKind::usage,
                 "{}: compressed storage takes float32 or float64 weights; found {}", this->name(),
                 c10::toString(type));
  rows_ = this->shape()[0];
  columns_ = numel() / rows_;
  values_ = torch::empty({0}, type).set_requires_grad(true);
  values_.register_hook([has = has_gradient_](const at::Tensor&) { *has = true; });
  phi_ = values_;
}

void CompressedWeight::set_draw(Draw draw, double largest) {
  ESPALIER_CHECK(is_virgin(), ErrorKind::usage, "{}: has entries already; values at step 0 come too late", name());
  draw_ = std::move(draw);
  largest_ = largest;
}

std::optional<SparseWeight::InitialDraw> CompressedWeight::initial_draw() const {
  if (!is_virgin()) return std::nullopt;
  return InitialDraw{[this](const at::Tensor& positions) { return draw(positions); }, largest_};
}

void CompressedWeight::adopt(std::string name, std::int64_t layer, const Reparametrisation& psi) {
  const torch::NoGradGuard no_grad;
  rename(std::move(name), layer);
  reparametrisation_ = psi;
  power_ = at::Tensor();
  if (psi.is_identity()) {
    phi_ = values_;
    return;
  }
  phi_ = psi.inverse(values_.detach()).contiguous().set_requires_grad(psi.update() == Update::gradient);
  if (!is_virgin()) push();
}

at::Tensor CompressedWeight::draw(const at::Tensor& positions) const {
  if (draw_) return draw_(positions).to(values_.scalar_type());
  return torch::zeros({positions.numel()}, values_.scalar_type());
}

void CompressedWeight::check_count(std::int64_t nnz) const {
  ESPALIER_CHECK(nnz <= kernels::kMostEntries, ErrorKind::usage,
                 "{}: {} entries; compressed storage holds at most {} a layer", name(), nnz, kernels::kMostEntries);
}

kernels::RowMajorList CompressedWeight::list_of(const Positions& positions) const {
  check_count(positions.size());
  return kernels::list_of(rows_, columns_, positions.begin(), positions.size(), at::get_num_threads());
}

std::shared_ptr<kernels::Compressed> CompressedWeight::compress(const kernels::RowMajorList& entries,
                                                                kernels::EntryIndices& place) const {
  auto matrix = std::make_shared<kernels::Compressed>();
  *matrix = conv_ ? kernels::compress(*conv_, entries, place, at::get_num_threads())
                  : kernels::compress(rows_, columns_, entries, place, at::get_num_threads());
  return matrix;
}

void CompressedWeight::store(std::shared_ptr<kernels::Compressed> matrix, const at::Tensor& phi) {
  const at::Tensor w = parted() ? torch::empty_like(phi, torch::TensorOptions().requires_grad(false)) : at::Tensor();
  forward_ = BitMask(phi.numel(), true);
  backward_ = forward_;
  // Nothing throws from here on.
  matrix_ = std::move(matrix);
  phi_.set_data(phi);
  if (w.defined()) values_.set_data(w);
  values_.mutable_grad() = phi_.mutable_grad() = at::Tensor();  // of other entries: a sum with the next would be wrong
  frozen_ = power_ = at::Tensor();
  forget_forward();
}

void CompressedWeight::set_entries(kernels::RowMajorList entries, const at::Tensor& phi) {
  kernels::EntryIndices place;
  auto matrix = compress(entries, place);
  entries = {};
  store(std::move(matrix), ops::to_canonical(phi, place));
  push();
}

void CompressedWeight::materialise() {
  const torch::NoGradGuard no_grad;
  if (!is_virgin()) return;
  const at::Tensor all = torch::arange(numel(), torch::kInt64);
  set_entries(list_of({all, numel(), name(), "keep"}), reparametrisation_.inverse(draw(all)));
}

void CompressedWeight::copy_from(const CompressedWeight& other) {
  const torch::NoGradGuard no_grad;
  ESPALIER_ASSERT(shape() == other.shape() && is_virgin());
  if (other.is_virgin()) return set_draw(other.draw_, other.largest_);
  store(other.matrix_, reparametrisation_.inverse(other.values_.detach().clone()));
  push();
}

void CompressedWeight::from_dense(const at::Tensor& dense) {
  const torch::NoGradGuard no_grad;
  ESPALIER_CHECK(dense.sizes() == at::IntArrayRef(shape()), ErrorKind::usage,
                 "{}: a dense weight of [{}] for a layer of [{}]", name(), fmt::join(dense.sizes(), ", "),
                 fmt::join(shape(), ", "));
  const at::Tensor flat = dense.detach().to(values_.scalar_type()).contiguous().view({-1});
  const at::Tensor kept = flat.nonzero().view({-1});
  set_entries(list_of({kept, numel(), name(), "keep"}), reparametrisation_.inverse(flat.index_select(0, kept)));
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

CompressedWeight::Seen CompressedWeight::seen() const {
  return {static_cast<std::int64_t>(values_._version()),
          *has_gradient_ ? std::optional(fingerprint(values_)) : std::nullopt};
}

at::Tensor CompressedWeight::forward_values() {
  materialise();
  const std::lock_guard<std::mutex> lock(forward_mutex_);
  if (const Seen now = seen(); forward_of_ != now) refresh(now);
  if (*has_gradient_ && !values_.grad().defined()) {  // no optimiser writes until there is one again
    *has_gradient_ = false;
    forward_of_ = seen();
  }
  return forward_values_;
}

at::Tensor CompressedWeight::forward_values_if_reused() {
  materialise();
  const std::lock_guard<std::mutex> lock(forward_mutex_);
  if (*has_gradient_) {
    forget_forward();
  } else if (const Seen now = seen(); forward_of_ != now) {
    if (used_ == now) {
      refresh(now);
    } else {
      forget_forward();
      used_ = now;
    }
  }
  return forward_values_;
}

void CompressedWeight::forward_is_stale() { forward_of_ = used_ = std::nullopt; }

void CompressedWeight::forget_forward() {
  forward_values_ = at::Tensor();
  forward_is_stale();
}

void CompressedWeight::gradient_is_used() {
  forward_is_stale();
  *has_gradient_ = false;
}

void CompressedWeight::refresh(const Seen& now) {
  const torch::NoGradGuard no_grad;
  if (!forward_values_.defined()) {
    forward_values_ = torch::empty_like(values_, torch::TensorOptions().requires_grad(false));
  }
  ops::refresh_forward(*matrix_, values_, forward_values_);
  forward_of_ = now;
}

void CompressedWeight::push() {
  const torch::NoGradGuard no_grad;
  if (parted()) {
    if (reparametrisation_.update() == Update::gradient && ops::power_is_costly(reparametrisation_.alpha()) &&
        !power_.defined()) {
      power_ = torch::empty_like(values_, torch::TensorOptions().requires_grad(false));
    }
    ops::power_push(phi_, forward_, reparametrisation_.alpha(), values_, power_);
  }
  forward_is_stale();
}

std::int64_t CompressedWeight::nnz() const { return is_virgin() ? numel() : forward_.count(); }

at::Tensor CompressedWeight::active() const {
  const at::Tensor positions = stored_positions();
  return is_virgin() || forward_.all() ? positions : positions.index_select(0, ranks(forward_));
}

at::Tensor CompressedWeight::stored_positions() const {
  if (is_virgin()) return torch::arange(numel(), torch::kInt64);
  kernels::RowMajorList list;
  kernels::row_major(*matrix_, &list, nullptr, at::get_num_threads());
  return positions_of(list);
}

at::Tensor CompressedWeight::positions_of(const kernels::RowMajorList& list) const {
  at::Tensor positions = torch::empty({stored()}, torch::kInt64);
  auto* const out = positions.data_ptr<std::int64_t>();
  at::parallel_for(0, rows_, rows_of_grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::uint32_t row_end = list.start[static_cast<std::size_t>(r + 1)];
      for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < row_end; ++i) {
        out[i] = r * columns_ + list.column[i];
      }
    }
  });
  return positions;
}

std::int64_t CompressedWeight::rows_of_grain() const {
  return std::max<std::int64_t>(1, kGrain * rows_ / std::max<std::int64_t>(1, stored()));
}

at::Tensor CompressedWeight::row_major(const at::Tensor& canonical) const {
  // By the forward order, whose lines are pieces of rows: entry by entry, a row would be all over the canonical one.
  at::Tensor forward = torch::empty_like(canonical, torch::TensorOptions().requires_grad(false));
  ops::refresh_forward(*matrix_, canonical, forward);
  return row_major_of_forward(forward);
}

at::Tensor CompressedWeight::row_major_of_forward(const at::Tensor& forward) const {
  at::Tensor values = torch::empty_like(forward);
  with_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    kernels::in_row_order(*matrix_, forward.data_ptr<T>(), values.data_ptr<T>(), at::get_num_threads());
  });
  return values;
}

at::Tensor CompressedWeight::ranks(const BitMask& mask) const {
  kernels::EntryIndices place;
  kernels::row_major(*matrix_, nullptr, &place, at::get_num_threads());
  at::Tensor ranks = torch::empty({mask.count()}, torch::kInt64);
  auto* next = ranks.data_ptr<std::int64_t>();
  for (std::size_t i = 0; i < place.size(); ++i)
    if (mask.test(place[i])) *next++ = static_cast<std::int64_t>(i);
  return ranks;
}

BitMask CompressedWeight::mask_of(const Positions& positions) const {
  BitMask mask(stored());
  std::int64_t next = 0;
  each_entry([&](std::int64_t position, std::uint32_t place) {
    while (next < positions.size() && positions[next] < position) ++next;  // not stored
    if (next < positions.size() && positions[next] == position) mask.set(place, true);
  });
  return mask;
}

at::Tensor CompressedWeight::weights() const {
  if (!is_virgin()) {
    const at::Tensor w = row_major(values_);
    return forward_.all() ? w : w.index_select(0, ranks(forward_));
  }
  const at::Tensor phi = values();
  if (!parted()) return phi;
  at::Tensor w = torch::empty_like(phi), no_power;  // what push will leave
  ops::power_push(phi, BitMask(numel(), true), reparametrisation_.alpha(), w, no_power);
  return w;
}

std::pair<at::Tensor, at::Tensor> CompressedWeight::entries() const {
  if (is_virgin() || !forward_.all()) return SparseWeight::entries();
  return {stored_positions(), forward_of_ == seen() ? row_major_of_forward(forward_values_) : row_major(values_)};
}

at::Tensor CompressedWeight::values() const {
  if (is_virgin()) return reparametrisation_.inverse(draw(active()));
  const at::Tensor phi = row_major(phi_);
  return forward_.all() ? phi : phi.index_select(0, ranks(forward_));
}

void CompressedWeight::keep(const at::Tensor& positions) {
  const torch::NoGradGuard no_grad;
  const Positions kept(positions, numel(), name(), "keep");
  if (is_virgin()) {
    set_entries(list_of(kept), reparametrisation_.inverse(draw(positions)));
    tell({});  // What was not kept was never there, so it is not listed: a list would be as long as the dense weight.
    return;
  }
  const at::Tensor before = active();
  const Positions old(before, numel(), name(), "keep");
  std::vector<std::int64_t> drop;
  std::set_difference(old.begin(), old.end(), kept.begin(), kept.end(), std::back_inserter(drop));
  ESPALIER_CHECK(old.size() - static_cast<std::int64_t>(drop.size()) == kept.size(), ErrorKind::usage,
                 "{}: a position to keep is not active", name());
  rewire({to_tensor(drop), {}, {}, {}});
}

kernels::RowMajorList CompressedWeight::rewired(const Positions& drop, const Positions& grow,
                                                kernels::EntryIndices& from) const {
  kernels::RowMajorList old, now;
  kernels::EntryIndices place;
  kernels::row_major(*matrix_, &old, &place, at::get_num_threads());
  const auto at = [](std::int64_t row) { return static_cast<std::size_t>(row); };
  const auto before_row = [&](const Positions& list, std::int64_t row) {
    return std::lower_bound(list.begin(), list.end(), row * columns_) - list.begin();
  };
  // Of the positions of a list from number i on, how many lie before the end of this row; i moves behind them.
  const auto pass_row = [&](const Positions& list, std::int64_t& i, std::int64_t row) {
    const std::int64_t first = i, end = (row + 1) * columns_;
    while (i < list.size() && list[i] < end) ++i;
    return i - first;
  };

  // How long each row becomes, if the lists are what Rewiring says; never negative, so that rows never overlap.
  now.start.resize(at(rows_ + 1), 0);
  at::parallel_for(0, rows_, rows_of_grain(), [&](std::int64_t begin, std::int64_t end) {
    std::int64_t d = before_row(drop, begin), g = before_row(grow, begin);
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t drops = pass_row(drop, d, r), grows = pass_row(grow, g, r),
                         present = old.start[at(r + 1)] - old.start[at(r)];
      now.start[at(r)] = static_cast<std::uint32_t>(std::max<std::int64_t>(0, present - drops) + grows);
    }
  });
  std::uint32_t sum = 0;
  for (std::uint32_t& n : now.start) sum += std::exchange(n, sum);
  now.column.resize(sum);
  from.resize(sum);

  const std::int64_t parts = std::clamp<std::int64_t>(stored() / kGrain, 1, at::get_num_threads());
  std::vector<std::string> wrong(at(parts));
  const auto merge = [&](std::int64_t first_row, std::int64_t last_row) -> std::string {
    RowMerge row;
    std::int64_t d = before_row(drop, first_row), g = before_row(grow, first_row);
    for (std::int64_t r = first_row; r < last_row; ++r) {
      const std::int64_t row_begin = r * columns_, drops = pass_row(drop, d, r), grows = pass_row(grow, g, r);
      row.set(drop.begin() + d - drops, drops, grow.begin() + g - grows, grows, row_begin);
      const std::uint32_t begin = old.start[at(r)], to = now.start[at(r)];
      if (row.run(old.column.data() + begin, place.data() + begin, old.start[at(r + 1)] - begin, now.column.data() + to,
                  from.data() + to, now.start[at(r + 1)] - to))
        continue;
      return row.not_there() != RowMerge::kNone
                 ? fmt::format("{}: position {} to drop is not active", name(), row_begin + row.not_there())
                 : fmt::format("{}: position {} to grow is active already", name(), row_begin + row.there());
    }
    return "";
  };
  at::parallel_for(0, parts, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) wrong[at(p)] = merge(rows_ * p / parts, rows_ * (p + 1) / parts);
  });
  for (const auto& error : wrong) ESPALIER_CHECK(error.empty(), ErrorKind::usage, "{}", error);
  return now;
}

void CompressedWeight::rewire(const Rewiring& change) {
  const torch::NoGradGuard no_grad;
  materialise();
  ESPALIER_CHECK(!laid_down_.defined(), ErrorKind::usage,
                 "{}: values outside the masks are remembered since set_masks; change the masks by it", name());
  const Positions drop(change.drop, numel(), name(), "drop"), grow(change.grow, numel(), name(), "grow");
  check_count(stored() + grow.size());
  at::Tensor births;
  if (change.birth_values.defined()) {
    births = change.birth_values.detach().to(values_.scalar_type()).contiguous();
    ESPALIER_CHECK(births.dim() == 1 && births.size(0) == grow.size(), ErrorKind::usage,
                   "{}: {} birth values for {} positions to grow", name(), births.numel(), grow.size());
  }

  // Each list lives as long as it is needed: with the old structure, they are what memory peaks with.
  TopologyChange now{change.drop, change.grow, change.threshold, {}};
  std::shared_ptr<kernels::Compressed> matrix;
  kernels::EntryIndices born;  // canonical places of the birth values
  {
    kernels::EntryIndices from, place;
    kernels::RowMajorList entries = rewired(drop, grow, from);
    forget_forward();
    matrix = compress(entries, place);
    entries = {};
    now.carried.resize(from.size());
    at::parallel_for(0, matrix->nnz(), kGrain, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
        now.carried[place[i]] = from[i];
      }
    });
    if (births.defined()) {
      for (std::size_t i = 0; i < from.size(); ++i)
        if (from[i] == TopologyChange::kNewborn) born.push_back(place[i]);
    }
  }
  at::Tensor phi = gathered(phi_.detach(), now.carried);
  if (births.defined()) {
    with_type(phi.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      T* const values = phi.data_ptr<T>();
      const T* const birth = births.data_ptr<T>();
      for (std::size_t i = 0; i < born.size(); ++i) values[born[i]] = birth[i];
    });
  }
  const BitMask learnt = backward_;
  store(std::move(matrix), phi);
  phi = at::Tensor();
  if (!learnt.all()) {
    for (std::int64_t k = 0; k < stored(); ++k) {
      const std::uint32_t before = now.carried[static_cast<std::size_t>(k)];
      if (before != TopologyChange::kNewborn && !learnt.test(before)) backward_.set(k, false);
    }
  }
  freeze();
  push();
  tell(now);
}

template <class F>
void CompressedWeight::each_entry(const F& f) const {
  kernels::RowMajorList list;
  kernels::EntryIndices place;
  kernels::row_major(*matrix_, &list, &place, at::get_num_threads());
  for (std::int64_t r = 0; r < rows_; ++r) {
    const std::uint32_t end = list.start[static_cast<std::size_t>(r + 1)];
    for (std::uint32_t i = list.start[static_cast<std::size_t>(r)]; i < end; ++i) {
      f(r * columns_ + list.column[i], place[i]);
    }
  }
}

void CompressedWeight::set_trainable(const at::Tensor& positions) {
  materialise();
  backward_ = mask_of({positions, numel(), name(), "train"});  // what is not stored cannot learn
  freeze();
}

at::Tensor CompressedWeight::trainable() const {
  const at::Tensor positions = stored_positions();
  return is_virgin() || backward_.all() ? positions : positions.index_select(0, ranks(backward_));
}

void CompressedWeight::set_masks(const at::Tensor& forward, const at::Tensor& backward) {
  const torch::NoGradGuard no_grad;
  ESPALIER_CHECK(reparametrisation_.update() == Update::gradient || reparametrisation_.is_identity(), ErrorKind::usage,
                 "{}: with [reparam].update = \"target\" the optimiser steps in w, which is zero outside the forward "
                 "mask; use \"gradient\"",
                 name());
  const Positions computes(forward, numel(), name(), "set"), learns(backward, numel(), name(), "set");
  std::vector<std::int64_t> both, left, entered;
  std::set_union(computes.begin(), computes.end(), learns.begin(), learns.end(), std::back_inserter(both));
  check_count(static_cast<std::int64_t>(both.size()));
  const at::Tensor learnt = trainable();
  const Positions before(learnt, numel(), name(), "set");
  std::set_difference(before.begin(), before.end(), learns.begin(), learns.end(), std::back_inserter(left));
  std::set_difference(learns.begin(), learns.end(), before.begin(), before.end(), std::back_inserter(entered));

  // Optimiser state goes with what learnt before and still does.
  kernels::EntryIndices from(both.size(), TopologyChange::kNewborn);
  if (!is_virgin()) {
    std::size_t next = 0;
    std::int64_t stays = 0;
    each_entry([&](std::int64_t position, std::uint32_t place) {
      while (next < both.size() && both[next] < position) ++next;
      while (stays < learns.size() && learns[stays] < position) ++stays;
      if (stays < learns.size() && learns[stays] == position && backward_.test(place)) from[next] = place;
    });
  }

  lay_down();
  const at::Tensor positions = to_tensor(both);
  kernels::EntryIndices place;
  auto matrix = compress(list_of({positions, numel(), name(), "set"}), place);
  if (!parted()) phi_ = torch::empty({0}, values_.options()).set_requires_grad(true);  // w no longer holds all of phi
  store(std::move(matrix), ops::to_canonical(laid_down_.index_select(0, positions), place));
  forward_ = mask_of(computes);
  backward_ = mask_of(learns);
  freeze();
  push();
  TopologyChange change{to_tensor(left), to_tensor(entered), std::nullopt, {}};
  change.carried.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) change.carried[place[i]] = from[i];
  tell(change);
}

void CompressedWeight::lay_down() {
  if (!laid_down_.defined()) {
    laid_down_ = is_virgin() ? values() : torch::zeros({numel()}, values_.scalar_type());
  }
  if (!is_virgin()) laid_down_.index_copy_(0, stored_positions(), row_major(phi_));
}

at::Tensor CompressedWeight::all_values() const {
  const torch::NoGradGuard no_grad;
  if (is_virgin()) return values().view(shape());
  at::Tensor all = laid_down_.defined() ? laid_down_.clone() : torch::zeros({numel()}, values_.scalar_type());
  return all.index_copy_(0, stored_positions(), row_major(phi_)).view(shape());
}

at::Tensor CompressedWeight::parameter() { return in_phi() ? phi_ : values_; }

void CompressedWeight::pull(double decay) {
  at::Tensor& gradient = values_.mutable_grad();
  if (!gradient.defined()) return;
  if (in_phi()) {
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
  const bool target = parted() && !in_phi();
  if (is_virgin() || !forward_.all() || !backward_.all() || target || !values_.grad().defined()) return std::nullopt;
  return OnePass{phi_, values_, values_.grad(), power_};
}

void CompressedWeight::one_pass_done() {
  values_.mutable_grad() = at::Tensor();
  gradient_is_used();
}

at::Tensor CompressedWeight::change_alpha(double alpha) {
  const torch::NoGradGuard no_grad;
  if (laid_down_.defined()) {
    Reparametrisation psi = reparametrisation_;
    espalier::change_alpha(laid_down_, torch::zeros_like(laid_down_), alpha, psi, name());
  }
  at::Tensor factor = espalier::change_alpha(phi_, values_, alpha, reparametrisation_, name());
  freeze();
  power_ = at::Tensor();
  if (!is_virgin() && in_phi() && ops::power_is_costly(alpha)) {
    power_ = torch::empty_like(values_, torch::TensorOptions().requires_grad(false));
    at::Tensor w = torch::empty_like(power_);
    ops::power_push(phi_, forward_, alpha, w, power_);
  }
  return in_phi() ? factor : at::Tensor();
}

void CompressedWeight::settle() {
  const torch::NoGradGuard no_grad;
  if (is_virgin()) return;
  if (parted() && !in_phi()) {
    ops::power_target(phi_, forward_, backward_, reparametrisation_.alpha(), values_);
  } else {
    thaw();
    push();
  }
  gradient_is_used();
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

void CompressedWeight::reindex_state(at::Tensor& state, const TopologyChange& change) const {
  const torch::NoGradGuard no_grad;
  state = change.carried.empty() ? torch::zeros({stored()}, state.options()) : gathered(state, change.carried);
  ESPALIER_ASSERT(state.numel() == stored());
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
  const Positions excepted(except, numel(), name(), "leave out");
  const std::int64_t step = std::max<std::int64_t>(1, kEntries / columns_);
  RunningTop top(k);
  std::int64_t next = 0;
  for (std::int64_t begin = 0; begin < rows_; begin += step) {
    const std::int64_t end = std::min(rows_, begin + step);
    at::Tensor rows = torch::zeros({end - begin, columns_}, values_.scalar_type());
    for (const auto& source : gradient_sources_) source->add_rows(begin, end, rows);
    with_type(rows.scalar_type(), [&](auto zero) {
      add_magnitudes(rows.data_ptr<decltype(zero)>(), begin * columns_, rows.numel(), excepted.begin(), excepted.size(),
                     next, top);
    });
  }
  return to_tensor(enough(top.positions(), k, name()));
}

void CompressedWeight::add_dense_gradient(at::Tensor& sum) const {
  const torch::NoGradGuard no_grad;
  ESPALIER_CHECK(!gradient_sources_.empty(), ErrorKind::usage, "{}: no backward pass has left a gradient", name());
  ESPALIER_ASSERT(sum.numel() == numel() && sum.is_contiguous());
  at::Tensor rows = sum.view({rows_, columns_});
  for (const auto& source : gradient_sources_) source->add_rows(0, rows_, rows);
}

void CompressedWeight::add_gradient(const at::Tensor& positions, const at::Tensor& values) {
  const torch::NoGradGuard no_grad;
  materialise();
  const Positions given(positions, numel(), name(), "add to");
  ESPALIER_ASSERT(values.numel() == positions.numel());
  std::vector<std::int64_t> here;
  kernels::EntryIndices place;
  kernels::row_major(*matrix_, here, place, at::get_num_threads());
  at::Tensor& sum = gradient();
  const at::Tensor added = values.to(values_.scalar_type()).contiguous();
  with_type(values_.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* from = added.data_ptr<T>();
    T* to = sum.data_ptr<T>();
    std::size_t i = 0;
    for (std::int64_t g = 0; g < given.size(); ++g) {
      while (i < here.size() && here[i] < given[g]) ++i;
      if (i < here.size() && here[i] == given[g]) to[place[i]] += from[g];
    }
  });
}

void CompressedWeight::add_penalty(double inside, double outside) {
  const torch::NoGradGuard no_grad;
  materialise();
  gradient().add_(reparametrisation_.psi(phi_.detach()), outside).add_(values_.detach(), inside - outside);
}

at::Tensor& CompressedWeight::gradient() {
  at::Tensor& gradient = values_.mutable_grad();
  if (!gradient.defined()) gradient = torch::zeros_like(values_.detach());
  if (!gradient.is_contiguous()) gradient = gradient.contiguous();
  return gradient;
}

ops::Csr CompressedWeight::csr(bool of_forward) const {
  const torch::NoGradGuard no_grad;
  if (is_virgin() || (of_forward && !forward_.all())) return ops::csr_of(list_of({active(), numel(), name(), "save"}));
  kernels::RowMajorList list;
  kernels::row_major(*matrix_, &list, nullptr, at::get_num_threads());
  return ops::csr_of(list);
}

NamedTensors CompressedWeight::state() const {
  const auto [crow, col] = csr(/*of_forward=*/true);
  return {{name() + ".crow_indices", crow}, {name() + ".col_indices", col}, {name() + ".values", weights()}};
}

NamedTensors CompressedWeight::archive() const {
  const auto [crow, col] = csr(/*of_forward=*/false);
  NamedTensors tensors = {{name() + ".crow_indices", crow},
                          {name() + ".col_indices", col},
                          {name() + ".phi", is_virgin() ? values() : row_major(phi_)}};
  if (is_virgin()) return tensors;
  if (!backward_.all()) tensors.emplace_back(name() + ".trainable", trainable());
  if (!forward_.all()) tensors.emplace_back(name() + ".forward", active());
  if (laid_down_.defined()) tensors.emplace_back(name() + ".laid_down", laid_down_);
  return tensors;
}

kernels::RowMajorList CompressedWeight::saved_entries(const NamedTensors& tensors, const at::Tensor& values) const {
  const at::Tensor* crow = find(tensors, name() + ".crow_indices");
  const at::Tensor* col = find(tensors, name() + ".col_indices");
  ESPALIER_CHECK(crow != nullptr && col != nullptr, ErrorKind::data,
                 "{}: the saved state lacks its .crow_indices or .col_indices (what masked storage saved has none: set "
                 "model.storage = \"masked\")",
                 name());
  auto list = ops::list_of({*crow, *col}, rows_, columns_, name(), ErrorKind::data);
  ESPALIER_CHECK(values.dim() == 1 && values.size(0) == col->size(0) && values.scalar_type() == values_.scalar_type(),
                 ErrorKind::data, "{}: saved values are {} [{}]; expected {} [{}], one for each of .col_indices",
                 name(), c10::toString(values.scalar_type()), fmt::join(values.sizes(), ", "),
                 c10::toString(values_.scalar_type()), col->size(0));
  return list;
}

void CompressedWeight::restore(const NamedTensors& tensors) {
  const torch::NoGradGuard no_grad;
  const at::Tensor* phi = find(tensors, name() + ".phi");
  const at::Tensor* trainable = find(tensors, name() + ".trainable");
  const at::Tensor* forward = find(tensors, name() + ".forward");
  const at::Tensor* laid_down = find(tensors, name() + ".laid_down");
  ESPALIER_CHECK(phi != nullptr, ErrorKind::data, "{}.phi: missing from the saved state", name());
  if (laid_down_.defined()) {
    ESPALIER_CHECK(
        laid_down != nullptr && laid_down->sizes() == laid_down_.sizes() &&
            laid_down->scalar_type() == laid_down_.scalar_type(),
        ErrorKind::data,
        "{}.laid_down: missing from the saved state, or of another size or type than the model's; is it that "
        "of a run with another method?",
        name());
  }
  set_entries(saved_entries(tensors, *phi), *phi);
  if (trainable != nullptr) set_trainable(*trainable);
  if (laid_down_.defined()) laid_down_.copy_(*laid_down);
  if (forward == nullptr) return;
  forward_ = mask_of({*forward, numel(), name(), "restore"});
  push();
  if (laid_down_.defined()) return;
  // Nobody here will look for phi outside M_f again.
  const at::Tensor computes = active(), w = values(), learns = this->trainable();
  set_entries(list_of({computes, numel(), name(), "restore"}), w);
  set_trainable(learns);
}

bool CompressedWeight::load_state(const NamedTensors& tensors) {
  const torch::NoGradGuard no_grad;
  if (const at::Tensor* w = find(tensors, name() + ".values")) {
    set_entries(saved_entries(tensors, *w), reparametrisation_.inverse(*w));
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

}  // namespace espalier
