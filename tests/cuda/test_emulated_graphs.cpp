// Steps that are recorded and replayed: the same bits as plain launches, padding that touches nothing, and what happens
// where recording fails. On the emulation, which counts what is launched how.
#include <algorithm>
#include <cstring>

#include "tests/cuda/device_fixture.hpp"
#include "tests/cuda_emulation/emulation.hpp"

#include <cuda_runtime.h>

using namespace stagecoach;
namespace emulation = stagecoach::cuda_emulation;
using stagecoach::test::DeviceArray;

namespace {

struct FreshDevice {
  explicit FreshDevice(const emulation::Options& options = {}) { emulation::reset(options); }
  ~FreshDevice() { emulation::reset(); }
};

std::unique_ptr<Backend> backend_with(bool deterministic, bool graphs) {
  return make_cuda_backend({.pool_bytes = std::int64_t{64} << 20, .deterministic = deterministic, .graphs = graphs});
}

// A block's worth of operations on rows of `kSlots` sequences that grow by one position in every step.
class Decoder {
 public:
  static constexpr std::int32_t kHeads = 2, kDim = 8, kWidth = kHeads * kDim, kPages = 3, kSlots = 9;

  // Tensors have memory for `room` rows.
  Decoder(Backend& backend, std::uint64_t seed, std::int64_t room, DType dtype = DType::kFloat16)
      : backend_(backend),
        room_(room),
        random_(seed),
        residual(backend, DType::kFloat32, room, kWidth),
        narrow_(backend, dtype, room, kWidth),
        wide_(backend, dtype, room, 3 * kWidth),
        gain_(backend, DType::kFloat32, 1, kWidth),
        bias_(backend, DType::kFloat32, 1, kWidth),
        wte_(test::random_matrix(backend, random_, kWidth, 50, dtype)),
        qkv_(test::random_matrix(backend, random_, kWidth, 3 * kWidth, dtype)),
        proj_(test::random_matrix(backend, random_, kWidth, kWidth, dtype)),
        wpe_(backend, dtype, kPages * kPagePositions, kWidth) {
    gain_.randomize(random_);
    bias_.randomize(random_);
    wpe_.randomize(random_);
    const std::int64_t bytes = kSlots * kPages * backend.kv_page_bytes(kHeads, kDim, dtype);
    pages_ = backend.allocate(bytes);
    kv_ = {pages_.data(), dtype, kSlots * kPages, kHeads, kDim};
    for (std::int32_t s = 0; s < kSlots; ++s) {
      for (std::int32_t p = 0; p < kPages; ++p) table_.push_back((s + p * kSlots + 5) % (kSlots * kPages));
    }
  }
  ~Decoder() { backend_.forget_steps(); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The next position of the first `rows` sequences; returns the rows (rows, kWidth).
  std::vector<float> step(
      std::int32_t rows, const std::function<void()>& beside = [] {}) {
    std::vector<std::int32_t> tokens, positions, sequences;
    for (std::int32_t s = 0; s < rows; ++s) {
      tokens.push_back((7 * next_[s] + 3 * s) % 50);
      positions.push_back(next_[s]++);
      sequences.push_back(s);
    }
    backend_.set_rows({tokens, positions, sequences, table_, kPages});
    padded = backend_.pad_rows(rows, room_);
    const Tensor x = residual.view().slice(0, padded);
    const Backend::StepKey key{1, reinterpret_cast<std::uintptr_t>(x.data), static_cast<std::uintptr_t>(padded)};
    backend_.step(key, beside, [&](const Backend::Progress& between) {
      ++calls;
      backend_.embed(wte_, wpe_.view(), x);
      between();
      const Tensor narrow = narrow_.view().slice(0, padded), wide = wide_.view().slice(0, padded);
      for (int block = 0; block < 2; ++block) {
        backend_.layer_norm(x, gain_.view(), bias_.view(), 1e-5F, narrow);
        backend_.linear(narrow, qkv_, {}, {}, wide);
        backend_.attention(wide, kv_, 0.3F, narrow);
        if (uploads_in_step) backend_.gather(x, std::vector<std::int32_t>{0}, gain_.view());
        backend_.linear(narrow, proj_, {}, {Activation::kNone, true}, x);
      }
    });
    std::vector<float> values(static_cast<std::size_t>(rows) * kWidth);
    backend_.download(values.data(), x.data, static_cast<std::int64_t>(values.size() * sizeof(float)));
    return values;
  }
  std::vector<std::byte> kv_bytes() {
    std::vector<std::byte> bytes(pages_.bytes());
    backend_.download(bytes.data(), pages_.data(), static_cast<std::int64_t>(bytes.size()));
    return bytes;
  }
  void skip_to(std::int32_t position) { std::ranges::fill(next_, position); }

 private:
  Backend& backend_;
  std::int64_t room_;
  test::Random random_;

 public:
  DeviceArray residual;
  std::int64_t padded = 0;
  int calls = 0;  // of the operations
  bool uploads_in_step = false;

 private:
  DeviceArray narrow_, wide_, gain_, bias_;
  Matrix wte_, qkv_, proj_;
  DeviceArray wpe_;
  Buffer pages_;
  KvPages kv_;
  std::vector<std::int32_t> table_;
  std::int32_t next_[kSlots] = {};
};

std::uint64_t replays_of(const std::function<void()>& body) {
  const std::uint64_t before = emulation::graph_launches();
  body();
  return emulation::graph_launches() - before;
}

}  // namespace

TEST_CASE("replayed steps have the bits of plain ones, for the same numbers of rows and for any if deterministic") {
  const FreshDevice device;
  const std::uint64_t seed = std::random_device{}();
  for (const bool deterministic : {false, true}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
      INFO("seed " << seed << (deterministic ? " deterministic " : " ") << name_of(dtype));
      const std::unique_ptr<Backend> recording = backend_with(deterministic, true);
      const std::unique_ptr<Backend> plain = backend_with(deterministic, false);
      Decoder ours(*recording, seed, 16, dtype), theirs(*plain, seed, 16, dtype);
      const std::uint64_t replayed = replays_of([&] {
        for (int step = 0; step < 24; ++step) {
          if (step == 9) {  // over the border of a page
            ours.skip_to(60);
            theirs.skip_to(60);
          }
          // Without determinism a product of other rows may be another kernel's.
          const std::int32_t rows = deterministic ? 1 + step % 3 * 4 : 8;
          INFO("step " << step << ", " << rows << " rows");
          CHECK(ours.step(rows) == theirs.step(rows));
          CHECK(theirs.padded == rows);
        }
      });
      CHECK(replayed >= 10);
      const auto recorded = static_cast<int>(emulation::live().graphs);  // a call each, and then replayed
      CHECK(ours.calls == 24 - static_cast<int>(replayed) + recorded);
      CHECK(theirs.calls == 24);
      CHECK(ours.kv_bytes() == theirs.kv_bytes());
    }
  }
}

