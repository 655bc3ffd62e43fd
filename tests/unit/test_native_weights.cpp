// What convert makes of weights: every dtype and layout from every other, to the byte.
#include <doctest/doctest.h>

#include <cstring>
#include <span>

#include "runtime/checksum.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/packed_tensor.hpp"
#include "tests/unit/native_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

TEST_CASE("native: random models come back as they were, or as their elements converted") {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      const TemporaryDirectory directory;
      const std::string name = random_synthetic(std::string(name_of(from)).c_str());
      CAPTURE(name);
      const Model original = open_model(name);
      convert(original, directory.name() + "/model.h5", {to, NativeLayout::kRows});
      const Model model = open_model(pick(0, 1) == 1 ? directory.name() : directory.name() + "/model.h5");
      CHECK(same(model.config, original.config));
      CHECK(model.dtype == to);
      CHECK(!model.tokenizer.has_value());
      CHECK(model.weights->bytes_read() == 0);
      for (const TensorSpec& spec : tensor_table(model.config)) {
        CAPTURE(spec.name);
        const std::vector<std::byte> before = bytes_of(*original.weights, spec);
        const std::vector<std::byte> expected = elements_as(before, from, to, spec.elements());
        CHECK(bytes_of(*model.weights, spec) == expected);
        CHECK(model.weights->checksum_of(spec).has_value());
        CHECK_NOTHROW(model.weights->verify(spec, xxh3_of(expected)));
      }
      for (const H5Dataset& dataset : H5Reader(directory.name() + "/model.h5").datasets()) {
        CHECK(dataset.offset.value_or(1) % 4096 == 0);
      }
      weights_of(model);
    }
  }
}

TEST_CASE("native: packed matrices are the packed rows, and everything else is as in a file of rows") {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
  for (const DType to : kDTypes) {
    const TemporaryDirectory directory;
    const DType from = kDTypes[pick(0, 2)];
    const std::string name = random_synthetic(std::string(name_of(from)).c_str());
    CAPTURE(name);
    CAPTURE(name_of(to));
    const Model original = open_model(name);
    convert(original, directory.name() + "/model.h5", {to});
    const Model model = open_model(directory.name());
    CHECK(same(model.config, original.config));
    CHECK(model.dtype == to);
    for (const TensorSpec& spec : tensor_table(model.config)) {
      CAPTURE(spec.name);
      const std::vector<std::byte> before = bytes_of(*original.weights, spec);
      CHECK(model.weights->is_packed(spec) == is_matrix(spec));
      std::vector<std::byte> expected;
      if (is_matrix(spec)) {
        const PackedLayout layout = packed_layout_of(spec, to);
        expected.resize(static_cast<std::size_t>(layout.bytes()));
        pack_rows({layout, expected.data()}, row_layout_of(spec), 0,
                  make_tensor(const_cast<std::byte*>(before.data()), from, spec.rows, spec.cols));
      } else {
        expected = elements_as(before, from, to == DType::kInt8 ? DType::kFloat32 : to, spec.elements());
      }
      const std::string found = verified_bytes(*model.weights, spec);
      CHECK(std::as_bytes(std::span(found)).size() == expected.size());
      CHECK(std::memcmp(found.data(), expected.data(), expected.size()) == 0);
    }
    for (const H5Dataset& dataset : H5Reader(directory.name() + "/model.h5").datasets()) {
      CHECK(dataset.offset.value_or(1) % 4096 == 0);
    }
  }
}

TEST_CASE("native: the same input gives the same bytes, also from its own output and onto itself") {
  for (const NativeOptions& kind : kKinds) {
    const TemporaryDirectory directory;
    const std::string name = random_synthetic("float16");
    const std::string a = directory.name() + "/a.h5";
    const std::string b = directory.name() + "/b.h5";
    convert(open_model(name), a, kind);
    convert(open_model(name), b, kind);
    const std::string whole = bytes_of_file(a);
    CHECK(whole == bytes_of_file(b));
    convert(open_model(a), b, kind);
    CHECK(whole == bytes_of_file(b));
    convert(open_model(b), b, {std::nullopt, kind.layout});
    CHECK(whole == bytes_of_file(b));
  }
}

TEST_CASE("native: rows and panels make each other, whatever the dtypes between, and so do roundings") {
  constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8};
  for (const DType to : kDTypes) {
    const TemporaryDirectory directory;
    const std::string name = random_synthetic(pick(0, 1) == 1 ? "float16" : "float32");
    CAPTURE(name);
    const std::string rows = directory.name() + "/rows.h5";
    const std::string panels = directory.name() + "/panels.h5";
    const std::string direct = directory.name() + "/direct.h5";
    const std::string other = directory.name() + "/other.h5";
    convert(open_model(name), rows, kRows);
    convert(open_model(name), panels);
    convert(open_model(name), direct, {to});
    for (const std::string& from : {rows, panels}) {
      convert(open_model(from), other, {to});
      CHECK(bytes_of_file(other) == bytes_of_file(direct));
    }
    if (to == DType::kInt8) continue;
    convert(open_model(name), direct, {to, NativeLayout::kRows});
    for (const std::string& from : {rows, panels}) {
      convert(open_model(from), other, {to, NativeLayout::kRows});
      CHECK(bytes_of_file(other) == bytes_of_file(direct));
    }
  }
}

TEST_CASE("native: int8 weights stay int8, and in panels") {
  const NativeFile file({DType::kInt8});
  const Model model = open_model(file.path());
  const auto error = [&](const NativeOptions& options) {
    return message_of<WeightError>([&] { convert(model, file.name() + "/x.h5", options); });
  };
  CHECK(contains(error({DType::kFloat16}), "/m.h5: holds int8 weights, from which float16 ones cannot be made"));
  CHECK(contains(error(kRows), "int8 weights are kept in panels, not as rows"));
  CHECK(contains(message_of<WeightError>([&] {
                   convert(open_model("synthetic:gpt2,n_layer=1,n_embd=12,n_positions=4,vocab_size=9"),
                           file.name() + "/x.h5", {DType::kInt8, NativeLayout::kRows});
                 }),
                 "int8 weights are kept in panels"));
  CHECK(!std::filesystem::exists(file.path() + "/x.h5"));
  CHECK_NOTHROW(require_convertible(model, DType::kInt8));
  CHECK_THROWS_AS(require_convertible(model, DType::kFloat32), WeightError);
  CHECK_NOTHROW(require_convertible(open_model("synthetic:gpt2"), DType::kFloat16));
}
