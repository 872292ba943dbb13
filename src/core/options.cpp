#include "espalier/core/options.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "espalier/core/error.h"

namespace espalier {
namespace {

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\t': out += "\\t"; break;
      case '\r': out += "\\r"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
          out += fmt::format("\\u{:04x}", static_cast<int>(c));
        else
          out += c;
    }
  }
  return out + "\"";
}

std::string number_text(double v) {
  std::string s = fmt::format("{}", v);  // shortest text that reads back as v
  if (s.find_first_of(".en") == std::string::npos) s += ".0";
  return s;
}

std::string text_of(bool v) { return v ? "true" : "false"; }
std::string text_of(std::int64_t v) { return std::to_string(v); }
std::string text_of(double v) { return number_text(v); }
std::string text_of(const std::string& v) { return quoted(v); }
std::string text_of(const Duration& v) { return quoted(v.text()); }
template <class T>
std::string text_of(const std::vector<T>& list) {
  std::string out = "[";
  for (const T& v : list) out += (out.size() > 1 ? ", " : "") + text_of(v);
  return out + "]";
}

void check_number(double v, const Range& range, const std::string& where) {
  ESPALIER_CHECK(std::isfinite(v), ErrorKind::usage, "{}{} is not a finite number", where, v);
  ESPALIER_CHECK(range.contains(v), ErrorKind::usage, "{}{} is out of range; expected {}", where, v, range.text());
}

}  // namespace

std::string Range::text() const {
  const bool has_low = std::isfinite(low);
  const bool has_high = std::isfinite(high);
  if (has_low && has_high) return fmt::format("in {}{}, {}{}", low_open ? '(' : '[', low, high, high_open ? ')' : ']');
  if (has_low) return fmt::format("{} {}", low_open ? "above" : "at least", low);
  if (has_high) return fmt::format("{} {}", high_open ? "below" : "at most", high);
  return "";
}

std::string Option::type() const {
  static const char* const kNames[] = {"boolean",  "integer",          "number",          "string",
                                       "duration", "list of integers", "list of numbers", "list of strings"};
  return kNames[value.index()];
}

std::string Option::value_text() const {
  return std::visit([](const auto* v) { return text_of(*v); }, value);
}

std::string Option::allowed_text() const {
  if (choices.empty()) return range.text();
  std::string out = "one of ";
  for (std::size_t i = 0; i < choices.size(); ++i) out += (i > 0 ? ", " : "") + choices[i];
  return out;
}

void Option::validate(const std::string& where) const {
  std::visit(
      [&](const auto* v) {
        using T = std::decay_t<decltype(*v)>;
        if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>) {
          check_number(static_cast<double>(*v), range, where);
        } else if constexpr (std::is_same_v<T, std::vector<double>> || std::is_same_v<T, std::vector<std::int64_t>>) {
          for (const auto x : *v) check_number(static_cast<double>(x), range, where);
        } else if constexpr (std::is_same_v<T, std::string>) {
          if (choices.empty() || std::find(choices.begin(), choices.end(), *v) != choices.end()) return;
          std::string known;
          for (const auto& c : choices) known += (known.empty() ? "" : ", ") + c;
          fail(ErrorKind::usage, "{}\"{}\": unknown value. Known: {}.{}", where, *v, known, suggestion(*v, choices));
        }
      },
      value);
}

}  // namespace espalier
