// The scheduler under random workloads, with a model that only knows hashes for an oracle.
#include <doctest/doctest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "runtime/context_shards.hpp"
#include "runtime/scheduler.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/request_of.hpp"

using namespace stagecoach;

namespace {

unsigned below(std::mt19937& random, std::size_t bound) {
  return static_cast<unsigned>(random() % bound);
}

// A hash of tokens, one after the other.
std::uint64_t hash_on(std::uint64_t hash, std::int32_t token) {
  hash = (hash ^ static_cast<std::uint64_t>(token)) * 0x100000001b3U;
  return hash ^ (hash >> 29);
}

// The token that a model which only knows hashes picks after those of `hash`, and the score of one.
std::int32_t pick(std::uint64_t hash, std::uint32_t sample) {
  return static_cast<std::int32_t>(hash_on(hash, static_cast<std::int32_t>(sample)) % 7);
}
float score(std::uint64_t hash, std::int32_t target) {
  return static_cast<float>(hash_on(hash, target) % 1000);
}

// Plays the stages: answers in order, with tokens that follow from what stands in the pages of the row's slot up to its
// position. So whatever goes wrong with pages and slots gives other samples than it should.
class Stages {
 public:
  Stages(const SchedulerLimits& limits, bool has_room) : limits_(limits), has_room_(has_room) {}

  void take(const Microbatch& m) {
    REQUIRE(!m.rows.empty());
    REQUIRE(static_cast<std::int32_t>(m.rows.size()) <= limits_.max_rows());
    for (const SlotCommand& c : m.commands) apply(c);
    for (auto& [slot, since] : waiting_) ++since;
    std::set<std::int32_t> seen;
    TokenBatch answer;
    answer.id = m.id;
    std::int32_t last = -1;
    for (const Row& row : m.rows) {
      if (row.slot != last) REQUIRE(seen.insert(row.slot).second);  // rows of a slot are adjacent
      last = row.slot;
      write(row);
    }
    for (const Row& row : m.rows) {  // every stage writes keys and values of all rows first
      waiting_.erase(row.slot);
      const std::uint64_t hash = hash_of(tables_[row.slot], row.position);
      if ((row.flags & kRowSample) != 0) answer.tokens.push_back({row.slot, pick(hash, sample_[row.slot]), 0.0F});
      if ((row.flags & kRowScore) != 0) answer.tokens.push_back({row.slot, row.target, score(hash, row.target)});
      if ((row.flags & kRowScore) != 0) scoring_.insert(row.slot);
    }
    // Nobody starves: whoever may decode does so before every slot has had its turn again.
    for (const auto& [slot, since] : waiting_) {
      if (!limits_.hold_decode && has_room_) REQUIRE(since <= limits_.slots);
    }
    queue_.push_back(std::move(answer));
    REQUIRE(static_cast<std::int32_t>(queue_.size()) <= limits_.in_flight);
  }
  bool empty() const { return queue_.empty(); }
  TokenBatch answer() {
    TokenBatch first = std::move(queue_.front());
    queue_.pop_front();
    // Whoever has finished is dropped by the next microbatch.
    for (const PickedToken& token : first.tokens) {
      if (!scoring_.contains(token.slot)) waiting_.emplace(token.slot, 0);
    }
    return first;
  }

 private:
  using Table = std::vector<std::int32_t>;

  std::uint64_t hash_of(const Table& table, std::int32_t position) {
    std::uint64_t hash = 0;
    for (std::int32_t first = 0; first <= position; first += kPagePositions) {
      const Table& page = written_[table[static_cast<std::size_t>(first / kPagePositions)]];
      const std::int32_t count = std::min(position + 1 - first, kPagePositions);
      REQUIRE(static_cast<std::size_t>(count) <= page.size());
      for (std::int32_t i = 0; i < count; ++i) hash = hash_on(hash, page[static_cast<std::size_t>(i)]);
    }
    return hash;
  }

  // Into a page that nobody else has in a table.
  void write(const Row& row) {
    REQUIRE(row.position < limits_.n_positions);
    const Table& table = tables_[row.slot];
    REQUIRE(static_cast<std::size_t>(row.position / kPagePositions) < table.size());
    const std::int32_t page = table[static_cast<std::size_t>(row.position / kPagePositions)];
    REQUIRE(users_[page] == 1);
    Table& written = written_[page];
    REQUIRE(written.size() >= static_cast<std::size_t>(row.position % kPagePositions));
    written.resize(static_cast<std::size_t>(row.position % kPagePositions));
    written.push_back(row.token);
  }

