// The CPU backend against the reference on random ragged shapes, and the layout-invariance contract bit by
// bit.
#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "kernels/host_memory.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/kernels_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr DType kWeightDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
constexpr Activation kActivations[] = {Activation::kNone, Activation::kGeluTanh, Activation::kGeluErf,
                                       Activation::kRelu, Activation::kSilu};

// Every instruction set of this CPU with several numbers of threads; says which sets it lacks.
std::vector<CpuOptions> all_options() {
#if defined(__SANITIZE_THREAD__)  // which is slow, and looks for races: one thread has none
  return {{2, Simd::kBest}, {5, Simd::kBest}};
#else
  std::vector<CpuOptions> result;
  for (const Simd simd : kEverySimd) {
    if (simd_name(simd).empty()) continue;
    const std::vector<int> threads = kSanitized ? std::vector{1, 3} : std::vector{1, 2, 3, 5};
    for (const int count : threads) result.push_back({count, simd});
  }
  return result;
#endif
}

}  // namespace

TEST_CASE("the CPU's instruction sets are known and the others refused") {
  int missing = 0;
  for (const Simd simd : kEverySimd) {
    if (!simd_name(simd).empty()) continue;
    ++missing;
    CHECK_THROWS_AS(make_cpu_backend({1, simd}), DeviceError);
  }
  MESSAGE("instruction sets not tested because this CPU lacks them: " << missing << " of " << kEverySimd.size()
                                                                      << "; kBest is " << simd_name(Simd::kBest));
  CHECK(missing < static_cast<int>(kEverySimd.size()));
}

TEST_CASE("every operation agrees with the reference on random ragged shapes") {
  Random random = fresh_random();
  for (const CpuOptions& options : all_options()) {
    const auto backend = make_checking_backend(make_cpu_backend(options));
    for (const DType dtype : kWeightDTypes) {
      for (const Activation activation : kActivations) {
        const std::int64_t in = random.between(1, 300);
        const std::int64_t out = random.between(1, 300);
        const std::int64_t rows = random.between(1, 30);
        const Matrix w = random_matrix(*backend, random, in, out, dtype);
        const Array x = random_array(random, rows, in);
        const Array bias = random_array(random, 1, out);
        Array y = random_array(random, rows, out);
        const bool add = activation == Activation::kNone && random.between(0, 1) == 1;
        const Tensor b = random.between(0, 3) == 0 ? Tensor{} : bias.view();
        CHECK_NOTHROW(backend->linear(x.view(), w, b, {activation, add}, y.view()));
      }
    }
    const std::int64_t cols = random.between(1, 200);
    const Array x = random_array(random, 7, cols);
    Array y(7, cols);
    CHECK_NOTHROW(backend->layer_norm(x.view(), random_array(random, 1, cols).view(),
                                      random_array(random, 1, cols).view(), 1e-5F, y.view()));
    const std::vector<std::int32_t> chosen = {6, 0, 3, 3};
    Array some(4, cols);
    CHECK_NOTHROW(backend->gather(x.view(), chosen, some.view()));
  }
}

