#include "runtime/utf8.hpp"

#include <cassert>
#include <cstdint>
#include <cstring>

namespace stagecoach {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// A lead byte decides the number of bytes and the range of the second one; later bytes are always 80..BF.
struct Lead {
  std::size_t length;  // 0: cannot start a character
  unsigned char second_low;
  unsigned char second_high;
};

constexpr Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};  // continuation bytes, and C0 and C1, which start only overlong forms
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};  // above are the surrogates
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // up to U+10FFFF
  return {0, 0, 0};
}

std::size_t ascii_prefix(std::string_view bytes) {
  std::size_t i = 0;
  for (; i + sizeof(std::uint64_t) <= bytes.size(); i += sizeof(std::uint64_t)) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if ((word & 0x8080808080808080U) != 0) break;
  }
  while (i < bytes.size() && static_cast<unsigned char>(bytes[i]) < 0x80) ++i;
  return i;
}

// Appends the valid form of `bytes` to `out` and returns how many bytes were used: all but a truncated end.
std::size_t append_valid(std::string_view bytes, std::string& out) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::size_t valid = valid_utf8_prefix(bytes.substr(done));
    out.append(bytes.substr(done, valid));
    done += valid;
    if (done == bytes.size()) break;
    const Utf8Step step = utf8_step(bytes.substr(done));
    if (step.state == Utf8State::kTruncated) break;
    out.append(kReplacement);
    done += step.length;
  }
  return done;
}

}  // namespace

Utf8Step utf8_step(std::string_view bytes) {
  assert(!bytes.empty());
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const Lead lead = lead_of(at(0));
  if (lead.length == 0) return {Utf8State::kInvalid, 1};
  for (std::size_t i = 1; i < lead.length; ++i) {
    if (i == bytes.size()) return {Utf8State::kTruncated, i};
    const unsigned char low = i == 1 ? lead.second_low : static_cast<unsigned char>(0x80);
    const unsigned char high = i == 1 ? lead.second_high : static_cast<unsigned char>(0xBF);
    if (at(i) < low || at(i) > high) return {Utf8State::kInvalid, i};
  }
  return {Utf8State::kValid, lead.length};
}

std::size_t valid_utf8_prefix(std::string_view bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    if (static_cast<unsigned char>(bytes[done]) < 0x80) {
      done += ascii_prefix(bytes.substr(done));
      continue;
    }
    const Utf8Step step = utf8_step(bytes.substr(done));
    if (step.state != Utf8State::kValid) break;
    done += step.length;
  }
  return done;
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (append_valid(bytes, out) < bytes.size()) out.append(kReplacement);
  return out;
}

std::string StreamDecoder::push(std::string_view token_bytes) {
  std::string out;
  // A pending prefix is completed byte by byte, so that the slice itself need not be copied behind it.
  while (!pending_.empty() && !token_bytes.empty()) {
    pending_.push_back(token_bytes.front());
    const Utf8Step step = utf8_step(pending_);
    if (step.state == Utf8State::kInvalid) {  // the new byte does not belong to it, and is looked at afresh below
      out.append(kReplacement);
      pending_.clear();
      break;
    }
    token_bytes.remove_prefix(1);
    if (step.state == Utf8State::kValid) {
      out.append(pending_);
      pending_.clear();
    }
  }
  const std::size_t done = append_valid(token_bytes, out);
  pending_.append(token_bytes.substr(done));
  return out;
}

std::string StreamDecoder::finish() {
  std::string out(pending_.empty() ? std::string_view() : kReplacement);
  pending_.clear();
  return out;
}

}  // namespace stagecoach
