// The names under which runtime/checksum.cpp calls xxHash's code for the CPU at hand. The static library is without it.
#include <xxhash.h>

#include "launch/portable/xxhash_avx2.hpp"

namespace {

const bool kAvx2 = __builtin_cpu_supports("avx2") != 0;

}  // namespace

extern "C" {

XXH_PUBLIC_API XXH64_hash_t XXH3_64bits_dispatch(const void* bytes, size_t size) {
  return kAvx2 ? stagecoach::xxh3_avx2(bytes, size) : XXH3_64bits(bytes, size);
}

XXH_PUBLIC_API XXH_errorcode XXH3_64bits_update_dispatch(XXH3_state_t* state, const void* bytes, size_t size) {
  if (!kAvx2) return XXH3_64bits_update(state, bytes, size);
  return static_cast<XXH_errorcode>(stagecoach::xxh3_update_avx2(state, bytes, size));
}

}  // extern "C"
