// Every operation of the CUDA backend against the reference, over ragged shapes and all dtypes: the checking backend
// compares and throws; here stand the shapes, and that nothing beside the outputs is written.
#include <numeric>

#include "tests/cuda/device_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::unique_ptr<Backend> checked() {
  return make_checking_backend(cuda_backend());
}

struct Shape {
  std::int64_t rows, in, out;
};

}  // namespace

TEST_CASE("products of one, few and many rows, aligned and not") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = checked();
  const std::vector<Shape> shapes = {{1, 64, 64},  {1, 1600, 48}, {1, 8, 17},    {2, 72, 33},  {5, 13, 7},
                                     {8, 128, 16}, {9, 40, 100},  {16, 256, 65}, {17, 64, 50}, {33, 96, 31},
                                     {64, 25, 40}, {130, 32, 24}, {3, 1, 1},     {20, 1, 3},   {7, 520, 8}};
  for (const DType dtype : kFloats) {
    for (const Shape& s : shapes) {
      for (const auto activation :
           {Activation::kNone, Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu, Activation::kSilu}) {
        const bool add = activation == Activation::kNone && random.between(0, 1) == 0;
        const bool with_bias = random.between(0, 3) != 0;
        const DType out_dtype = add || random.between(0, 1) == 0 ? DType::kFloat32 : dtype;
        INFO(name_of(dtype) << " " << s.rows << " rows (" << s.in << ", " << s.out << ") to " << name_of(out_dtype)
                            << " activation " << static_cast<int>(activation) << (add ? " added" : "")
                            << (with_bias ? " bias" : ""));
        const Matrix w = random_matrix(*backend, random, s.in, s.out, dtype);
        DeviceArray x(*backend, dtype, s.rows, s.in, s.in + random.between(0, 1) * 8);
        x.randomize(random);
        DeviceArray bias(*backend, out_dtype, 1, s.out);
        bias.randomize(random);
        DeviceArray out(*backend, out_dtype, s.rows, s.out, s.out + random.between(0, 2) * 4);
        if (add) out.randomize(random);
        backend->linear(x.view(), w, with_bias ? bias.view() : Tensor{}, {activation, add}, out.view());
        CHECK(out.guarded());
      }
    }
  }
}

TEST_CASE("layer norm, gather, embedding") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = checked();
  for (const DType dtype : kFloats) {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {1, 1600}, {7, 20}, {33, 257}, {4, 8}, {70, 64}}) {
      INFO(name_of(dtype) << " " << rows << " x " << cols);
      DeviceArray x(*backend, DType::kFloat32, rows, cols, cols + random.between(0, 5));
      x.randomize(random, 10.0F);
      DeviceArray gain(*backend, DType::kFloat32, 1, cols), bias(*backend, DType::kFloat32, 1, cols);
      gain.randomize(random);
      bias.randomize(random);
      DeviceArray out(*backend, dtype, rows, cols, cols + random.between(0, 5));
      backend->layer_norm(x.view(), gain.view(), bias.view(), 1e-5F, out.view());
      CHECK(out.guarded());

      std::vector<std::int32_t> picked(static_cast<std::size_t>(random.between(0, 9)));
      for (std::int32_t& r : picked) r = static_cast<std::int32_t>(random.between(0, rows - 1));
      DeviceArray some(*backend, DType::kFloat32, static_cast<std::int64_t>(picked.size()), cols);
      backend->gather(x.view(), picked, some.view());
      CHECK(some.guarded());
      backend->layer_norm(x.view(), gain.view(), bias.view(), 1e-5F, x.view());  // in place
      CHECK(x.guarded());

      const Matrix wte = random_matrix(*backend, random, cols, 50, dtype);
      DeviceArray wpe(*backend, dtype, 100, cols);
      wpe.randomize(random);
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows)), positions(tokens.size()),
          zeros(tokens.size(), 0);
      for (std::int32_t& t : tokens) t = static_cast<std::int32_t>(random.between(0, 49));
      std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(random.between(0, 100 - rows)));
      backend->set_rows({tokens, positions, zeros, std::vector<std::int32_t>{0, 1}, 2});
      DeviceArray embedded(*backend, DType::kFloat32, rows, cols, cols + 3);
      backend->embed(wte, wpe.view(), embedded.view());
      CHECK(embedded.guarded());
    }
  }
}

