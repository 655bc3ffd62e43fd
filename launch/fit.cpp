#include "launch/fit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "kernels/backend.hpp"
#include "launch/machine.hpp"
#include "launch/world.hpp"
#include "partition/wording.hpp"
#include "runtime/context_shards.hpp"
#include "runtime/device_layout.hpp"
#include "runtime/scheduler.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kSmallestChunk = 32;  // fewer rows at once waste the matrix kernels
constexpr std::size_t kStagesShown = 4;      // of those that are too small
constexpr std::int32_t kMostStages = 64;     // that are tried as a way out
constexpr std::int32_t kMostShards = 64;     // likewise
constexpr std::int64_t kMostPages = std::numeric_limits<std::int32_t>::max();

// What a stage keeps on the host for each row and each page number, outside of its backend: microbatches on their way
// in and out, page tables, rows as operations take them; on the last stage also which tokens each sequence has had.
std::int64_t bookkeeping_bytes(const ModelConfig& model, const StageWork& work, const StageOperations& operations,
                               bool leads, bool remembers_tokens) {
  constexpr std::int64_t kOfRow = 64;               // Row, its bytes in a message, and their copies
  constexpr std::int64_t kOfPage = 16;              // in a table, a message
  constexpr std::int64_t kOfPageAtScheduler = 400;  // with the tokens that it holds, to find it again
  constexpr std::int64_t kOfTableWord = 8;
  constexpr std::int64_t kOfToken = 8;  // in a list that grows
  std::int64_t bytes =
      kOfRow * work.max_rows * (work.in_flight + 1LL) + kOfPage * work.pages + kOfTableWord * operations.table_words;
  if (leads) bytes += kOfPageAtScheduler * work.pages;
  if (remembers_tokens && operations.head_rows > 0) {
    bytes += work.slots * (model.vocab_size / 8 + kOfToken * std::min(model.vocab_size, model.n_positions));
  }
  return bytes;
}

// The longest sequence of which no shard has more than `pages` pages.
std::int64_t positions_with(std::int64_t pages, const Plan& plan) {
  return (pages / kSegmentPages * kSegmentPages * plan.shards + pages % kSegmentPages) * kPagePositions;
}

// One way to run: the request, or one of its variations.
class Attempt {
 public:
  explicit Attempt(const FitRequest& request) : r_(request) {
    for (const StageRoom& room : r_.rooms) layouts_.push_back(layout_of(room));
  }

  std::vector<StageNeed> needs(std::int32_t slots, std::int32_t chunk_tokens, std::int64_t pages) const {
    SchedulerLimits limits;
    limits.slots = slots;
    limits.chunk_tokens = chunk_tokens;
    const StageWork work{limits.max_rows(),     static_cast<std::int32_t>(pages),
                         limits.tables(),       r_.plan.in_flight,
                         r_.plan.stage_count(), r_.plan.shards};
    const Grid grid = r_.plan.grid(r_.rooms.size());
    std::vector<StageNeed> result;
    for (std::size_t place = 0; place < r_.rooms.size(); ++place) {
      const std::int32_t stage = grid.stage(static_cast<std::int32_t>(place));
      const BlockRange blocks = r_.plan.stages[static_cast<std::size_t>(stage)].blocks;
      const StageRoom& room = r_.rooms[place];
      const DeviceLayout layout = device_layout(*layouts_[place], r_.plan.model, r_.dtype, r_.kv_dtype);
      StageNeed need;
      need.bytes = stage_bytes(r_.plan.model, blocks, layout, work);
      need.process = room.process_bytes;
      if (!room.cuda) {
        need.process += bookkeeping_bytes(r_.plan.model, work, stage_operations(r_.plan.model, blocks, layout, work),
                                          blocks.first == 0, r_.work.remembers_tokens);
        if (r_.loading_bytes) need.loading = r_.loading_bytes(blocks, r_.dtype, *layouts_[place]);
      }
      result.push_back(need);
    }
    return result;
  }

  // Whether every pot has room for its stages.
  bool fits(const std::vector<StageNeed>& needs) const {
    for (std::size_t s = 0; s < needs.size(); ++s) {
      if (total_of_pot(needs, s) > r_.rooms[s].available_bytes) return false;
    }
    return true;
  }
  std::int64_t total_of_pot(const std::vector<StageNeed>& needs, std::size_t stage) const {
    std::int64_t total = 0;
    for (std::size_t s = 0; s < needs.size(); ++s) {
      if (r_.rooms[s].pot == r_.rooms[stage].pot) total += needs[s].total();
    }
    return total;
  }

  // The most pages up to `most` with these; 0 when not even `work.pages` fit.
  std::int64_t pages_with(std::int32_t slots, std::int32_t chunk_tokens, std::int64_t most) const {
    const std::int64_t least = r_.work.pages;
    const std::int64_t pages = largest_that_fits(least, std::max(least, most),
                                                 [&](std::int64_t p) { return fits(needs(slots, chunk_tokens, p)); });
    return pages < least ? 0 : pages;
  }

