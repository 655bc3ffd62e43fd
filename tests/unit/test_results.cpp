#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/output_file.hpp"
#include "runtime/results.hpp"
#include "tests/unit/byte_tokenizer.hpp"

namespace {

using stagecoach::FinishReason;
using stagecoach::json_string;
using stagecoach::make_jsonl_sink;
using stagecoach::make_text_sink;
using stagecoach::OutputError;
using stagecoach::Request;
using stagecoach::Sample;
using stagecoach::shortest_decimal;
using stagecoach::TextStream;
using stagecoach::Tokenizer;

constexpr std::int32_t kEos = 257;

const Tokenizer& tokenizer() {
  static const Tokenizer bytes = stagecoach::byte_tokenizer();
  return bytes;
}

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "stagecoach_results_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Request request_of(const std::string& text, std::int64_t index = 0) {
  Request request;
  request.index = index;
  request.prompt = text;
  for (const char c : text) request.tokens.push_back(static_cast<unsigned char>(c));
  request.max_new_tokens = 4;
  return request;
}

Sample sample_of(std::vector<std::int32_t> tokens, FinishReason finish = FinishReason::kLength) {
  Sample sample;
  sample.prompt_tokens = 3;
  sample.tokens = std::move(tokens);
  sample.finish = finish;
  return sample;
}

std::vector<Sample> one(Sample sample) {
  return {std::move(sample)};
}

TEST_CASE("JSON lines: the documented keys in the documented order") {
  const Folder folder;
  const std::string path = folder / "out.jsonl";
  {
    const auto sink = make_jsonl_sink(path, &tokenizer(), kEos);
    CHECK(std::filesystem::exists(path + ".partial"));
    sink->write(request_of("a\"b"), one(sample_of({256, 'c'})));
    Request second = request_of("x", 1);
    second.id = json_string("n\n1");
    second.logprobs = true;
    Sample sample = sample_of({'y', kEos}, FinishReason::kEos);
    sample.logprobs = {-0.1F, -1.5e-7F};
    sink->write(second, one(sample));
    CHECK_FALSE(std::filesystem::exists(path));
    sink->finish();
  }
  CHECK_FALSE(std::filesystem::exists(path + ".partial"));
  CHECK(content(path) ==
        "{\"index\":0,\"id\":null,\"sample\":0,\"prompt\":\"a\\\"b\",\"completion\":\"abc\",\"prompt_tokens\":"
        "3,"
        "\"tokens\":[256,99],\"finish_reason\":\"length\"}\n"
        "{\"index\":1,\"id\":\"n\\n1\",\"sample\":0,\"prompt\":\"x\",\"completion\":\"y\",\"prompt_tokens\":3,"
        "\"tokens\":[121,257],\"logprobs\":[-0.1,-1.5e-07],\"finish_reason\":\"eos\"}\n");
}

TEST_CASE("an end without destructors can discard partial files, those of others not among them") {
  const Folder folder;
  const std::string path = folder / "o.jsonl", partial = path + ".partial";
  {
    stagecoach::OutputFile file(path);
    file.write("half");
    REQUIRE(std::filesystem::exists(partial));
    stagecoach::discard_unfinished_files();
    CHECK_FALSE(std::filesystem::exists(partial));
    std::ofstream(partial) << "another run's";
    stagecoach::discard_unfinished_files();
  }
  CHECK(content(partial) == "another run's");
  stagecoach::OutputFile file(path);
  file.commit();
  stagecoach::discard_unfinished_files();
  CHECK(std::filesystem::exists(path));
}

