#include "runtime/front_desk.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace stagecoach {
namespace {

// Requests tokenized and waiting for the loop: so many, and of so many bytes unless it is one.
constexpr std::size_t kReadyRequests = 64;
constexpr std::int64_t kReadyBytes = 4 << 20;
// What was delivered is durable so much later at most, the time that the disk takes aside.
constexpr std::chrono::milliseconds kSyncEvery{200};
constexpr std::chrono::milliseconds kWaitingEvery{50};  // `waiting` of `finish`

std::int64_t bytes_of(const Request& request) {
  return static_cast<std::int64_t>(sizeof(Request) + request.tokens.capacity() * sizeof(std::int32_t));
}

// Numbers of samples: `first` and so many.
struct SampleRange {
  std::int32_t first = 0;
  std::int32_t count = 0;
};

// A prompt that was read and is not written yet. Its samples are delivered in any order and with the numbers that the
// scheduler gave them; with a split the n-th request's only sample is the n-th.
struct Pending {
  Request request;
  std::size_t expected = 0;
  std::int64_t bytes = 0;
  std::vector<SampleRange> wanted;  // requests
  std::size_t handed_out = 0;
  std::vector<Sample> samples;
  std::int64_t found_tokens = 0;  // of samples that were in the journal

  bool all_handed_out() const { return handed_out == wanted.size(); }
};

std::int64_t tokens_of(const std::vector<Sample>& samples) {
  std::int64_t tokens = 0;
  for (const Sample& sample : samples) {
    tokens += static_cast<std::int64_t>(std::max(sample.tokens.size(), sample.logprobs.size()));
  }
  return tokens;
}

// Of 0 to count - 1, the numbers that `samples`, in order, lack; none longer than `most`.
std::vector<SampleRange> missing(const std::vector<Sample>& samples, std::int32_t count, std::int32_t most) {
  std::vector<SampleRange> ranges;
  std::int32_t next = 0;
  const auto add_up_to = [&](std::int32_t end) {
    for (; next < end; next += ranges.back().count) ranges.push_back({next, std::min(most, end - next)});
  };
  for (const Sample& sample : samples) {
    add_up_to(sample.sample);
    next = sample.sample + 1;
  }
  add_up_to(count);
  return ranges;
}

}  // namespace

std::int64_t desk_bytes(const Request& prompt, std::optional<std::int64_t> parts, std::int32_t n_positions) {
  const auto tokens = static_cast<std::int64_t>(prompt.tokens.size());
  const auto text = static_cast<std::int64_t>(prompt.prompt ? prompt.prompt->size() : 0);
  const std::int64_t bytes = bytes_of(prompt) + static_cast<std::int64_t>(sizeof(Pending)) + text;
  constexpr auto kSample = static_cast<std::int64_t>(sizeof(Sample));
  if (parts) return bytes + *parts * kSample + tokens * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t most = std::min<std::int64_t>(prompt.max_new_tokens, std::int64_t{n_positions} - tokens + 1);
  return bytes + prompt.num_samples * (kSample + most * (prompt.logprobs ? 8 : 4));
}

struct FrontDesk::State {
  State(PromptReader& r, ResultSink& s, FrontDeskHooks h, Split split_prompt, const FrontDeskBounds& b, Journal* j)
      : reader(r), sink(s), hooks(std::move(h)), split(std::move(split_prompt)), bounds(b), journal(j) {}

  PromptReader& reader;
  ResultSink& sink;
  const FrontDeskHooks hooks;
  const Split split;
  const FrontDeskBounds bounds;
  Journal* const journal;  // may be null

  // Only the thread uses these.
  std::map<std::int64_t, Pending> pending;  // by index, which is input order
  std::int64_t pending_bytes = 0;
  bool read_all = false;
  Written written;

  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by `mutex`.
  std::deque<Request> ready;
  std::int64_t ready_bytes = 0;
  std::vector<Sample> finished;
  std::vector<std::int32_t> tokens;
  bool handed_out_all = false, closing = false, stopping = false, ended = false;
  std::exception_ptr failure;
  std::thread thread;

  void run() {
    try {
      while (step()) {
      }
      record_rest();
      if (is_closing()) complete();
    } catch (...) {
      const std::scoped_lock lock(mutex);
      failure = std::current_exception();
    }
    const std::scoped_lock lock(mutex);
    ended = true;
    changed.notify_all();
  }

  bool is_closing() {
    const std::scoped_lock lock(mutex);
    return closing && !stopping;
  }

  void complete() {
    if (journal != nullptr) journal->require_mine();
    sink.finish();
    if (hooks.on_complete) hooks.on_complete();
  }

