#pragma once

#include "runtime/scheduler.hpp"

namespace stagecoach::test {

// A prompt of `prompt` tokens, all 1.
inline Request request_of(std::int64_t index, std::int32_t prompt, std::int32_t max_new) {
  Request r;
  r.index = index;
  r.tokens.assign(static_cast<std::size_t>(prompt), 1);
  r.max_new_tokens = max_new;
  return r;
}

}  // namespace stagecoach::test
