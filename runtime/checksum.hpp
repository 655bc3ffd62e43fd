// XXH3-64, the checksum of native model files: fast enough to verify every byte that is loaded. Finds damage, not
// malice. Sole user of xxHash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace stagecoach {

// Of bytes that come in pieces.
class Xxh3 {
 public:
  Xxh3();
  void reset();
  void update(std::span<const std::byte> bytes);
  std::uint64_t value() const;

 private:
  struct State;
  struct Free {
    void operator()(State* state) const noexcept;
  };
  std::unique_ptr<State, Free> state_;
};

std::uint64_t xxh3_of(std::span<const std::byte> bytes);

}  // namespace stagecoach
