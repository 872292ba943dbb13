#include "espalier/train/storage_choice.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <unordered_set>

#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/core/version.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/sparse_linear.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/json.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

/// Weights of a layer beyond which a dense one is not even built to be timed: 1 GiB, and as much for its gradient.
constexpr std::int64_t kLargestDense = std::int64_t{1} << 28;
constexpr int kSamples = 5;
constexpr double kSampleMicroseconds = 1000;

/// Numbers for a tensor that draw from no generator: those of a run must stay as they are.
at::Tensor filled(at::IntArrayRef shape) {
  const std::int64_t n = c10::multiply_integers(shape);
  return torch::arange(n).remainder(17).sub(8).div(8).to(torch::kFloat).view(shape);
}

template <class F>
double median_microseconds(const F& f) {
  using Clock = std::chrono::steady_clock;
  const auto time = [&](int repeats) {
    const auto start = Clock::now();
    for (int r = 0; r < repeats; ++r) f();
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / repeats;
  };
  f();
  const int repeats = static_cast<int>(std::clamp(kSampleMicroseconds / std::max(time(1), 0.1), 1.0, 1000.0));
  std::vector<double> samples;
  for (int s = 0; s < kSamples; ++s) samples.push_back(time(repeats));
  std::nth_element(samples.begin(), samples.begin() + kSamples / 2, samples.end());
  return samples[kSamples / 2];
}

/// Forward and backward of the layer on plain tensors, in both storages; conversion counts against the compressed one.
void time_layer(LayerChoice& c, std::int64_t batch) {
  const at::Tensor dy = filled({batch, c.out});
  at::Tensor x = filled({batch, c.in}).set_requires_grad(true);
  at::Tensor w = filled({c.out, c.in}).set_requires_grad(true);
  nn::SparseLinear sparse(std::make_shared<nn::SparseLinearImpl>(torch::nn::LinearOptions(c.in, c.out).bias(false)));
  sparse->weight()->keep(
      torch::tensor(random_subset(c.in * c.out, c.nnz, RandomStream(1, Purpose::topology)), torch::kInt64));
  c.dense_us = median_microseconds([&] {
    torch::linear(x, w).backward(dy);
    x.mutable_grad() = w.mutable_grad() = at::Tensor();
  });
  at::Tensor values = sparse->weight()->stored_values();
  c.compressed_us = median_microseconds([&] {
    sparse->forward(x).backward(dy);
    x.mutable_grad() = values.mutable_grad() = at::Tensor();
  });
}

fs::path cache_file() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  if (xdg != nullptr && *xdg != '\0') return fs::path(xdg) / "espalier" / "storage.json";
  if (home != nullptr && *home != '\0') return fs::path(home) / ".cache" / "espalier" / "storage.json";
  return {};
}

/// What was measured before; an unreadable file is as good as none.
Json load_cache() {
  try {
    if (const fs::path path = cache_file(); !path.empty() && fs::exists(path)) {
      Json cache = read_json(path);
      if (cache.is_object()) return cache;
    }
  } catch (const std::exception& e) {
    log(LogLevel::debug, fmt::format("storage cache: {}", e.what()));
  }
  return Json::object();
}

void save_cache(const Json& cache) {
  const fs::path path = cache_file();
  if (path.empty()) return;
  try {
    fs::create_directories(path.parent_path());
    write_file_atomically(path, to_json_text(cache));
  } catch (const std::exception& e) {
    log(LogLevel::debug, fmt::format("storage cache: {}", e.what()));
  }
}

std::string key_of(const LayerChoice& c, std::int64_t batch) {
  static const std::string cpu = environment().cpu_model;
  return fmt::format("{} | {} | {} threads | {} {} | linear {}x{} nnz {} batch {}", cpu, kernels::active().isa,
                     at::get_num_threads(), version(), commit(), c.in, c.out, c.nnz, batch);
}

}  // namespace

