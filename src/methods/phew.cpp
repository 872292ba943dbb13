#include "espalier/methods/phew.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <unordered_set>

#include "espalier/core/bitmask.h"
#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/allocate.h"

namespace espalier {
namespace {

/// The stream of walk t is (seed, topology, kWalks, t).
constexpr std::uint64_t kWalks = ~std::uint64_t{1};

double preference(double w, WalkBias bias) {
  switch (bias) {
    case WalkBias::magnitude: return std::abs(w);
    case WalkBias::inverse: return 1 / std::max(std::abs(w), static_cast<double>(std::numeric_limits<float>::min()));
    case WalkBias::squared: return w * w;
    case WalkBias::uniform: break;
  }
  return 1;
}

std::int64_t below(RandomStream& random, std::int64_t n) {
  return n == 1 ? 0 : static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(n)));
}

/// A place of `sums` (running sums of shares) in proportion to its share; uniform if all are zero.
std::int64_t pick(const double* sums, std::int64_t n, RandomStream& random) {
  const double total = sums[n - 1];
  if (!(total > 0)) return below(random, n);
  const double x = random.uniform() * total;
  const auto at = std::upper_bound(sums, sums + n, x) - sums;
  // Rounding may put x at the very end: then the last place that has a share.
  return at < n ? at : std::lower_bound(sums, sums + n, total) - sums;
}

/// Kept positions: a bit each, or a set where even that is too much.
class Marks {
 public:
  explicit Marks(std::int64_t size) : few_(size > kMostBits), bits_(few_ ? 0 : size) {}
  /// True if it is new.
  bool add(std::int64_t position) {
    if (few_) return set_.insert(position).second;
    if (bits_.test(position)) return false;
    bits_.set(position, true);
    return true;
  }
  at::Tensor positions() const {
    std::vector<std::int64_t> list;
    if (few_) {
      list.assign(set_.begin(), set_.end());
      std::sort(list.begin(), list.end());
    } else {
      list = bits_.positions();
    }
    return torch::tensor(list, torch::kInt64);
  }

 private:
  static constexpr std::int64_t kMostBits = std::int64_t{1} << 31;
  bool few_;
  BitMask bits_;
  std::unordered_set<std::int64_t> set_;
};

}  // namespace

// ---- steps through one layer ---------------------------------------------------------------------------------------

struct LayerWalk::Steps {
  explicit Steps(const WiredLayer& layer)
      : fan(layer.inputs / layer.groups), outputs(layer.outputs / layer.groups), kernel(layer.kernel) {}
  virtual ~Steps() = default;
  virtual std::int64_t forward(std::int64_t input, RandomStream& random) const = 0;
  virtual std::int64_t backward(std::int64_t output, RandomStream& random) const = 0;
  /// Which of the kernel's entries.
  virtual std::int64_t entry(std::int64_t first, RandomStream& random) const = 0;

  std::int64_t fan, outputs, kernel;  // inputs and outputs of a group
};

namespace {

class UniformSteps : public LayerWalk::Steps {
 public:
  using Steps::Steps;
  std::int64_t forward(std::int64_t input, RandomStream& random) const override {
    return input / fan * outputs + below(random, outputs);
  }
  std::int64_t backward(std::int64_t output, RandomStream& random) const override {
    return output / outputs * fan + below(random, fan);
  }
  std::int64_t entry(std::int64_t, RandomStream& random) const override { return below(random, kernel); }
};

/// Running sums along each row (backward) and each column (forward) of f.
class TableSteps : public LayerWalk::Steps {
 public:
  TableSteps(const WiredLayer& layer, WalkBias bias)
      : Steps(layer), bias_(bias), weights_(layer.weight->weights().to(torch::kFloat).contiguous()) {
    const auto* w = weights_.data_ptr<float>();
    const std::int64_t pairs = layer.outputs * fan;
    std::vector<double> f(static_cast<std::size_t>(pairs));
    rows_.resize(f.size());
    columns_.resize(f.size());
    for (std::int64_t p = 0; p < pairs; ++p) {
      double sum = 0;
      for (std::int64_t k = 0; k < kernel; ++k) sum += preference(w[p * kernel + k], bias);
      f[static_cast<std::size_t>(p)] = sum;
    }
    for (std::int64_t j = 0; j < layer.outputs; ++j) {
      double sum = 0;
      for (std::int64_t i = 0; i < fan; ++i) rows_[index(j * fan + i)] = sum += f[index(j * fan + i)];
    }
    // Column (group g, input i) is outputs long; a few columns at a time, for the sake of caches.
    constexpr std::int64_t kTile = 16;
    for (std::int64_t g = 0; g < layer.groups; ++g) {
      for (std::int64_t begin = 0; begin < fan; begin += kTile) {
        const std::int64_t end = std::min(begin + kTile, fan);
        double sums[kTile] = {};
        for (std::int64_t j = 0; j < outputs; ++j) {
          const double* row = &f[index((g * outputs + j) * fan)];
          for (std::int64_t i = begin; i < end; ++i) {
            columns_[index((g * fan + i) * outputs + j)] = sums[i - begin] += row[i];
          }
        }
      }
    }
  }

