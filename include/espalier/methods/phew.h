/// PHEW, paths with higher edge-weights: a sparse network made of random walks from inputs to outputs that prefer large
/// weights (Patil, Dovrolis, "PHEW: Constructing Sparse Networks that Learn Fast and Generalize Well Without Training
/// Data", ICML 2021). Neither data nor gradients.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "espalier/core/random.h"
#include "espalier/methods/prune_at_init.h"
#include "espalier/methods/wired.h"

namespace espalier {

/// What a walk's step is proportional to.
enum class WalkBias {
  magnitude,  ///< |w|: PHEW
  inverse,    ///< 1 / |w|
  squared,    ///< w^2
  uniform,    ///< 1
};

/// Steps through one layer. From input i, forward, to output j with probability f(j, i) / sum over j' of f(j', i);
/// backward from j to i with f(j, i) / sum over i' of f(j, i'). f sums the bias over the kernel that joins the two;
/// where the sum is zero, all are equally likely. A step takes the time of a binary search in prefix sums. For a
/// compressed layer that is not stored yet and has more than `table_limit` pairs (j, i), there are no tables: j is
/// drawn uniformly and accepted with probability f / (largest f), each weight drawn when it is looked at: the same
/// distribution, in constant expected time and no memory.
class LayerWalk {
 public:
  static constexpr std::int64_t kTableLimit = std::int64_t{1} << 24;

  LayerWalk(const WiredLayer& layer, WalkBias bias, std::int64_t table_limit = kTableLimit);
  ~LayerWalk();
  LayerWalk(LayerWalk&&) noexcept;

  std::int64_t forward(std::int64_t input, RandomStream& random) const;
  std::int64_t backward(std::int64_t output, RandomStream& random) const;
  /// Position of the weight that stands for the pair: an entry of its kernel, drawn like a step.
  std::int64_t entry(std::int64_t input, std::int64_t output, RandomStream& random) const;
  /// Position of the first entry of the pair's kernel; the others follow.
  std::int64_t kernel(std::int64_t input, std::int64_t output) const;
  const WiredLayer& layer() const { return layer_; }

  struct Steps;  // how a step is drawn

 private:
  WiredLayer layer_;
  std::unique_ptr<const Steps> steps_;
};

struct WalkOptions {
  WalkBias bias = WalkBias::magnitude;
  bool whole_kernels = false;  ///< a step keeps all entries of a kernel and not one
  std::uint64_t seed = 0;
  std::int64_t table_limit = LayerWalk::kTableLimit;
};

struct WalkResult {
  std::vector<at::Tensor> kept;  ///< positions, for each weight that was to be made sparse
  std::int64_t nnz = 0;
  std::int64_t walks = 0;
  std::vector<std::vector<std::int64_t>> visits;  ///< walks through each output unit of each layer of the line
};

/// Walks, one forward and one backward in turn, start units round-robin, until at least `budget` entries of `weights`
/// are kept; the walk that reaches it is finished, so up to (entries of a path - 1) more may be. A walk goes along the
/// line; identity bypasses are ignored, a projection is taken in place of what it goes around with probability 1/2, the
/// same forward and backward. Where an image is flattened, the place of a channel is drawn uniformly. Walk t draws from
/// a stream of its own: the masks of a smaller budget are contained in those of a larger one. Throws Error(usage) where
/// walks no longer find new weights.
WalkResult walk(const WiredNetwork& network, const std::vector<SparseWeight*>& weights, std::int64_t budget,
                const WalkOptions& options);

/// `phew`, and by their bias `phew-inverse`, `phew-squared`, `uniform-walks`.
class Phew : public PruneAtInit {
 public:
  Phew() = default;
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  /// Of the last `prepare`: walks through each output unit of each layer, and how many in all.
  const WalkResult& walks() const { return result_; }

 protected:
  explicit Phew(WalkBias bias) : bias_(bias) {}
  std::vector<at::Tensor> survivors(const MethodContext& context) override;

 private:
  WalkBias bias_ = WalkBias::magnitude;
  std::string kernels_ = "entry";
  WalkResult result_;
};

struct PhewInverse : Phew {
  PhewInverse() : Phew(WalkBias::inverse) {}
};
struct PhewSquared : Phew {
  PhewSquared() : Phew(WalkBias::squared) {}
};
struct UniformWalks : Phew {
  UniformWalks() : Phew(WalkBias::uniform) {}
};

}  // namespace espalier
