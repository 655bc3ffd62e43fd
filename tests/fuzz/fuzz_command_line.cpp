// Any arguments, separated by zero bytes; a run file's name is its contents. Either an error of one line, or help, or
// options that keep every bound the program relies on.
#include <algorithm>
#include <cmath>
#include <string>
#include <variant>
#include <vector>

#include "launch/command_line.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace stagecoach;
using fuzz::require;

void check_count(const std::optional<std::int32_t>& count) {
  require(!count || *count >= 1);
}

void check(const Options& o) {
  require(!o.model.empty());
  require(!(o.quiet && o.verbose));
  require(is_valid(o.sampling));
  require(std::isfinite(o.timeout_s) && o.timeout_s > 0.0);
  check_count(o.stages);
  check_count(o.threads);
  check_count(o.chunk_tokens);
  check_count(o.in_flight);
  check_count(o.stride);
  require(o.max_new_tokens >= 1 && o.num_samples >= 1);
  require(o.prompt_tokens >= 1 && o.new_tokens >= 1 && o.batch >= 1 && o.repeat >= 1);
  require(o.shards >= 1 && o.shard >= 0 && o.shard < o.shards);
  for (const std::string& stop : o.stop) require(!stop.empty());
  const int inputs = (o.prompt_texts.empty() ? 0 : 1) + (o.prompts_path.empty() ? 0 : 1);
  if (o.command == Command::kGenerate) require(inputs == 1);
  if (o.command == Command::kScore) require(o.text_paths.empty() != o.prompts_path.empty());
  if (o.command == Command::kConvert) require(o.output_path.ends_with(".h5"));
  if (o.command == Command::kTokenize) require(!o.files.empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> arguments;
  std::string_view rest = fuzz::text_of(data, size);
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\0'), rest.size());
    arguments.emplace_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  try {
    const auto parsed =
        parse_command_line(arguments, {}, [](const std::string& text) { return parse_run_file(text, "run.yaml"); });
    if (const auto* options = std::get_if<Options>(&parsed)) {
      check(*options);
    } else {
      require(!std::get<HelpText>(parsed).text.empty());
    }
  } catch (const UsageError& error) {
    fuzz::require_plain(error.what());
  } catch (const PlanError& error) {
    fuzz::require_plain(error.what());
  }
  return 0;
}
