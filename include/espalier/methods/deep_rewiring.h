/// `deep-r`: deep rewiring. Each connection has a sign for life; one that would change it leaves, and another is tried
/// at a random place. Noise and a pull towards zero keep connections moving.
///
/// Bellec, Kappel, Maass, Legenstein, "Deep Rewiring: Training very sparse deep networks", ICLR 2018, algorithm 1.
#pragma once

#include <map>

#include "espalier/methods/drop_and_grow.h"

namespace espalier {

/// What connections are born with: as good as zero, but with a sign.
constexpr double kDeepRewiringBirth = 1e-12;

/// Before an update: adds l1 sign(w) + sqrt(2 temperature / lr) N(0, 1) to dL/dw of each connection, which plain SGD
/// multiplies by -lr.
void add_pull_and_noise(SparseWeight& weight, double l1, double temperature, const MethodContext& context);

class DeepRewiring : public DropAndGrow {
 public:
  DeepRewiring() : DropAndGrow("deep-r", Duration::steps(10), Duration::percent(100)) {}
  void describe(Describe& d) override;
  void prepare(const MethodContext& context) override;
  void before_update(const MethodContext& context) override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 protected:
  void change(const MethodContext& context) override;

 private:
  at::Tensor births(const SparseWeight& weight, std::int64_t count, const MethodContext& context) const;

  double l1_ = 1e-5;
  double temperature_ = 1e-8;
  std::map<std::string, at::Tensor>
      sign_;  // of each connection, in the order of active(), by the weight's name  [nnz] int8
};

}  // namespace espalier
