// Networks in training, as the benchmarks of whole steps compare them. Private to bench/.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "espalier/bench/bench.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/models.h"

namespace espalier::bench {

/// What every candidate of a benchmark trains.
struct Task {
  nn::ModelOptions model;  ///< its storage is the candidate's business
  nn::InputShape input;
  std::int64_t classes = 0, batch = 0;
  std::string optimizer = "sgd";  ///< with momentum 0.9; or "adam"
  std::uint64_t seed = 1;
};

/// An MLP: inputs, hidden layers, outputs.
Task mlp_task(const std::vector<std::int64_t>& widths);

using Batch = std::pair<at::Tensor, at::Tensor>;  ///< images [N, C, H, W], labels [N]

std::unique_ptr<torch::optim::Optimizer> make_optimizer(const Task& task, const std::vector<at::Tensor>& parameters);

/// Random images and labels.
class Samples {
 public:
  explicit Samples(const Task& task);
  /// Those of step `s`, copied as a loader does.
  Batch of_step(std::int64_t s) const;

 private:
  std::int64_t batch_;
  at::Tensor images_, labels_, order_;
};

/// A network under a Sparsifier: every weight layer has the same sparsity, a static random pattern; dense for 0. The
/// same task and sparsity give the same weights in either storage.
struct Training {
  Training(const Task& task, const std::string& storage, double sparsity, at::ScalarType type = at::kFloat);
  at::Tensor step(const Batch& batch);  ///< the loss before it
  /// 30 % of the smallest weights of each layer leave, as many others come at random (SET, Mocanu et al. 2018).
  void change_topology();
  /// Multiply-adds of a sample's forward pass, and of a training step, in which the first layer forms no input
  /// gradient: of the weights that are kept, and of all.
  struct Products {
    double forward = 0, step = 0;
  };
  Products stored_products() { return products(true); }
  Products all_products() { return products(false); }

  std::shared_ptr<nn::Network> net;
  std::unique_ptr<Sparsifier> sparsifier;
  std::unique_ptr<torch::optim::Optimizer> optim;

 private:
  Products products(bool stored);

  std::uint64_t seed_, changes_ = 0;
};

/// Rows "rewire", one change of topology, and "step with rewiring", which bears its share of one every `every` steps.
std::vector<Row> rewiring_rows(const Row& step, Training& training, std::int64_t every, double seconds);

}  // namespace espalier::bench
