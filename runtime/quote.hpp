// Names and snippets from untrusted files as part of a one-line message: control and non-ASCII bytes become
// \xNN, and what is longer than `limit` bytes is cut. Knows nothing of where the text comes from.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stagecoach {

inline std::string printable(std::string_view text, std::size_t limit = 120) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15U];
    }
  }
  if (text.size() > limit) out += "...";
  return out;
}

}  // namespace stagecoach
