// The k largest of a stream of scores, in memory of k entries; private to nn/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/error.h"

namespace espalier {

/// Positions must come in ascending order: of equal scores the first stays.
class RunningTop {
 public:
  explicit RunningTop(std::int64_t k) : k_(static_cast<std::size_t>(k)) { entries_.reserve(2 * k_); }

  void add(double score, std::int64_t position) {
    if (score <= floor_) return;
    ESPALIER_CHECK(!std::isnan(score), ErrorKind::diverged, "the gradient at position {} is not a number", position);
    if (k_ == 0) return;
    entries_.push_back({score, position});
    if (entries_.size() == 2 * k_) cut();
  }

  /// The positions, ascending; fewer than k if there were fewer.
  std::vector<std::int64_t> positions() {
    if (entries_.size() > k_) cut();
    std::vector<std::int64_t> list;
    list.reserve(entries_.size());
    for (const Entry& e : entries_) list.push_back(e.position);
    std::sort(list.begin(), list.end());
    return list;
  }

 private:
  struct Entry {
    double score;
    std::int64_t position;
  };

  void cut() {
    const auto better = [](const Entry& a, const Entry& b) {
      return a.score > b.score || (a.score == b.score && a.position < b.position);
    };
    std::nth_element(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(k_ - 1), entries_.end(), better);
    floor_ = entries_[k_ - 1].score;
    entries_.resize(k_);
  }

  std::size_t k_;
  double floor_ = -1;  // what comes later must be above it; scores are not negative
  std::vector<Entry> entries_;
};

/// Offers rows x columns scores |g|, which begin at position `first`, to `top`, without the positions in `except`
/// (ascending), of which `next` counts those that have been passed.
template <class T>
void add_magnitudes(const T* g, std::int64_t first, std::int64_t n, const std::int64_t* except, std::int64_t excepted,
                    std::int64_t& next, RunningTop& top) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (next < excepted && except[next] == first + i) {
      ++next;
      continue;
    }
    top.add(std::abs(static_cast<double>(g[i])), first + i);
  }
}

}  // namespace espalier
