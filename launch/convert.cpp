#include <fmt/format.h>

#include <chrono>

#include "launch/commands.hpp"
#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "partition/wording.hpp"
#include "runtime/native_model.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

void convert(const Options& options, bool under_launcher) {
  const auto start = std::chrono::steady_clock::now();
  const Model model = open_model(options.model);
  const std::optional<TokenizerTexts> tokenizer = read_tokenizer_texts(options.model);
  catch_interrupts(under_launcher);
  {
    StatusLine line(!options.quiet);
    write_native_model(model, tokenizer, {options.dtype, options.layout}, options.output_path,
                       [&line](std::int64_t done, std::int64_t total) {
                         throw_if_interrupted();
                         line.update(fmt::format("converting {} of {}", readable_bytes(done), readable_bytes(total)));
                       });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  log_note(fmt::format("{}: {} parameters as {}, {}, in {:.1f} s", shown(options.output_path),
                       parameter_count(model.config), name_of(options.dtype.value_or(model.dtype)),
                       tokenizer ? "with tokenizer" : "without tokenizer", seconds));
}

}  // namespace

int run_convert(const Options& options, const World& world) {
  world.agree([&] {
    if (world.rank() == 0) convert(options, world.mpi() != nullptr);
  });
  return 0;
}

}  // namespace stagecoach