  std::int64_t forward(std::int64_t input, RandomStream& random) const override {
    return input / fan * outputs + pick(&columns_[index(input * outputs)], outputs, random);
  }
  std::int64_t backward(std::int64_t output, RandomStream& random) const override {
    return output / outputs * fan + pick(&rows_[index(output * fan)], fan, random);
  }
  std::int64_t entry(std::int64_t first, RandomStream& random) const override {
    if (kernel == 1) return 0;
    const auto* w = weights_.data_ptr<float>() + first;
    double total = 0;
    for (std::int64_t k = 0; k < kernel; ++k) total += preference(w[k], bias_);
    if (!(total > 0)) return below(random, kernel);
    double x = random.uniform() * total;
    std::int64_t last = 0;
    for (std::int64_t k = 0; k < kernel; ++k) {
      const double share = preference(w[k], bias_);
      if (share == 0) continue;
      last = k;
      if ((x -= share) < 0) break;
    }
    return last;
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  WalkBias bias_;
  at::Tensor weights_;
  std::vector<double> rows_, columns_;
};

/// Weights drawn when they are looked at; a proposal is accepted with probability f / (largest f).
class DrawnSteps : public LayerWalk::Steps {
 public:
  DrawnSteps(const WiredLayer& layer, WalkBias bias, SparseWeight::InitialDraw draw)
      : Steps(layer), bias_(bias), draw_(std::move(draw)), largest_(preference(draw_.largest, bias)) {
    ESPALIER_CHECK(
        std::isfinite(draw_.largest) && bias != WalkBias::inverse, ErrorKind::usage,
        "{}: a compressed layer of {} x {} weights is walked without tables, which needs a bound on |w| (and "
        "cannot prefer small weights); use phew, phew-squared or uniform-walks and one of the known "
        "initialisers, or masked storage",
        layer.weight->name(), layer.outputs, fan);
  }
  std::int64_t forward(std::int64_t input, RandomStream& random) const override {
    const std::int64_t group = input / fan, i = input % fan;
    return group * outputs + accepted(
                                 outputs, [&](std::int64_t j) { return (group * outputs + j) * fan + i; }, random);
  }
  std::int64_t backward(std::int64_t output, RandomStream& random) const override {
    return output / outputs * fan + accepted(
                                        fan, [&](std::int64_t i) { return output * fan + i; }, random);
  }
  std::int64_t entry(std::int64_t first, RandomStream& random) const override {
    if (kernel == 1) return 0;
    std::vector<std::int64_t> positions;
    for (std::int64_t k = 0; k < kernel; ++k) positions.push_back(first + k);
    auto sums = preferences(positions);
    for (std::size_t k = 1; k < sums.size(); ++k) sums[k] += sums[k - 1];
    return pick(sums.data(), kernel, random);
  }

 private:
  std::vector<double> preferences(const std::vector<std::int64_t>& positions) const {
    const at::Tensor w = draw_.at(torch::tensor(positions, torch::kInt64)).to(torch::kDouble);
    std::vector<double> f(positions.size());
    for (std::size_t k = 0; k < f.size(); ++k) f[k] = preference(w.data_ptr<double>()[k], bias_);
    return f;
  }

  template <class Pair>
  std::int64_t accepted(std::int64_t n, const Pair& pair, RandomStream& random) const {
    constexpr std::size_t kProposals = 16;  // at a time: a draw costs more to start than to make
    constexpr int kRounds = 1 << 16;        // without one accepted: all weights are zero
    const double largest = largest_ * static_cast<double>(kernel);
    std::vector<std::int64_t> proposals(kProposals), positions;
    for (int round = 0; round < kRounds && largest > 0; ++round) {
      positions.clear();
      for (auto& p : proposals) {
        p = below(random, n);
        for (std::int64_t k = 0; k < kernel; ++k) positions.push_back(pair(p) * kernel + k);
      }
      const auto f = preferences(positions);
      for (std::size_t p = 0; p < kProposals; ++p) {
        double sum = 0;
        for (std::int64_t k = 0; k < kernel; ++k)
          sum += f[p * static_cast<std::size_t>(kernel) + static_cast<std::size_t>(k)];
        if (random.uniform() * largest < sum) return proposals[p];
      }
    }
    return below(random, n);
  }