TEST_CASE("token prompts: text when there is a vocabulary, otherwise null") {
  const Folder folder;
  Request request = request_of("hi");
  request.prompt.reset();
  for (const Tokenizer* with : {&tokenizer(), static_cast<const Tokenizer*>(nullptr)}) {
    const std::string path = folder / "out.jsonl";
    const auto sink = make_jsonl_sink(path, with, kEos);
    sink->write(request, one(sample_of({'!'})));
    sink->finish();
    const bool has_text = content(path).find("\"prompt\":\"hi\",\"completion\":\"!\"") != std::string::npos;
    const bool has_null = content(path).find("\"prompt\":null,\"completion\":null") != std::string::npos;
    CHECK(has_text == (with != nullptr));
    CHECK(has_null == (with == nullptr));
  }
}

TEST_CASE("an end-of-text that did not end anything is text; an id without token is U+FFFD") {
  const Folder folder;
  const auto sink = make_jsonl_sink(folder / "out.jsonl", &tokenizer(), kEos);
  sink->write(request_of("a"), one(sample_of({kEos, 300, 0xff, kEos})));
  sink->finish();
  CHECK(content(folder / "out.jsonl").find("\"completion\":\"<|endoftext|>\xEF\xBF\xBD\xEF\xBF\xBD<|endoftext|>\"") !=
        std::string::npos);
}

TEST_CASE("an older file stays until the new one is complete, and for good when it never is") {
  const Folder folder;
  const std::string path = folder / "out.jsonl";
  std::ofstream(path) << "old\n";
  {
    const auto sink = make_jsonl_sink(path, nullptr, kEos);
    sink->write(request_of("a"), one(sample_of({1})));
    CHECK(content(path) == "old\n");
  }
  CHECK(content(path) == "old\n");
  CHECK_FALSE(std::filesystem::exists(path + ".partial"));
  std::ofstream(path + ".partial") << "left by a killed run";
  const auto sink = make_jsonl_sink(path, nullptr, kEos);
  sink->finish();
  CHECK(content(path).empty());
}

TEST_CASE("two runs do not share a partial file") {
  const Folder folder;
  const auto sink = make_jsonl_sink(folder / "out.jsonl", nullptr, kEos);
  CHECK_THROWS_AS(make_jsonl_sink(folder / "out.jsonl", nullptr, kEos), OutputError);
}

// As where a file system has no locks, or the host that held it is cut off.
void unlock(const std::string& path) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone) != path) continue;
    ::flock(std::stoi(entry.path().filename()), LOCK_UN);
    ++found;
  }
  REQUIRE(found == 1);
}

TEST_CASE("without locks a second run takes the name over, and nothing of the first gets into its results") {
  const Folder folder;
  const std::string path = folder / "out.jsonl";
  auto first = make_jsonl_sink(path, nullptr, kEos);
  for (int i = 0; i < 20000; ++i) first->write(request_of("a"), one(sample_of({1})));  // more than it keeps back
  unlock(path + ".partial");
  const auto second = make_jsonl_sink(path, nullptr, kEos);
  second->write(request_of("b"), one(sample_of({2})));
  for (int i = 0; i < 20000; ++i) first->write(request_of("a"), one(sample_of({1})));
  SUBCASE("the first comes to its end before") {
    CHECK_THROWS_AS(first->finish(), OutputError);
  }
  SUBCASE("the first is gone before") {
    first.reset();
  }
  SUBCASE("the first lives on") {}
  second->finish();
  const std::string results = content(path);
  CHECK(std::ranges::count(results, '\n') == 1);
  if (first) {
    first->write(request_of("a"), one(sample_of({1})));
    CHECK_THROWS_AS(first->finish(), OutputError);
    first.reset();
  }
  CHECK(content(path) == results);
  CHECK_FALSE(std::filesystem::exists(path + ".partial"));
}

TEST_CASE("what has the partial file's name and is none is no reason to wait for ever") {
  const Folder folder;
  const std::string path = folder / "out.jsonl";
  std::filesystem::create_symlink("nowhere", path + ".partial");
  CHECK_THROWS_AS(make_jsonl_sink(path, nullptr, kEos), OutputError);
  std::filesystem::remove(path + ".partial");
  REQUIRE(::mkfifo((path + ".partial").c_str(), 0600) == 0);
  CHECK_THROWS_AS(make_jsonl_sink(path, nullptr, kEos), OutputError);
}

