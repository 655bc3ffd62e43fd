// The machine file: the devices of a run for the planner, measured by `stagecoach profile` or written by hand.
//
//   devices:
//     - name: cpu (AVX2, 1 thread)      # for people
//       count: 2                        # devices like this one, one rank each [1]
//       device: cpu                     # cpu or cuda: how it lays out memory [cpu]
//       memory: 8GiB                    # most that a rank may take [no limit]
//       bandwidth_gb_s: 30              # either its data sheet: reads, and multiplications and additions
//       compute_gflop_s: 400
//       dtype: float16                  # or what was measured, with these weights, keys and values
//       kv_dtype: float32
//       product_ps: [[1, 130], [8, 190]]      # [rows, picoseconds per weight of a block, all rows together]
//       head_ps: [[1, 130]]                   # the same of the LM head
//       attention_ps: [[1, 90], [64, 20]]     # [rows of a sequence, picoseconds per row, key and channel]
//       row_ns: 400                           # nanoseconds per row and block besides
//       microbatch_us: 30                     # microseconds per microbatch
//   link: {latency_us: 3, bandwidth_gb_s: 10}  # between neighbours [no time at all]
//
// Errors are PlanErrors "FILE:LINE:COLUMN: key: what is wrong; what would work".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "partition/device_speed.hpp"

namespace stagecoach {

struct MachineDevice {
  std::string name;
  std::int32_t count = 1;
  bool cuda = false;
  std::optional<std::int64_t> memory_bytes;
  // Either of these.
  std::optional<DeviceRates> rates;  // element sizes are the run's
  DeviceSpeed speed;
  std::string dtype, kv_dtype;  // that the speed was measured with; empty: any
};

struct Machine {
  std::vector<MachineDevice> devices;
  LinkSpeed link;

  std::int32_t device_count() const;
  // The kind of device of rank `rank`; the last kind serves all beyond.
  const MachineDevice& device(std::int32_t rank) const;
};

Machine parse_machine(const std::string& text, const std::string& path);
Machine read_machine(const std::string& path);
// parse_machine gives the same machine again, to the digits that are written.
std::string machine_text(const Machine& machine);

}  // namespace stagecoach