TEST_CASE("rows of padding neither write pages nor rows beyond their memory, and no row sees them") {
  const FreshDevice device;
  const std::uint64_t seed = std::random_device{}();
  const std::unique_ptr<Backend> recording = backend_with(true, true);
  const std::unique_ptr<Backend> plain = backend_with(true, false);
  Decoder ours(*recording, seed, 8), theirs(*plain, seed, 8);
  // Nothing but NaN in the rows behind: DeviceArray begins with them.
  for (int step = 0; step < 5; ++step) CHECK(ours.step(5) == theirs.step(5));
  CHECK(ours.padded == 8);
  CHECK(ours.kv_bytes() == theirs.kv_bytes());
  CHECK(ours.residual.guarded());
  const std::vector<float> rows = ours.residual.values();  // those of padding were not embedded
  CHECK(std::all_of(rows.begin() + 5 * Decoder::kWidth, rows.end(), [](float x) { return std::isnan(x); }));

  Decoder tight(*recording, seed, 5), loose(*plain, seed, 8);  // no memory for more rows
  for (int step = 0; step < 5; ++step) CHECK(tight.step(5) == loose.step(5));
  CHECK(tight.padded == 5);
  CHECK(tight.residual.guarded());
}

TEST_CASE("steps are recorded by shape, and no more of them kept than is bounded") {
  const FreshDevice device;
  const std::unique_ptr<Backend> backend = backend_with(true, true);
  {
    Decoder decoder(*backend, 1, 16);
    decoder.step(9);  // buffers have their sizes
    const std::int64_t before = backend->bytes_allocated();
    CHECK(replays_of([&] { decoder.step(3); }) == 0);
    CHECK(emulation::live().graphs == 0);
    CHECK(replays_of([&] { decoder.step(4); }) == 1);  // three rows are padded to four
    CHECK(emulation::live().graphs == 1);
    CHECK(backend->bytes_allocated() > before);
    CHECK(replays_of([&] { decoder.step(2); }) == 0);
    CHECK(replays_of([&] { decoder.step(4); }) == 1);
    CHECK(decoder.calls == 4);
    for (int round = 0; round < 2; ++round) {
      for (std::int32_t rows = 1; rows <= 9; ++rows) decoder.step(rows);
    }
    CHECK(emulation::live().graphs == 5);  // 1, 2, 4, 8, 16
  }
  CHECK(emulation::live().graphs == 0);
  CHECK(backend->peak_bytes() > 0);
  for (std::uintptr_t i = 0; i < 300; ++i) {  // of a caller who never repeats itself
    const std::vector<std::int32_t> zero{0};
    backend->set_rows({zero, zero, zero, zero, 1});
    for (int twice = 0; twice < 2; ++twice)
      backend->step(
          {i, 0, 0}, [] {}, [](const Backend::Progress&) {});
  }
  CHECK(emulation::live().graphs <= 64);
  CHECK(emulation::live().graphs > 30);
  backend->forget_steps();
  CHECK(emulation::live().graphs == 0);
}