TEST_CASE("places that cannot be written are known at once, with the system's reason") {
  const Folder folder;
  CHECK_THROWS_WITH_AS(make_jsonl_sink("/nowhere/out.jsonl", nullptr, kEos),
                       "/nowhere/out.jsonl: cannot make the file: its folder does not exist",
                       stagecoach::OutputPlaceError);
  std::filesystem::create_directory(folder / "dir.jsonl");
  CHECK_THROWS_AS(make_jsonl_sink(folder / "dir.jsonl", nullptr, kEos), OutputError);
}

TEST_CASE("a disk that fills up is an error and leaves nothing behind") {
  const Folder folder;
  const std::string path = folder / "out.jsonl";
  rlimit before = {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {1000, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  std::string error;
  {
    const auto sink = make_jsonl_sink(path, nullptr, kEos);
    try {
      for (int i = 0; i < 100; ++i) sink->write(request_of("a"), one(sample_of({1, 2, 3})));
    } catch (const OutputError& e) {
      error = e.what();
    }
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  CHECK(error == path + ".partial: cannot write: File too large");
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK_FALSE(std::filesystem::exists(path + ".partial"));
}

// What was written into a pipe by `use(fd)`.
template <typename Use>
std::string through_pipe(Use use) {
  int ends[2] = {-1, -1};
  REQUIRE(::pipe(ends) == 0);
  use(ends[1]);
  ::close(ends[1]);
  std::string all(65536, '\0');
  const ssize_t got = ::read(ends[0], all.data(), all.size());
  ::close(ends[0]);
  all.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
  return all;
}

TEST_CASE("text of several prompts has headings") {
  CHECK(through_pipe([](int fd) {
          const auto sink = make_text_sink(fd, &tokenizer(), kEos);
          sink->write(request_of("one "), one(sample_of({'t', 'w', 'o', kEos}, FinishReason::kEos)));
          Request named = request_of("\xc3", 1);
          named.id = "x";
          sink->write(named, one(sample_of({0xa9})));
          sink->finish();
        }) == "==> 0 <==\none two\n\n==> 1: x <==\n\xc3\xa9\n\n");
  CHECK(through_pipe([](int fd) {
          make_text_sink(fd, nullptr, kEos)->write(request_of("a"), one(sample_of({1, 2})));
        }) == "==> 0 <==\n97 1 2\n\n");
}

TEST_CASE("several samples are a line or a heading each") {
  Request request = request_of("p");
  request.num_samples = 2;
  Sample first = sample_of({'a'});
  Sample second = sample_of({'b'});
  second.sample = 1;
  CHECK(through_pipe([&](int fd) {
          make_text_sink(fd, &tokenizer(), kEos)->write(request, std::vector{first, second});
        }) == "==> 0, sample 0 <==\npa\n\n==> 0, sample 1 <==\npb\n\n");
  const Folder folder;
  const auto sink = make_jsonl_sink(folder / "out.jsonl", &tokenizer(), kEos);
  sink->write(request, std::vector{first, second});
  sink->finish();
  const std::string lines = content(folder / "out.jsonl");
  CHECK(lines.find("\"sample\":0,") < lines.find("\"sample\":1,"));
  CHECK(std::count(lines.begin(), lines.end(), '\n') == 2);
}

TEST_CASE("a completion ends before the stop string, its tokens with it") {
  const Folder folder;
  const auto sink = make_jsonl_sink(folder / "out.jsonl", &tokenizer(), kEos);
  Sample sample = sample_of({'x', 256, 'c', 'd'}, FinishReason::kStop);  // x, ab, c, d
  sample.text_bytes = 2;
  sink->write(request_of("p"), one(sample));
  sink->finish();
  CHECK(content(folder / "out.jsonl")
            .find("\"completion\":\"xa\",\"prompt_tokens\":3,\"tokens\":[120,256,99,100],"
                  "\"finish_reason\":\"stop\"") != std::string::npos);
  CHECK(through_pipe([&](int fd) {
          TextStream stream(fd, &tokenizer(), kEos);
          Request request = request_of("p");
          request.stop = {"bcd"};
          stream.begin(request);
          for (const std::int32_t token : sample.tokens) stream.push(token);
          stream.end();
        }) == "pxa\n");
  CHECK(through_pipe([&](int fd) {
          TextStream stream(fd, &tokenizer(), kEos);
          Request request = request_of("p");
          request.stop = {"bcde"};
          stream.begin(request);
          for (const std::int32_t token : sample.tokens) stream.push(token);
          stream.end();
        }) == "pxabcd\n");
}

TEST_CASE("a stream shows characters when they are complete") {
  std::string before_last;
  const std::string all = through_pipe([&](int fd) {
    TextStream stream(fd, &tokenizer(), kEos);
    stream.begin(request_of("a"));
    stream.push(0xc3);
    stream.push(0xa9);
    stream.push(0xe2);
    stream.push(kEos);
    stream.end();
  });
  CHECK(all == "a\xc3\xa9\xEF\xBF\xBD\n");
  CHECK(through_pipe([&](int fd) {
          TextStream stream(fd, &tokenizer(), kEos);
          Request request = request_of("a");
          request.ignore_eos = true;
          stream.begin(request);
          stream.push(kEos);
          stream.push('b');
          stream.end();
        }) == "a<|endoftext|>b\n");
  CHECK(through_pipe([&](int fd) {
          TextStream stream(fd, nullptr, kEos);
          stream.begin(request_of("a"));
          stream.push(5);
          stream.end();
        }) == "97 5\n");
}

TEST_CASE("a closed pipe and a full device are errors") {
  const auto old_handler = std::signal(SIGPIPE, SIG_IGN);
  int ends[2] = {-1, -1};
  REQUIRE(::pipe(ends) == 0);
  ::close(ends[0]);
  CHECK_THROWS_AS(make_text_sink(ends[1], nullptr, kEos)->write(request_of("a"), one(sample_of({1}))), OutputError);
  ::close(ends[1]);
  std::signal(SIGPIPE, old_handler);
  const int full = ::open("/dev/full", O_WRONLY);
  if (full >= 0) {
    TextStream stream(full, nullptr, kEos);
    CHECK_THROWS_AS(stream.begin(request_of("a")), OutputError);
    ::close(full);
  }
}

TEST_CASE("decimals are the shortest that read back as the same float") {
  CHECK(shortest_decimal(0.0F) == "0");
  CHECK(shortest_decimal(-0.1F) == "-0.1");
  CHECK(shortest_decimal(1.0F / 3.0F) == "0.33333334");
  CHECK(shortest_decimal(-12.345678F) == "-12.345678");
  CHECK(shortest_decimal(1e-30F) == "1e-30");
  CHECK(shortest_decimal(-std::numeric_limits<float>::infinity()) == "null");
  CHECK(shortest_decimal(std::numeric_limits<float>::quiet_NaN()) == "null");
  for (std::uint32_t i = 1; i < 2000; ++i) {
    const float value = -std::exp2(static_cast<float>(i % 40) - 30.0F) * (1.0F + static_cast<float>(i) / 7919.0F);
    CHECK(std::strtof(shortest_decimal(value).c_str(), nullptr) == value);
  }
}

TEST_CASE("JSON strings") {
  CHECK(json_string("a\"\\\n\r\t\x01\x7f/") == "\"a\\\"\\\\\\n\\r\\t\\u0001\x7f/\"");
  CHECK(json_string(std::string_view("\0", 1)) == "\"\\u0000\"");
  CHECK(json_string("h\xc3\xa9") == "\"h\xc3\xa9\"");
  CHECK(json_string("\xc3") == "\"\xEF\xBF\xBD\"");
}

}  // namespace
