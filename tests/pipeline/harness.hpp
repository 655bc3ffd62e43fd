// Runs requests through a pipeline of any layout, over loopback threads or as ranks of an MPI job, and draws random
// models, requests and layouts. Shared by the pipeline and MPI tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/backend.hpp"
#include "runtime/loopback.hpp"
#include "runtime/mpi_transport.hpp"
#include "runtime/pipeline.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach::test {

struct Layout {
  std::vector<BlockRange> stages;
  std::int32_t shards = 1;  // context shards of each
  std::int32_t chunk_tokens = 256;
  ChunkPlan chunks = {};  // SchedulerLimits'
  std::int32_t in_flight = 1;
  std::int32_t slots = 8;
  std::int32_t spare_pages = 0;  // beyond what the longest request needs
  int threads = 1;
  Simd simd = Simd::kBest;
  std::unique_ptr<Backend> (*backend)() = nullptr;  // instead of the CPU's
  bool checking = false;                            // every operation is checked against the reference
  LoopbackMode mode = LoopbackMode::kRendezvous;
  double timeout_s = 60.0;
  std::vector<TraceBuffer>* traces = nullptr;  // [stage * shards + shard], over loopback

  std::int32_t places() const { return static_cast<std::int32_t>(stages.size()) * shards; }
  std::string describe() const;
};

struct Job {
  std::string model;  // "synthetic:..."
  DType dtype = DType::kFloat32;
  DType kv_dtype = DType::kFloat32;
  std::int32_t eos = -1;
  std::vector<Request> requests;
};

// The text that a token stands for in these tests, for stop strings: one of four letters or two.
std::string letters(std::int32_t token);

// Stands between the stages of a loopback run and their messages; of one shard each.
class Instrument {
 public:
  virtual ~Instrument() = default;
  virtual std::unique_ptr<Mailbox> around(std::int32_t stage, std::unique_ptr<Mailbox> mailbox) = 0;
  virtual std::unique_ptr<Transport> around(std::int32_t stage, std::unique_ptr<Transport> transport) = 0;
  virtual void begin(std::int32_t stage) = 0;                     // on the stage's thread, before its loop
  virtual void end(std::int32_t stage, const char* failure) = 0;  // after it; null when all went well
};

// Samples in order of request index and sample number. Over loopback; throws the first failure of any stage.
std::vector<Sample> run_loopback(const Job& job, const Layout& layout, Instrument* instrument = nullptr);

// What a rank talks through instead of MPI; empty: that.
struct RankLinks {
  std::function<std::unique_ptr<Mailbox>()> mailbox = {};
  std::function<std::unique_ptr<Transport>(Backend&)> transport = {};  // not called when there is one rank
  std::function<std::unique_ptr<Transport>(Backend&, std::int32_t rank)> to_shard = {};  // another of the stage
};
// The same as ranks 0..places-1 of the job; samples on rank 0, empty elsewhere. Ranks beyond do nothing.
std::vector<Sample> run_ranks(const Job& job, const Layout& layout, const MpiProcess& process,
                              const RankLinks& links = {});

using Random = std::mt19937_64;
std::int64_t draw(Random& random, std::int64_t low, std::int64_t high);  // both inclusive
// `small`: for what runs the reference backend, which is slow, and slower still under sanitizers.
Job random_job(Random& random, std::int32_t min_blocks, bool small = false);
// Of few prompts, which have several segments (kSegmentPositions).
Job random_long_job(Random& random, std::int32_t min_blocks);
Layout random_layout(Random& random, const Job& job, std::int32_t stages, std::int32_t shards = 1);
// One stage, everything at once: what the others are compared with.
Layout plain_layout(const Job& job);

// Empty when equal bit for bit, otherwise the first difference.
std::string difference(const std::vector<Sample>& expected, const std::vector<Sample>& actual);

}  // namespace stagecoach::test
