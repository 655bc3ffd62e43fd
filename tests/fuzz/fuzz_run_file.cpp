// Any bytes as a run file: settings with places, or a PlanError of one line. Also what the command line makes
// of it.
#include <string>

#include "launch/command_line.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const stagecoach::RunFile file = stagecoach::parse_run_file(text, "r");
    const auto reader = [&](const std::string&) { return file; };
    stagecoach::parse_command_line({"generate", "--config", "r", "--model", "m", "--prompt", "p"}, {}, reader);
  } catch (const stagecoach::PlanError& error) {
    const std::string what = error.what();
    stagecoach::fuzz::require(what.starts_with("r:"));
    stagecoach::fuzz::require_plain(what);
  } catch (const stagecoach::UsageError& error) {
    stagecoach::fuzz::require_plain(error.what());
  }
  return 0;
}
