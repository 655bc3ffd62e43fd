#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>

#include "kernels/convert.hpp"
#include "runtime/hdf5_file.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::vector<std::byte> random_bytes(std::size_t count, std::mt19937& random) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::string bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

constexpr std::array kAll = {H5Element::kInt8,     H5Element::kUInt8,   H5Element::kInt32,
                             H5Element::kInt64,    H5Element::kUInt64,  H5Element::kFloat16,
                             H5Element::kBFloat16, H5Element::kFloat32, H5Element::kFloat64};

}  // namespace

TEST_CASE("hdf5: datasets of every type come back as they were, aligned, in any order of pieces") {
  const TemporaryDirectory directory;
  const std::string path = directory.name() + "/a.h5";
  std::mt19937 random{std::random_device{}()};
  struct Written {
    std::string path;
    H5Element element;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::vector<Written> all;
  for (const H5Element element : kAll) {
    const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 40);
    const std::int64_t cols = 1 + static_cast<std::int64_t>(random() % 40);
    const auto bytes = [&](std::int64_t count) {
      return random_bytes(static_cast<std::size_t>(count * size_of(element)), random);
    };
    all.push_back({fmt::format("/deep/er/{}", name_of(element)), element, {rows, cols}, bytes(rows * cols)});
    all.push_back({fmt::format("/{}", name_of(element)), element, {cols}, bytes(cols)});
  }
  {
    H5Writer writer(path);
    for (const Written& w : all) writer.dataset(w.path, w.element, w.shape);
    writer.dataset("/empty", H5Element::kInt32, {0});
    writer.begin_data();
    for (const Written& w : all) {
      const std::size_t row = w.bytes.size() / static_cast<std::size_t>(w.shape[0]);
      const std::int64_t cut = static_cast<std::int64_t>(random() % static_cast<unsigned>(w.shape[0] + 1));
      const std::span<const std::byte> bytes = w.bytes;
      writer.write(w.path, cut, bytes.subspan(static_cast<std::size_t>(cut) * row));
      writer.write(w.path, 0, bytes.first(static_cast<std::size_t>(cut) * row));
    }
    writer.close();
  }
  const H5Reader reader(path);
  const std::vector<H5Dataset> found = reader.datasets();
  CHECK(found.size() == all.size() + 1);
  const std::string file = bytes_of_file(path);
  for (const Written& w : all) {
    CAPTURE(w.path);
    const auto dataset = std::ranges::find(found, w.path, &H5Dataset::path);
    REQUIRE(dataset != found.end());
    CHECK(dataset->element == w.element);
    CHECK(dataset->type == name_of(w.element));
    CHECK(dataset->shape == w.shape);
    CHECK(dataset->bytes == static_cast<std::int64_t>(w.bytes.size()));
    REQUIRE(dataset->offset.has_value());
    CHECK(*dataset->offset % 4096 == 0);
    CHECK(std::memcmp(file.data() + *dataset->offset, w.bytes.data(), w.bytes.size()) == 0);
    CHECK(reader.read(w.path, dataset->bytes) == w.bytes);
    CHECK_THROWS_AS(reader.read(w.path, dataset->bytes - 1), Hdf5Error);
  }
  CHECK(reader.read("/empty", 0).empty());
}

TEST_CASE("hdf5: the two 16-bit floats are told apart") {
  const TemporaryDirectory directory;
  const std::string path = directory.name() + "/a.h5";
  {
    H5Writer writer(path);
    writer.dataset("/half", H5Element::kFloat16, {1});
    writer.dataset("/brain", H5Element::kBFloat16, {1});
    writer.begin_data();
    writer.close();
  }
  const std::vector<H5Dataset> found = H5Reader(path).datasets();
  REQUIRE(found.size() == 2);
  CHECK(found[0].type == "bfloat16");
  CHECK(found[1].type == "float16");
  CHECK(!found[0].offset.has_value());  // never written
}

TEST_CASE("hdf5: attributes of every kind, replaced ones, missing ones") {
  const TemporaryDirectory directory;
  const std::string path = directory.name() + "/a.h5";
  const std::vector<std::pair<std::string, H5Value>> values = {
      {"yes", true},
      {"no", false},
      {"int", std::int64_t{-9'000'000'000'000'000'000}},
      {"uint", std::uint64_t{18'000'000'000'000'000'000U}},
      {"double", 1e-5},
      {"text", std::string("stage \xC3\xA9")},
      {"nothing", std::string()},
  };
  {
    H5Writer writer(path);
    writer.group("/g/h");
    writer.dataset("/d", H5Element::kInt8, {3});
    for (const char* object : {"/", "/g/h", "/d"}) {
      for (const auto& [name, value] : values) writer.attribute(object, name, value);
    }
    writer.begin_data();
    writer.replace("/g/h", "uint", 77);
    writer.close();
  }
  const H5Reader reader(path);
  for (const char* object : {"/", "/g/h", "/d"}) {
    for (const auto& [name, value] : values) {
      CAPTURE(object);
      CAPTURE(name);
      const bool replaced = std::string(object) == "/g/h" && name == "uint";
      CHECK(reader.attribute(object, name) == std::optional(replaced ? H5Value(std::uint64_t{77}) : value));
    }
  }
  CHECK(!reader.attribute("/", "other").has_value());
  CHECK_THROWS_AS(reader.attribute("/nowhere", "other"), Hdf5Error);
}

