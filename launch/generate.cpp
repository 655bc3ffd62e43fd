#include <unistd.h>

#include "launch/commands.hpp"
#include "launch/prompt_job.hpp"
#include "launch/resume.hpp"
#include "launch/session.hpp"

namespace stagecoach {
namespace {

PromptOptions generate_options(const Options& options, const Model& model) {
  PromptOptions prompts = prompt_options(options, model);
  prompts.max_new_tokens = options.max_new_tokens;
  prompts.sampling = options.sampling;
  prompts.run_seed = options.seed;
  prompts.num_samples = options.num_samples;
  prompts.stop = options.stop;
  prompts.ignore_eos = options.ignore_eos;
  prompts.logprobs = options.logprobs;
  prompts.truncate_long = options.truncate_long;
  return prompts;
}

// One sample without --output: its text as it comes.
class StreamSink final : public ResultSink {
 public:
  explicit StreamSink(TextStream stream) : stream_(std::move(stream)) {}
  TextStream& stream() { return stream_; }
  void write(const Request&, std::span<const Sample>) override {}
  void finish() override { stream_.end(); }

 private:
  TextStream stream_;
};

void open_sink(PromptJob& job, const Options& options, const Model& model) {
  const Tokenizer* tokenizer = tokenizer_of(model);
  const std::int32_t eos = model.config.eos_token_id;
  if (!options.output_path.empty()) {
    job.sink = make_file_sink(options.output_path,
                              [&](const std::string& path) { return make_jsonl_sink(path, tokenizer, eos); });
  } else if (job.size.sequences == 1) {
    auto streaming = std::make_unique<StreamSink>(TextStream(STDOUT_FILENO, tokenizer, eos));
    job.hooks.on_read = [s = streaming.get()](const Request& request) { s->stream().begin(request); };
    job.hooks.on_token = [s = streaming.get()](std::int32_t token) { s->stream().push(token); };
    job.sink = std::move(streaming);
  } else {
    job.sink = make_text_sink(STDOUT_FILENO, tokenizer, eos);
  }
}

}  // namespace

int run_generate(const Options& options, const World& world) {
  Session session(options, world);
  RunWatch watch(options, world);
  PromptJob job;
  const bool to_do = session.prepare([&]() -> std::optional<WorkSize> {
    open_prompts(job, options, session, generate_options(options, session.model()));
    watch.open();
    if (!open_journal(job, options, session)) return std::nullopt;
    open_sink(job, options, session.model());
    return job.size;
  });
  if (!to_do) return 0;
  run_prompts(job, options, session, watch, "prompts");
  return 0;
}

}  // namespace stagecoach
