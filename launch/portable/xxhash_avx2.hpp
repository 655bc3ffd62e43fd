// xxHash's functions over bytes, compiled for AVX2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach {

std::uint64_t xxh3_avx2(const void* bytes, std::size_t size);
// `state` is the library's, which lies the same for every instruction set.
int xxh3_update_avx2(void* state, const void* bytes, std::size_t size);

}  // namespace stagecoach
