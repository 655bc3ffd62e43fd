#include "tests/pipeline/stage_memory.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <string>

#include "kernels/convert.hpp"
#include "kernels/forwarding_backend.hpp"
#include "partition/stage_bytes.hpp"
#include "runtime/device_layout.hpp"
#include "runtime/staged_transport.hpp"

namespace stagecoach::test {
namespace {

// Counts host memory that is not the device's.
class CountsHostMemory final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  Buffer allocate_host(std::int64_t bytes) override {
    host_bytes += bytes;
    return ForwardingBackend::allocate_host(bytes);
  }
  std::int64_t host_bytes = 0;
};

// Nothing moves; what others would send is ones.
class NoTransport final : public Transport {
 public:
  Ticket send(Tensor) override { return 1; }
  Ticket receive(Tensor tensor) override {
    for (std::int64_t i = 0; i < tensor.rows * tensor.cols; ++i) store_element(tensor.data, tensor.dtype, i, 1.0F);
    return 1;
  }
  bool done(Ticket) override { return true; }
  bool abandon() noexcept override { return true; }
};

// Rows of as many sequences as there are slots and pages for: the widest page tables, logits of every row.
// Pages of the first shard, where there are several.
Microbatch full_microbatch(const ModelConfig& model, const StageLimits& limits, std::int32_t shards) {
  Microbatch microbatch;
  microbatch.id = 1;
  const std::int32_t per_slot = std::min(limits.pages, pages_for(model.n_positions));
  const std::int32_t sequences = std::min({limits.slots, limits.max_rows, limits.pages});
  std::int32_t page = 0;
  for (std::int32_t s = 0; s < sequences; ++s) {
    SlotCommand pages{SlotCommand::Kind::kAppendPages, s};
    const std::int32_t count = s == 0 ? std::min(per_slot, limits.pages - sequences + 1) : 1;
    for (std::int32_t p = 0; p < count; ++p) pages.pages.push_back(shards * page++);
    microbatch.commands.push_back(pages);
    SlotCommand sampling{SlotCommand::Kind::kSampling, s};
    sampling.sampling.options = {0.7, 5, 1.0, 1.3};
    microbatch.commands.push_back(sampling);
    const std::int32_t rows = s == 0 ? limits.max_rows - sequences + 1 : 1;
    const std::int32_t most = std::min(model.n_positions, count * kPagePositions);
    for (std::int32_t r = 0; r < std::min(rows, most); ++r) {
      microbatch.rows.push_back({r % model.vocab_size, s, most - std::min(rows, most) + r,
                                 r + 1 == std::min(rows, most) ? std::uint32_t{kRowSample} : 0U});
    }
  }
  return microbatch;
}

}  // namespace

void check_stage_memory(Random& random, const DeviceUnderTest& device) {
  const auto stages = static_cast<std::int32_t>(draw(random, 1, 4));
  Job job = random_job(random, stages, true);
  if (job.dtype == DType::kInt8 && !device.int8) job.dtype = DType::kBFloat16;
  const auto shards = static_cast<std::int32_t>(device.shards ? draw(random, 1, 3) : 1);
  const Layout plan = random_layout(random, job, stages, shards);
  const Model model = open_model(job.model);
  const StageLimits limits{static_cast<std::int32_t>(draw(random, 1, 200)),
                           static_cast<std::int32_t>(draw(random, 1, 12)),
                           static_cast<std::int32_t>(draw(random, 1, 9)), job.kv_dtype};
  INFO("model " << job.model << " " << name_of(job.dtype) << " " << plan.describe() << " rows " << limits.max_rows
                << " pages " << limits.pages << " slots " << limits.slots);
  const std::unique_ptr<MemoryLayout> memory = device.layout();
  const DeviceLayout layout = device_layout(*memory, model.config, job.dtype, job.kv_dtype);
  const StageWork work{limits.max_rows, limits.pages, limits.slots, plan.in_flight, stages, shards};
  for (std::int32_t place = 0; place < plan.places(); ++place) {
    const std::int32_t stage = place / shards;
    const BlockRange blocks = plan.stages[static_cast<std::size_t>(stage)];
    const StageBytes planned = stage_bytes(model.config, blocks, layout, work);
    CountsHostMemory backend(device.backend());
    StageWeights weights = load_stage(backend, *model.weights, model.config, blocks, job.dtype, {});
    ShardLinks links{{place % shards, shards}, {}};
    for (std::int32_t shard = 0; shard < shards; ++shard) {
      links.to.push_back(shard == links.place.shard ? nullptr
                                                    : make_staged_transport(std::make_unique<NoTransport>(), backend));
    }
    StageExecutor executor(backend, model.config, blocks, std::move(weights), limits, &links);
    StageContext context;
    context.stage = stage;
    context.stages = stages;
    context.shards = links.place;
    context.in_flight = plan.in_flight;
    context.backend = &backend;
    context.executor = &executor;
    const std::unique_ptr<Transport> transport =
        stages == 1 ? nullptr : make_staged_transport(std::make_unique<NoTransport>(), backend);
    context.transport = transport.get();
    const Leader residuals(context);  // owns them, as a follower's loop does
    CHECK(executor.weight_bytes() == planned.weights);
    CHECK(backend.bytes_allocated() == planned.device());
    CHECK(backend.host_bytes == planned.host);

    const Microbatch microbatch = full_microbatch(model.config, limits, shards);
    const std::int64_t own = executor.own_rows(microbatch);
    Buffer rows = backend.allocate(residual_bytes(own, model.config.n_embd));
    const std::int64_t before = backend.bytes_allocated();
    const std::int64_t peak = backend.peak_bytes();
    executor.run(
        microbatch, make_tensor(rows.data(), DType::kFloat32, own, model.config.n_embd), [] {}, [](std::int32_t) {});
    CHECK(backend.bytes_allocated() == before);  // it takes nothing any more
    CHECK(backend.peak_bytes() == peak);
  }
}

}  // namespace stagecoach::test
