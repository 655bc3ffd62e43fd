// How often tests repeat with other random input, and whether at full length.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <random>
#include <vector>

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

// All of them, or a third, by chance, under a sanitizer.
template <class Random, class T>
std::vector<T> some_of(Random& random, std::vector<T> all) {
  if (!kSanitized) return all;
  std::ranges::shuffle(all, std::mt19937_64(random.bits()));
  all.resize(std::max<std::size_t>(1, all.size() / 3));
  return all;
}

// STAGECOACH_SLOW_TESTS in the environment asks for the forms that take minutes, as tests/run --slow does.
inline bool slow_tests() {
  return std::getenv("STAGECOACH_SLOW_TESTS") != nullptr;
}

}  // namespace stagecoach::test