  // Fewer sequences at once, then shorter chunks, where the memory is too small for all.
  std::optional<Fit> find() const {
    for (std::int32_t chunk = r_.plan.chunk_tokens;; chunk /= 2) {
      for (std::int32_t slots = r_.most_slots; slots >= 1; slots /= 2) {
        std::int64_t most = std::min<std::int64_t>(std::int64_t{r_.work.pages} * slots, kMostPages);
        if (r_.work.all_pages > 0) most = std::min(most, r_.work.all_pages);
        const std::int64_t pages = pages_with(slots, chunk, most);
        if (pages > 0) return Fit{slots, static_cast<std::int32_t>(pages), chunk, needs(slots, chunk, pages)};
      }
      if (!r_.chunks_may_shrink || chunk / 2 < kSmallestChunk) return std::nullopt;
    }
  }
  // What is tried last.
  std::int32_t smallest_chunk() const {
    std::int32_t chunk = r_.plan.chunk_tokens;
    while (r_.chunks_may_shrink && chunk / 2 >= kSmallestChunk) chunk /= 2;
    return chunk;
  }
  std::vector<StageNeed> least_needs() const { return needs(1, smallest_chunk(), r_.work.pages); }

 private:
  const FitRequest& r_;
  std::vector<std::unique_ptr<MemoryLayout>> layouts_;
};

bool fits(const FitRequest& request) {
  const Attempt attempt(request);
  return attempt.fits(attempt.least_needs());
}

// The same run as `stages` equal parts, each on a rank like the one with the least room.
FitRequest with_stages(const FitRequest& request, std::int32_t stages) {
  FitRequest other = request;
  other.plan.stages = even_split(request.plan.model, stages);
  other.plan.in_flight = std::max(request.plan.in_flight, stages);
  const auto buffers = [](const StageRoom& room) { return room.available_bytes - room.process_bytes; };
  StageRoom room = *std::ranges::min_element(request.rooms, {}, buffers);
  other.rooms.clear();
  for (std::int32_t place = 0; place < stages * request.plan.shards; ++place) {
    room.pot = place;
    other.rooms.push_back(room);
  }
  return other;
}

void append_other_stages(const FitRequest& request, std::vector<std::string>& ways) {
  const std::int32_t now = request.plan.stage_count();
  const std::int32_t most = std::min(request.plan.model.n_layer, kMostStages);
  const bool shared = std::ranges::any_of(request.rooms, [&](const StageRoom& room) {
    return &room != request.rooms.data() && room.pot == request.rooms.front().pot;
  });
  if (shared) return;
  const std::string of_shards =
      request.plan.shards > 1 ? fmt::format(" of {} context shards", request.plan.shards) : "";
  for (std::int32_t stages = now + 1; stages <= most; ++stages) {
    if (!fits(with_stages(request, stages))) continue;
    ways.push_back(fmt::format("{} stages{} with as much each", stages, of_shards));
    return;
  }
  // More stages do not do: a block's keys and values are too many for one rank.
  const std::int64_t pages = positions_with(request.work.pages, request.plan) / kPagePositions;
  for (std::int32_t shards = request.plan.shards + 1; shards <= kMostShards; ++shards) {
    FitRequest other = request;
    other.plan.shards = shards;
    other.work.pages = pages_of_shard(static_cast<std::int32_t>(pages), 0, 0, shards);
    if (!fits(with_stages(other, now))) continue;
    ways.push_back(fmt::format("--context-shards {} on {} ranks with as much each", shards, shards * now));
    return;
  }
}

void append_shorter(const FitRequest& request, std::vector<std::string>& ways) {
  FitRequest other = request;
  const std::int64_t pages = largest_that_fits(1, std::int64_t{request.work.pages} - 1, [&](std::int64_t p) {
    other.work.pages = static_cast<std::int32_t>(p);
    return fits(other);
  });
  if (pages >= 1) {
    ways.push_back(fmt::format("sequences of at most {} tokens", positions_with(pages, request.plan)));
  }
}

void append_dtypes(const FitRequest& request, std::vector<std::string>& ways) {
  const bool any_cuda = std::ranges::any_of(request.rooms, &StageRoom::cuda);
  struct Choice {
    DType dtype, kv_dtype;
  };
  std::vector<Choice> choices;
  const DType kv16 = request.kv_dtype == DType::kFloat32 ? DType::kFloat16 : request.kv_dtype;
  const DType half = request.dtype == DType::kFloat32 ? DType::kFloat16 : request.dtype;
  choices.push_back({request.dtype, kv16});
  choices.push_back({half, request.kv_dtype});
  choices.push_back({half, kv16});
  if (!any_cuda) choices.push_back({DType::kInt8, request.kv_dtype});
  if (!any_cuda) choices.push_back({DType::kInt8, kv16});
  for (const Choice& choice : choices) {
    FitRequest other = request;
    other.dtype = choice.dtype;
    other.kv_dtype = choice.kv_dtype;
    if ((other.dtype == request.dtype && other.kv_dtype == request.kv_dtype) || !fits(other)) continue;
    std::string way;
    if (other.dtype != request.dtype) way += fmt::format("--dtype {}", name_of(other.dtype));
    if (other.kv_dtype != request.kv_dtype) {
      way += fmt::format("{}--kv-dtype {}", way.empty() ? "" : " ", name_of(other.kv_dtype));
    }
    ways.push_back(way);
    return;  // the one that rounds least
  }
}

