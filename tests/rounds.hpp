// How often tests repeat with other random input.
#pragma once

namespace stagecoach::test {

// As often as given, or a fifth of it under a sanitizer, where a round takes five to fifty times as long.
constexpr int rounds(int usual) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return usual / 5;
#else
  return usual;
#endif
}

}  // namespace stagecoach::test