TEST_CASE(
    "linear gives each row the bits that it has alone, for every number of rows, threads and instruction "
    "set") {
  Random random = fresh_random();
  for (const DType dtype : kWeightDTypes) {
    const std::int64_t in = random.between(300, 700);
    const std::int64_t out = random.between(65, 200);
    const Array all = random_array(random, 520, in);
    const Array bias = random_array(random, 1, out);
    Array before = random_array(random, 520, out);
    const Epilogue epilogue =
        random.between(0, 1) == 0 ? Epilogue{Activation::kGeluTanh, false} : Epilogue{Activation::kNone, true};
    if (!epilogue.add_to_output) std::fill(before.values.begin(), before.values.end(), std::nanf(""));  // never read
    const std::uint64_t weights_seed = random.bits();
    Array alone = before;
    bool have_alone = false;
    for (const CpuOptions& options : all_options()) {
      const auto backend = make_cpu_backend(options);
      Random weights(weights_seed);
      const Matrix w = random_matrix(*backend, weights, in, out, dtype);
      if (!have_alone) {
        for (std::int64_t r = 0; r < 520; ++r) {
          backend->linear(all.view().slice(r, 1), w, bias.view(), epilogue, alone.view().slice(r, 1));
        }
        have_alone = true;
      }
      std::vector<std::int64_t> counts = {240, 241, 480, 481, 513};
      for (std::int64_t n = 1; n <= 70; ++n) counts.push_back(n);
      if (options.threads != 1) counts = {1, 2, 7, 13, 64, 500};
      for (const std::int64_t rows : counts) {
        const std::int64_t first = random.between(0, 520 - rows);
        Array y = before;
        backend->linear(all.view().slice(first, rows), w, bias.view(), epilogue, y.view().slice(first, rows));
        CHECK_MESSAGE(same_bits(y.view().slice(first, rows), alone.view().slice(first, rows)),
                      rows << " rows, " << options.threads << " threads, " << name_of(dtype));
        CHECK(same_bits(y.view().slice(0, first), before.view().slice(0, first)));
      }
    }
  }
}

TEST_CASE("products so large that a task has several panels give each row the bits that it has alone") {
  Random random = fresh_random();
  for (const DType dtype : kWeightDTypes) {
    const std::int64_t in = random.between(257, 400);  // more than one block of k and one group of int8
    const std::int64_t out = random.between(15 * kPanel + 1, 19 * kPanel);
    const std::int64_t rows = random.between(289, 330);
    const Array x = random_array(random, rows, in);
    const std::uint64_t weights_seed = random.bits();
    for (const CpuOptions& options : all_options()) {
      if (options.threads > 2) continue;
      const auto backend = make_cpu_backend(options);
      Random weights(weights_seed);
      const Matrix w = random_matrix(*backend, weights, in, out, dtype);
      Array y(rows, out);
      Array alone(1, out);
      backend->linear(x.view(), w, {}, {}, y.view());
      for (std::int64_t r = random.between(0, 6); r < rows; r += 7) {
        backend->linear(x.view().slice(r, 1), w, {}, {}, alone.view());
        CHECK_MESSAGE(same_bits(y.view().slice(r, 1), alone.view()),
                      rows << " rows of " << in << " x " << out << ", " << name_of(dtype));
      }
    }
  }
}

TEST_CASE(
    "int8: rows with values that are not finite become NaN, and no other row does; tiny and zero groups are exact") {
  const auto backend = make_cpu_backend({2, Simd::kBest});
  Matrix w = backend->make_matrix(200, 70, DType::kInt8);
  Array host(200, 70);
  for (std::int64_t k = 0; k < 200; ++k) {
    for (std::int64_t n = 0; n < 70; ++n) host.view().f32(k)[n] = n == 3 ? 1e-35F : n == 4 ? 0.0F : 1.0F;
  }
  backend->load_rows(w, WeightLayout::kInOut, 0, host.view());
  for (const std::int64_t rows : {1, 3, 40}) {
    Array x(rows, 200);
    std::fill(x.values.begin(), x.values.end(), 1.0F);
    x.view().f32(0)[7] = std::numeric_limits<float>::infinity();
    if (rows > 1) x.view().f32(1)[199] = std::nanf("");
    if (rows > 1) std::fill_n(x.view().f32(2), 200, 1e-38F);
    Array y(rows, 70);
    backend->linear(x.view(), w, {}, {}, y.view());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t n = 0; n < 70; ++n) {
        const float value = y.view().f32(r)[n];
        if (r < 2 && (r == 0 || rows > 1)) {
          CHECK(std::isnan(value));
        } else {
          const float all = r == 2 ? 0.0F : 200.0F;
          CHECK(value == doctest::Approx(n == 3 || n == 4 ? 0.0F : all));
        }
      }
    }
  }
}

