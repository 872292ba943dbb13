#include "espalier/ops/update.h"

#include <torch/torch.h>

#include "espalier/kernels/dispatch.h"
#include "ops/dispatch_type.h"

namespace espalier::ops {
namespace {

/// Entries that a thread takes at least.
constexpr std::int64_t kUpdatedEntries = 32768;

/// step(kernels, tensors, begin, end) over all entries.
template <class Step>
void run(const UpdateTensors& given, const Step& step) {
  with_type(given.phi, [&](auto zero) {
    using T = decltype(zero);
    const auto pointer = [&](const at::Tensor& t) -> T* {
      if (!t.defined()) return nullptr;
      ESPALIER_ASSERT(t.numel() == given.phi.numel() && t.is_contiguous() &&
                      t.scalar_type() == given.phi.scalar_type());
      return t.data_ptr<T>();
    };
    kernels::UpdateTensors<T> t;
    t.phi = pointer(given.phi);
    t.w = pointer(given.w);
    t.g = pointer(given.gradient);
    t.first = pointer(given.first);
    t.second = pointer(given.second);
    t.power = pointer(given.power);
    t.alpha = given.alpha;
    t.decay_w = given.decay_w;
    at::parallel_for(0, given.phi.numel(), kUpdatedEntries,
                     [&](std::int64_t begin, std::int64_t end) { step(kernels::active().update<T>(), t, begin, end); });
  });
}

}  // namespace

void update(const UpdateTensors& tensors, const SgdRule& rule) {
  run(tensors, [&](const auto& k, const auto& t, std::int64_t begin, std::int64_t end) { k.sgd(t, rule, begin, end); });
}

void update(const UpdateTensors& tensors, const AdamRule& rule) {
  run(tensors,
      [&](const auto& k, const auto& t, std::int64_t begin, std::int64_t end) { k.adam(t, rule, begin, end); });
}

}  // namespace espalier::ops