  WalkBias bias_;
  SparseWeight::InitialDraw draw_;
  double largest_;
};

std::unique_ptr<const LayerWalk::Steps> make_steps(const WiredLayer& layer, WalkBias bias, std::int64_t table_limit) {
  if (bias == WalkBias::uniform) return std::make_unique<UniformSteps>(layer);
  auto draw = layer.weight->initial_draw();
  if (draw && layer.weight->numel() / layer.kernel > table_limit) {
    return std::make_unique<DrawnSteps>(layer, bias, std::move(*draw));
  }
  ESPALIER_CHECK(layer.weight->nnz() == layer.weight->numel(), ErrorKind::usage,
                 "{}: walks begin from all weights of a layer, and {} of {} are left", layer.weight->name(),
                 layer.weight->nnz(), layer.weight->numel());
  return std::make_unique<TableSteps>(layer, bias);
}

}  // namespace

LayerWalk::LayerWalk(const WiredLayer& layer, WalkBias bias, std::int64_t table_limit)
    : layer_(layer), steps_(make_steps(layer, bias, table_limit)) {}
LayerWalk::~LayerWalk() = default;
LayerWalk::LayerWalk(LayerWalk&&) noexcept = default;

std::int64_t LayerWalk::forward(std::int64_t input, RandomStream& random) const {
  return steps_->forward(input, random);
}
std::int64_t LayerWalk::backward(std::int64_t output, RandomStream& random) const {
  return steps_->backward(output, random);
}
std::int64_t LayerWalk::kernel(std::int64_t input, std::int64_t output) const {
  return (output * steps_->fan + input % steps_->fan) * layer_.kernel;
}
std::int64_t LayerWalk::entry(std::int64_t input, std::int64_t output, RandomStream& random) const {
  const std::int64_t first = kernel(input, output);
  return first + steps_->entry(first, random);
}

// ---- walks through the network -------------------------------------------------------------------------------------

namespace {

/// A layer as walks see it, and what they keep of it.
struct Stage {
  LayerWalk steps;
  Marks* marks;  // null: the layer stays dense
};

class Walker {
 public:
  Walker(const WiredNetwork& network, const std::vector<SparseWeight*>& weights, const WalkOptions& options)
      : options_(options) {
    for (const SparseWeight* w : weights) marks_.push_back(std::make_unique<Marks>(w->numel()));
    const auto stage = [&](const WiredLayer& layer) {
      const auto at = std::find(weights.begin(), weights.end(), layer.weight);
      return Stage{LayerWalk(layer, options.bias, options.table_limit),
                   at == weights.end() ? nullptr : marks_[static_cast<std::size_t>(at - weights.begin())].get()};
    };
    for (const WiredLayer& layer : network.line) {
      line_.push_back(stage(layer));
      result_.visits.emplace_back(static_cast<std::size_t>(layer.outputs), 0);
    }
    for (const WiredBypass& bypass : network.bypasses) {
      if (!bypass.through) continue;
      projections_.push_back({bypass.first, bypass.last, stage(*bypass.through)});
    }
    for (const Projection& p : projections_) {
      from_[p.first] = &p;
      to_[p.last] = &p;
    }
  }

  void one_walk() {
    RandomStream random(options_.seed, Purpose::topology, kWalks, static_cast<std::uint64_t>(result_.walks));
    const std::int64_t turn = result_.walks / 2;
    if (result_.walks++ % 2 == 0)
      forward(turn % line_.front().steps.layer().inputs, random);
    else
      backward(turn % line_.back().steps.layer().outputs, random);
  }

  WalkResult& result() { return result_; }
  WalkResult finish() {
    for (const auto& m : marks_) result_.kept.push_back(m->positions());
    return std::move(result_);
  }

 private:
  struct Projection {
    std::size_t first, last;
    Stage stage;
  };

  /// The projection that this walk takes at layer l, if there is one and the coin says so.
  static const Projection* taken(const std::map<std::size_t, const Projection*>& at, std::size_t l,
                                 RandomStream& random) {
    const auto found = at.find(l);
    return found != at.end() && random.uniform() < 0.5 ? found->second : nullptr;
  }