TEST_CASE("prefill is not recorded, nor is a step that uploads") {
  const FreshDevice device;
  const std::uint64_t seed = std::random_device{}();
  const std::unique_ptr<Backend> backend = backend_with(true, true);
  const std::unique_ptr<Backend> plain = backend_with(true, false);
  int beside = 0;
  {
    Decoder ours(*backend, seed, 8), theirs(*plain, seed, 8);
    ours.uploads_in_step = theirs.uploads_in_step = true;
    for (int step = 0; step < 4; ++step) CHECK(ours.step(3, [&] { ++beside; }) == theirs.step(3));
    CHECK(emulation::live().graphs == 0);
    CHECK(ours.calls == 5);  // one of them failed to be recorded
    CHECK(beside == 4);      // and had nothing beside it
  }
  const std::vector<std::int32_t> positions{0, 1}, sequences{0, 0}, pages{0};
  for (int i = 0; i < 4; ++i) {
    backend->set_rows({{}, positions, sequences, pages, 1});
    CHECK(backend->pad_rows(2, 100) == 2);
    backend->step(
        {1, 2, 3}, [] {}, [](const Backend::Progress&) {});
  }
  CHECK(emulation::graph_launches() == 0);
}

TEST_CASE("where little memory is free, steps run plainly") {
  const FreshDevice device({.memory_bytes = std::size_t{100} << 20});  // 36 MiB beside the pool
  const std::unique_ptr<Backend> backend = backend_with(true, true);
  Decoder decoder(*backend, 1, 8);
  for (int step = 0; step < 4; ++step) decoder.step(3);
  CHECK(emulation::graph_launches() == 0);
  CHECK(decoder.calls == 4);
}

TEST_CASE("a failure while a step is recorded makes it plain, and is not heard of") {
  const FreshDevice device;
  const std::uint64_t seed = std::random_device{}();
  std::vector<std::vector<float>> expected;
  {
    const std::unique_ptr<Backend> plain = backend_with(true, false);
    Decoder theirs(*plain, seed, 8);
    for (int step = 0; step < 5; ++step) expected.push_back(theirs.step(3));
  }
  int in_capture = 0;
  bool reached_end = false;
  for (std::uint64_t n = 1; !reached_end; ++n) {
    emulation::reset();
    const std::unique_ptr<Backend> backend = backend_with(true, true);
    Decoder ours(*backend, seed, 8);
    CHECK(ours.step(3) == expected[0]);
    CHECK(ours.step(3) == expected[1]);
    emulation::fail_call(n, cudaErrorLaunchOutOfResources);
    try {
      const std::vector<float> recorded = ours.step(3);
      CHECK(recorded == expected[2]);
      reached_end = emulation::failed_call().empty();
      const bool recording = emulation::failed_in_capture() || emulation::failed_call() == "cudaStreamBeginCapture" ||
                             emulation::failed_call() == "cudaGraphInstantiate" ||
                             emulation::failed_call() == "cudaGraphUpload";
      INFO(emulation::failed_call());
      CHECK((recording || reached_end || emulation::failed_call() == "cudaGraphDestroy"));
      if (recording) CHECK(cudaGetLastError() == cudaSuccess);
      in_capture += recording ? 1 : 0;
      emulation::fail_call(0, 0);
      for (int step = 3; step < 5; ++step) CHECK(ours.step(3) == expected[static_cast<std::size_t>(step)]);
    } catch (const DeviceError& e) {
      INFO(emulation::failed_call() << ": " << e.what());
      CHECK_FALSE(emulation::failed_in_capture());
    }
    emulation::fail_call(0, 0);
    REQUIRE(n < 500);
  }
  CHECK(in_capture > 15);
}
