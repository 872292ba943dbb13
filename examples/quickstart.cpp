// Makes a LibTorch model of one's own sparse: 90 % of its weights are gone at the end, and it has learnt the built-in
// glyphs. Ends with status 0 if accuracy and sparsity are what they should be (measured: 0.95 and exactly 0.9).
#include <torch/torch.h>

#include <cstdio>

#include "espalier/data/dataset.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/train/environment.h"

struct Net : torch::nn::Module {
  torch::nn::Linear fc1{register_module("fc1", torch::nn::Linear(784, 300))};
  torch::nn::Linear fc2{register_module("fc2", torch::nn::Linear(300, 10))};
  torch::Tensor forward(torch::Tensor x) { return fc2(torch::relu(fc1(x.flatten(1)))); }
};

int main() {
  espalier::cure_blas();
  espalier::set_threads(0);
  torch::manual_seed(1);

  espalier::data::DataOptions options;  // the built-in glyphs
  options.train_size = 8000;
  options.test_size = 2000;
  const auto data = espalier::data::load_dataset(options, /*seed=*/1);
  const auto split = espalier::data::split_train(data.train.size(), /*validation=*/0, /*seed=*/1);
  const auto normal = espalier::data::normalisation(data.train, split.train, options);
  const espalier::data::Loader batches(data.train, split.train, normal, {100, /*shuffle=*/true});
  const std::int64_t epochs = 15, steps = epochs * batches.batches_per_epoch();

  auto net = std::make_shared<Net>();
  espalier::Sparsifier sparsifier(*net, espalier::make_method("gradual-magnitude"), espalier::Powerprop(/*alpha=*/1.5),
                                  espalier::SparsifierOptions().sparsity(0.9).total_steps(steps));
  torch::optim::SGD sgd(sparsifier.parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  for (std::int64_t step = 0; step < steps; ++step) {
    const auto batch = batches.batch(step / batches.batches_per_epoch(), step % batches.batches_per_epoch());
    torch::cross_entropy_loss(net->forward(batch.images), batch.labels).backward();
    sparsifier.step(sgd);
  }

  const torch::NoGradGuard no_grad;
  std::vector<std::int64_t> all;
  for (std::int64_t i = 0; i < data.test.size(); ++i) all.push_back(i);
  const auto test = espalier::data::Loader(data.test, all, normal, {data.test.size()}).batch(0, 0);
  const double accuracy = net->forward(test.images).argmax(1).eq(test.labels).to(torch::kDouble).mean().item<double>();
  std::printf("test accuracy %.4f with %lld of %lld weights (sparsity %.4f)\n", accuracy,
              static_cast<long long>(sparsifier.nnz()), static_cast<long long>(sparsifier.positions()),
              sparsifier.sparsity());
  return accuracy > 0.9 && sparsifier.nnz() == 23820 ? 0 : 1;
}
