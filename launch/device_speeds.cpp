#include "launch/device_speeds.hpp"

namespace stagecoach {
namespace {

// A core of some server, and a GPU of some kind.
constexpr DeviceRates kSomeCore{15e9, 100e9, 4.0, 4.0};
constexpr DeviceRates kSomeGpu{3e12, 300e12, 4.0, 4.0};
constexpr double kSomeMicrobatch = 100e-6;  // messages and tables of one

}  // namespace

DeviceSpeed device_speed(const std::optional<Machine>& machine, std::int32_t rank, bool cuda, DType dtype,
                         DType kv_dtype) {
  DeviceRates rates = cuda ? kSomeGpu : kSomeCore;
  if (machine) {
    const MachineDevice& device = machine->device(rank);
    if (!device.rates) return device.speed;
    rates = *device.rates;
  }
  rates.weight_bytes = static_cast<double>(size_of(dtype));
  rates.kv_bytes = static_cast<double>(size_of(kv_dtype));
  DeviceSpeed speed = speed_from_rates(rates);
  if (!machine) speed.microbatch_s = kSomeMicrobatch;
  return speed;
}

LinkSpeed link_speed(const std::optional<Machine>& machine) {
  return machine ? machine->link : LinkSpeed{};
}

}  // namespace stagecoach
