#include "runtime/front_desk.hpp"

#include <algorithm>
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

// A prompt that was read and is not written yet. Its samples are delivered in any order and with the numbers that the
// scheduler gave them; with a split the n-th request's only sample is the n-th.
struct Pending {
  Request request;
  std::size_t expected = 0;
  std::vector<Sample> samples;
};

}  // namespace

struct FrontDesk::State {
  State(PromptReader& r, ResultSink& s, FrontDeskHooks h, Split split_prompt, std::int32_t w)
      : reader(r), sink(s), hooks(std::move(h)), split(std::move(split_prompt)), window(static_cast<std::size_t>(w)) {}

  PromptReader& reader;
  ResultSink& sink;
  const FrontDeskHooks hooks;
  const Split split;
  const std::size_t window;

  // Only the thread uses these.
  std::map<std::int64_t, Pending> pending;  // by index, which is input order
  Written written;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by `mutex`.
  std::deque<Request> ready;
  std::size_t unwritten = 0;  // size of `pending`
  std::vector<Sample> finished;
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
    std::vector<Sample> to_write;
    std::vector<std::int32_t> to_show;
    bool read = false;
    {
      std::unique_lock lock(mutex);
      const auto can_read = [&] { return !read_all && ready.size() < kReadAhead && unwritten < window; };
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
    for (Sample& sample : to_write) pending.at(sample.index).samples.push_back(std::move(sample));
    if (read) read_one();
    write_in_order();
    return true;
  }

  void read_one() {
    std::optional<Request> request = reader.next();
    std::vector<Request> out;
    if (request) {
      if (hooks.on_read) hooks.on_read(*request);
      Pending next;
      if (split) {
        out = split(*request);
        next.expected = out.size();
      } else {
        out.push_back(*request);
        next.expected = static_cast<std::size_t>(request->num_samples);
      }
      next.request = std::move(*request);
      pending.emplace(next.request.index, std::move(next));
    }
    const std::scoped_lock lock(mutex);
    unwritten = pending.size();
    read_all = !request;
    for (Request& part : out) ready.push_back(std::move(part));
  }

  void write_in_order() {
    bool any = false;
    while (!pending.empty()) {
      Pending& first = pending.begin()->second;
      if (first.samples.size() < first.expected) break;
      std::ranges::sort(first.samples, {}, &Sample::sample);
      sink.write(first.request, first.samples);
      ++written.prompts;
      for (const Sample& sample : first.samples) {
        written.tokens += static_cast<std::int64_t>(std::max(sample.tokens.size(), sample.logprobs.size()));
      }
      pending.erase(pending.begin());
      any = true;
    }
    if (!any) return;
    if (hooks.on_progress) hooks.on_progress(written);
    const std::scoped_lock lock(mutex);
    unwritten = pending.size();
  }

  void rethrow() const {
    if (failure) std::rethrow_exception(failure);
  }
};

FrontDesk::FrontDesk(PromptReader& reader, ResultSink& sink, FrontDeskHooks hooks, Split split, std::int32_t window)
    : state_(std::make_unique<State>(reader, sink, std::move(hooks), std::move(split), window)) {
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

void FrontDesk::deliver(Sample&& sample) {
  const std::scoped_lock lock(state_->mutex);
  state_->finished.push_back(std::move(sample));
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
