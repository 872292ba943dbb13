/// JSON as the run directory uses it: keys keep their order, numbers survive the trip, nothing invalid is ever written.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::train {

/// Objects keep the order in which their keys were added, so the same run writes the same bytes.
using Json = nlohmann::ordered_json;

/// One line, no spaces, no line break at the end. Floating-point numbers are the shortest text that reads back as the
/// same double, always with a point or an exponent (1.0, 0.1, 1e-07); those that JSON can't hold are the strings "nan",
/// "inf" and "-inf"; bytes that are not UTF-8 become U+FFFD. BasicJson: Json or nlohmann::json.
template <class BasicJson>
std::string to_json_line(const BasicJson& value);

/// The same for people: indented by two, lists of plain values on one line, a line break at the end.
template <class BasicJson>
std::string to_json_text(const BasicJson& value);

/// A number as to_json_line wrote it: also reads "nan", "inf" and "-inf". Throws Error(data) for anything else.
double number_from_json(const Json& value);

/// Throws Error(data) naming the file and the place in it.
Json read_json(const std::filesystem::path& path);

}  // namespace espalier::train
