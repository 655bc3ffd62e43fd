#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "launch/commands.hpp"
#include "launch/prompt_job.hpp"
#include "launch/resume.hpp"
#include "launch/session.hpp"
#include "runtime/output_file.hpp"
#include "runtime/score_results.hpp"
#include "runtime/scoring.hpp"

namespace stagecoach {
namespace {

// Half the context unless the user says otherwise: every token but the first ones has that much before it.
std::int32_t stride_of(const Options& options, std::int32_t n_positions) {
  if (!options.stride) return std::max(1, n_positions / 2);
  if (*options.stride >= n_positions && n_positions > 1) {
    throw UsageError(
        fmt::format("--stride: {} is not less than the model's {} positions; each window needs a token "
                    "before the first one it scores",
                    *options.stride, n_positions));
  }
  return *options.stride;
}

}  // namespace

int run_score(const Options& options, const World& world) {
  Session session(options, world);
  RunWatch watch(options, world);
  PromptJob job;
  Score total;
  const bool to_do = session.prepare([&]() -> std::optional<WorkSize> {
    const std::int32_t n_positions = session.model().config.n_positions;
    const std::int32_t stride = stride_of(options, n_positions);
    job.split.count = [n_positions, stride](const Request& text) {
      return score_window_count(static_cast<std::int64_t>(text.tokens.size()), n_positions, stride);
    };
    job.split.part = [n_positions, stride](const Request& text, std::int64_t index) {
      return window_request(text, n_positions, stride, index);
    };
    PromptOptions prompts = prompt_options(options, session.model());
    prompts.any_length = true;
    open_prompts(job, options, session, prompts);
    watch.open();
    if (!open_journal(job, options, session)) return std::nullopt;
    if (options.output_path.empty()) {
      job.sink = make_score_text_sink(STDOUT_FILENO, total);
    } else {
      job.sink = make_file_sink(options.output_path,
                                [&](const std::string& path) { return make_score_jsonl_sink(path, total); });
    }
    return job.size;
  });
  const auto summary = [&] {
    if (job.journal && job.journal->complete()) return *job.journal->complete();
    return score_summary(job.count, total);
  };
  if (to_do) run_prompts(job, options, session, watch, "texts", summary);
  if (session.leads()) write_all(STDOUT_FILENO, summary() + "\n", "standard output");
  return 0;
}

}  // namespace stagecoach
