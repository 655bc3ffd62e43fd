#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <map>
#include <optional>
#include <random>

#include "runtime/hdf5_file.hpp"
#include "runtime/results.hpp"
#include "runtime/results_h5.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

// What write_results_h5 makes of `lines`.
struct Converted : TemporaryDirectory {
  explicit Converted(const std::string& lines) {
    write("in.jsonl", lines);
    write_results_h5(name() + "/in.jsonl", name() + "/out.h5");
    reader.emplace(name() + "/out.h5");
    for (const H5Dataset& dataset : reader->datasets()) types[dataset.path] = dataset.type;
  }
  template <typename T>
  std::vector<T> values(const std::string& path) const {
    const std::vector<std::byte> bytes = reader->read(path, 1 << 30);
    std::vector<T> result(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(result.data(), bytes.data(), bytes.size());
    return result;
  }
  // Line `i` of a ragged group of bytes.
  std::string text(const std::string& group, std::size_t i) const {
    const auto offsets = values<std::int64_t>(group + "/offsets");
    const auto bytes = values<char>(group + "/values");
    return std::string(bytes.begin() + offsets.at(i), bytes.begin() + offsets.at(i + 1));
  }

  std::optional<H5Reader> reader;
  std::map<std::string, std::string> types;
};

std::string error_of(const std::string& lines) {
  return message_of<OutputError>([&] { Converted converted(lines); });
}

}  // namespace

TEST_CASE("results_h5: every field of generate's lines") {
  const Converted c(
      R"({"index":0,"id":null,"sample":0,"prompt":"é \"logprobs\":[9]","completion":"","prompt_tokens":3,"tokens":[5,6],"logprobs":[-0.1,-0],"finish_reason":"length"})"
      "\n"
      R"({"index":7000000000,"id":"a\nb","sample":1,"prompt":"q","completion":"xyz","prompt_tokens":1,"tokens":[],"logprobs":[],"finish_reason":"eos"})"
      "\n"
      R"({"index":7000000001,"id":-7.50,"sample":2,"prompt":"","completion":"\u0000","prompt_tokens":2,"tokens":[1],"logprobs":[null],"finish_reason":"stop"})"
      "\n");
  CHECK(c.reader->attribute("/", "format") == H5Value(std::string("stagecoach-results")));
  CHECK(c.reader->attribute("/", "format_version") == H5Value(std::int64_t{1}));
  CHECK(c.values<std::int64_t>("/index") == std::vector<std::int64_t>{0, 7000000000, 7000000001});
  CHECK(c.values<std::int32_t>("/sample") == std::vector<std::int32_t>{0, 1, 2});
  CHECK(c.values<std::int32_t>("/prompt_tokens") == std::vector<std::int32_t>{3, 1, 2});
  CHECK(c.values<std::uint8_t>("/finish_reason") == std::vector<std::uint8_t>{0, 1, 2});
  CHECK(c.types.at("/finish_reason") == "enum");
  CHECK(c.types.at("/index") == "int64");
  CHECK(c.types.at("/sample") == "int32");
  CHECK(c.text("/prompt", 0) == "é \"logprobs\":[9]");
  CHECK(c.text("/prompt", 2).empty());
  CHECK(c.text("/completion", 1) == "xyz");
  CHECK(c.text("/completion", 2) == std::string(1, '\0'));
  CHECK(c.values<std::uint8_t>("/id/kind") == std::vector<std::uint8_t>{0, 1, 2});
  CHECK(c.text("/id", 0).empty());
  CHECK(c.text("/id", 1) == "a\nb");
  CHECK(c.text("/id", 2) == "-7.50");
  CHECK(c.values<std::int64_t>("/tokens/offsets") == std::vector<std::int64_t>{0, 2, 2, 3});
  CHECK(c.values<std::int32_t>("/tokens/values") == std::vector<std::int32_t>{5, 6, 1});
  const auto logprobs = c.values<float>("/logprobs/values");
  REQUIRE(logprobs.size() == 3);
  CHECK(logprobs[0] == -0.1F);
  CHECK(std::bit_cast<std::uint32_t>(logprobs[1]) == 0x80000000U);
  CHECK(std::isnan(logprobs[2]));
}

