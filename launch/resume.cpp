#include "launch/resume.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/arithmetic.hpp"
#include "launch/interrupt.hpp"
#include "launch/log.hpp"
#include "runtime/model_identity.hpp"

namespace stagecoach {
namespace {

// Everything that results depend on, the layout of ranks, stages, chunks and threads left out. What lines of a prompts
// file say of their own is part of `prompts`; the options are named as well, so that a message can tell which changed.
JobIdentity identity(const PromptJob& job, const Options& o, const Session& session) {
  JobIdentity id;
  const auto add = [&id](const char* name, std::string value) { id.parts.emplace_back(name, std::move(value)); };
  const bool scores = o.command == Command::kScore;
  add("the program's arithmetic", fmt::format("{}", kArithmetic));
  add("command", scores ? "score" : "generate");
  add("model", model_identity(session.model()));
  add("--dtype", std::string(name_of(session.dtype())));
  add("--kv-dtype", std::string(name_of(session.kv_dtype())));
  add("--device", std::string(session.device()));
  add("--deterministic", session.device() == "cpu" || o.deterministic ? "on" : "off");
  add("--shard", fmt::format("{}/{}", o.shard, o.shards));
  if (scores) {
    add("--stride", o.stride ? fmt::format("{}", *o.stride) : "default");
  } else {
    add("--max-new-tokens", fmt::format("{}", o.max_new_tokens));
    add("--temperature", fmt::format("{}", o.sampling.temperature));
    add("--top-k", fmt::format("{}", o.sampling.top_k));
    add("--top-p", fmt::format("{}", o.sampling.top_p));
    add("--repetition-penalty", fmt::format("{}", o.sampling.repetition_penalty));
    add("--seed", fmt::format("{}", o.seed));
    add("--num-samples", fmt::format("{}", o.num_samples));
    add("--stop", fmt::format("{}", o.stop));
    add("--ignore-eos", o.ignore_eos ? "on" : "off");
    add("--logprobs", o.logprobs ? "on" : "off");
    add("--long-prompt", o.truncate_long ? "truncate" : "error");
  }
  add("prompts", fmt::format("{} with hash {:016x}", job.count, job.prompts_hash));
  return id;
}

}  // namespace

bool open_journal(PromptJob& job, const Options& options, const Session& session) {
  if (options.output_path.empty()) return true;
  bool said = false;
  const auto waiting = [&] {
    if (!std::exchange(said, true)) {
      log_note(fmt::format("{}: another run is writing it; waiting for that one to end", options.output_path));
    }
    throw_if_interrupted();
    session.alive();
  };
  try {
    job.journal =
        std::make_unique<Journal>(options.output_path, identity(job, options, session), options.fresh, waiting);
    const Journal& journal = *job.journal;
    if (journal.damaged_bytes() > 0) {
      log_warning(fmt::format("{}: {} damaged bytes passed over; what they held is computed again",
                              Journal::path_of(options.output_path), journal.damaged_bytes()));
    }
    if (journal.complete()) {
      log_note(fmt::format("{} is complete already; --fresh would make it anew", options.output_path));
    } else if (journal.recorded_samples() > 0) {
      log_verbose(fmt::format("going on after {} finished {}", journal.recorded_samples(),
                              options.command == Command::kScore ? "windows" : "samples"));
    }
    return !journal.complete();
  } catch (const JournalMismatch& mismatch) {
    throw UsageError(mismatch.what());
  }
}

}  // namespace stagecoach
