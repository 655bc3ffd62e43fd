#include "runtime/front_desk.hpp"

#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace stagecoach {
namespace {

constexpr std::size_t kReadAhead = 64;  // prompts tokenized and waiting for the loop

struct Finished {
  Request request;
  Sample sample;
};

}  // namespace

struct FrontDesk::State {
  State(PromptReader& r, ResultSink& s, FrontDeskHooks h, std::int32_t w)
      : reader(r), sink(s), hooks(std::move(h)), window(static_cast<std::size_t>(w)) {}

  PromptReader& reader;
  ResultSink& sink;
  const FrontDeskHooks hooks;
  const std::size_t window;

  // Only the thread uses these.
  std::deque<std::int64_t> order;              // indices read and not written, in input order
  std::map<std::int64_t, Finished> unordered;  // finished before their turn
  std::int64_t samples = 0, tokens_written = 0;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by `mutex`.
  std::deque<Request> ready;
  std::vector<Finished> finished;
  std::vector<std::int32_t> tokens;
  bool read_all = false, closing = false, stopping = false;
  std::exception_ptr failure;
  std::thread thread;

  void run() {
    try {
      while (step()) {
      }
    } catch (...) {
      const std::scoped_lock lock(mutex);
      failure = std::current_exception();
      changed.notify_all();
    }
  }

  // One round: wait for something to do, do it without the lock. False when it is time to end.
  bool step() {
    std::vector<Finished> to_write;
    std::vector<std::int32_t> to_show;
    bool read = false;
    {
      std::unique_lock lock(mutex);
      const auto can_read = [&] { return !read_all && ready.size() < kReadAhead && order.size() < window; };
      changed.wait(lock, [&] { return stopping || closing || can_read() || !finished.empty() || !tokens.empty(); });
      if (stopping) return false;
      to_write.swap(finished);
      to_show.swap(tokens);
      read = can_read();
      if (closing && to_write.empty() && to_show.empty()) return false;
    }
    for (const std::int32_t token : to_show) {
      if (hooks.on_token) hooks.on_token(token);
    }
    for (Finished& done : to_write) unordered.emplace(done.sample.index, std::move(done));
    write_in_order();
    if (read) read_one();
    return true;
  }

  void read_one() {
    std::optional<Request> request = reader.next();
    if (request) {
      order.push_back(request->index);
      if (hooks.on_read) hooks.on_read(*request);
    }
    const std::scoped_lock lock(mutex);
    if (request) {
      ready.push_back(std::move(*request));
    } else {
      read_all = true;
    }
  }

  void write_in_order() {
    bool any = false;
    while (!order.empty()) {
      const auto found = unordered.find(order.front());
      if (found == unordered.end()) break;
      sink.write(found->second.request, found->second.sample);
      ++samples;
      tokens_written += static_cast<std::int64_t>(found->second.sample.tokens.size());
      unordered.erase(found);
      order.pop_front();
      any = true;
    }
    if (any && hooks.on_progress) hooks.on_progress(samples, tokens_written);
  }

  void rethrow() const {
    if (failure) std::rethrow_exception(failure);
  }
};

FrontDesk::FrontDesk(PromptReader& reader, ResultSink& sink, FrontDeskHooks hooks, std::int32_t window)
    : state_(std::make_unique<State>(reader, sink, std::move(hooks), window)) {
  state_->thread = std::thread([this] { state_->run(); });
}

FrontDesk::~FrontDesk() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_all();
  if (state_->thread.joinable()) state_->thread.join();
}

std::optional<Request> FrontDesk::next_request() {
  const std::scoped_lock lock(state_->mutex);
  state_->rethrow();
  if (state_->ready.empty()) return std::nullopt;
  Request request = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->changed.notify_all();
  return request;
}

bool FrontDesk::exhausted() {
  const std::scoped_lock lock(state_->mutex);
  state_->rethrow();
  return state_->read_all && state_->ready.empty();
}

void FrontDesk::token(std::int32_t token) {
  const std::scoped_lock lock(state_->mutex);
  state_->tokens.push_back(token);
  state_->changed.notify_all();
}

void FrontDesk::deliver(Request&& request, Sample&& sample) {
  const std::scoped_lock lock(state_->mutex);
  state_->finished.push_back({std::move(request), std::move(sample)});
  state_->changed.notify_all();
}

void FrontDesk::finish() {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->closing = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
  state_->rethrow();
  state_->sink.finish();
}

}  // namespace stagecoach
