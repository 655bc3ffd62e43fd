// Random numbers without state: a function of what they are for, the same on every layout and in any order.
//
// Philox4x32-10 of J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <array>
#include <cstdint>

namespace stagecoach {

// Four random words for a counter under a key.
std::array<std::uint32_t, 4> philox(const std::array<std::uint32_t, 4>& counter,
                                    const std::array<std::uint32_t, 2>& key);

// Uniform in [0, 1) with 53 random bits, for the token at `position` of sample `sample` of a request with this seed.
double uniform(std::uint64_t seed, std::uint32_t sample, std::uint32_t position);

// The seed of the request at `index` that names none of its own: a bijective mix of both for every fixed run seed.
std::uint64_t request_seed(std::uint64_t run_seed, std::int64_t index);

}  // namespace stagecoach
