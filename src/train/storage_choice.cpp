#include "espalier/train/storage_choice.h"

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <unordered_set>

#include "espalier/core/log.h"
#include "espalier/core/random.h"
#include "espalier/core/version.h"
#include "espalier/kernels/dispatch.h"
#include "espalier/methods/allocate.h"
#include "espalier/methods/sparsifier.h"
#include "espalier/nn/init.h"
#include "espalier/nn/sparse_conv.h"
#include "espalier/nn/sparse_linear.h"
#include "espalier/train/durable_file.h"
#include "espalier/train/environment.h"
#include "espalier/train/json.h"

namespace espalier::train {
namespace {

namespace fs = std::filesystem;

/// Weights of a layer beyond which a dense one is not even built to be timed: 1 GiB, and as much for its gradient.
constexpr std::int64_t kLargestDense = std::int64_t{1} << 28;
constexpr std::size_t kSamples = 5;
constexpr double kSampleMicroseconds = 1000;
constexpr double kPatienceMicroseconds = 50'000;  // with samples that others have disturbed
constexpr double kWaitingShare = 0.1;             // of a sample, above which others have disturbed it

/// Numbers for a tensor that draw from no generator: those of a run must stay as they are.
at::Tensor filled(at::IntArrayRef shape) {
  const std::int64_t n = c10::multiply_integers(shape);
  return torch::arange(n).remainder(17).sub(8).div(8).to(torch::kFloat).view(shape);
}

double wall_microseconds() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Of this thread.
double processor_microseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return 1e6 * static_cast<double>(time.tv_sec) + 1e-3 * static_cast<double>(time.tv_nsec);
}

template <class F>
double microseconds_by(double (*clock)(), int repeats, const F& f) {
  const double start = clock();
  for (int r = 0; r < repeats; ++r) f();
  return (clock() - start) / repeats;
}

template <class F>
int repeats_of(double (*clock)(), const F& f) {
  f();
  return static_cast<int>(std::clamp(kSampleMicroseconds / std::max(microseconds_by(clock, 1, f), 0.1), 1.0, 1000.0));
}

double median(std::vector<double> samples) {
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

/// Of samples during which no thread waited for a core; nothing if there are too few of them.
template <class F>
std::optional<double> undisturbed_microseconds(const F& f) {
  int repeats = repeats_of(wall_microseconds, f);
  std::vector<double> samples;
  for (const double start = wall_microseconds(); samples.size() < kSamples;) {
    const CoreWaits waits;
    const double us = microseconds_by(wall_microseconds, repeats, f);
    if (waits.longest_microseconds() <= kWaitingShare * us * repeats) {
      samples.push_back(us);
    } else {
      if (wall_microseconds() - start > kPatienceMicroseconds) return {};
      repeats = (repeats + 1) / 2;  // a shorter one may come through
    }
  }
  return median(std::move(samples));
}

/// On one thread, whose processor time other programs lengthen little.
template <class F>
std::optional<double> one_thread_microseconds(const F& f) {
  const OneThread alone;
  const int repeats = repeats_of(processor_microseconds, f);
  std::vector<double> samples;
  for (std::size_t s = 0; s < kSamples; ++s) samples.push_back(microseconds_by(processor_microseconds, repeats, f));
  return median(std::move(samples));
}

/// A layer to be timed: compressed, without an entry so far, and what goes into it.
struct Candidate {
  LayerChoice choice;
  bool measurable = true;                         // else a dense weight would fill the memory
  std::vector<std::int64_t> weight;               // shape
  std::optional<kernels::ConvShape> convolution;  // else linear
  std::vector<std::int64_t> input, output;        // shapes of a batch
};

at::Tensor dense_layer(const Candidate& c, const at::Tensor& x, const at::Tensor& w) {
  if (!c.convolution) return torch::linear(x, w);
  const auto& s = *c.convolution;
  return torch::conv2d(x, w, {}, s.stride, s.padding, s.dilation, s.groups);
}

std::shared_ptr<nn::CompressedLayer> compressed_layer(const Candidate& c) {
  if (!c.convolution) {
    return std::make_shared<nn::SparseLinearImpl>(torch::nn::LinearOptions(c.weight[1], c.weight[0]).bias(false));
  }
  return std::make_shared<nn::SparseConv2dImpl>(*c.convolution, /*with_bias=*/false);
}

nn::Activation tiles_of(const Candidate& c, const at::Tensor& plain) {
  return c.convolution ? nn::Activation(plain).images(ops::conv_halo(*c.convolution)) : nn::Activation(plain).tiled();
}

/// The layer in both storages and the conversion between them; nothing if other programs disturb it, which they cannot
/// on one thread.
std::optional<LayerTimes> time_layer(const Candidate& c, bool one_thread) {
  const auto microseconds = [&](const auto& f) {
    return one_thread ? one_thread_microseconds(f) : undisturbed_microseconds(f);
  };
  const at::Tensor plain = filled(c.input);
  at::Tensor x = plain.clone().set_requires_grad(true), w = filled(c.weight).set_requires_grad(true);
  const at::Tensor dy = filled(c.output);
  const auto dense = microseconds([&] {
    dense_layer(c, x, w).backward(dy);
    x.mutable_grad() = w.mutable_grad() = at::Tensor();
  });
  if (!dense) return {};

  const nn::KeepDefaultGenerator untouched;
  const auto layer = compressed_layer(c);
  layer->weight()->keep(
      torch::tensor(random_subset(c.choice.weights, c.choice.nnz, RandomStream(1, Purpose::topology)), torch::kInt64));
  at::Tensor values = layer->weight()->stored_values();
  const nn::Activation tiles = tiles_of(c, plain);
  at::Tensor data = tiles.data().clone().set_requires_grad(true);
  const nn::Activation in = tiles.map([&](const at::Tensor&) { return data; });
  const auto forward = [&] {
    return c.convolution ? static_cast<nn::SparseConv2dImpl&>(*layer).compute(in)
                         : static_cast<nn::SparseLinearImpl&>(*layer).compute(in);
  };
  const at::Tensor gradient = torch::zeros_like(forward().data());
  const auto compressed = microseconds([&] {
    forward().data().backward(gradient);
    data.mutable_grad() = values.mutable_grad() = at::Tensor();
  });
  const auto conversion = compressed ? microseconds([&] { tiles_of(c, plain).plain(); }) : std::nullopt;
  if (!conversion) return {};
  return LayerTimes{*dense, *compressed, *conversion, one_thread};
}

/// The storages with the least time in all: along the layers, the best way to each storage of each. The first layer
/// gets plain activations, and what the last one gives is small.
void choose(std::vector<Candidate>& candidates) {
  constexpr int kPlain = 0, kTiles = 1;
  std::array<double, 2> best = {0, std::numeric_limits<double>::infinity()};
  std::vector<std::array<int, 2>> from;
  for (const Candidate& c : candidates) {
    std::array<double, 2> next{};
    from.push_back({});
    for (const int to : {kPlain, kTiles}) {
      const double stay = best[to], change = best[1 - to] + c.choice.times.conversion_us;
      from.back()[to] = stay <= change ? to : 1 - to;
      next[to] = std::min(stay, change) + (to == kTiles ? c.choice.times.compressed_us : c.choice.times.dense_us);
      if (to == kPlain && !c.measurable) next[to] = std::numeric_limits<double>::infinity();
    }
    best = next;
  }
  int storage = best[kTiles] < best[kPlain] ? kTiles : kPlain;
  for (std::size_t i = candidates.size(); i-- > 0;) {
    candidates[i].choice.compressed = storage == kTiles;
    storage = from[i][static_cast<std::size_t>(storage)];
  }
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

/// Beside what other runs have measured meanwhile.
void add_to_cache(const Json& measured) {
  const fs::path path = cache_file();
  if (path.empty() || measured.empty()) return;
  try {
    Json cache = load_cache();
    cache.update(measured);
    fs::create_directories(path.parent_path());
    write_file_atomically(path, to_json_text(cache));
  } catch (const std::exception& e) {
    log(LogLevel::debug, fmt::format("storage cache: {}", e.what()));
  }
}

Json to_json(const LayerTimes& times) {
  return {{"dense_us", times.dense_us},
          {"compressed_us", times.compressed_us},
          {"conversion_us", times.conversion_us},
          {"one_thread", times.one_thread}};
}

std::optional<LayerTimes> known_times(const Json& cache, const std::string& key) {
  try {
    const Json& entry = cache.at(key);
    return LayerTimes{entry.at("dense_us"), entry.at("compressed_us"), entry.at("conversion_us"),
                      entry.at("one_thread")};
  } catch (const Json::exception&) {  // not there, or not as we write it
    return {};
  }
}

std::string key_of(const LayerChoice& c, std::int64_t batch) {
  static const std::string cpu = environment().cpu_model;
  return fmt::format("{} | {} | {} threads | {} {} | {} nnz {} batch {}", cpu, kernels::active().isa,
                     at::get_num_threads(), version(), commit(), c.shape, c.nnz, batch);
}

/// The least image that gives an output of this size: what its edges cut off does not count.
std::int64_t input_size(const kernels::ConvShape& s, int axis, std::int64_t output) {
  return (output - 1) * s.stride[axis] + s.dilation[axis] * (s.kernel[axis] - 1) + 1 - 2 * s.padding[axis];
}

/// The weight layers of the model, without the dense_layers.
std::vector<Candidate> candidates_of(const RunConfig& config, const nn::InputShape& input, std::int64_t classes) {
  // With all layers compressed and no entries in them, a model of any size is built and run in no time.
  const auto network = nn::make_model(config.model, input, classes, 1, [](const std::string&) { return true; });
  for (const auto& weight : nn::compressed_weights(*network)) weight->keep(torch::empty({0}, torch::kInt64));
  const auto modules = network->named_modules("", /*include_self=*/false);
  std::vector<Candidate> list;
  for (const nn::LayerCost& cost : nn::layer_costs(*network)) {
    if (matches_layer(config.sparsity.dense_layers, cost.name)) continue;
    Candidate c;
    c.choice.layer = cost.name;
    c.choice.weights = cost.weights;
    c.choice.shape = fmt::format("{}x{}", cost.weight_shape[1], cost.weight_shape[0]);
    c.weight = cost.weight_shape;
    c.measurable = cost.weights <= kLargestDense;
    c.input = {config.train.batch_size, cost.weight_shape[1]};
    c.output = {config.train.batch_size};
    c.output.insert(c.output.end(), cost.output_shape.begin(), cost.output_shape.end());
    if (const auto* conv = modules[cost.name]->as<nn::SparseConv2dImpl>()) {
      const kernels::ConvShape& s = conv->shape();
      c.convolution = s;
      c.input = {config.train.batch_size, s.in, input_size(s, 0, c.output[2]), input_size(s, 1, c.output[3])};
      const auto pair = [](const kernels::ConvShape::Pair& p) { return fmt::format("{}x{}", p[0], p[1]); };
      c.choice.shape =
          fmt::format("{}x{}x{} @ {}x{}, stride {}, padding {}, dilation {}, groups {}", s.in, s.out, pair(s.kernel),
                      c.output[2], c.output[3], pair(s.stride), pair(s.padding), pair(s.dilation), s.groups);
    }
    list.push_back(std::move(c));
  }
  return list;
}

}  // namespace

std::vector<LayerChoice> choose_storage(const RunConfig& config, const nn::InputShape& input, std::int64_t classes) {
  const auto method = config.method.make();
  const double sparsity = method->stored_sparsity(config.sparsity.sparsity);
  if (sparsity <= 0 || !method->takes_compressed()) return {};
  auto candidates = candidates_of(config, input, classes);
  if (candidates.empty()) return {};
  std::vector<std::vector<std::int64_t>> shapes;
  std::vector<std::int64_t> sizes;
  for (const Candidate& c : candidates) {
    shapes.push_back(c.weight);
    sizes.push_back(c.choice.weights);
  }
  const bool global = config.sparsity.distribution == "global";
  const auto budgets = allocate(shapes, sizes, sparsity, global ? "uniform" : config.sparsity.distribution);
  const Json cache = load_cache();
  Json measured = Json::object();
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    LayerChoice& c = candidates[i].choice;
    c.nnz = budgets[i];
    if (!candidates[i].measurable) continue;
    const std::string key = key_of(c, config.train.batch_size);
    if (const auto alike = known_times(measured, key)) {  // an earlier layer of this model
      c.times = *alike;
      continue;
    }
    std::optional<LayerTimes> times = known_times(cache, key);
    if (!times || times->one_thread) {
      if (const auto undisturbed = time_layer(candidates[i], /*one_thread=*/false)) times = undisturbed;
      if (!times) times = time_layer(candidates[i], /*one_thread=*/true);
      measured[key] = to_json(*times);
    }
    c.times = *times;
  }
  add_to_cache(measured);
  choose(candidates);
  std::vector<LayerChoice> choices;
  for (const Candidate& c : candidates) choices.push_back(c.choice);
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
    if (!text.empty()) text += '\n';
    if (c.times.dense_us == 0) {
      text += fmt::format("storage of {} ({}): compressed; a dense weight would take {:.1f} GB", c.layer, c.shape,
                          4e-9 * static_cast<double>(c.weights));
      continue;
    }
    text += fmt::format(
        "storage of {} ({}, density {:.3g}): {}; a batch forward and backward takes {:.0f} us dense, {:.0f} us "
        "compressed, {:.0f} us between plain tensors and tiles{}",
        c.layer, c.shape, static_cast<double>(c.nnz) / static_cast<double>(c.weights),
        c.compressed ? "compressed" : "masked", c.times.dense_us, c.times.compressed_us, c.times.conversion_us,
        c.times.one_thread ? ", on one thread" : "");
  }
  if (std::any_of(choices.begin(), choices.end(), [](const LayerChoice& c) { return c.times.one_thread; })) {
    text +=
        "\nstorage: other programs kept the cores busy, so the layers above that say so were timed on one thread; the "
        "next run tries again";
  }
  return text;
}

}  // namespace espalier::train