TEST_CASE("int8: the weights' error is at most half a step of their group, and rows must be whole groups") {
  Random random = fresh_random();
  const auto backend = make_cpu_backend({});
  Matrix w = backend->make_matrix(300, 5, DType::kInt8);
  const Array host = random_array(random, 300, 5);
  CHECK_THROWS_AS(backend->load_rows(w, WeightLayout::kInOut, 0, host.view().slice(0, 100)), std::invalid_argument);
  CHECK_THROWS_AS(backend->load_rows(w, WeightLayout::kInOut, 64, host.view().slice(0, 64)), std::invalid_argument);
  backend->load_rows(w, WeightLayout::kInOut, 128, host.view().slice(128, 172));
  backend->load_rows(w, WeightLayout::kInOut, 0, host.view().slice(0, 128));
  Array unit(1, 300);
  Array y(1, 5);
  for (std::int64_t k = 0; k < 300; ++k) {
    std::fill(unit.values.begin(), unit.values.end(), 0.0F);
    unit.values[static_cast<std::size_t>(k)] = 1.0F;
    backend->linear(unit.view(), w, {}, {}, y.view());
    for (std::int64_t n = 0; n < 5; ++n) {
      float largest = 0.0F;
      for (std::int64_t i = k / 128 * 128; i < std::min<std::int64_t>(300, k / 128 * 128 + 128); ++i) {
        largest = std::max(largest, std::abs(host.view().f32(i)[n]));
      }
      CHECK(std::abs(y.values[static_cast<std::size_t>(n)] - host.view().f32(k)[n]) <= 0.501F * largest / 127.0F);
    }
  }
}

TEST_CASE("layer_norm gives each row the bits that it has alone") {
  Random random = fresh_random();
  for (const std::int64_t cols : {1, 15, 17, 100, 768, 1600}) {
    const Array x = random_array(random, 61, cols);
    const Array gain = random_array(random, 1, cols);
    Array alone(61, cols);
    for (std::int64_t r = 0; r < 61; ++r) {
      make_cpu_backend({})->layer_norm(x.view().slice(r, 1), gain.view(), gain.view(), 1e-5F, alone.view().slice(r, 1));
    }
    for (const CpuOptions& options : all_options()) {
      Array y = x;  // in place
      make_cpu_backend(options)->layer_norm(y.view(), gain.view(), gain.view(), 1e-5F, y.view());
      CHECK(same_bits(y.view(), alone.view()));
    }
  }
}

TEST_CASE("attention and embed agree with the reference for every head size and dtype") {
  Random random = fresh_random();
  for (const CpuOptions& options : all_options()) {
    const auto backend = make_checking_backend(make_cpu_backend(options));
    for (const int head_dim : some_of(random, std::vector{1, 3, 8, 20, 64, 80, 96, 128})) {
      const DType dtype = kDTypes[random.between(0, 2)];
      Conversation talk(*backend, random, 3, head_dim, dtype, 3, 150);
      CHECK_NOTHROW(talk.run_chunks(*backend, {40, 150, 1, 1, 77}));
    }
    // Of single rows several heads are done together, at most 24.
    for (const int heads : some_of(random, std::vector{1, 24, 25, 49})) {
      Conversation talk(*backend, random, heads, 8, kDTypes[random.between(0, 2)], 2, 70);
      CHECK_NOTHROW(talk.run_chunks(*backend, {1, 65, 1, 1, 1, 1}));
    }
    for (const DType dtype : kWeightDTypes) {
      const std::int64_t width = random.between(1, 300);
      const Matrix wte = random_matrix(*backend, random, width, 131, dtype);
      const Array wpe = random_array(random, 20, width);
      const std::vector<std::int32_t> tokens = {0, 130, 64, 63}, positions = {0, 1, 19, 2}, sequences = {0, 0, 0, 1},
                                      pages = {0, 1};
      backend->set_rows({tokens, positions, sequences, pages, 1});
      Array out(4, width);
      CHECK_NOTHROW(backend->embed(wte, wpe.view(), out.view()));
    }
  }
}

