/// Weights at step 0. Entry e of weight layer l is a pure function of (seed, l, e): the same seed gives the same bits
/// on any number of threads and for any order of construction.
#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

namespace espalier::nn {

/// `fan_in` = inputs of one output (in, or in / groups x kh x kw); `fan_out` = out (x kh x kw), as torch.nn.init counts
/// them.
///   kaiming-normal    normal, std = sqrt(2 / fan_in)                          He et al. 2015, eq. 10
///   kaiming-uniform   uniform in +-sqrt(6 / fan_in)                           the same variance
///   xavier-normal     normal, std = sqrt(2 / (fan_in + fan_out))              Glorot and Bengio 2010, eq. 12
///   xavier-uniform    uniform in +-sqrt(6 / (fan_in + fan_out))               Glorot and Bengio 2010, eq. 16
///   truncated-normal  normal cut at 2 sigma, std = sqrt(1 / fan_in) after     Sonnet's VarianceScaling with its
///   defaults
///                     the cut (sigma = std / 0.87962566103423978)
///   torch-default     uniform in +-sqrt(1 / fan_in), biases too               torch.nn.Linear, torch.nn.Conv2d
/// Biases are zero except with torch-default.
std::vector<std::string> known_initializers();

/// Fills one weight [out, in, ...] in place. layer: its place among the weight layers. Throws Error(usage) for an
/// unknown name or a tensor of fewer than two dimensions.
void initialize_weight(torch::Tensor weight, const std::string& initializer, std::uint64_t seed, std::uint64_t layer);

/// Entries at these flat positions from a second draw of the same distribution, independent of the first: what a
/// survivor of pruning may begin again with. "normal" draws the standard normal distribution.
torch::Tensor draw_again(const std::vector<std::int64_t>& shape, const torch::Tensor& positions, torch::ScalarType type,
                         const std::string& initializer, std::uint64_t seed, std::uint64_t layer);

/// Every Linear, Conv2d and SparseLinear of `model`, numbered in the order of named_modules(), and their biases (a
/// SparseLinear draws its entries when they are kept or looked at); batch norm gets
/// weight 1, bias 0 and fresh statistics. Other modules are left alone. Values are written in place.
void initialize(torch::nn::Module& model, const std::string& initializer, std::uint64_t seed);

/// torch's layers, and SparseLinear and SparseConv2d, draw weights when they are built. Where ours are drawn
/// afterwards, the default generator is put back at the end of this one's life.
class KeepDefaultGenerator {
 public:
  KeepDefaultGenerator();
  ~KeepDefaultGenerator();
  KeepDefaultGenerator(const KeepDefaultGenerator&) = delete;
  KeepDefaultGenerator& operator=(const KeepDefaultGenerator&) = delete;

 private:
  at::Generator generator_;
  torch::Tensor state_;
};

}  // namespace espalier::nn
