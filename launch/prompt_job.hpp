// What `generate` and `score` have in common: prompts from where the options say, through the pipeline, into a sink.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "launch/command_line.hpp"
#include "launch/session.hpp"
#include "launch/watch.hpp"
#include "runtime/front_desk.hpp"
#include "runtime/journal.hpp"
#include "runtime/prompts.hpp"
#include "runtime/results.hpp"

namespace stagecoach {

// Filled on rank 0, empty elsewhere.
struct PromptJob {
  std::optional<PromptReader> reader;
  std::int64_t count = 0;  // prompts
  WorkSize size;           // of the requests that come of them
  std::unique_ptr<ResultSink> sink;
  FrontDeskHooks hooks;
  Split split;
  std::uint64_t prompts_hash = 0;    // of all that prompts are and ask for
  std::unique_ptr<Journal> journal;  // of results that go to a file
};

// Opens the prompts, checks all of them and fills reader, count and size; `split` stands already. Throws what the user
// did wrong. Signals are caught afterwards, so that the sink may open its file.
void open_prompts(PromptJob& job, const Options& options, const Session& session, const PromptOptions& prompts);
// Runs them; collective. Progress messages count `unit`s, `last_words` are what the run is going to say at its end.
void run_prompts(PromptJob& job, const Options& options, Session& session, RunWatch& watch, const char* unit,
                 const std::function<std::string()>& last_words = {});

// What options and model say about prompts of either command.
PromptOptions prompt_options(const Options& options, const Model& model);
// Null when the model has none.
const Tokenizer* tokenizer_of(const Model& model);

}  // namespace stagecoach
