// Finds where generated text ends because a stop string is complete, however tokens cut it.
//
// Text comes in pieces of bytes. Of all occurrences of all stop strings the one that is complete first counts; when
// several are complete at the same byte, the longest. Knows nothing of tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

class StopStrings {
 public:
  StopStrings() = default;  // nothing stops
  // None may be empty.
  explicit StopStrings(std::vector<std::string> stops);

  // Takes the next piece and returns what of the text so far is new and cannot belong to a stop string any more. What
  // comes after a stop string is dropped.
  std::string push(std::string_view bytes);
  // The text has ended: what was held back.
  std::string finish();

  bool stopped() const { return stopped_; }
  // When stopped: bytes of the whole text that stand before the stop string.
  std::int64_t text_bytes() const { return given_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;  // the end of the text that may begin a stop string
  std::int64_t given_ = 0;
  bool stopped_ = false;
};

}  // namespace stagecoach
