/// How the weight layers of a network follow each other: what a walk from an input to an output can take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace espalier::nn {

struct Wiring {
  /// A way around line[first] … line[last].
  struct Bypass {
    std::size_t first = 0, last = 0;
    std::string layer;  ///< a weight layer of its own (a projection); "" for the identity
  };
  std::int64_t channels = 0;       ///< of an input
  std::vector<std::string> line;   ///< weight layers ("fc1", "layer1.0.conv1") from the input to the output
  std::vector<Bypass> bypasses{};  ///< by `first`; none overlaps another
};

}  // namespace espalier::nn