TEST_CASE("attention with scores of any size is the reference's") {
  Random random = fresh_random();
  for (const CpuOptions& options : all_options()) {
    const auto backend = make_checking_backend(make_cpu_backend(options));
    for (const float size : {1e3F, 1e8F, 1e15F}) {  // squared, rounding is far more than 1
      Conversation talk(*backend, random, 2, 20, DType::kFloat32, 1, 150);
      for (float& value : talk.qkv.values) value *= size;
      for (const float value : talk.run_chunks(*backend, {100, 1, 1, 48})) REQUIRE(std::isfinite(value));
    }
  }
}

TEST_CASE("attention gives the same bits for every split into chunks, threads, companions and instruction set") {
  Random random = fresh_random();
  for (const DType dtype : kDTypes) {
    for (const int head_dim : some_of(random, std::vector{5, 64, 80})) {
      const std::uint64_t seed = random.bits();
      std::vector<float> want;
      for (const CpuOptions& options : all_options()) {
        for (const std::vector<std::int64_t>& chunks :
             {std::vector<std::int64_t>(200, 1), {200}, {64, 64, 72}, {63, 1, 65, 71}, {100, 1, 1, 98}, {7, 193}}) {
          const auto backend = make_cpu_backend(options);
          Random same(seed);
          Conversation talk(*backend, same, head_dim == 5 ? 27 : 2, head_dim, dtype, 2, 200);
          talk.poison(*backend);
          const std::vector<float> got = talk.run_chunks(*backend, chunks);
          if (want.empty()) want = got;
          CHECK_MESSAGE(std::memcmp(got.data(), want.data(), want.size() * 4) == 0,
                        "head_dim " << head_dim << ", " << options.threads << " threads, first chunk " << chunks[0]);
          if (options.threads > 2) break;
        }
      }
      for (const float value : want) REQUIRE(std::isfinite(value));
    }
  }
}

TEST_CASE("shapes that do not fit are refused with their values") {
  const auto backend = make_cpu_backend({});
  Matrix w = backend->make_matrix(8, 4, DType::kFloat32);
  Array x(2, 7);
  Array y(2, 4);
  CHECK_THROWS_WITH_AS(backend->linear(x.view(), w, {}, {}, y.view()),
                       "linear: x is float32 (2, 7) stride 7, expected float32 (2, 8)", std::invalid_argument);
  Array good(2, 8);
  CHECK_THROWS_AS(backend->linear(good.view(), w, {}, {Activation::kRelu, true}, y.view()), std::invalid_argument);
  CHECK_THROWS_AS(backend->load_rows(w, WeightLayout::kInOut, 7, y.view()), std::invalid_argument);
  const std::vector<std::int32_t> tokens = {9}, positions = {0}, sequences = {0}, pages = {5};
  backend->set_rows({tokens, positions, sequences, pages, 1});
  Array wpe(1, 8);
  Array out(1, 8);
  CHECK_THROWS_AS(backend->embed(w, wpe.view(), out.view()), std::invalid_argument);
  Buffer base = backend->allocate(backend->kv_page_bytes(1, 8, DType::kFloat32) * 5);
  Array qkv(1, 24);
  CHECK_THROWS_AS(backend->attention(qkv.view(), {base.data(), DType::kFloat32, 5, 1, 8}, 1.0F, out.view()),
                  std::invalid_argument);
  const std::vector<std::int32_t> bad = {64};
  CHECK_THROWS_AS(backend->set_rows({tokens, bad, sequences, pages, 1}), std::invalid_argument);
  CHECK_THROWS_AS(make_cpu_backend({0, Simd::kBest}), std::invalid_argument);
}

