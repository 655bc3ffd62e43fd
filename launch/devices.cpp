#include "launch/devices.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "kernels/cuda/cuda_backend.hpp"
#include "launch/command_line.hpp"
#include "launch/fit.hpp"

namespace stagecoach {
namespace {

// Share of a GPU's free memory that its stages divide; the rest is for the libraries' own needs.
constexpr double kMemoryShare = 0.9;

bool has_cuda() {
  try {
    return !cuda_devices().empty();
  } catch (const DeviceError&) {
    return false;
  }
}

// To have none is a mistake of who asked for one.
std::vector<CudaDevice> visible_devices() {
  try {
    return cuda_devices();
  } catch (const DeviceError& e) {
    throw UsageError(fmt::format("--device: {}", e.what()));
  }
}

// A GPU of the whole job: host and PCI address. Empty for a stage that computes on the CPU or, with `named`, shares.
struct Claim {
  char gpu[120] = {};
  bool named = false;
  std::optional<std::int64_t> budget;
};

Claim claim_of(const World& world, const CudaDevice& device, bool named) {
  Claim claim;
  const std::string gpu = fmt::format("{} {}", world.host(), device.pci);
  std::strncpy(claim.gpu, gpu.c_str(), sizeof claim.gpu - 1);
  claim.named = named;
  return claim;
}

// All stages' claims on every rank, in order of ranks.
std::vector<Claim> all_claims(const World& world, const std::vector<Claim>& mine) {
  std::vector<Claim> all;
  for (const std::vector<std::byte>& bytes : world.from_all(std::as_bytes(std::span(mine)))) {
    const std::size_t first = all.size();
    all.resize(first + bytes.size() / sizeof(Claim));
    std::memcpy(all.data() + first, bytes.data(), bytes.size());
  }
  return all;
}

void refuse_unwanted_sharing(const World& world, const std::vector<Claim>& mine, const std::vector<Claim>& all) {
  for (const Claim& claim : mine) {
    if (claim.gpu[0] == '\0' || claim.named) continue;
    const auto sharers = std::ranges::count_if(all, [&](const Claim& c) { return std::strcmp(c.gpu, claim.gpu) == 0; });
    if (sharers == 1) continue;
    throw UsageError(fmt::format(
        "{} {} compute on one GPU ({}); start one rank per GPU, or name the GPU to share it (--device cuda:0)", sharers,
        world.size() > 1 ? "ranks" : "stages", claim.gpu));
  }
}

// Part of the `index`-th claim in what is free on its GPU.
std::int64_t part_of(const std::vector<Claim>& all, std::size_t index, std::int64_t free_bytes) {
  std::vector<std::optional<std::int64_t>> budgets;
  std::size_t mine = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (std::strcmp(all[i].gpu, all[index].gpu) != 0) continue;
    if (i == index) mine = budgets.size();
    budgets.push_back(all[i].budget);
  }
  return divide(static_cast<std::int64_t>(static_cast<double>(free_bytes) * kMemoryShare), 1.0, budgets)[mine];
}

}  // namespace

Simd simd_of(SimdChoice choice) {
  switch (choice) {
    case SimdChoice::kBest:
      return Simd::kBest;
    case SimdChoice::kAvx2:
      return Simd::kAvx2;
    case SimdChoice::kAvx512:
      return Simd::kAvx512;
    case SimdChoice::kAvx512Vnni:
      return Simd::kAvx512Vnni;
    case SimdChoice::kNeon:
      return Simd::kNeon;
  }
  return Simd::kBest;
}

std::vector<StageDevice> choose_devices(const World& world, std::span<const DeviceWish> wishes,
                                        std::span<const std::optional<std::int64_t>> budgets) {
  const bool any_auto = std::ranges::any_of(wishes, [](const DeviceWish& w) { return w.kind == DeviceKind::kAuto; });
  // "auto" means the same for all ranks: a job that computes on GPUs here and on CPUs there is nobody's intention.
  const std::int64_t found = !any_auto || has_cuda() ? 1 : 0;
  const bool all_found = world.minimum(found) == 1;
  const bool none_found = world.minimum(1 - found) == 1;

  std::vector<StageDevice> chosen(wishes.size());
  std::vector<Claim> mine(wishes.size());
  world.agree([&] {
    if (any_auto && found == 0 && !none_found) {
      throw UsageError("sees no GPU although other ranks do; give --device cpu, or start ranks only where GPUs are");
    }
    std::int32_t next = world.local_rank();
    for (std::size_t i = 0; i < wishes.size(); ++i) {
      const DeviceWish& wish = wishes[i];
      chosen[i].cuda = wish.kind == DeviceKind::kCuda || (wish.kind == DeviceKind::kAuto && all_found && has_cuda());
      if (!chosen[i].cuda) continue;
      const std::vector<CudaDevice> devices = visible_devices();
      const auto count = static_cast<std::int32_t>(devices.size());
      chosen[i].index = wish.index.value_or(next++ % count);
      if (chosen[i].index >= count) {
        throw UsageError(fmt::format("there is no GPU {}; this rank sees {} (CUDA_VISIBLE_DEVICES chooses)",
                                     chosen[i].index, count));
      }
      chosen[i].pci = devices[static_cast<std::size_t>(chosen[i].index)].pci;
      mine[i] = claim_of(world, devices[static_cast<std::size_t>(chosen[i].index)], wish.index.has_value());
      mine[i].budget = budgets[i];
    }
  });
  const std::vector<Claim> all = all_claims(world, mine);
  world.agree([&] { refuse_unwanted_sharing(world, mine, all); });
  // First each process makes itself at home on its GPU, which takes memory; then what is left is divided.
  const auto measure = [&] {
    for (StageDevice& device : chosen) {
      if (device.cuda) device.pool_bytes = cuda_free_bytes(device.index);
    }
  };
  world.agree(measure);
  world.agree(measure);
  const auto first = static_cast<std::size_t>(world.rank());  // of several ranks each has one stage
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if (!chosen[i].cuda) continue;
    chosen[i].shared =
        std::ranges::count_if(all, [&](const Claim& c) { return std::strcmp(c.gpu, mine[i].gpu) == 0; }) > 1;
    chosen[i].pool_bytes = part_of(all, first + i, chosen[i].pool_bytes);
  }
  return chosen;
}

}  // namespace stagecoach
