// stagecoach profile: measures the devices of a run, with all its ranks at work, and writes a machine file for plan.
#include <fmt/format.h>
#include <unistd.h>

#include <barrier>
#include <cstring>
#include <exception>
#include <optional>
#include <thread>

#include "kernels/cuda/cuda_backend.hpp"
#include "launch/commands.hpp"
#include "launch/devices.hpp"
#include "launch/log.hpp"
#include "launch/machine.hpp"
#include "launch/measure.hpp"
#include "partition/machine.hpp"
#include "runtime/loopback.hpp"
#include "runtime/output_file.hpp"
#include "runtime/staged_transport.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kCpuRows = 256;
constexpr std::int32_t kCudaRows = 2048;

// What one rank, or each stage in this process, found out.
struct Found {
  MachineDevice device;
  LinkSpeed link;
};

class Profiler {
 public:
  Profiler(const Options& options, const World& world) : o_(options), world_(world) {
    std::int32_t stages = 1;
    world_.arrange({world_.hosts()});  // as runs do: a plan counts the devices in this order
    world_.agree([&] {
      model_ = std::make_unique<Model>(open_model(o_.model));
      stages = world_.size() > 1 ? 1 : o_.stages.value_or(1);
      dtype_ = o_.dtype.value_or(model_->dtype);
      require_convertible(*model_, dtype_);
      threads_ = o_.threads.value_or(default_threads(world_.size() > 1 ? world_.local_size() : stages));
    });
    const auto count = static_cast<std::size_t>(stages);
    devices_ = choose_devices(world_, std::vector<DeviceWish>(count, o_.device),
                              std::vector<std::optional<std::int64_t>>(count, o_.memory_per_rank));
    kv_dtype_ = o_.kv_dtype.value_or(devices_.front().cuda ? DType::kFloat16 : DType::kFloat32);
  }

  // A machine file's text, on rank 0. Ranks measure in step, so a failure of one ends the job.
  std::string run() {
    const auto stages = static_cast<std::int32_t>(devices_.size());
    LoopbackHub hub(LoopbackMode::kBuffered);
    std::barrier together(stages);
    if (stages == 1) return gather({measure(0, 1, hub, together)});
    std::vector<Found> found(devices_.size());
    std::vector<std::exception_ptr> failures(devices_.size());
    {
      std::vector<std::jthread> threads;
      for (std::int32_t s = 0; s < stages; ++s) {
        threads.emplace_back([&, s] {
          try {
            found[static_cast<std::size_t>(s)] = measure(s, stages, hub, together);
          } catch (const std::exception& error) {
            failures[static_cast<std::size_t>(s)] = std::current_exception();
            together.arrive_and_drop();
            hub.fail(error.what());
          }
        });
      }
    }
    for (const std::exception_ptr& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
    return gather(found);
  }

 private:
  Found measure(std::int32_t s, std::int32_t stages, LoopbackHub& hub, std::barrier<>& together) {
    const StageDevice& device = devices_[static_cast<std::size_t>(s)];
    std::unique_ptr<Backend> bare = device.cuda ? make_cuda_backend({device.index, device.pool_bytes, o_.deterministic})
                                                : make_cpu_backend({threads_, simd_of(o_.simd)});
    const std::string name = bare->name();
    ProfilingBackend backend(std::move(bare));
    MeasureOptions options;
    options.dtype = dtype_;
    options.kv_dtype = kv_dtype_;
    options.most_rows = device.cuda ? kCudaRows : kCpuRows;
    options.in_step = [&] { together.arrive_and_wait(); };
    if (stages == 1 && world_.size() > 1) options.in_step = [this] { world_.minimum(0); };
    Found found;
    found.device.speed = measure_device(backend, *model_, options);
    found.device.speed.name = name;
    found.device.name = name;
    found.device.cuda = device.cuda;
    found.device.dtype = name_of(dtype_);
    found.device.kv_dtype = name_of(kv_dtype_);
    options.in_step();
    const std::int32_t stage = stages > 1 ? s : world_.rank();
    if ((stages > 1 || world_.size() > 1) && stage < 2) {
      const std::unique_ptr<Mailbox> mailbox = stages > 1 ? hub.mailbox(s) : world_.mpi()->mailbox(0);
      const std::unique_ptr<Transport> transport =
          make_staged_transport(stages > 1 ? hub.transport(s) : world_.mpi()->transport(stage - 1, stage + 1), backend);
      found.link =
          measure_link(stage, *mailbox, *transport, backend, model_->config.n_embd, [] { std::this_thread::yield(); });
    }
    return found;
  }

  // Each rank tells its part as a machine file, which is the form that is defined.
  std::string gather(const std::vector<Found>& found) const {
    Machine mine;
    for (const Found& f : found) mine.devices.push_back(f.device);
    mine.link = found.front().link;
    const std::string text = machine_text(mine);
    Machine all;
    for (const std::vector<std::byte>& bytes : world_.from_all(std::as_bytes(std::span(text)))) {
      const std::string part(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      const Machine machine = parse_machine(part, "measurement");
      all.devices.insert(all.devices.end(), machine.devices.begin(), machine.devices.end());
      if (all.link.latency_s == 0.0) all.link = machine.link;
    }
    return machine_text(all);
  }

  const Options& o_;
  const World& world_;
  std::unique_ptr<Model> model_;
  DType dtype_ = DType::kFloat32;
  DType kv_dtype_ = DType::kFloat32;
  std::int32_t threads_ = 1;
  std::vector<StageDevice> devices_;
};

}  // namespace

int run_profile(const Options& options, const World& world) {
  std::optional<OutputFile> file;  // that it can be is known before anything is measured
  world.agree([&] {
    if (world.rank() == 0) file.emplace(options.output_path);
  });
  const std::string text = Profiler(options, world).run();
  world.agree([&] {
    if (world.rank() != 0) return;
    file->write(fmt::format("# Measured by stagecoach profile with {}.\n{}", options.model, text));
    file->commit();
    if (!options.quiet) write_all(STDOUT_FILENO, text, "standard output");
  });
  return 0;
}

}  // namespace stagecoach