  void apply(const SlotCommand& c) {
    REQUIRE(c.slot >= 0);
    REQUIRE(c.slot < limits_.tables());
    Table& table = tables_[c.slot];
    switch (c.kind) {
      case SlotCommand::Kind::kAppendPages:
        for (const std::int32_t page : c.pages) {
          REQUIRE(page >= 0);
          REQUIRE(page < limits_.pages * limits_.shards);
          ++users_[page];
          table.push_back(page);
          REQUIRE(shard_of_page(page, limits_.shards) == shard_of_index(static_cast<std::int32_t>(table.size()) - 1,
                                                                        shard_of_page(table.front(), limits_.shards),
                                                                        limits_.shards));
        }
        break;
      case SlotCommand::Kind::kDrop:
        for (const std::int32_t page : table) --users_[page];
        table.clear();
        sample_.erase(c.slot);
        waiting_.erase(c.slot);
        scoring_.erase(c.slot);
        break;
      case SlotCommand::Kind::kFork: {
        REQUIRE(table.empty());
        const Table& source = tables_[c.source];
        REQUIRE(c.count <= static_cast<std::int32_t>(source.size()));
        table.assign(source.begin(), source.begin() + c.count);
        for (const std::int32_t page : table) ++users_[page];
        break;
      }
      case SlotCommand::Kind::kCopyPage:
        REQUIRE(users_[table.back()] == 1);
        REQUIRE(shard_of_page(table.back(), limits_.shards) == shard_of_page(c.source, limits_.shards));
        written_[table.back()] = written_[c.source];
        break;
      case SlotCommand::Kind::kSampling:
        sample_[c.slot] = c.sampling.sample;
        break;
    }
  }

