#pragma once

// UTF-8 as tokenizers need it: where valid text ends, and how broken bytes become U+FFFD. Knows nothing of
// tokens. "Invalid" follows the Unicode Standard's table 3-7 (no overlong forms, no surrogates, nothing above
// U+10FFFF). A broken sequence is as long as the longest prefix of a well-formed character that it is (its
// "maximal subpart"), at least one byte, and becomes one U+FFFD: the rule of Python's bytes.decode("utf-8",
// errors="replace").

#include <cstddef>
#include <string>
#include <string_view>

namespace stagecoach {

enum class Utf8State {
  kValid,      // one well-formed character
  kInvalid,    // a maximal subpart that no further byte can complete
  kTruncated,  // everything that is left, and more bytes could complete it
};

struct Utf8Step {
  Utf8State state;
  std::size_t length;  // bytes, at least 1
};

// What stands at the start of `bytes`, which must not be empty.
Utf8Step utf8_step(std::string_view bytes);

// Length in bytes of the longest prefix that is well-formed.
std::size_t valid_utf8_prefix(std::string_view bytes);

std::string to_valid_utf8(std::string_view bytes);

// Turns bytes that arrive in arbitrary slices (tokens often hold part of a character) into valid UTF-8, never
// splitting a character. All pushes and the finish together equal to_valid_utf8 of all bytes together.
class StreamDecoder {
 public:
  // Complete characters so far, with replacements for what can no longer become one.
  std::string push(std::string_view token_bytes);
  // What is left (at most one U+FFFD); the decoder is then as new.
  std::string finish();

 private:
  std::string pending_;  // a proper prefix of one character, so at most 3 bytes between calls
};

}  // namespace stagecoach
