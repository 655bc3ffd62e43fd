// Words of messages: what others may have meant by theirs and how to show those on one line; sizes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// The one of `known` that `word` is most likely a slip of (edit distance; '-' and '_' and cases count as
// equal), or empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// "; did you mean max_new_tokens?" or empty.
std::string suggestion(std::string_view word, const std::vector<std::string>& known);

// `text` on one line, control characters as \xNN, and cut to a length that fits a message. For what users wrote
// themselves: letters of all scripts stay.
std::string shown(std::string_view text);
// The same of names and snippets from files that may be a stranger's: only ASCII stays.
std::string printable(std::string_view text, std::size_t limit_bytes = 120);

// "3.1 GiB", "512 bytes".
std::string readable_bytes(std::int64_t bytes);

}  // namespace stagecoach
