#include <doctest/doctest.h>

#include "runtime/json.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using stagecoach::test::contains;
using stagecoach::test::message_of;

namespace {

std::string error_of(std::string_view text) {
  return message_of<JsonError>([&] { parse_json(text); });
}

}  // namespace

TEST_CASE("JSON: every kind of value arrives as it stands") {
  const Json json = parse_json(R"( {"a": null, "b": [true, false], "c": -3, "d": 2.5, "e": "x\u0120\n", "f": {}} )");
  REQUIRE(json.object() != nullptr);
  CHECK(json.object()->size() == 6);
  CHECK(json.object()->front().first == "a");  // file order
  CHECK(json.find("a")->is_null());
  CHECK(*json.find("b")->array()->at(0).boolean());
  CHECK(*json.find("c")->integer() == -3);
  CHECK(json.find("c")->real() == nullptr);
  CHECK(*json.find("d")->real() == 2.5);
  CHECK(*json.find("e")->string() == "x\xc4\xa0\n");
  CHECK(json.find("f")->object()->empty());
  CHECK(json.find("g") == nullptr);
  CHECK(json.find("b")->find("a") == nullptr);
}

TEST_CASE("JSON: type names for messages") {
  const Json json = parse_json(R"([null, true, 1, 1.5, "", [], {}])");
  const char* expected[] = {"null", "a boolean", "a number", "a number", "a string", "a list", "an object"};
  for (std::size_t i = 0; i < json.array()->size(); ++i)
    CHECK(std::string(json.array()->at(i).type_name()) == expected[i]);
}

TEST_CASE("JSON: integers of 64 bits are integers, larger ones are doubles") {
  CHECK(*parse_json("9223372036854775807").integer() == INT64_MAX);
  CHECK(*parse_json("-9223372036854775808").integer() == INT64_MIN);
  CHECK(*parse_json("9223372036854775808").real() == 9223372036854775808.0);
  CHECK(*parse_json("123456789012345678901234567890").real() == doctest::Approx(1.2345678901234568e29));
  CHECK(*parse_json("1e3").real() == 1000.0);
  CHECK(contains(error_of("1e999"), "overflow"));
}

TEST_CASE("JSON: errors have a line and a column") {
  const std::string error = error_of("{\n  \"a\": 1,\n  \"b\" 2}");
  CHECK(contains(error, "line 3, column "));
  CHECK(!contains(error, "nlohmann"));
  CHECK(!contains(error, "json.exception"));
}

TEST_CASE("JSON: duplicate keys are errors at any size and depth, and only within one object") {
  CHECK(contains(error_of(R"({"a": 1, "b": {"k": 1, "k": 2}})"), "duplicate key \"k\""));
  CHECK(contains(error_of("{\"a\": 1,\n \"a\": 2}"), "line 2, column 5"));
  std::string large = "{";
  for (int i = 0; i < 100; ++i) large += fmt::format("\"k{}\": {{\"k1\": 0}}, ", i);
  CHECK_NOTHROW(parse_json(large + "\"last\": 0}"));
  CHECK(contains(error_of(large + "\"k3\": 0}"), "duplicate key \"k3\""));
  CHECK(contains(error_of(large + "\"k98\": 0}"), "duplicate key \"k98\""));
  CHECK(contains(error_of(R"({"a\u0001": 1, "a\u0001": 2})"), "duplicate key \"a\\x01\""));
}

TEST_CASE("JSON: nesting is bounded") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK_NOTHROW(parse_json(nested(64)));
  CHECK(contains(error_of(nested(65)), "deeper than 64"));
  CHECK(contains(error_of(std::string(1000000, '[')), "deeper than 64"));
}

TEST_CASE("JSON: what is no JSON") {
  for (const char* text :
       {"",   " ",   "{",   "[1,]",    "{\"a\":1,}",  "NaN",     "Infinity", "[NaN]", "'a'",   "01",     "+1",
        "1.", "tru", "\"a", "\"\\x\"", "\"\\ud800\"", "// c\n1", "1 2",      "{} x",  "[1] ]", "\"\t\"", "{1: 2}"}) {
    CAPTURE(text);
    CHECK(!error_of(text).empty());
  }
}

TEST_CASE("JSON: invalid UTF-8 and zero bytes are errors") {
  for (const char* text :
       {"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xc0\x80\"", "\xff"}) {
    CAPTURE(text);
    const std::string error = error_of(text);
    CHECK(!error.empty());
    for (const char c : error) CHECK((c >= 0x20 && c < 0x7f));  // the message itself stays printable
  }
  CHECK(contains(error_of(std::string_view("{}\0garbage", 10)), "zero byte"));
  CHECK(*parse_json("\"\xc3\xa9\"").string() == "\xc3\xa9");
}

TEST_CASE("JSON: every truncation of a document is an error") {
  const std::string text = R"({"a": [1, 2.5, {"b": "x\u00e9"}], "c": null})";
  for (std::size_t n = 0; n < text.size(); ++n) CHECK(!error_of(std::string_view(text).substr(0, n)).empty());
}
