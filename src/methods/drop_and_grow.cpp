#include "espalier/methods/drop_and_grow.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/core/log.h"
#include "espalier/methods/static_random.h"

namespace espalier {

void BirthOptions::describe(Describe& d) {
  d("birth", birth,
    "what new connections begin with. auto: zero where the reparametrisation lets them move from there, else random",
    {"auto", "zero", "random"});
  d("birth_scale", birth_scale, "standard deviation of the weight w that random births begin with", above(0));
}

bool BirthOptions::at_zero(const MethodContext& context) const {
  if (birth != "auto") return birth == "zero";
  return context.weights.empty() || context.weights.front()->reparametrisation().is_identity();
}

void BirthOptions::check(const MethodContext& context) const {
  if (context.weights.empty() || !at_zero(context)) return;
  const Reparametrisation& psi = context.weights.front()->reparametrisation();
  ESPALIER_CHECK(psi.is_identity(), ErrorKind::usage,
                 "[method].birth = \"zero\" with [reparam].alpha = {}: the derivative of phi|phi|^(alpha-1) is 0 at 0, "
                 "so new connections would never move; use \"auto\" or \"random\"",
                 psi.alpha());
}

void BirthOptions::log_choice(const std::string& method, const MethodContext& context) const {
  if (context.weights.empty()) return;
  if (at_zero(context)) {
    log_info(fmt::format("{}: new connections begin at zero", method));
    return;
  }
  const Reparametrisation& psi = context.weights.front()->reparametrisation();
  log_info(fmt::format("{}: new connections begin at random w of standard deviation {:g}{}", method, birth_scale,
                       birth == "random"
                           ? std::string()
                           : fmt::format(", because with alpha = {:g} none moves away from zero", psi.alpha())));
}

at::Tensor BirthOptions::draw(const SparseWeight& weight, std::int64_t count, const MethodContext& context) const {
  if (at_zero(context)) return {};
  const RandomStream random(context.seed, Purpose::birth, static_cast<std::uint64_t>(weight.layer()),
                            static_cast<std::uint64_t>(context.clock.step));
  at::Tensor w = torch::empty({count}, torch::kDouble);
  auto* value = w.data_ptr<double>();
  for (std::int64_t i = 0; i < count; ++i) {
    const double normal = random.normal_at(static_cast<std::uint64_t>(i));
    value[i] = birth_scale * std::copysign(std::max(std::abs(normal), 0.01), normal);
  }
  return weight.reparametrisation().inverse(w);
}

std::int64_t total_nnz(const std::vector<SparseWeight*>& weights) {
  std::int64_t sum = 0;
  for (const SparseWeight* w : weights) sum += w->nnz();
  return sum;
}

double cosine_fraction(double fraction, std::int64_t t, std::int64_t end) {
  constexpr double kPi = 3.14159265358979323846;
  return fraction / 2 * (1 + std::cos(kPi * static_cast<double>(t) / static_cast<double>(end)));
}

void DropAndGrow::describe(Describe& d) {
  d("every", every_, "distance between changes of the topology");
  d("end", end_, "no change from here on: the connections that are there stay");
  reinit_.describe(d);
  birth_.describe(d);
}

void DropAndGrow::check(const MethodContext& context) const {
  ESPALIER_CHECK(context.sparsity.sparsity > 0, ErrorKind::usage,
                 "method {} needs [sparsity].sparsity above 0 (a network without zeros is method \"dense\")", name_);
  ESPALIER_CHECK(every_.in_steps(context.clock) >= 1, ErrorKind::usage, "[method].every = \"{}\" is less than one step",
                 every_.text());
  end_step(context.clock);  // throws where the clock lacks what the duration needs
  birth_.check(context);
}

void DropAndGrow::prepare(const MethodContext& context) {
  keep_random(context, reinit_, /*none_empty=*/true);
  birth_.log_choice(name_, context);
}

std::int64_t DropAndGrow::end_step(const Clock& clock) const {
  if (clock.total_steps == 0 && end_ == Duration::percent(100)) return std::numeric_limits<std::int64_t>::max();
  return end_.in_steps(clock);
}

bool DropAndGrow::due(const Clock& clock) const {
  if (clock.step >= end_step(clock) || (clock.total_steps > 0 && clock.step >= clock.total_steps)) return false;
  return clock.step % every_.in_steps(clock) == 0;
}

void DropAndGrow::after_step(const MethodContext& context) {
  if (!due(context.clock)) return;
  const std::int64_t before = total_nnz(context.weights);
  change(context);
  ESPALIER_ASSERT(total_nnz(context.weights) == before);
  for (const SparseWeight* w : context.weights) ESPALIER_ASSERT(w->nnz() > 0);
}

}  // namespace espalier