TEST_CASE("layer norm and a product at once have the bits of one after the other") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = cuda_backend();
  const std::vector<Shape> shapes = {{1, 64, 64},  {1, 1600, 48}, {2, 1600, 40}, {1, 8, 17},     {2, 72, 33},
                                     {3, 128, 16}, {1, 520, 7},   {1, 13, 20},   {2, 16384, 16}, {20, 64, 24}};
  for (const DType dtype : kFloats) {
    for (const Shape& s : shapes) {
      const bool add = random.between(0, 1) == 0;
      const DType out_dtype = add || random.between(0, 1) == 0 ? DType::kFloat32 : dtype;
      INFO(name_of(dtype) << " " << s.rows << " rows (" << s.in << ", " << s.out << ") to " << name_of(out_dtype)
                          << (add ? " added" : ""));
      const Matrix w = random_matrix(*backend, random, s.in, s.out, dtype);
      DeviceArray x(*backend, DType::kFloat32, s.rows, s.in, s.in + random.between(0, 3));
      x.randomize(random, 10.0F);
      DeviceArray gain(*backend, DType::kFloat32, 1, s.in), shift(*backend, DType::kFloat32, 1, s.in);
      gain.randomize(random);
      shift.randomize(random);
      DeviceArray bias(*backend, out_dtype, 1, s.out);
      bias.randomize(random);
      DeviceArray normal(*backend, dtype, s.rows, s.in);
      // Strides aligned alike: the way of a product depends on it.
      DeviceArray apart(*backend, out_dtype, s.rows, s.out), together(*backend, out_dtype, s.rows, s.out, s.out + 8);
      if (add) {
        for (DeviceArray* out : {&apart, &together}) out->randomize(random, 0.0F);
      }
      const Epilogue epilogue{add ? Activation::kNone : Activation::kGeluTanh, add};
      backend->layer_norm(x.view(), gain.view(), shift.view(), 1e-5F, normal.view());
      backend->linear(normal.view(), w, bias.view(), epilogue, apart.view());
      DeviceArray scratch(*backend, dtype, s.rows, s.in);
      backend->norm_linear(x.view(), {gain.view(), shift.view(), 1e-5F}, scratch.view(), w, bias.view(), epilogue,
                           together.view());
      CHECK(together.values() == apart.values());
      CHECK(together.guarded());
    }
  }
}

TEST_CASE("attention through the backend: conversations grow in chunks, pages are copied") {
  Random random = fresh_random();
  for (const DType dtype : kFloats) {
    for (const DType kv_dtype : kFloats) {
      for (const auto& [heads, width] : {std::pair{2, 64}, {3, 20}, {1, 8}, {5, 1}}) {
        const std::unique_ptr<Backend> backend = checked();
        const std::int64_t cols = std::int64_t{heads} * width;
        constexpr std::int32_t kPages = 7;
        const Buffer pages = backend->allocate(kPages * backend->kv_page_bytes(heads, width, kv_dtype));
        const KvPages kv{pages.data(), kv_dtype, kPages, heads, width};
        std::vector<std::int32_t> table = {4, 1, 2, 0, 5, 3};  // two sequences of three pages
        std::int32_t lengths[2] = {0, 0};
        for (int step = 0; step < 5; ++step) {
          std::vector<std::int32_t> positions, sequences;
          for (std::int32_t s = 0; s < 2; ++s) {
            const std::int64_t count = step % 2 == 1 ? 1 : random.between(1, 40);
            for (std::int64_t i = 0; i < count; ++i) {
              positions.push_back(lengths[s]++);
              sequences.push_back(s);
            }
          }
          INFO(name_of(dtype) << " pages " << name_of(kv_dtype) << " heads " << heads << " of " << width << " step "
                              << step);
          const auto rows = static_cast<std::int64_t>(positions.size());
          DeviceArray qkv(*backend, dtype, rows, 3 * cols);
          qkv.randomize(random);
          DeviceArray out(*backend, dtype, rows, cols, cols + random.between(0, 1) * 8);
          backend->set_rows({{}, positions, sequences, table, 3});
          backend->attention(qkv.view(), kv, 0.3F, out.view());
          CHECK(out.guarded());
          if (step == 2) {  // the second sequence moves to another page
            backend->copy_page(kv, table[3], 6);
            table[3] = 6;
          }
        }
      }
    }
  }
}

TEST_CASE("matrices from panels are those from rows") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = checked();
  for (const DType stored : kFloats) {
    for (const DType dtype : kFloats) {
      const std::int64_t in = random.between(1, 90), out = random.between(1, 200);
      INFO(name_of(stored) << " to " << name_of(dtype) << " (" << in << ", " << out << ")");
      const PackedLayout layout{in, out, stored};
      std::vector<std::byte> panels(static_cast<std::size_t>(layout.bytes()));
      Array values = random_array(random, in, out);
      pack_rows({layout, panels.data()}, WeightLayout::kInOut, 0, values.view());
      Matrix w = backend->make_matrix(in, out, dtype);
      backend->load_panels(w, stored, [&](std::int64_t first, std::int64_t count, std::byte* to) {
        std::memcpy(to, panels.data() + first * layout.panel_bytes(),
                    static_cast<std::size_t>(count * layout.panel_bytes()));
      });
      DeviceArray x(*backend, dtype, 3, in);
      x.randomize(random);
      DeviceArray y(*backend, DType::kFloat32, 3, out);
      backend->linear(x.view(), w, {}, {}, y.view());
      CHECK(y.guarded());
    }
  }
}
