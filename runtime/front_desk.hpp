// The second thread of stage 0's process: reads and tokenizes prompts ahead, and writes what became of them in input
// order.
//
// The pipeline's loop talks to it without ever blocking. Bounded: it reads at most `window` prompts ahead of the oldest
// one that is not written yet. It keeps each prompt until all its samples are there; with a `split`, each prompt is
// handed out as several requests (windows of a long text), whose samples are told apart by their numbers. A failure of
// the thread (a full disk, a prompts file that changed) is rethrown in the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/prompts.hpp"
#include "runtime/request.hpp"
#include "runtime/results.hpp"

namespace stagecoach {

// What stands in the sink so far.
struct Written {
  std::int64_t prompts = 0;
  std::int64_t tokens = 0;  // generated or scored
};

struct FrontDeskHooks {
  // Both run on the front desk's thread and may be empty.
  std::function<void(const Request&)> on_read;       // a prompt was taken from the input
  std::function<void(std::int32_t token)> on_token;  // tokens as they come, of all requests
  std::function<void(const Written&)> on_progress;   // after every change
};

// The requests that a prompt stands for; none is allowed. Empty: itself.
using Split = std::function<std::vector<Request>(const Request&)>;

class FrontDesk {
 public:
  // The referents must outlive the desk. Starts the thread.
  FrontDesk(PromptReader& reader, ResultSink& sink, FrontDeskHooks hooks, Split split = {}, std::int32_t window = 4096);
  // Without finish: stops, what was not written is lost.
  ~FrontDesk();
  FrontDesk(const FrontDesk&) = delete;
  FrontDesk& operator=(const FrontDesk&) = delete;

  std::optional<Request> next_request();  // nothing now is not the end
  bool exhausted();                       // all prompts were handed out
  void token(std::int32_t token);
  void deliver(Sample&& sample);
  // Waits until everything delivered is written and calls ResultSink::finish. All requests must have been delivered.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stagecoach
