/// What a sequence of tasks is judged by: the matrix of accuracies, and the numbers that are made of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace espalier::continual {

/// A number, or why there is none.
struct Metric {
  std::optional<double> value;
  std::string undefined;  ///< the reason; "" where there is a value
};

/// R[i][j]: test accuracy on task j after i tasks have been learnt; R[0] is the network before the first one. An entry
/// that was not measured, or has no meaning, is empty.
class Accuracies {
 public:
  /// A row that is shorter than others lacks its last entries.
  void add_row(std::vector<std::optional<double>> row) { rows_.push_back(std::move(row)); }
  void set(std::int64_t after, std::int64_t task, std::optional<double> accuracy);
  std::optional<double> at(std::int64_t after, std::int64_t task) const;  ///< task from 0; empty outside
  std::int64_t learnt() const { return static_cast<std::int64_t>(rows_.size()) - 1; }
  std::int64_t tasks() const;  ///< columns
  const std::vector<std::vector<std::optional<double>>>& rows() const { return rows_; }

  /// Mean over the learnt tasks of R[T][j].
  Metric average() const;
  /// Backward transfer, Lopez-Paz and Ranzato 2017, eq. 3: mean over j < T of R[T][j] - R[j][j].
  Metric backward_transfer() const;
  /// Forward transfer, the same, eq. 4: mean over j > 1 of R[j-1][j] - R[0][j].
  Metric forward_transfer() const;
  /// Chaudhry et al. 2018, eq. 3: mean over j < T of the best R[l][j], j <= l < T, less R[T][j].
  Metric forgetting() const;

 private:
  std::vector<std::vector<std::optional<double>>> rows_;
};

}  // namespace espalier::continual