TEST_CASE("products take no more memory of their own than was reserved, and reserving less is no harm") {
  const auto backend = make_cpu_backend({2, Simd::kBest});
  OperationLimits limits{.rows = 50, .columns = 301, .weights = DType::kInt8, .n_head = 2, .head_dim = 300};
  CHECK(backend->bytes_allocated() < backend->layout().own_bytes(limits));
  backend->reserve(limits);
  CHECK(backend->bytes_allocated() == backend->layout().own_bytes(limits));
  limits.weights = DType::kFloat16;
  backend->reserve(limits);  // also for float32
  const Matrix narrow = backend->make_matrix(130, 70, DType::kFloat16);
  const Matrix wide = backend->make_matrix(301, 20, DType::kInt8);
  const Array x(50, 301);
  const Array y(50, 70);
  const std::int64_t before = backend->bytes_allocated();
  for (int round = 0; round < 2; ++round) {
    for (const std::int64_t rows : {50, 3, 1}) {
      const auto first = [rows](const Array& a, std::int64_t cols) {
        return make_tensor(const_cast<float*>(a.values.data()), DType::kFloat32, rows, cols);
      };
      backend->linear(first(x, 130), narrow, {}, {}, first(y, 70));
      backend->linear(first(x, 301), wide, {}, {}, first(y, 20));
    }
    CHECK(backend->bytes_allocated() == before);
  }
}

TEST_CASE("memory is zeroed, aligned and counted, and running out is an error with the size") {
  const auto backend = make_cpu_backend({});
  const std::int64_t before = backend->bytes_allocated();
  {
    const Buffer small = backend->allocate(100);
    const Buffer large = backend->allocate(5 << 20);
    CHECK(reinterpret_cast<std::uintptr_t>(small.data()) % 64 == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(large.data()) % (2 << 20) == 0);
    for (std::size_t i = 0; i < large.bytes(); i += 4096) REQUIRE(static_cast<const char*>(large.data())[i] == 0);
    CHECK(backend->bytes_allocated() == before + 100 + (5 << 20));
  }
  CHECK(backend->bytes_allocated() == before);
  CHECK(backend->peak_bytes() == before + 100 + (5 << 20));
  CHECK(backend->allocate(0).data() != nullptr);
  CHECK_THROWS_AS(backend->allocate(std::int64_t{1} << 60), DeviceError);
  CHECK_THROWS_AS(backend->allocate(-1), std::invalid_argument);
}

TEST_CASE("blocks from 64 KiB on are whole pages and take no more; smaller ones share them") {
  HostMemory memory;
  for (const std::int64_t bytes : {65535, 65536, 70001, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, (6 << 20) + 12345}) {
    const Buffer buffer = memory.allocate(bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
    CHECK(address % (bytes >= 2 << 20 ? 2 << 20 : bytes >= HostMemory::kPaged ? 4096 : 64) == 0);
    std::memset(buffer.data(), 1, buffer.bytes());
    CHECK(memory.bytes_allocated() == bytes);
  }
  CHECK(memory.bytes_allocated() == 0);
}

TEST_CASE("a budget holds to the byte, also against many threads, and what is let go can be had again") {
  CpuOptions options;
  options.budget_bytes = 10 << 20;
  const auto backend = make_cpu_backend(options);
  CHECK(backend->memory_limit() == 10 << 20);
  const std::int64_t left = (10 << 20) - backend->bytes_allocated();
  CHECK_THROWS_WITH_AS(backend->allocate(left + 1), doctest::Contains("budget"), DeviceError);
  CHECK(backend->peak_bytes() < 10 << 20);
  for (int round = 0; round < 3; ++round) {
    const Buffer all = backend->allocate(left);
    CHECK_THROWS_AS(backend->allocate(1), DeviceError);
  }
  CHECK_THROWS_AS(make_cpu_backend({1, Simd::kBest, 1000}), DeviceError);  // not even for its own scratch
  CHECK_FALSE(make_cpu_backend({})->memory_limit());

  HostMemory memory(1000000);
  std::atomic<int> beyond = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        try {
          const Buffer buffer = memory.allocate(400000);
          if (memory.bytes_allocated() > 1000000) ++beyond;
        } catch (const DeviceError&) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(beyond == 0);
  CHECK(memory.peak_bytes() <= 800000);
  CHECK(memory.bytes_allocated() == 0);
}
