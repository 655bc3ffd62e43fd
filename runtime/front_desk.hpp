// The second thread of stage 0's process: reads and tokenizes prompts ahead, and writes what became of them in input
// order.
//
// The pipeline's loop talks to it without ever blocking. Bounded: prompts that are read and not written yet, and what
// will become of them, take at most `bounds` (or are one prompt). With a journal, what it has of a prompt is not asked
// for again, and what is delivered becomes durable there soon, many samples at a time. It keeps each prompt until all
// its samples are there; with a `split`, each prompt is handed out as several requests (windows of a long text), whose
// samples are told apart by their numbers. A failure of the thread (a full disk, a prompts file that changed) is
// rethrown in the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>

#include "runtime/journal.hpp"
#include "runtime/prompts.hpp"
#include "runtime/request.hpp"
#include "runtime/results.hpp"

namespace stagecoach {

// What stands in the sink so far.
struct Written {
  std::int64_t prompts = 0;
  std::int64_t tokens = 0;  // generated or scored
  // Of these, what earlier runs had finished: prompts as a whole, tokens.
  std::int64_t found_prompts = 0;
  std::int64_t found_tokens = 0;
};

struct FrontDeskHooks {
  // All run on the front desk's thread and may be empty.
  std::function<void(const Request&)> on_read;       // a prompt was taken from the input
  std::function<void(std::int32_t token)> on_token;  // tokens as they come, of all requests
  std::function<void(const Written&)> on_progress;   // after every change
  std::function<void()> on_complete;                 // last, when the sink is finished
};

// The requests that a prompt stands for, none is allowed; `part` makes them one at a time, in order. None is longer
// than the first. Empty: itself.
struct Split {
  std::function<std::int64_t(const Request&)> count;
  std::function<Request(const Request&, std::int64_t index)> part;
};

struct FrontDeskBounds {
  std::int32_t prompts = 4096;
  std::int64_t bytes = 32 << 20;
  std::int32_t replicas = 1;  // pipelines that share them: each may have a part of a prompt's samples
  std::int32_t n_positions = std::numeric_limits<std::int32_t>::max();  // of the model: no sample grows beyond
};

// Bytes that a prompt takes until it is written: itself and its results. `parts`: requests of a split, if there is one.
std::int64_t desk_bytes(const Request& prompt, std::optional<std::int64_t> parts, std::int32_t n_positions);

class FrontDesk {
 public:
  // The referents must outlive the desk. Starts the thread.
  FrontDesk(PromptReader& reader, ResultSink& sink, FrontDeskHooks hooks, Split split, const FrontDeskBounds& bounds,
            Journal* journal = nullptr);
  // Without finish: stops; what was delivered is in the journal, if there is one, and otherwise lost.
  ~FrontDesk();
  FrontDesk(const FrontDesk&) = delete;
  FrontDesk& operator=(const FrontDesk&) = delete;

  std::optional<Request> next_request();  // nothing now is not the end
  bool exhausted();                       // all prompts were handed out
  void token(std::int32_t token);
  void deliver(Sample&& sample);
  // All requests must have been delivered. Waits until they are written and complete, which may take long; `waiting` is
  // called now and then meanwhile.
  void finish(const std::function<void()>& waiting = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stagecoach
