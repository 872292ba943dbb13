#include "espalier/methods/reinit.h"

#include <torch/torch.h>

#include <cmath>

#include "espalier/core/error.h"
#include "espalier/methods/probe.h"
#include "espalier/nn/init.h"

namespace espalier {

std::vector<std::string> known_reinits() { return {"same", "fresh", "xavier", "layer", "unit"}; }

void reinitialise(SparseWeight& weight, const std::string& how, const std::string& initializer, std::uint64_t seed) {
  if (how == "same") return;
  const torch::NoGradGuard no_grad;
  const at::Tensor active = weight.active();
  const std::int64_t nnz = active.numel();
  if (nnz == 0) return;
  const auto draw = [&](const std::string& distribution) {
    return nn::draw_again(weight.shape(), active, weight.values().scalar_type(), distribution, seed,
                          static_cast<std::uint64_t>(weight.layer()));
  };
  const std::int64_t fan_in = weight.numel() / weight.shape()[0];
  at::Tensor w;
  if (how == "fresh") {
    ESPALIER_CHECK(!initializer.empty(), ErrorKind::usage,
                   "reinit = \"fresh\" draws from the model's own distribution, which is not known here; set "
                   "Probe::initializer, or choose xavier, layer or unit");
    w = draw(initializer);
  } else if (how == "xavier") {
    w = draw("xavier-normal");
  } else if (how == "layer") {
    w = draw("normal") *
        std::sqrt(2 * static_cast<double>(weight.numel()) / (static_cast<double>(fan_in) * static_cast<double>(nnz)));
  } else {
    ESPALIER_CHECK(how == "unit", ErrorKind::usage, "reinit = \"{}\": unknown. Known: {}", how,
                   fmt::join(known_reinits(), ", "));
    const at::Tensor unit = active.div(fan_in, "floor");
    const at::Tensor kept = torch::bincount(unit, {}, weight.shape()[0]);
    w = draw("normal");
    w = w * kept.index_select(0, unit).to(torch::kDouble).reciprocal().mul(2).sqrt().to(w.scalar_type());
  }
  weight.rewire({active, active, weight.reparametrisation().inverse(w), std::nullopt});
}

void Reinit::describe(Describe& d) {
  d("reinit", how,
    "what kept weights begin with: their values in the dense network; a fresh draw of the same distribution; xavier; "
    "normal with the std scaled to what a layer or an output unit keeps",
    known_reinits());
}

void Reinit::apply(SparseWeight& weight, const MethodContext& context) const {
  reinitialise(weight, how, context.probe != nullptr ? context.probe->initializer : "", context.seed);
}

}  // namespace espalier