  /// From a unit of the layer before to an input of this one: a place of the channel, where it was flattened.
  static std::int64_t input_of(const Stage& stage, std::int64_t unit, RandomStream& random) {
    const std::int64_t spread = stage.steps.layer().spread;
    return spread == 1 ? unit : unit * spread + below(random, spread);
  }

  void keep(const Stage& stage, std::int64_t input, std::int64_t output, RandomStream& random) {
    if (options_.whole_kernels) {
      const std::int64_t first = stage.steps.kernel(input, output);
      for (std::int64_t k = 0; k < stage.steps.layer().kernel && stage.marks != nullptr; ++k) {
        result_.nnz += stage.marks->add(first + k);
      }
      return;
    }
    const std::int64_t position = stage.steps.entry(input, output, random);
    if (stage.marks != nullptr) result_.nnz += stage.marks->add(position);
  }

  void forward(std::int64_t start, RandomStream& random) {
    std::int64_t unit = start;
    for (std::size_t l = 0; l < line_.size();) {
      const Projection* projection = taken(from_, l, random);
      const Stage& stage = projection != nullptr ? projection->stage : line_[l];
      const std::int64_t input = l == 0 ? unit : input_of(stage, unit, random);
      unit = stage.steps.forward(input, random);
      keep(stage, input, unit, random);
      const std::size_t reached = projection != nullptr ? projection->last : l;
      ++result_.visits[reached][static_cast<std::size_t>(unit)];
      l = reached + 1;
    }
  }

  void backward(std::int64_t start, RandomStream& random) {
    std::int64_t unit = start;
    for (std::size_t l = line_.size(); l > 0;) {
      ++result_.visits[l - 1][static_cast<std::size_t>(unit)];
      const Projection* projection = taken(to_, l - 1, random);
      const Stage& stage = projection != nullptr ? projection->stage : line_[l - 1];
      const std::int64_t input = stage.steps.backward(unit, random);
      keep(stage, input, unit, random);
      unit = input / stage.steps.layer().spread;
      l = projection != nullptr ? projection->first : l - 1;
    }
  }

  const WalkOptions& options_;
  std::vector<std::unique_ptr<Marks>> marks_;
  std::vector<Stage> line_;
  std::vector<Projection> projections_;
  std::map<std::size_t, const Projection*> from_, to_;
  WalkResult result_;
};

}  // namespace

WalkResult walk(const WiredNetwork& network, const std::vector<SparseWeight*>& weights, std::int64_t budget,
                const WalkOptions& options) {
  std::int64_t positions = 0;
  for (const SparseWeight* w : weights) positions += w->numel();
  ESPALIER_CHECK(budget <= positions, ErrorKind::usage, "walks cannot keep {} of {} weights", budget, positions);
  Walker walker(network, weights, options);
  const std::int64_t most = 1000 + 10 * positions;
  while (walker.result().nnz < budget) {
    ESPALIER_CHECK(walker.result().walks < most, ErrorKind::usage,
                   "after {} walks {} of the {} weights to keep are found: walks seldom take what is small. Choose a "
                   "higher sparsity, or another method below it",
                   walker.result().walks, walker.result().nnz, budget);
    walker.one_walk();
  }
  return walker.finish();
}

void Phew::describe(Describe& d) {
  d("kernels", kernels_, "what a step keeps of a convolution's kernel: one entry, or the whole kernel",
    {"entry", "whole"});
  PruneAtInit::describe(d);
}

void Phew::check(const MethodContext& context) const {
  PruneAtInit::check(context);
  const std::string& distribution = context.sparsity.distribution;
  ESPALIER_CHECK(distribution == "uniform" || distribution == "global", ErrorKind::usage,
                 "[sparsity].distribution = \"{}\" has no effect here: walks decide how much each layer keeps; set "
                 "\"global\"",
                 distribution);
}

std::vector<at::Tensor> Phew::survivors(const MethodContext& context) {
  std::int64_t positions = 0;
  for (const SparseWeight* w : context.weights) positions += w->numel();
  const std::int64_t budget = kept_count(positions, context.sparsity.sparsity);
  WalkOptions options;
  options.bias = bias_;
  options.whole_kernels = kernels_ == "whole";
  options.seed = context.seed;
  const auto start = std::chrono::steady_clock::now();
  result_ = walk(wire(context), context.weights, budget, options);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  log_info(fmt::format("{} walks in {:.0f} ms keep {} weights, {} over the {} asked for: the last walk is finished",
                       result_.walks, took.count(), result_.nnz, result_.nnz - budget, budget));
  return std::exchange(result_.kept, {});
}

}  // namespace espalier
