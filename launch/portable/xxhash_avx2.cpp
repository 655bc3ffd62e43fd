#include "launch/portable/xxhash_avx2.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace stagecoach {

std::uint64_t xxh3_avx2(const void* bytes, std::size_t size) {
  return XXH3_64bits(bytes, size);
}

int xxh3_update_avx2(void* state, const void* bytes, std::size_t size) {
  return XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);
}

}  // namespace stagecoach
