#include "runtime/checksum.hpp"

// The library's AVX2 and AVX-512 code, chosen at run time, is five times as fast as what it takes otherwise, but not
// built into it everywhere.
#ifdef STAGECOACH_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <new>

namespace stagecoach {
namespace {

// The library's own allocation, for the alignment that the state needs.
XXH3_state_t* state_of(void* state) {
  return static_cast<XXH3_state_t*>(state);
}

}  // namespace

Xxh3::Xxh3() : state_(static_cast<State*>(static_cast<void*>(XXH3_createState()))) {
  if (!state_) throw std::bad_alloc();
  reset();
}

void Xxh3::Free::operator()(State* state) const noexcept {
  XXH3_freeState(state_of(state));
}

void Xxh3::reset() {
  XXH3_64bits_reset(state_of(state_.get()));
}

void Xxh3::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_of(state_.get()), bytes.data(), bytes.size());
}

std::uint64_t Xxh3::value() const {
  return XXH3_64bits_digest(state_of(state_.get()));
}

std::uint64_t xxh3_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace stagecoach