TEST_CASE("results_h5: groups that no line fills are left out") {
  const Converted c(
      R"({"index":0,"id":null,"sample":0,"prompt":null,"completion":null,"prompt_tokens":3,"tokens":[5],"finish_reason":"length"})"
      "\n");
  CHECK(!c.types.contains("/prompt/values"));
  CHECK(!c.types.contains("/completion/offsets"));
  CHECK(!c.types.contains("/logprobs/values"));
  CHECK(c.types.contains("/id/values"));
}

TEST_CASE("results_h5: every float32 comes back with the same bits") {
  std::mt19937 random{std::random_device{}()};
  std::vector<float> expected;
  std::string list;
  while (expected.size() < 200'000) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    list += (expected.empty() ? "" : ",") + shortest_decimal(value);
    expected.push_back(value);
  }
  const Converted c(
      R"({"index":0,"id":null,"sample":0,"prompt":null,"completion":null,"prompt_tokens":3,"tokens":[5],"logprobs":[)" +
      list + R"(],"finish_reason":"length"})" + "\n");
  const auto values = c.values<float>("/logprobs/values");
  REQUIRE(values.size() == expected.size());
  CHECK(std::memcmp(values.data(), expected.data(), 4 * expected.size()) == 0);
}

TEST_CASE("results_h5: many lines, more than a buffer") {
  std::string lines;
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 20'000; ++i) {
    lines += fmt::format(
        R"({{"index":{0},"id":{0},"sample":0,"prompt":"p{0}","completion":null,"prompt_tokens":1,"tokens":[{1}],"finish_reason":"eos"}})"
        "\n",
        i, fmt::join(std::vector<int>(static_cast<std::size_t>(i % 17), i), ","));
    tokens.insert(tokens.end(), static_cast<std::size_t>(i % 17), i);
  }
  const Converted c(lines);
  CHECK(c.values<std::int32_t>("/tokens/values") == tokens);
  CHECK(c.text("/prompt", 12345) == "p12345");
  CHECK(c.text("/id", 19999) == "19999");
  CHECK(c.values<std::int64_t>("/index").back() == 19999);
}

TEST_CASE("results_h5: score's lines") {
  const Converted c(
      R"({"index":0,"id":"x","tokens":[1,2,3],"logprobs":[null,-1.5,-2],"sum_logprob":-3.5,"perplexity":5.75})"
      "\n"
      R"({"index":1,"id":null,"tokens":[1],"logprobs":[null],"sum_logprob":0,"perplexity":null})"
      "\n");
  CHECK(c.reader->attribute("/", "format") == H5Value(std::string("stagecoach-scores")));
  CHECK(c.values<double>("/sum_logprob") == std::vector<double>{-3.5, 0.0});
  CHECK(c.values<double>("/perplexity").at(0) == 5.75);
  CHECK(std::isnan(c.values<double>("/perplexity").at(1)));
  CHECK(std::isnan(c.values<float>("/logprobs/values").at(0)));
  CHECK(c.values<float>("/logprobs/values").at(2) == -2.0F);
  CHECK(!c.types.contains("/sample"));
  CHECK(!c.types.contains("/finish_reason"));
}

TEST_CASE("results_h5: no lines give empty datasets") {
  const Converted c("");
  CHECK(c.values<std::int64_t>("/index").empty());
  CHECK(c.values<std::int64_t>("/tokens/offsets") == std::vector<std::int64_t>{0});
  CHECK(c.values<std::int32_t>("/tokens/values").empty());
}

TEST_CASE("results_h5: lines that are none name the line, and nothing is left behind") {
  CHECK(contains(error_of("{}\n"), "in.jsonl:1: "));
  CHECK(contains(error_of("[1\n"), "in.jsonl:1: "));
  const std::string good =
      R"({"index":0,"id":null,"sample":0,"prompt":null,"completion":null,"prompt_tokens":3,"tokens":[5],"finish_reason":"length"})"
      "\n";
  CHECK(contains(error_of(good + "{\"index\":1}\n"), "in.jsonl:2: is no line of results: no id"));
  const TemporaryDirectory directory;
  directory.write("in.jsonl", good + "x\n");
  CHECK_THROWS_AS(write_results_h5(directory.name() + "/in.jsonl", directory.name() + "/o.h5"), OutputError);
  CHECK(!std::filesystem::exists(directory.path() / "o.h5"));
  CHECK(!std::filesystem::exists(directory.path() / "o.h5.partial"));
}