std::string stages_too_small(const FitRequest& request, const Attempt& attempt) {
  const std::vector<StageNeed> needs = attempt.least_needs();
  const Grid grid = request.plan.grid(needs.size());
  std::vector<std::string> parts;
  std::size_t more = 0;
  for (std::size_t s = 0; s < needs.size(); ++s) {
    const StageRoom& room = request.rooms[s];
    if (attempt.total_of_pot(needs, s) <= room.available_bytes) continue;
    if (parts.size() == kStagesShown) {
      ++more;
      continue;
    }
    const auto place = static_cast<std::int32_t>(s);
    const std::int32_t stage = grid.stage(place);
    const BlockRange blocks = request.plan.stages[static_cast<std::size_t>(stage)].blocks;
    const std::string replica = grid.replicas > 1 ? fmt::format("replica {}, ", grid.replica(place)) : "";
    const std::string shard = grid.shards > 1 ? fmt::format(", shard {}", grid.shard(place)) : "";
    const bool cut = room.budget_bytes > room.available_bytes;
    const std::int64_t others = attempt.total_of_pot(needs, s) - needs[s].total();
    parts.push_back(fmt::format(
        "{}stage {}{} (blocks {} to {}) needs {}{}, available {}{}{}", replica, stage, shard, blocks.first, blocks.last,
        describe(needs[s]), others > 0 ? fmt::format(" and the others beside it {}", readable_bytes(others)) : "",
        readable_bytes(room.available_bytes), s < request.hosts.size() ? " on " + request.hosts[s] : "",
        cut ? fmt::format(" of a budget of {}: there is no more", readable_bytes(room.budget_bytes)) : ""));
  }
  return fmt::format("{}{}", fmt::join(parts, "; "), more > 0 ? fmt::format("; and {} more", more) : "");
}

[[noreturn]] void refuse(const FitRequest& request, const Attempt& attempt) {
  std::vector<std::string> ways;
  append_other_stages(request, ways);
  append_shorter(request, ways);
  append_dtypes(request, ways);
  throw FitError(fmt::format("does not fit in memory: {}; KV cache for one sequence of {} tokens. {}",
                             stages_too_small(request, attempt), positions_with(request.work.pages, request.plan),
                             ways.empty() ? "Needs more memory, or more ranks on more hosts"
                                          : fmt::format("Would fit: {}", fmt::join(ways, ", or "))));
}

}  // namespace

std::unique_ptr<MemoryLayout> layout_of(const StageRoom& room) {
  return room.cuda ? cuda_layout(room.pool_bytes) : cpu_layout(room.threads);
}

Fit fit(const FitRequest& request) {
  const Attempt attempt(request);
  if (std::optional<Fit> found = attempt.find()) return std::move(*found);
  refuse(request, attempt);
}

std::vector<std::int64_t> divide(std::int64_t free_bytes, double share,
                                 std::span<const std::optional<std::int64_t>> wishes) {
  const std::int64_t most = std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(wishes.size() + 1);
  std::int64_t wished = 0;  // does not overflow
  std::int64_t others = 0;
  for (const std::optional<std::int64_t>& wish : wishes) {
    wished += std::min(wish.value_or(0), most);
    if (!wish) ++others;
  }
  const double scale = wished > free_bytes ? static_cast<double>(free_bytes) / static_cast<double>(wished) : 1.0;
  const auto left = static_cast<double>(std::max<std::int64_t>(0, free_bytes - wished));
  std::vector<std::int64_t> result;
  for (const std::optional<std::int64_t>& wish : wishes) {
    if (!wish) {
      result.push_back(static_cast<std::int64_t>(left * share) / others);
    } else if (wished <= free_bytes) {
      result.push_back(*wish);
    } else {
      result.push_back(static_cast<std::int64_t>(static_cast<double>(std::min(*wish, most)) * scale));
    }
  }
  return result;
}

std::string describe(const StageNeed& need) {
  const std::int64_t workspace = need.buffers() - need.bytes.weights - need.bytes.kv;
  return fmt::format("{} (weights {}, KV cache {}, workspace {}{})", readable_bytes(need.total()),
                     readable_bytes(need.bytes.weights), readable_bytes(need.bytes.kv), readable_bytes(workspace),
                     need.process > 0 ? ", process " + readable_bytes(need.process) : "");
}

}  // namespace stagecoach