TEST_CASE("hdf5: enums of bytes are read as another type") {
  const TemporaryDirectory directory;
  const std::string path = directory.name() + "/a.h5";
  {
    H5Writer writer(path);
    writer.enum_dataset("/why", {"length", "eos"}, 2);
    writer.begin_data();
    writer.write("/why", 0, std::array{std::byte{1}, std::byte{0}});
    writer.close();
  }
  const H5Reader reader(path);
  CHECK(reader.datasets().at(0).type == "enum");
  CHECK(reader.read("/why", 2) == std::vector{std::byte{1}, std::byte{0}});
}

TEST_CASE("hdf5: the same calls give the same bytes") {
  const TemporaryDirectory directory;
  const auto write = [&](const std::string& name) {
    H5Writer writer(directory.name() + name);
    for (int i = 0; i < 50; ++i) {
      writer.dataset(fmt::format("/group{}/data", i), H5Element::kInt32, {2});
      writer.attribute(fmt::format("/group{}/data", i), "sum", std::uint64_t{0});
    }
    writer.begin_data();
    for (int i = 0; i < 50; ++i) {
      const std::array<std::int32_t, 2> values = {i, -i};
      writer.write(fmt::format("/group{}/data", i), 0, std::as_bytes(std::span(values)));
    }
    writer.close();
    return bytes_of_file(directory.name() + name);
  };
  const std::string first = write("/a.h5");
  CHECK(first == write("/b.h5"));
  CHECK(first.size() < 50 * 4096 + 65536);  // metadata stands close together
}

TEST_CASE("hdf5: what cannot be opened or written says why in one line") {
  const TemporaryDirectory directory;
  const auto open_error = [](const std::string& path) { return message_of<Hdf5Error>([&] { H5Reader reader(path); }); };
  CHECK(contains(open_error(directory.name() + "/none.h5"), "/none.h5: No such file or directory"));
  directory.write("text.h5", "no HDF5 at all");
  CHECK(contains(open_error(directory.name() + "/text.h5"), "/text.h5: "));
  CHECK(!looks_like_hdf5(directory.name() + "/text.h5"));
  CHECK(!looks_like_hdf5(directory.name() + "/none.h5"));
  CHECK(contains(message_of<Hdf5Error>([] { H5Writer writer("/does/not/exist.h5"); }), "No such file or directory"));
  const std::string full = message_of<Hdf5Error>([] { H5Writer writer("/dev/full"); });
  CHECK(contains(full, "/dev/full: "));
  CHECK(!contains(full, "\n"));

  H5Writer writer(directory.name() + "/a.h5");
  writer.dataset("/d", H5Element::kInt32, {4, 2});
  CHECK_THROWS_AS(writer.dataset("/d", H5Element::kInt32, {4, 2}), Hdf5Error);
  writer.begin_data();
  const std::vector<std::byte> bytes(16);
  CHECK(
      contains(message_of<Hdf5Error>([&] { writer.write("/d", 3, bytes); }), "/d: 16 bytes from row 3 on do not fit"));
  CHECK_THROWS_AS(writer.write("/d", 0, std::span(bytes).first(12)), Hdf5Error);
  CHECK_THROWS_AS(writer.write("/d", -1, bytes), Hdf5Error);
  CHECK_THROWS_AS(writer.write("/other", 0, bytes), Hdf5Error);
  CHECK_THROWS_AS(writer.replace("/d", "none", 1), Hdf5Error);
  CHECK_NOTHROW(writer.write("/d", 2, bytes));
  writer.close();
  CHECK(looks_like_hdf5(directory.name() + "/a.h5"));
}

TEST_CASE("hdf5: files that are cut are refused") {
  const TemporaryDirectory directory;
  {
    H5Writer writer(directory.name() + "/a.h5");
    writer.dataset("/d", H5Element::kInt32, {1000});
    writer.begin_data();
    writer.write("/d", 0, std::vector<std::byte>(4000));
    writer.close();
  }
  const std::string whole = bytes_of_file(directory.name() + "/a.h5");
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{47}, std::size_t{300}, whole.size() - 1}) {
    directory.write("cut.h5", std::string_view(whole).substr(0, size));
    CHECK_THROWS_AS(H5Reader(directory.name() + "/cut.h5"), Hdf5Error);
  }
}