  SchedulerLimits limits_;
  bool has_room_;
  std::deque<TokenBatch> queue_;
  std::map<std::int32_t, Table> tables_;          // [slot] pages
  std::map<std::int32_t, Table> written_;         // [page] tokens
  std::map<std::int32_t, int> users_;             // [page] tables that have it
  std::map<std::int32_t, std::uint32_t> sample_;  // [slot]
  std::set<std::int32_t> scoring_;                // slots
  std::map<std::int32_t, std::int32_t> waiting_;  // [slot] microbatches since it may decode
};

// `beginning`: of some prompts.
Request random_request(std::mt19937& random, std::int64_t index, std::int32_t n_positions,
                       const std::vector<std::int32_t>& beginning) {
  Request r = test::request_of(index, 1 + static_cast<std::int32_t>(below(random, static_cast<unsigned>(n_positions))),
                               1 + static_cast<std::int32_t>(below(random, below(random, 3) == 0 ? 200 : 40)));
  for (std::int32_t& token : r.tokens) token = static_cast<std::int32_t>(below(random, 1000));
  if (below(random, 2) == 0) {
    std::copy_n(beginning.begin(), std::min(beginning.size(), r.tokens.size()), r.tokens.begin());
  }
  if (below(random, 2) == 0) r.sampling.temperature = 1.0;
  if (below(random, 4) == 0) r.sampling.repetition_penalty = 2.0;
  if (below(random, 2) == 0) r.num_samples = 1 + static_cast<std::int32_t>(below(random, 8));
  if (below(random, 4) == 0) r.first_sample = 3;
  if (below(random, 4) == 0) r.stop = {"acd", "gg"};
  if (r.tokens.size() > 1 && below(random, 4) == 0) {
    r.num_samples = 1;
    r.score_from = 1 + static_cast<std::int32_t>(below(random, r.tokens.size() - 1));
  }
  return r;
}

std::string letter(std::int32_t token) {
  return std::string(1, static_cast<char>('a' + token));
}

// What the model of hashes says, one token after the other; and that it ends where it should.
void check_sample(const Sample& s, const Request& r, const SchedulerLimits& limits) {
  std::uint64_t hash = 0;
  if (r.score_from > 0) {
    REQUIRE(s.tokens.empty());
    REQUIRE(s.logprobs.size() == r.tokens.size() - static_cast<std::size_t>(r.score_from));
    for (std::size_t i = 0; i + 1 < r.tokens.size(); ++i) {
      hash = hash_on(hash, r.tokens[i]);
      const std::int32_t scored = static_cast<std::int32_t>(i) + 1 - r.score_from;
      if (scored >= 0) REQUIRE(s.logprobs[static_cast<std::size_t>(scored)] == score(hash, r.tokens[i + 1]));
    }
    return;
  }
  const bool plain = r.sampling.temperature == 0.0 && r.sampling.repetition_penalty == 1.0;
  for (const std::int32_t token : r.tokens) hash = hash_on(hash, token);
  const auto generated = static_cast<std::int32_t>(s.tokens.size());
  std::string text;
  for (std::int32_t i = 0; i < generated; ++i) {
    const std::int32_t token = s.tokens[static_cast<std::size_t>(i)];
    REQUIRE(token == pick(hash, plain ? 0 : static_cast<std::uint32_t>(s.sample)));
    hash = hash_on(hash, token);
    text += letter(token);
    if (i + 1 < generated) REQUIRE(token != limits.eos);
  }
  CHECK(generated <= r.max_new_tokens);
  CHECK(s.prompt_tokens + generated <= limits.n_positions + 1);
  const bool stops = !r.stop.empty() && (text.ends_with("acd") || text.ends_with("gg"));
  switch (s.finish) {
    case FinishReason::kEos:
      CHECK(s.tokens.back() == limits.eos);
      break;
    case FinishReason::kStop:
      CHECK(stops);
      CHECK(s.text_bytes == static_cast<std::int64_t>(text.size()) - (text.ends_with("gg") ? 2 : 3));
      break;
    case FinishReason::kLength:
      CHECK(!stops);
      CHECK((generated == r.max_new_tokens || s.prompt_tokens + generated == limits.n_positions + 1));
  }
}

// Of a workload that was drawn.
struct Effort {
  std::int64_t put_back = 0, shared_rows = 0;
};

Effort run_random_workload(std::mt19937& random) {
  SchedulerLimits limits;
  limits.shards = below(random, 4) == 0 ? 1 + static_cast<std::int32_t>(below(random, 3)) : 1;
  const bool segments = limits.shards > 1 && below(random, 3) == 0;
  limits.n_positions = 1 + static_cast<std::int32_t>(below(random, segments ? 4000 : 300));
  limits.eos = static_cast<std::int32_t>(below(random, 9)) - 1;
  limits.slots = 1 + static_cast<std::int32_t>(below(random, 6));
  limits.chunk_tokens = 1 + static_cast<std::int32_t>(below(random, 100));
  for (unsigned i = below(random, 2) * below(random, 5); i > 0; --i) {
    limits.chunks.push_back(1 +
                            static_cast<std::int32_t>(below(random, static_cast<std::size_t>(limits.chunk_tokens))));
  }
  limits.in_flight = 1 + static_cast<std::int32_t>(below(random, 5));
  limits.decode_split = static_cast<std::int32_t>(below(random, limits.in_flight + 1));
  limits.hold_decode = below(random, 4) == 0;
  const std::int64_t count = 1 + below(random, 20);
  std::vector<Request> requests;
  std::size_t expected = 0;
  limits.pages = 1;
  std::vector<std::int32_t> beginning(below(random, segments ? 3000 : 300));
  for (std::int32_t& token : beginning) token = static_cast<std::int32_t>(below(random, 1000));
  for (std::int64_t i = 0; i < count; ++i) {
    requests.push_back(random_request(random, i, limits.n_positions, beginning));
    expected += static_cast<std::size_t>(requests.back().num_samples);
    limits.pages = std::max(limits.pages, pages_needed(requests.back(), limits.n_positions, limits.shards));
  }
  const bool has_room = below(random, 3) == 0;
  limits.pages =
      has_room ? limits.pages * limits.slots * 2 : limits.pages + static_cast<std::int32_t>(below(random, 4));
  Scheduler scheduler(limits, letter);
  Stages stages(limits, has_room);
  std::size_t added = 0;
  std::set<std::pair<std::int64_t, std::int32_t>> finished;
  int steps = 0;
  while (!(added == requests.size() && scheduler.idle())) {
    REQUIRE(++steps < 100000);
    while (added < requests.size() && scheduler.wants_requests()) scheduler.add(requests[added++]);
    std::optional<Microbatch> m;
    if (below(random, 3) != 0) m = scheduler.next();
    if (m) stages.take(*m);
    if (!stages.empty() && (!m || below(random, 2) == 0)) {
      for (const Sample& s : scheduler.complete(stages.answer()).finished) {
        REQUIRE(finished.emplace(s.index, s.sample).second);
        const Request& r = requests[static_cast<std::size_t>(s.index)];
        REQUIRE(s.sample >= r.first_sample);
        REQUIRE(s.sample < r.first_sample + r.num_samples);
        check_sample(s, r, limits);
      }
    }
  }
  CHECK(finished.size() == expected);
  CHECK(scheduler.free_pages() == limits.pages * limits.shards);
  CHECK(scheduler.in_flight() == 0);
  CHECK(scheduler.active() == 0);
  if (has_room) CHECK(scheduler.times_put_back() == 0);
  return {scheduler.times_put_back(), scheduler.shared_rows()};
}

}  // namespace

TEST_CASE("random workloads: every sample is as it should be, nothing leaks or starves, whatever the pages") {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  Effort all;
  for (int round = 0; round < test::rounds(2000); ++round) {
    INFO("seed " << seed << " round " << round);
    const Effort effort = run_random_workload(random);
    all.put_back += effort.put_back;
    all.shared_rows += effort.shared_rows;
  }
  MESSAGE(all.put_back, " times put back, ", all.shared_rows, " prompt rows shared");
  CHECK(all.put_back > 0);
  CHECK(all.shared_rows > 0);
}

TEST_CASE("pages of a prompt whose samples are in the microbatch being made are nobody else's") {
  // A workload in which a third sequence needed a page then, and nobody but the samples' holder could give one.
  std::mt19937 random(1640600958);
  random.discard(2933643);
  CHECK(run_random_workload(random).put_back > 0);
}
