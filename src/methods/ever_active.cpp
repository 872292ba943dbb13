#include "espalier/methods/ever_active.h"

#include <algorithm>
#include <cstring>

#include "espalier/core/error.h"

namespace espalier {
namespace {

constexpr int kLog2Bits = 20;

const at::Tensor* find(const std::string& name, const NamedTensors& tensors) {
  const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.first == name; });
  return found == tensors.end() ? nullptr : &found->second;
}

BitMask bits_of(const at::Tensor& words, std::int64_t size) {
  BitMask bits(size);
  for (std::int64_t i = 0; i < size; ++i) {
    const auto word = static_cast<std::uint64_t>(words.data_ptr<std::int64_t>()[i / 64]);
    if (((word >> (i % 64)) & 1) != 0) bits.set(i, true);
  }
  return bits;
}

}  // namespace

/// Positions are numbered anew by a multiplication modulo 2^m >= positions, by an odd number, which makes it one to
/// one; those that come first have bits. The factor is 2^m over the golden ratio: of any run of positions, and of any
/// row or column of the weight, the sample has its share.
EverActive::EverActive(std::int64_t positions) : positions_(positions) {
  int m = 0;
  while (std::int64_t{1} << m < positions) ++m;
  log2_stride_ = std::max(0, m - kLog2Bits);
  factor_ = log2_stride_ == 0 ? 1 : (std::uint64_t{0x9E3779B97F4A7C15} >> (64 - m)) | 1;
  below_ = (std::uint64_t{1} << m) - 1;
  bits_ = BitMask(log2_stride_ == 0 ? positions : std::int64_t{1} << kLog2Bits);
}

EverActive::EverActive(std::int64_t positions, const std::int64_t* active, std::int64_t n) : EverActive(positions) {
  add(active, n);
  beside_ = n - (bits_.count() << log2_stride_);
}

EverActive EverActive::all(std::int64_t positions) {
  EverActive ever(positions);
  ever.bits_ = BitMask(ever.bits_.size(), true);
  ever.beside_ = positions - (ever.bits_.count() << ever.log2_stride_);
  return ever;
}

bool EverActive::counts(std::int64_t positions, std::int64_t n) {
  constexpr std::int64_t kPositionsAWeight = 128;
  return positions <= std::int64_t{1} << kLog2Bits || positions <= kPositionsAWeight * n;
}

void EverActive::add(const std::int64_t* active, std::int64_t n) {
  const auto end = static_cast<std::uint64_t>(bits_.size());
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t place = static_cast<std::uint64_t>(active[i]) * factor_ & below_;
    if (place < end) bits_.set(static_cast<std::int64_t>(place), true);
  }
}

std::int64_t EverActive::count() const { return std::min(positions_, beside_ + (bits_.count() << log2_stride_)); }

void EverActive::archive(const std::string& name, NamedTensors& to) const {
  to.emplace_back(
      name,
      torch::from_blob(const_cast<std::uint64_t*>(bits_.words()), {(bits_.size() + 63) / 64}, torch::kInt64).clone());
  if (log2_stride_ > 0) to.emplace_back(name + "_beside", torch::tensor(beside_, torch::kInt64));
}

std::optional<EverActive> EverActive::restored(const std::string& name, std::int64_t positions,
                                               const NamedTensors& tensors) {
  const at::Tensor* const saved = find(name, tensors);
  if (saved == nullptr) return std::nullopt;
  const at::Tensor words = saved->contiguous(), *const beside = find(name + "_beside", tensors);
  EverActive ever(positions);
  const std::int64_t size = beside != nullptr ? ever.bits_.size() : positions;
  ESPALIER_CHECK(words.scalar_type() == torch::kInt64 && words.numel() == (size + 63) / 64 &&
                     (beside == nullptr || (beside->scalar_type() == torch::kInt64 && beside->numel() == 1)),
                 ErrorKind::data, "{}: not what is kept of {} positions", name, positions);
  if (beside == nullptr && size > ever.bits_.size()) {  // as it was saved before there were samples
    const std::vector<std::int64_t> active = bits_of(words, size).positions();
    return EverActive(positions, active.data(), static_cast<std::int64_t>(active.size()));
  }
  ever.bits_ = bits_of(words, size);
  if (beside != nullptr) ever.beside_ = beside->item<std::int64_t>();
  return ever;
}

}  // namespace espalier
