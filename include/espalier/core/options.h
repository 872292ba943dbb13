/// Options, described once. A struct lists its fields in `describe`; configuration files, the command line, `--help`,
/// the documentation and the resolved configuration all read that one list.
///
///   struct GradualOptions {
///     double final_sparsity = 0.9;
///     Duration every = Duration::steps(100);
///     void describe(Describe& d) {
///       d("final_sparsity", final_sparsity, "share of zeros at the end", between(0, 1));
///       d("every", every, "distance between prunings");
///     }
///   };
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "espalier/core/duration.h"

namespace espalier {

/// Bounds of a number (or of every number of a list). `low`/`high` are excluded where the flags say so.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false;
  bool high_open = false;
  bool contains(double v) const { return (low_open ? v > low : v >= low) && (high_open ? v < high : v <= high); }
  std::string text() const;  ///< "in [0, 1)", "at least 1", ""
};
inline Range between(double low, double high) { return {low, high, false, false}; }
inline Range at_least(double low) { return {low, std::numeric_limits<double>::infinity(), false, true}; }
inline Range above(double low) { return {low, std::numeric_limits<double>::infinity(), true, true}; }
/// [low, high): a sparsity is in from_up_to(0, 1).
inline Range from_up_to(double low, double high) { return {low, high, false, true}; }

/// One described field: a view of a member of an options struct, valid as long as that struct.
struct Option {
  using Value = std::variant<bool*, std::int64_t*, double*, std::string*, Duration*, std::vector<std::int64_t>*,
                             std::vector<double>*, std::vector<std::string>*>;
  std::string name;
  Value value;
  std::string help;
  Range range;                       ///< numbers only
  std::vector<std::string> choices;  ///< strings only; empty = any string

  std::string type() const;        ///< "boolean", "integer", "number", "string", "duration", "list of integers", …
  std::string value_text() const;  ///< the present value in TOML's notation
  /// The values allowed, for people: the range or the choices; "" if anything goes.
  std::string allowed_text() const;
  /// Throws Error(usage) unless the present value is finite, in range and among the choices. `where` starts the
  /// message.
  void validate(const std::string& where) const;
};
using OptionList = std::vector<Option>;

/// Collects the fields of an options struct.
class Describe {
 public:
  template <class T>
  void operator()(const char* name, T& value, const char* help, Range range = {}) {
    list.push_back({name, &value, help, range, {}});
  }
  void operator()(const char* name, std::string& value, const char* help, std::vector<std::string> choices) {
    list.push_back({name, &value, help, {}, std::move(choices)});
  }
  OptionList list;
};

template <class Options>
OptionList describe(Options& options) {
  Describe d;
  options.describe(d);
  return std::move(d.list);
}

}  // namespace espalier