std::vector<LayerChoice> choose_storage(const RunConfig& config, const nn::InputShape& input, std::int64_t classes) {
  const auto method = config.method.make();
  if (!method->sparse_from_start() || !method->takes_compressed() || config.sparsity.sparsity == 0) return {};
  // The model with every linear layer compressed costs nothing before its weights are looked at.
  const auto network = nn::make_model(config.model, input, classes, 1, [](const std::string&) { return true; });
  std::vector<LayerChoice> choices;
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> sizes;
  std::vector<std::size_t> place;  // of each choice among the shapes
  for (const auto& item : network->named_modules("", /*include_self=*/false)) {
    std::vector<std::int64_t> shape;
    const auto* sparse = item.value()->as<nn::SparseLinearImpl>();
    if (sparse != nullptr)
      shape = sparse->weight()->shape();
    else if (const auto* conv = item.value()->as<torch::nn::Conv2dImpl>())
      shape = conv->weight.sizes().vec();
    else
      continue;
    const auto& dense = config.sparsity.dense_layers;
    const bool stays_dense = std::any_of(dense.begin(), dense.end(), [&](const std::string& pattern) {
      return matches(pattern, item.key()) || matches(pattern, item.key() + ".weight");
    });
    if (stays_dense) continue;
    if (sparse != nullptr) {
      LayerChoice c;
      c.layer = item.key();
      c.out = shape[0];
      c.in = shape[1];
      choices.push_back(c);
      place.push_back(shapes.size());
    }
    sizes.push_back(c10::multiply_integers(shape));
    shapes.push_back(std::move(shape));
  }
  if (choices.empty()) return {};
  const bool global = config.sparsity.distribution == "global";
  const auto budgets =
      allocate(shapes, sizes, config.sparsity.sparsity, global ? "uniform" : config.sparsity.distribution);
  Json cache = load_cache();
  bool measured = false;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    LayerChoice& c = choices[i];
    c.nnz = budgets[place[i]];
    if (c.in > kLargestDense / c.out) {
      c.compressed = true;
      continue;
    }
    const std::string key = key_of(c, config.train.batch_size);
    const auto known = cache.find(key);
    if (known != cache.end() && known->is_array() && known->size() == 2 && (*known)[0].is_number() &&
        (*known)[1].is_number()) {
      c.dense_us = (*known)[0];
      c.compressed_us = (*known)[1];
    } else {
      time_layer(c, config.train.batch_size);
      cache[key] = {c.dense_us, c.compressed_us};
      measured = true;
    }
    c.compressed = c.compressed_us < c.dense_us;
  }
  if (measured) save_cache(cache);
  return choices;
}

nn::Compress compressed_layers(const std::vector<LayerChoice>& choices) {
  std::unordered_set<std::string> names;
  for (const auto& c : choices)
    if (c.compressed) names.insert(c.layer);
  return [names = std::move(names)](const std::string& layer) { return names.count(layer) != 0; };
}

std::string to_text(const std::vector<LayerChoice>& choices) {
  std::string text;
  for (const auto& c : choices) {
    if (c.dense_us == 0) {
      text += fmt::format("{}storage of {} ({}x{}): compressed; a dense weight would take {:.1f} GB",
                          text.empty() ? "" : "\n", c.layer, c.in, c.out,
                          4e-9 * static_cast<double>(c.in) * static_cast<double>(c.out));
      continue;
    }
    text += fmt::format(
        "{}storage of {} ({}x{}, density {:.3g}): {}; a batch forward and backward takes {:.0f} us dense, "
        "{:.0f} us compressed",
        text.empty() ? "" : "\n", c.layer, c.in, c.out, static_cast<double>(c.nnz) / static_cast<double>(c.in * c.out),
        c.compressed ? "compressed" : "masked", c.dense_us, c.compressed_us);
  }
  return text;
}

}  // namespace espalier::train
