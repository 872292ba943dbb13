/// `str`: soft threshold reparametrisation. Each layer learns a threshold; what is under it is zero, what is above it
/// comes nearer to zero by as much. How sparse that ends, weight decay and the start of the thresholds decide.
///
/// Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020.
#pragma once

#include <map>

#include "espalier/methods/method.h"

namespace espalier {

class SoftThreshold : public Method {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  bool takes_compressed() const override { return false; }
  void prepare(const MethodContext& context) override;
  void before_update(const MethodContext& context) override;
  void after_step(const MethodContext& context) override;
  NamedTensors parameters() const override;
  NamedTensors archive() const override;
  void restore(const NamedTensors& tensors) override;

 private:
  /// g(s) = 1 / (1 + exp(-s)), the threshold of a layer.
  static double threshold(const at::Tensor& s);

  double s_init_ = -5;
  Duration every_ = Duration::epochs(1);
  std::map<std::string, at::Tensor> s_;         // what each layer learns, by the weight's name  [1] float32
  std::map<std::string, at::Tensor> recorded_;  // M_f as the record last had it: positions
};

}  // namespace espalier
