/// Comma-separated values, RFC 4180.
#pragma once

#include <string>

namespace espalier {

/// A field, quoted where it has to be.
inline std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

}  // namespace espalier
