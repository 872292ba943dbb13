// What Powerpropagation and masks add to a training step, beside the same dense network in the same run.
//   bench_step [rounds] [threads]
// In each round every variant takes the same number of steps, one variant after the other in an order that turns; a
// ratio is formed within the round, and the median over rounds is printed with its quartiles. Data are fixed tensors:
// the data path is not timed.
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "espalier/kernels/dispatch.h"
#include "espalier/methods/registry.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/models.h"
#include "espalier/train/environment.h"

namespace {

using namespace espalier;

struct Variant {
  std::string name;
  double alpha;
  double sparsity;
  Update update = Update::gradient;
  bool plain = false;  // torch's optimiser alone, without a Sparsifier
  double momentum = 0;
  std::shared_ptr<nn::Network> net{};
  std::unique_ptr<Sparsifier> sparsifier{};
  std::unique_ptr<torch::optim::SGD> sgd{};
  std::vector<double> seconds{};
};

double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v[static_cast<std::size_t>(q * static_cast<double>(v.size() - 1) + 0.5)];
}

void measure(const std::string& model, const nn::InputShape& shape, int rounds, int steps, double momentum) {
  std::vector<Variant> variants;
  variants.push_back({"dense, torch alone", 1, 0, Update::gradient, true});
  variants.push_back({"dense", 1, 0});
  for (const double alpha : {1.25, 1.5, 2.0, 3.0, 4.0, 1.3, 2.7}) variants.push_back({"powerprop", alpha, 0});
  variants.push_back({"powerprop target", 2, 0, Update::target});
  variants.push_back({"masked 90 %", 1, 0.9});
  variants.push_back({"masked 90 %, powerprop", 2, 0.9});
  for (Variant& v : variants) {
    nn::ModelOptions options;
    options.name = model;
    options.widths = model == "mlp" ? std::vector<std::int64_t>{300, 100} : options.widths;
    v.net = nn::make_model(options, shape, 10, 1);
    const auto sgd = torch::optim::SGDOptions(0.01).momentum(momentum);
    if (v.plain) {
      v.sgd = std::make_unique<torch::optim::SGD>(v.net->parameters(), sgd);
      continue;
    }
    v.sparsifier = std::make_unique<Sparsifier>(*v.net, make_method(v.sparsity > 0 ? "static-random" : "dense"),
                                                Powerprop(v.alpha, v.update), SparsifierOptions().sparsity(v.sparsity));
    v.sgd = std::make_unique<torch::optim::SGD>(v.sparsifier->parameters(), sgd);
  }
  const auto x = torch::rand({128, shape.channels, shape.height, shape.width});
  const auto y = torch::randint(10, {128}, torch::kInt64);
  for (int round = -1; round < rounds; ++round) {  // the first warms up
    for (std::size_t k = 0; k < variants.size(); ++k) {
      Variant& v = variants[(k + static_cast<std::size_t>(round + 1)) % variants.size()];
      const auto start = std::chrono::steady_clock::now();
      for (int s = 0; s < steps; ++s) {
        torch::cross_entropy_loss(v.net->forward(x), y).backward();
        if (v.plain) {
          v.sgd->step();
          for (auto& p : v.net->parameters()) p.mutable_grad() = at::Tensor();
        } else {
          v.sparsifier->step(*v.sgd);
        }
      }
      const double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (round >= 0) v.seconds.push_back(t / steps);
    }
  }
  std::printf(
      "\n%s, batch 128, momentum %g: median microseconds a step, ratio to dense (quartiles), %d rounds of %d steps\n",
      model.c_str(), momentum, rounds, steps);
  const auto& dense = variants[1].seconds;
  for (const Variant& v : variants) {
    std::vector<double> ratio;
    for (std::size_t i = 0; i < dense.size(); ++i) ratio.push_back(v.seconds[i] / dense[i]);
    std::printf("  %-24s alpha %-5g %8.1f   %.3f (%.3f to %.3f)\n", v.name.c_str(), v.alpha,
                1e6 * quantile(v.seconds, 0.5), quantile(ratio, 0.5), quantile(ratio, 0.25), quantile(ratio, 0.75));
  }
}

}  // namespace

int main(int argc, char** argv) {
  cure_blas();
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 60;
  set_threads(argc > 2 ? std::atoi(argv[2]) : 0);
  std::printf("threads %d, instruction set %s, BLAS core %s\n", at::get_num_threads(), kernels::active().isa,
              environment().blas.core.c_str());
  measure("lenet-300-100", {1, 28, 28}, rounds, 20, 0);
  measure("lenet-300-100", {1, 28, 28}, rounds, 20, 0.9);
  measure("cifar10-cnn", {3, 32, 32}, rounds, 5, 0.9);
  return 0;
}
