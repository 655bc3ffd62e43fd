// Any bytes as a run file: settings with places, or a PlanError of one line. Also what the command line makes
// of it.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "launch/command_line.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const stagecoach::RunFile file = stagecoach::parse_run_file(text, "r");
    const auto reader = [&](const std::string&) { return file; };
    stagecoach::parse_command_line({"generate", "--config", "r", "--model", "m", "--prompt", "p"}, {}, reader);
  } catch (const stagecoach::PlanError& error) {
    const std::string what = error.what();
    if (what.rfind("r:", 0) != 0 || what.find('\n') != std::string::npos) std::abort();
  } catch (const stagecoach::UsageError& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
  }
  return 0;
}
