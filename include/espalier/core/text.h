/// UTF-8 text that was written by somebody else, on a terminal.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

namespace espalier {

/// Columns that it takes: characters, not bytes.
inline std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

/// Its first `width` characters; control characters of somebody's file do not reach the terminal.
inline std::string printable(const std::string& text, std::size_t width = std::string::npos) {
  std::string out;
  std::size_t columns = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) != 0x80 && columns++ == width) break;
    out += byte < 0x20 || byte == 0x7F ? '?' : c;
  }
  return out;
}

}  // namespace espalier
