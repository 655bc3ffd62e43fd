#include "tests/pipeline/harness.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/staged_transport.hpp"

namespace stagecoach::test {
namespace {

struct Parts {
  std::unique_ptr<Backend> backend;
  ShardLinks links;
  std::unique_ptr<StageExecutor> executor;
};

// A way to another place and back.
using Connect = std::function<std::unique_ptr<Transport>(Backend& backend, std::int32_t place)>;

std::int32_t pool_pages(const Job& job, const Layout& layout, std::int32_t n_positions) {
  std::int32_t most = 1;
  for (const Request& r : job.requests) most = std::max(most, pages_needed(r, n_positions, layout.shards));
  return most + layout.spare_pages;
}

SchedulerLimits scheduler_limits(const Job& job, const Layout& layout, std::int32_t n_positions) {
  SchedulerLimits limits;
  limits.n_positions = n_positions;
  limits.eos = job.eos;
  limits.pages = pool_pages(job, layout, n_positions);
  limits.slots = layout.slots;
  limits.chunk_tokens = layout.chunk_tokens;
  limits.chunks = layout.chunks;
  limits.in_flight = layout.in_flight;
  limits.shards = layout.shards;
  return limits;
}

Parts make_parts(const Layout& layout, std::int32_t place, const Connect& connect) {
  Parts parts;
  const std::int32_t stage = place / layout.shards;
  parts.backend = layout.backend != nullptr ? layout.backend() : make_cpu_backend({layout.threads, layout.simd});
  if (layout.checking) parts.backend = make_checking_backend(std::move(parts.backend));
  parts.links.place = {place % layout.shards, layout.shards};
  for (std::int32_t shard = 0; shard < layout.shards; ++shard) {
    parts.links.to.push_back(shard == parts.links.place.shard ? nullptr
                                                              : connect(*parts.backend, stage * layout.shards + shard));
  }
  return parts;
}

void make_executor(const Job& job, const Layout& layout, const Model& model, Parts& parts, std::int32_t place) {
  const BlockRange blocks = layout.stages[static_cast<std::size_t>(place / layout.shards)];
  StageWeights weights = load_stage(*parts.backend, *model.weights, model.config, blocks, job.dtype, {});
  const SchedulerLimits l = scheduler_limits(job, layout, model.config.n_positions);
  const StageLimits limits{l.max_rows(), l.pages, l.tables(), job.kv_dtype};
  parts.executor =
      std::make_unique<StageExecutor>(*parts.backend, model.config, blocks, std::move(weights), limits, &parts.links);
}

StageContext context_of(const Layout& layout, std::int32_t place, Parts& parts) {
  StageContext context;
  context.stage = place / layout.shards;
  context.shards = parts.links.place;
  context.stages = static_cast<std::int32_t>(layout.stages.size());
  context.in_flight = layout.in_flight;
  context.timeout_s = layout.timeout_s;
  context.backend = parts.backend.get();
  context.executor = parts.executor.get();
  if (layout.traces != nullptr) context.trace = &layout.traces->at(static_cast<std::size_t>(place));
  return context;
}

std::vector<Sample> lead(const Job& job, const Layout& layout, const Model& model, const StageContext& context) {
  Scheduler scheduler(scheduler_limits(job, layout, model.config.n_positions), letters);
  std::vector<Sample> samples;
  std::size_t next = 0;
  LeaderHooks hooks;
  hooks.next_request = [&]() -> std::optional<Request> {
    if (next == job.requests.size()) return std::nullopt;
    return job.requests[next++];
  };
  hooks.exhausted = [&] { return next == job.requests.size(); };
  hooks.on_finished = [&](Sample&& sample) { samples.push_back(std::move(sample)); };
  Leader leader(context);
  leader.run(scheduler, hooks);
  leader.stop();
  std::ranges::sort(samples, {}, [](const Sample& s) { return std::pair(s.index, s.sample); });
  return samples;
}

}  // namespace

std::string Layout::describe() const {
  std::vector<std::string> ranges;
  for (const BlockRange& r : stages) ranges.push_back(fmt::format("{}-{}", r.first, r.last));
  return fmt::format("stages {} x {} chunk {} {} in flight {} slots {} spare pages {} threads {} simd {} rendezvous {}",
                     ranges, shards, chunk_tokens, chunks, in_flight, slots, spare_pages, threads,
                     static_cast<int>(simd), mode == LoopbackMode::kRendezvous);
}

std::string letters(std::int32_t token) {
  constexpr std::array<const char*, 8> kTexts{"a", "b", "c", "d", "ab", "ca", "dd", "d"};
  return kTexts[static_cast<std::size_t>(token) % kTexts.size()];
}

std::vector<Sample> run_loopback(const Job& job, const Layout& layout, Instrument* instrument) {
  const Model model = open_model(job.model);
  LoopbackHub hub(layout.mode);
  std::vector<Sample> samples;
  std::mutex mutex;
  std::exception_ptr failure;
  {
    std::vector<std::jthread> threads;
    for (std::int32_t place = 0; place < layout.places(); ++place) {
      threads.emplace_back([&, place] {
        try {
          const std::int32_t shards = layout.shards;
          Parts parts = make_parts(layout, place, [&](Backend& backend, std::int32_t other) {
            return make_staged_transport(hub.transport(place, other, other), backend);
          });
          if (instrument != nullptr) {
            for (auto& link : parts.links.to) {
              if (link) link = instrument->around(place, std::move(link));
            }
          }
          make_executor(job, layout, model, parts, place);
          StageContext context = context_of(layout, place, parts);
          std::unique_ptr<Mailbox> mailbox = hub.mailbox(place);
          std::unique_ptr<Transport> transport =
              make_staged_transport(hub.transport(place, place - shards, place + shards), *parts.backend);
          if (instrument != nullptr) {
            mailbox = instrument->around(place, std::move(mailbox));
            transport = instrument->around(place, std::move(transport));
            instrument->begin(place);
          }
          if (layout.places() > 1) {
            context.mailbox = mailbox.get();
            context.transport = transport.get();
          }
          if (place == 0) {
            samples = lead(job, layout, model, context);
          } else {
            run_follower(context);
          }
          if (instrument != nullptr) instrument->end(place, nullptr);
        } catch (const std::exception& e) {
          const std::scoped_lock lock(mutex);
          if (!failure) failure = std::current_exception();
          hub.fail(e.what());
          if (instrument != nullptr) instrument->end(place, e.what());
        }
      });
    }
  }
  if (failure) std::rethrow_exception(failure);
  return samples;
}

std::vector<Sample> run_ranks(const Job& job, const Layout& layout, const MpiProcess& process, const RankLinks& links) {
  const std::int32_t rank = process.rank();
  if (rank >= layout.places()) return {};
  const Model model = open_model(job.model);
  Parts parts = make_parts(layout, rank, [&](Backend& backend, std::int32_t other) {
    return links.to_shard ? links.to_shard(backend, other)
                          : make_staged_transport(process.transport(other, other), backend);
  });
  make_executor(job, layout, model, parts, rank);
  StageContext context = context_of(layout, rank, parts);
  std::unique_ptr<Mailbox> mailbox;
  std::unique_ptr<Transport> transport;
  if (layout.places() > 1) mailbox = links.mailbox ? links.mailbox() : process.mailbox(0);
  context.mailbox = mailbox.get();
  if (layout.stages.size() > 1) {
    transport = links.transport ? links.transport(*parts.backend)
                                : make_staged_transport(process.transport(rank - layout.shards, rank + layout.shards),
                                                        *parts.backend);
    context.transport = transport.get();
  }
  if (rank == 0) return lead(job, layout, model, context);
  run_follower(context);
  return {};
}

std::int64_t draw(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

Job random_job(Random& random, std::int32_t min_blocks, bool small) {
  Job job;
  const std::int64_t heads = draw(random, 1, small ? 3 : 5);
  const std::int64_t embed =
      heads * std::array<std::int64_t, 5>{1, 8, 13, 16, 64}[static_cast<std::size_t>(draw(random, 0, small ? 2 : 4))];
  const std::int64_t vocab = draw(random, 10, 300);
  const std::int64_t positions = draw(random, 20, small ? 140 : 260);
  job.model = fmt::format(
      "synthetic:gpt2,n_layer={},n_head={},n_embd={},n_inner={},n_positions={},vocab_size={},seed={},dtype=float32",
      draw(random, min_blocks, min_blocks + 3), heads, embed, draw(random, 1, 4 * embed), positions, vocab,
      draw(random, 0, 1000000));
  constexpr std::array kTypes{DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
  job.dtype = kTypes[static_cast<std::size_t>(draw(random, 0, 3))];
  job.kv_dtype = kTypes[static_cast<std::size_t>(draw(random, 0, 2))];
  job.eos = static_cast<std::int32_t>(draw(random, -1, vocab - 1));
  const std::int64_t count = draw(random, 1, small ? 4 : 10);
  for (std::int64_t i = 0; i < count; ++i) {
    Request request;
    request.index = i;
    request.max_new_tokens = static_cast<std::int32_t>(draw(random, 1, 16));
    request.logprobs = draw(random, 0, 3) != 0;
    request.ignore_eos = draw(random, 0, 1) != 0;
    if (draw(random, 0, 1) != 0) {
      request.sampling = {static_cast<double>(draw(random, 0, 3)) * 0.5,
                          static_cast<std::int32_t>(draw(random, 0, 1) * draw(random, 1, 20)),
                          draw(random, 0, 1) != 0 ? 1.0 : 0.8, draw(random, 0, 1) != 0 ? 1.0 : 1.5};
      request.seed = random();
      request.num_samples = static_cast<std::int32_t>(draw(random, 1, 4));
    }
    if (draw(random, 0, 2) == 0) request.stop = {"ab", "cadd"};
    const std::int64_t length =
        draw(random, 1, draw(random, 0, 1) != 0 ? positions : std::min<std::int64_t>(positions, 12));
    for (std::int64_t t = 0; t < length; ++t)
      request.tokens.push_back(static_cast<std::int32_t>(draw(random, 0, vocab - 1)));
    if (length > 1 && draw(random, 0, 3) == 0) {  // score instead
      request.num_samples = 1;
      request.score_from = static_cast<std::int32_t>(draw(random, 1, length - 1));
    }
    job.requests.push_back(std::move(request));
  }
  return job;
}

Job random_long_job(Random& random, std::int32_t min_blocks) {
  Job job = random_job(random, min_blocks, true);
  const std::int64_t positions = draw(random, kSegmentPositions + 1, 4 * kSegmentPositions);
  job.model = fmt::format(
      "synthetic:gpt2,n_layer={},n_head=2,n_embd=16,n_inner=16,n_positions={},vocab_size=50,seed={},dtype=float32",
      min_blocks, positions, draw(random, 0, 1000000));
  job.eos = -1;
  for (Request& request : job.requests) {
    request.tokens.resize(static_cast<std::size_t>(draw(random, kSegmentPositions / 2, positions)));
    for (std::int32_t& token : request.tokens) token = static_cast<std::int32_t>(draw(random, 0, 49));
    request.score_from = 0;
  }
  return job;
}

Layout plain_layout(const Job& job) {
  const Model model = open_model(job.model);
  Layout layout;
  layout.stages = {{0, model.config.n_layer - 1}};
  layout.slots = 1;  // no companions
  layout.chunk_tokens = model.config.n_positions;
  return layout;
}

Layout random_layout(Random& random, const Job& job, std::int32_t stages, std::int32_t shards) {
  const std::int32_t blocks = open_model(job.model).config.n_layer;
  Layout layout;
  layout.shards = shards;
  // A random cut of the blocks into `stages` runs, each at least one block.
  std::vector<std::int32_t> cuts(static_cast<std::size_t>(blocks - 1));
  for (std::size_t i = 0; i < cuts.size(); ++i) cuts[i] = static_cast<std::int32_t>(i) + 1;
  std::ranges::shuffle(cuts, random);
  cuts.resize(static_cast<std::size_t>(stages - 1));
  cuts.push_back(0);
  cuts.push_back(blocks);
  std::ranges::sort(cuts);
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) layout.stages.push_back({cuts[i], cuts[i + 1] - 1});
  layout.chunk_tokens = static_cast<std::int32_t>(draw(random, 0, 2) == 0 ? draw(random, 1, 4) : draw(random, 1, 300));
  for (std::int64_t i = draw(random, 0, 1) * draw(random, 0, 4); i > 0; --i) {
    layout.chunks.push_back(static_cast<std::int32_t>(draw(random, 1, layout.chunk_tokens)));
  }
  layout.in_flight = static_cast<std::int32_t>(draw(random, 1, 6));
  layout.slots = static_cast<std::int32_t>(draw(random, 1, 12));
  layout.spare_pages = static_cast<std::int32_t>(draw(random, 0, 8));
  layout.threads = static_cast<int>(draw(random, 1, 2));
  layout.mode = draw(random, 0, 1) != 0 ? LoopbackMode::kRendezvous : LoopbackMode::kBuffered;
  return layout;
}

std::string difference(const std::vector<Sample>& expected, const std::vector<Sample>& actual) {
  if (expected.size() != actual.size()) return fmt::format("{} samples, expected {}", actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Sample& a = expected[i];
    const Sample& b = actual[i];
    if (a.tokens != b.tokens) return fmt::format("sample {}: tokens {}, expected {}", i, b.tokens, a.tokens);
    if (a.index != b.index || a.sample != b.sample) return fmt::format("sample {}: is another one", i);
    if (a.finish != b.finish || a.text_bytes != b.text_bytes || a.prompt_tokens != b.prompt_tokens)
      return fmt::format("sample {}: another end", i);
    if (a.logprobs.size() != b.logprobs.size())
      return fmt::format("sample {}: {} log-probabilities", i, b.logprobs.size());
    for (std::size_t t = 0; t < a.logprobs.size(); ++t) {
      if (std::bit_cast<std::uint32_t>(a.logprobs[t]) != std::bit_cast<std::uint32_t>(b.logprobs[t])) {
        return fmt::format("sample {}: log-probability {} is {:.9g}, expected {:.9g}", i, t, b.logprobs[t],
                           a.logprobs[t]);
      }
    }
  }
  return "";
}

}  // namespace stagecoach::test
