#include "tests/cuda_emulation/threads.hpp"


#include "tests/cuda_emulation/block.hpp"
#include "tests/cuda_emulation/half.hpp"
#include "tests/cuda_emulation/machine_state.hpp"

namespace stagecoach::cuda_emulation {
namespace {

Runner& runner() {
  return running_kernel();
}

struct BallotLane {
  bool predicate;
  std::uint32_t result;
};
void ballot_together(const Lanes& lanes) {
  std::uint32_t result = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    if (lanes[i] != nullptr && static_cast<BallotLane*>(lanes[i])->predicate) result |= 1u << i;
  }
  for (void* lane : lanes) {
    if (lane != nullptr) static_cast<BallotLane*>(lane)->result = result;
  }
}

void need_whole_warp(const Lanes& lanes, const char* what) {
  for (const void* lane : lanes) {
    if (lane == nullptr) kernel_fault(what);
  }
}

struct LoadLane {
  const void* row;
  std::uint32_t* fragment;
};
template <bool kTransposed>
void load_together(const Lanes& lanes) {
  need_whole_warp(lanes, "load_matrices needs a warp of 32 lanes");
  std::uint16_t rows[32][8];
  for (std::size_t i = 0; i < 32; ++i) {
    const void* row = static_cast<LoadLane*>(lanes[i])->row;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
      kernel_fault("load_matrices: a row is not aligned to 16 bytes");
    std::memcpy(rows[i], row, 16);
  }
  for (std::size_t i = 0; i < 32; ++i) {
    for (std::size_t m = 0; m < 4; ++m) {
      const std::size_t line = i / 4, pair = 2 * (i % 4);
      const std::uint16_t low = kTransposed ? rows[8 * m + pair][line] : rows[8 * m + line][pair];
      const std::uint16_t high = kTransposed ? rows[8 * m + pair + 1][line] : rows[8 * m + line][pair + 1];
      static_cast<LoadLane*>(lanes[i])->fragment[m] = low | (static_cast<std::uint32_t>(high) << 16);
    }
  }
}

struct MultiplyLane {
  float* c;
  const std::uint32_t* a;
  const std::uint32_t* b;
};
template <float (*kToFloat)(std::uint16_t)>
void multiply_together(const Lanes& lanes) {
  need_whole_warp(lanes, "multiply_add needs a warp of 32 lanes");
  float a[16][16], b[16][8], c[16][8];
  for (std::size_t i = 0; i < 32; ++i) {
    const auto& lane = *static_cast<MultiplyLane*>(lanes[i]);
    const std::size_t g = i / 4, t = i % 4;
    for (std::size_t half = 0; half < 2; ++half) {
      const auto element = [&](std::uint32_t word) {
        return kToFloat(static_cast<std::uint16_t>(word >> (16 * half)));
      };
      for (std::size_t r = 0; r < 4; ++r) a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + half] = element(lane.a[r]);
      for (std::size_t r = 0; r < 2; ++r) b[2 * t + 8 * r + half][g] = element(lane.b[r]);
      for (std::size_t r = 0; r < 2; ++r) c[g + 8 * r][2 * t + half] = lane.c[2 * r + half];
    }
  }
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t k = 0; k < 16; ++k) {
      for (std::size_t column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (std::size_t i = 0; i < 32; ++i) {
    float* const out = static_cast<MultiplyLane*>(lanes[i])->c;
    for (std::size_t r = 0; r < 4; ++r) out[r] = c[i / 4 + 8 * (r / 2)][2 * (i % 4) + r % 2];
  }
}

template <float (*kToFloat)(std::uint16_t)>
void multiply(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  MultiplyLane lane{c, a, b};
  runner().warp_together(0xFFFFFFFFu, &multiply_together<kToFloat>, &lane);
}

}  // namespace

void kernel_fault(const char* what) {
  runner().fault(what);
}
BarrierCounts block_barrier(bool predicate) {
  return runner().barrier(predicate);
}
void warp_together(std::uint32_t mask, WarpFunction function, void* lane) {
  runner().warp_together(mask, function, lane);
}
int lane_index() {
  return runner().lane();
}
std::uint32_t ballot(std::uint32_t mask, bool predicate) {
  BallotLane lane{predicate, 0};
  runner().warp_together(mask, &ballot_together, &lane);
  return lane.result;
}

unsigned char* dynamic_shared_memory() {
  return runner().shared();
}
void copy_async(void* shared, const void* global, bool valid) {
  runner().copy(shared, global, valid);
}
void copy_async_end_group() {
  runner().end_copy_group();
}
void copy_async_wait_for_all_but(int groups) {
  runner().wait_for_copies(groups);
}

void load_matrices(std::uint32_t (&fragment)[4], const void* shared, bool transposed) {
  LoadLane lane{shared, fragment};
  runner().warp_together(0xFFFFFFFFu, transposed ? &load_together<true> : &load_together<false>, &lane);
}
void multiply_add_half(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply<half_to_float>(c, a, b);
}
void multiply_add_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  multiply<bfloat16_to_float>(c, a, b);
}

}  // namespace stagecoach::cuda_emulation

void __syncwarp(unsigned mask) {
  stagecoach::cuda_emulation::warp_together(mask, nullptr, nullptr);
}
