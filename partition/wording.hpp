// Words of users in messages: what they may have meant, and how to show it on one line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// The one of `known` that `word` is most likely a slip of (edit distance; '-' and '_' and cases count as
// equal), or empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// "; did you mean max_new_tokens?" or empty.
std::string suggestion(std::string_view word, const std::vector<std::string>& known);

// `text` on one line, without control characters and cut to a length that fits a message.
std::string shown(std::string_view text);

}  // namespace stagecoach
