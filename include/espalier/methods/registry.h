/// The methods by name: the list behind `[method] name = …`, `espalier list methods` and the contract tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "espalier/methods/method.h"

namespace espalier {

struct MethodInfo {
  std::string name;
  std::string description;
  std::unique_ptr<Method> (*make)();
};

const std::vector<MethodInfo>& known_methods();

/// Throws Error(usage) for an unknown name, with the nearest known one.
std::unique_ptr<Method> make_method(const std::string& name);

}  // namespace espalier
