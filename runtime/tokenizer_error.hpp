#pragma once

// The one exception of the tokenizer modules. Its text names the file (and line where there is one), what is
// wrong, and what would work instead; callers print it as it is.

#include <stdexcept>

namespace stagecoach {

class TokenizerError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace stagecoach
