#include "espalier/train/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "espalier/core/error.h"
#include "espalier/train/durable_file.h"

namespace espalier::train {
namespace {

void append_number(std::string& out, double x) {
  if (std::isnan(x)) {
    out += "\"nan\"";
  } else if (std::isinf(x)) {
    out += x > 0 ? "\"inf\"" : "\"-inf\"";
  } else {
    // Not nlohmann's own: Grisu2 misses the shortest text now and then.
    std::array<char, 32> text{};
    const char* end = std::to_chars(text.data(), text.data() + text.size(), x).ptr;
    const std::string_view digits(text.data(), static_cast<std::size_t>(end - text.data()));
    out += digits;
    if (digits.find_first_of(".e") == std::string_view::npos) out += ".0";
  }
}

template <class BasicJson>
void append_quoted(std::string& out, const std::string& text) {
  const auto plain = [](char c) { return c >= 0x20 && c < 0x7f && c != '"' && c != '\\'; };
  if (std::all_of(text.begin(), text.end(), plain))  // keys are, and nlohmann's serializer takes ten times as long
    out.append(1, '"').append(text).append(1, '"');
  else
    out += BasicJson(text).dump(-1, ' ', false, BasicJson::error_handler_t::replace);
}

// indent < 0: everything on one line.
template <class BasicJson>
void append(std::string& out, const BasicJson& value, int indent, int depth) {
  if (value.is_number_float()) return append_number(out, value.template get<double>());
  if (value.is_string()) {
    append_quoted<BasicJson>(out, value.template get_ref<const std::string&>());
    return;
  }
  if (value.is_number_integer() && !value.is_number_unsigned()) {
    out += std::to_string(value.template get<std::int64_t>());
    return;
  }
  if (!value.is_structured()) {
    out += value.dump();
    return;
  }
  bool flat = indent < 0 || value.empty();
  if (value.is_array() && !flat) {
    flat = true;
    for (const auto& item : value) flat = flat && !item.is_structured();
  }
  const auto line_break = [&](int at_depth) {
    if (!flat) out.append(1, '\n').append(static_cast<std::size_t>(indent * at_depth), ' ');
  };
  const char* separator = flat && indent >= 0 ? ", " : ",";
  out += value.is_array() ? '[' : '{';
  bool first = true;
  for (auto it = value.begin(); it != value.end(); ++it) {
    if (!first) out += separator;
    first = false;
    line_break(depth + 1);
    if (value.is_object()) {
      append_quoted<BasicJson>(out, it.key());
      out += indent < 0 ? ":" : ": ";
    }
    append(out, *it, indent, depth + 1);
  }
  line_break(depth);
  out += value.is_array() ? ']' : '}';
}

}  // namespace

template <class BasicJson>
std::string to_json_line(const BasicJson& value) {
  std::string out;
  append(out, value, -1, 0);
  return out;
}

template <class BasicJson>
std::string to_json_text(const BasicJson& value) {
  std::string out;
  append(out, value, 2, 0);
  return out + "\n";
}

template std::string to_json_line(const nlohmann::ordered_json&);
template std::string to_json_line(const nlohmann::json&);
template std::string to_json_text(const nlohmann::ordered_json&);
template std::string to_json_text(const nlohmann::json&);

double number_from_json(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  fail(ErrorKind::data, "found {}, expected a number, \"nan\", \"inf\" or \"-inf\"", to_json_line(value));
}

Json read_json(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    fail(ErrorKind::data, "{}: is not JSON: {}", path.string(), e.what());
  }
}

}  // namespace espalier::train
