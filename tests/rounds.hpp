// How often tests repeat with other random input.
#pragma once

namespace stagecoach::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// As often as given, or a fifth of it under a sanitizer, where a round takes five to fifty times as long.
constexpr int rounds(int usual) {
  return kSanitized ? usual / 5 : usual;
}

}  // namespace stagecoach::test
