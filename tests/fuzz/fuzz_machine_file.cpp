// Any bytes as a machine file: a machine that its own text gives again, or a PlanError of one line with a place.
#include <string>

#include "partition/machine.hpp"
#include "partition/model.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(stagecoach::fuzz::text_of(data, size));
  try {
    const stagecoach::Machine machine = stagecoach::parse_machine(text, "m");
    const std::string written = stagecoach::machine_text(machine);
    const stagecoach::Machine again = stagecoach::parse_machine(written, "m");
    stagecoach::fuzz::require(again.device_count() == machine.device_count());
    stagecoach::fuzz::require(stagecoach::machine_text(again) == written);
  } catch (const stagecoach::PlanError& error) {
    const std::string what = error.what();
    stagecoach::fuzz::require(what.starts_with("m:"));
    stagecoach::fuzz::require_plain(what);
  }
  return 0;
}
