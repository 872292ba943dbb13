/// What methods that drop connections and grow others share: the random start, when a change is due, what leaves, what
/// newborn connections begin with, and the promise that the number of weights stays what it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/core/duration.h"
#include "espalier/methods/method.h"
#include "espalier/methods/reinit.h"
#include "espalier/methods/select.h"

namespace espalier {

/// What a new connection begins with. Zero leaves the network's function as it is. But with Powerpropagation psi'(0) =
/// 0: what is born at zero never moves, so there births must be small and random instead.
struct BirthOptions {
  std::string birth = "auto";
  double birth_scale = 0.01;
  void describe(Describe& d);
  /// Throws Error(usage) for births at zero that could never move.
  void check(const MethodContext& context) const;
  /// Says in the log what births begin with, and why.
  void log_choice(const std::string& method, const MethodContext& context) const;
  /// phi of `count` births of this step: undefined (zeros), or the inverse of w = birth_scale N(0, 1), where |w| below
  /// birth_scale / 100 is raised to that.  [count] float64
  at::Tensor draw(const SparseWeight& weight, std::int64_t count, const MethodContext& context) const;

 private:
  bool at_zero(const MethodContext& context) const;
};

/// Sum of nnz.
std::int64_t total_nnz(const std::vector<SparseWeight*>& weights);

/// Random masks before step 0, a change every so often, the same number of weights after each change. A method says
/// what changes.
class DropAndGrow : public Method {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  void prepare(const MethodContext& context) override;
  void after_step(const MethodContext& context) override;

 protected:
  explicit DropAndGrow(std::string name, Duration every, Duration end)
      : every_(every), end_(end), name_(std::move(name)) {}
  /// Whether a change is due after clock.step steps: every `every`, before `end`, and never after the last step.
  virtual bool due(const Clock& clock) const;
  /// `end` as a step; "100%" of a run whose length is not known never comes.
  std::int64_t end_step(const Clock& clock) const;
  /// Drops and grows. The number of weights in all must be the same afterwards, and no layer empty.
  virtual void change(const MethodContext& context) = 0;

  Duration every_, end_;
  Reinit reinit_;
  BirthOptions birth_;

 private:
  std::string name_;
};

/// (fraction / 2)(1 + cos(pi t / end)): the share of connections that a change moves (RigL, equation 1).
double cosine_fraction(double fraction, std::int64_t t, std::int64_t end);

}  // namespace espalier