  // One round: wait for something to do, do it without the lock. False when it is time to end.
  bool step() {
    std::vector<Sample> to_write;
    std::vector<std::int32_t> to_show;
    bool room = false;
    {
      std::unique_lock lock(mutex);
      const bool has_more = can_read() || unfinished() != nullptr;
      const auto has_room = [&] {
        return has_more && ready.size() < kReadyRequests && (ready.empty() || ready_bytes < kReadyBytes);
      };
      const auto something = [&] { return stopping || closing || has_room() || !finished.empty() || !tokens.empty(); };
      if (journal != nullptr && journal->unsynced()) {
        changed.wait_until(lock, journal->last_sync() + kSyncEvery, something);
      } else {
        changed.wait(lock, something);
      }
      if (stopping) return false;
      to_write.swap(finished);
      to_show.swap(tokens);
      room = has_room();
      if (closing && to_write.empty() && to_show.empty()) return false;
    }
    for (const std::int32_t token : to_show) {
      if (hooks.on_token) hooks.on_token(token);
    }
    for (Sample& sample : to_write) {
      if (journal != nullptr) journal->append(sample);
      pending.at(sample.index).samples.push_back(std::move(sample));
    }
    if (journal != nullptr && std::chrono::steady_clock::now() >= journal->last_sync() + kSyncEvery) journal->sync();
    if (room) {
      if (unfinished() == nullptr) read_one();
      hand_out_one();
    }
    write_in_order();
    return true;
  }

  bool can_read() const {
    return !read_all && pending.size() < static_cast<std::size_t>(bounds.prompts) &&
           (pending.empty() || pending_bytes < bounds.bytes);
  }
  // The prompt of which some requests have not been handed out: only the last one that was read.
  Pending* unfinished() {
    if (pending.empty()) return nullptr;
    Pending& last = std::prev(pending.end())->second;
    return last.all_handed_out() ? nullptr : &last;
  }

  void read_one() {
    std::optional<Request> request = reader.next();
    if (!request) {
      read_all = true;
      return;
    }
    if (hooks.on_read) hooks.on_read(*request);
    Pending next;
    std::optional<std::int64_t> parts;
    if (split.count) parts = split.count(*request);
    const auto samples = static_cast<std::int32_t>(parts.value_or(request->num_samples));
    if (journal != nullptr) next.samples = journal->recorded(request->index);
    next.found_tokens = tokens_of(next.samples);
    next.wanted = missing(next.samples, samples, parts ? 1 : (samples - 1) / bounds.replicas + 1);
    next.expected = static_cast<std::size_t>(samples);
    next.bytes = desk_bytes(*request, parts, bounds.n_positions);
    next.request = std::move(*request);
    pending_bytes += next.bytes;
    const std::int64_t index = next.request.index;
    pending.emplace(index, std::move(next));
  }

  void hand_out_one() {
    Pending* from = unfinished();
    std::optional<Request> part;
    if (from != nullptr) {
      const SampleRange range = from->wanted[from->handed_out++];
      part = split.part ? split.part(from->request, range.first) : from->request;
      if (!split.part) {
        part->first_sample = range.first;
        part->num_samples = range.count;
      }
    }
    const std::scoped_lock lock(mutex);
    handed_out_all = read_all && unfinished() == nullptr;
    if (!part) return;
    ready_bytes += bytes_of(*part);
    ready.push_back(std::move(*part));
  }

  void write_in_order() {
    bool any = false;
    while (!pending.empty()) {
      Pending& first = pending.begin()->second;
      if (!first.all_handed_out() || first.samples.size() < first.expected) break;
      std::ranges::sort(first.samples, {}, &Sample::sample);
      sink.write(first.request, first.samples);
      ++written.prompts;
      written.tokens += tokens_of(first.samples);
      written.found_tokens += first.found_tokens;
      if (first.wanted.empty()) ++written.found_prompts;
      pending_bytes -= first.bytes;
      pending.erase(pending.begin());
      any = true;
    }
    if (any && hooks.on_progress) hooks.on_progress(written);
  }

  // What was delivered when it was time to end.
  void record_rest() {
    if (journal == nullptr) return;
    std::vector<Sample> rest;
    {
      const std::scoped_lock lock(mutex);
      rest.swap(finished);
    }
    for (const Sample& sample : rest) journal->append(sample);
    journal->sync();
  }

  void rethrow() const {
    if (failure) std::rethrow_exception(failure);
  }
};

FrontDesk::FrontDesk(PromptReader& reader, ResultSink& sink, FrontDeskHooks hooks, Split split,
                     const FrontDeskBounds& bounds, Journal* journal)
    : state_(std::make_unique<State>(reader, sink, std::move(hooks), std::move(split), bounds, journal)) {
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
  state_->ready_bytes -= bytes_of(request);
  state_->changed.notify_all();
  return request;
}

bool FrontDesk::exhausted() {
  const std::scoped_lock lock(state_->mutex);
  state_->rethrow();
  return state_->handed_out_all && state_->ready.empty();
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

void FrontDesk::finish(const std::function<void()>& waiting) {
  std::unique_lock lock(state_->mutex);
  state_->closing = true;
  state_->changed.notify_all();
  while (!state_->changed.wait_for(lock, kWaitingEvery, [this] { return state_->ended; })) {
    lock.unlock();
    if (waiting) waiting();
    lock.lock();
  }
  state_->rethrow();
}

}  // namespace stagecoach
