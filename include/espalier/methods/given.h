/// `given`: the structure comes from elsewhere, a file of masks or another run, and never changes.
#pragma once

#include <string>

#include "espalier/methods/method.h"

namespace espalier {

/// The positions stand in Probe::structure. [sparsity].sparsity may be 0, or must be what they come to.
class Given : public Method {
 public:
  void describe(Describe& d) override;
  void check(const MethodContext& context) const override;
  bool sparse_from_start() const override { return true; }
  bool is_static() const override { return true; }
  void prepare(const MethodContext& context) override;

 private:
  std::string structure_;  // where it came from; read by whoever fills Probe::structure
};

}  // namespace espalier
