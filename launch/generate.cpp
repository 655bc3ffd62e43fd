#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <optional>

#include "launch/commands.hpp"
#include "launch/log.hpp"
#include "launch/session.hpp"
#include "runtime/front_desk.hpp"
#include "runtime/prompts.hpp"
#include "runtime/results.hpp"

namespace stagecoach {
namespace {

PromptReader open_prompts(const Options& options, const Session& session) {
  PromptOptions prompts;
  prompts.max_new_tokens = options.max_new_tokens;
  prompts.ignore_eos = options.ignore_eos;
  prompts.logprobs = options.logprobs;
  prompts.truncate_long = options.truncate_long;
  prompts.n_positions = session.model().config.n_positions;
  prompts.vocab_size = session.model().config.vocab_size;
  prompts.shard = options.shard;
  prompts.shards = options.shards;
  if (const char* folder = std::getenv("TMPDIR")) prompts.temporary_folder = folder;
  const std::optional<Tokenizer>& tokenizer = session.model().tokenizer;
  const Tokenizer* known = tokenizer ? &*tokenizer : nullptr;
  if (!options.prompts_path.empty()) return PromptReader::from_file(options.prompts_path, known, prompts);
  return PromptReader::from_texts(options.prompt_texts, known, prompts);
}

// One prompt without --output: its text as it comes.
class StreamSink final : public ResultSink {
 public:
  explicit StreamSink(TextStream stream) : stream_(std::move(stream)) {}
  TextStream& stream() { return stream_; }
  void write(const Request&, const Sample&) override {}
  void finish() override { stream_.end(); }

 private:
  TextStream stream_;
};

}  // namespace

int run_generate(const Options& options, const World& world) {
  Session session(options, world);
  std::optional<PromptReader> reader;
  PromptSummary summary;
  std::unique_ptr<ResultSink> sink;
  FrontDeskHooks desk_hooks;
  session.prepare([&]() -> WorkSize {
    reader = open_prompts(options, session);
    summary = reader->check();
    const Tokenizer* tokenizer = session.model().tokenizer ? &*session.model().tokenizer : nullptr;
    const std::int32_t eos = session.model().config.eos_token_id;
    if (!options.output_path.empty()) {
      sink = make_jsonl_sink(options.output_path, tokenizer, eos);
    } else if (summary.count == 1) {
      auto streaming = std::make_unique<StreamSink>(TextStream(STDOUT_FILENO, tokenizer, eos));
      desk_hooks.on_read = [s = streaming.get()](const Request& request) { s->stream().begin(request); };
      desk_hooks.on_token = [s = streaming.get()](std::int32_t token) { s->stream().push(token); };
      sink = std::move(streaming);
    } else {
      sink = make_text_sink(STDOUT_FILENO, tokenizer, eos);
    }
    return {summary.count, summary.longest_positions};
  });
  session.run([&](Leader& leader) {
    StatusLine line(!options.output_path.empty() && !options.quiet);
    const auto start = std::chrono::steady_clock::now();
    desk_hooks.on_progress = [&](std::int64_t samples, std::int64_t tokens) {
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      line.update(fmt::format("{} of {} prompts, {} tokens, {:.1f} tokens/s", samples, summary.count, tokens,
                              static_cast<double>(tokens) / seconds));
    };
    FrontDesk desk(*reader, *sink, desk_hooks);
    LeaderHooks hooks;
    hooks.next_request = [&desk] { return desk.next_request(); };
    hooks.exhausted = [&desk] { return desk.exhausted(); };
    hooks.on_finished = [&desk](Request&& request, Sample&& sample) {
      desk.deliver(std::move(request), std::move(sample));
    };
    if (desk_hooks.on_token) hooks.on_token = [&desk](const Scheduler::TokenEvent& event) { desk.token(event.token); };
    Scheduler scheduler(session.scheduler_limits());
    leader.run(scheduler, hooks);
    desk.finish();
  });
  return 0;
}

}  // namespace stagecoach
