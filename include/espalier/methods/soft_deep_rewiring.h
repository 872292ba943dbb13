/// `soft-deep-r`: deep rewiring without a fixed number of connections. A connection that would change its sign sleeps,
/// walks at random below zero, and wakes where it comes back above it.
///
/// Bellec, Kappel, Maass, Legenstein, "Deep Rewiring: Training very sparse deep networks", ICLR 2018, algorithm 2.
#pragma once

#include <cstdint>
#include <map>

#include "espalier/methods/method.h"
#include "espalier/methods/reinit.h"

namespace espalier {

/// theta_min of the authors' program: there a random walk with this pull and noise, and without a loss, is above zero
/// in the share `density` of its time. It is exp(-theta l1 / temperature) above zero and level below it.
double sleeping_floor(double density, double l1, double temperature);

class SoftDeepRewiring : public Method {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool takes_compressed() const override { return false; }
  void prepare(const MethodContext& context) override;
  void before_update(const MethodContext& context) override;
  void after_step(const MethodContext& context) override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 private:
  /// Of every position of a weight: its sign for life (int8), and theta where it sleeps (float32, at most 0).
  struct Connections {
    at::Tensor sign, theta;
  };
  bool acts(const Clock& clock) const;
  void change(SparseWeight& weight, Connections& connections, const MethodContext& context) const;

  double l1_ = 1e-5;
  double temperature_ = 1e-8;
  Duration every_ = Duration::steps(10);
  Duration end_ = Duration::percent(100);
  Reinit reinit_;
  std::map<std::string, Connections> connections_;  // by the weight's name
};

}  // namespace espalier
