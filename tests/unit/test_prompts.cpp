#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/prompts.hpp"
#include "runtime/random.hpp"
#include "tests/unit/byte_tokenizer.hpp"

namespace {

using stagecoach::PromptError;
using stagecoach::PromptOptions;
using stagecoach::PromptReader;
using stagecoach::Request;
using stagecoach::Tokenizer;
using Ids = std::vector<std::int32_t>;

const Tokenizer& tokenizer() {
  static const Tokenizer bytes = stagecoach::byte_tokenizer();
  return bytes;
}

PromptOptions small_model() {
  PromptOptions options;
  options.max_new_tokens = 4;
  options.n_positions = 8;
  options.vocab_size = 258;
  return options;
}

// A file of its own that vanishes with the test.
class File {
 public:
  File(const std::string& suffix, const std::string& content) {
    static int next = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("stagecoach_prompts_" + std::to_string(::getpid()) + "_" + std::to_string(next++) + suffix);
    write(content);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { std::filesystem::remove(path_); }
  void write(const std::string& content) const { std::ofstream(path_, std::ios::binary) << content; }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::vector<Request> all(PromptReader& reader) {
  std::vector<Request> requests;
  while (std::optional<Request> request = reader.next()) requests.push_back(std::move(*request));
  return requests;
}

// What `check` says about a file, with its path replaced by FILE.
std::string error_of(const std::string& suffix, const std::string& content, PromptOptions options = small_model(),
                     const Tokenizer* with = &tokenizer()) {
  const File file(suffix, content);
  try {
    PromptReader::from_file(file.path(), with, options).check();
  } catch (const PromptError& error) {
    std::string what = error.what();
    const std::size_t at = what.find(file.path());
    if (at != std::string::npos) what.replace(at, file.path().size(), "FILE");
    return what;
  }
  return "no error";
}

TEST_CASE("text lines, with either line end and with or without the last one") {
  const File file(".txt", "hello\r\n a\xff \rb\nab");
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), small_model());
  CHECK(reader.check() == 3);
  const std::vector<Request> requests = all(reader);
  REQUIRE(requests.size() == 3);
  CHECK(requests[0].prompt == "hello");
  CHECK(requests[0].tokens == Ids{'h', 'e', 'l', 'l', 'o'});
  CHECK(requests[0].max_new_tokens == 4);
  CHECK_FALSE(requests[0].id);
  CHECK(requests[1].prompt == " a\xff \rb");
  CHECK(requests[2].index == 2);
  CHECK(requests[2].tokens == Ids{256});
}

TEST_CASE("JSON lines") {
  const File file(".jsonl",
                  "{\"prompt\": \"h\\u00e9\", \"id\": \"x\"}\r\n"
                  "{\"tokens\": [0, 257], \"max_new_tokens\": 2, \"id\": null}\n"
                  "{\"prompt\": \"a\", \"temperature\": 0.0, \"top_k\": 0, \"top_p\": 1, \"repetition_penalty\": 1.0, "
                  "\"seed\": 0, \"stop\": [], \"num_samples\": 1}");
  PromptOptions options = small_model();
  options.ignore_eos = true;
  options.logprobs = true;
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), options);
  CHECK(reader.check() == 3);
  const std::vector<Request> requests = all(reader);
  REQUIRE(requests.size() == 3);
  CHECK(requests[0].id == "\"x\"");
  CHECK(requests[0].tokens == Ids{'h', 0xc3, 0xa9});
  CHECK(requests[0].ignore_eos);
  CHECK(requests[0].logprobs);
  CHECK_FALSE(requests[1].prompt);
  CHECK(requests[1].tokens == Ids{0, 257});
  CHECK(requests[1].max_new_tokens == 2);
  CHECK(requests[2].max_new_tokens == 4);
}

TEST_CASE("options of a line win over those of the run, and seeds differ by index") {
  const File file(".jsonl",
                  "{\"prompt\": \"a\"}\n"
                  "{\"prompt\": \"a\", \"temperature\": 0.5, \"top_k\": 3, \"top_p\": 0.25, \"repetition_penalty\": 2, "
                  "\"seed\": 7, \"stop\": \"x\", \"num_samples\": 4}\n"
                  "{\"prompt\": \"a\", \"stop\": []}\n");
  PromptOptions options = small_model();
  options.sampling = {0.75, 9, 0.5, 1.5};
  options.run_seed = 11;
  options.num_samples = 2;
  options.stop = {"end"};
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), options);
  std::int32_t samples = 0;
  CHECK(reader.check([&](const Request& request) { samples += request.num_samples; }) == 3);
  CHECK(samples == 8);
  const std::vector<Request> requests = all(reader);
  CHECK(requests.at(0).sampling == options.sampling);
  CHECK(requests.at(0).seed == stagecoach::request_seed(11, 0));
  CHECK(requests.at(0).num_samples == 2);
  CHECK(requests.at(0).stop == std::vector<std::string>{"end"});
  CHECK(requests.at(1).sampling == stagecoach::SamplingOptions{0.5, 3, 0.25, 2.0});
  CHECK(requests.at(1).seed == 7);
  CHECK(requests.at(1).num_samples == 4);
  CHECK(requests.at(1).stop == std::vector<std::string>{"x"});
  CHECK(requests.at(2).seed == stagecoach::request_seed(11, 2));
  CHECK(requests.at(2).stop.empty());
}

TEST_CASE("whole files are texts of any length, for scoring") {
  const File one("", "line\nline 2\n"), empty("", "");
  PromptOptions options = small_model();
  options.any_length = true;
  PromptReader reader = PromptReader::from_whole_files({one.path(), one.path()}, &tokenizer(), options);
  CHECK(reader.check() == 2);
  const std::vector<Request> requests = all(reader);
  CHECK(requests.at(1).prompt == "line\nline 2\n");
  CHECK(requests.at(1).tokens.size() == 12);
  CHECK_THROWS_WITH_AS(PromptReader::from_whole_files({empty.path()}, &tokenizer(), options).check(),
                       (empty.path() + ": an empty prompt; a prompt has at least one token").c_str(), PromptError);
  CHECK_THROWS_WITH_AS(PromptReader::from_whole_files({"/nowhere"}, &tokenizer(), options).check(),
                       "/nowhere: No such file or directory", PromptError);
}

TEST_CASE("a bad line is named with what would work") {
  CHECK(error_of(".txt", "a\n\nb\n") == "FILE:2: an empty prompt; a prompt has at least one token");
  CHECK(error_of(".txt", "a\n\r\n") == "FILE:2: an empty prompt; a prompt has at least one token");
  CHECK(error_of(".txt", "") == "FILE: no prompts in it");
  CHECK(error_of(".txt", "123456789\n") ==
        "FILE:1: 9 tokens, but the model has 8 positions; shorten it, or keep its last 8 tokens with "
        "--long-prompt truncate");
  CHECK(error_of(".txt", "12345678\n") == "no error");
  CHECK(error_of(".txt", "a\n", small_model(), nullptr).find("FILE:1: a text, but the model has no vocabulary files") ==
        0);
  CHECK(error_of(".jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": }\n").find("FILE:2: not JSON: ") == 0);
  CHECK(error_of(".jsonl", "\n").find("FILE:1: not JSON: ") == 0);
  const auto json = [](const std::string& line) { return error_of(".jsonl", line + "\n"); };
  CHECK(json("[1]") == "FILE:1: a list, not an object; write {\"prompt\": \"...\"} on each line");
  CHECK(json("{}") == "FILE:1: neither prompt nor tokens; give one of them");
  CHECK(json("{\"prompt\": \"\"}") == "FILE:1: an empty prompt; a prompt has at least one token");
  CHECK(json("{\"prompt\": \"a\", \"tokens\": [1]}") == "FILE:1: both prompt and tokens; give one of them");
  CHECK(json("{\"promt\": \"a\"}") == "FILE:1: promt: unknown key; did you mean prompt?");
  CHECK(json("{\"prompt\": 4}") == "FILE:1: prompt: is a number, not a string; put it in quotes");
  CHECK(json("{\"prompt\": \"a\", \"id\": 4.5}") == "FILE:1: id: is a number, not a string or a whole number");
  CHECK(json("{\"tokens\": \"a\"}") == "FILE:1: tokens: is a string, not a list of token ids");
  CHECK(json("{\"tokens\": []}") == "FILE:1: tokens: an empty list; a prompt has at least one token");
  CHECK(json("{\"tokens\": [1.5]}") == "FILE:1: tokens: a number in the list, which holds token ids only");
  CHECK(json("{\"tokens\": [258]}") == "FILE:1: tokens: id 258 is outside the model's vocabulary of 258 (0 to 257)");
  CHECK(json("{\"tokens\": [-1]}") == "FILE:1: tokens: id -1 is outside the model's vocabulary of 258 (0 to 257)");
  CHECK(json("{\"prompt\": \"a\", \"max_new_tokens\": 0}") ==
        "FILE:1: max_new_tokens: 0 is not a number from 1 to 1073741824");
  CHECK(json("{\"prompt\": \"a\", \"max_new_tokens\": 1.0}") ==
        "FILE:1: max_new_tokens: is a number, not a whole number");
  CHECK(json("{\"prompt\": \"a\", \"temperature\": \"0\"}") == "FILE:1: temperature: is a string, not a number");
  CHECK(json("{\"prompt\": \"a\", \"temperature\": -1}") == "FILE:1: temperature: -1 is not a number from 0 to 1000");
  CHECK(json("{\"prompt\": \"a\", \"top_p\": 1.5}") == "FILE:1: top_p: 1.5 is not a number from 0 to 1");
  CHECK(json("{\"prompt\": \"a\", \"top_k\": 2.5}") == "FILE:1: top_k: is a number, not a whole number");
  CHECK(json("{\"prompt\": \"a\", \"repetition_penalty\": 0}") ==
        "FILE:1: repetition_penalty: 0 is not a number from 0.001 to 1000");
  CHECK(json("{\"prompt\": \"a\", \"seed\": -1}").find("FILE:1: seed: -1 is not a number from 0 to ") == 0);
  CHECK(json("{\"prompt\": \"a\", \"num_samples\": 0}") == "FILE:1: num_samples: 0 is not a number from 1 to 1048576");
  CHECK(json("{\"prompt\": \"a\", \"stop\": [\"x\", 4]}") ==
        "FILE:1: stop: holds a number; give a string or a list of strings");
  CHECK(json("{\"prompt\": \"a\", \"stop\": \"\"}") == "FILE:1: stop: holds an empty string, which would stop at once");
  CHECK(json("{\"prompt\": \"a\", \"stop\": \"" + std::string(4097, 'x') + "\"}") ==
        "FILE:1: stop: is longer than 4096 bytes");
  CHECK(error_of(".jsonl", "{\"tokens\": [1], \"stop\": [\"x\"]}\n", small_model(), nullptr) ==
        "FILE:1: stop: needs the text of tokens, but the model has no vocabulary files; leave it out");
}

TEST_CASE("the vocabulary files may have tokens that the weights lack") {
  PromptOptions options = small_model();
  options.vocab_size = 100;
  CHECK(error_of(".txt", "ab\n", options) ==
        "FILE:1: its token 256 is outside the model's vocabulary of 100; the model's vocabulary files do not "
        "fit its weights");
}

TEST_CASE("truncation keeps the last tokens and the whole text") {
  PromptOptions options = small_model();
  options.truncate_long = true;
  PromptReader reader = PromptReader::from_texts({"0123456789", "1"}, &tokenizer(), options);
  CHECK(reader.check() == 2);
  const std::vector<Request> requests = all(reader);
  CHECK(requests.at(0).tokens == Ids{'2', '3', '4', '5', '6', '7', '8', '9'});
  CHECK(requests.at(0).prompt == "0123456789");
}

TEST_CASE("texts of the command line are counted from 1") {
  CHECK_THROWS_WITH_AS(PromptReader::from_texts({"a", ""}, &tokenizer(), small_model()).check(),
                       "prompt 2: an empty prompt; a prompt has at least one token", PromptError);
}

TEST_CASE("a shard takes every N-th prompt under its own index, and checks all") {
  const File file(".txt", "a\nb\nc\nd\ne\n");
  PromptOptions options = small_model();
  options.shards = 3;
  std::vector<std::int64_t> seen;
  for (options.shard = 0; options.shard < 3; ++options.shard) {
    PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), options);
    CHECK(reader.check() == (options.shard < 2 ? 2 : 1));
    for (const Request& request : all(reader)) seen.push_back(request.index);
  }
  CHECK(seen == std::vector<std::int64_t>{0, 3, 1, 4, 2});
  options.shard = 2;
  CHECK(error_of(".txt", "a\n\nc\n", options).find("FILE:2: ") == 0);
}

TEST_CASE("a shard without prompts is empty, not an error") {
  const File file(".txt", "a\n");
  PromptOptions options = small_model();
  options.shard = 1;
  options.shards = 2;
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), options);
  CHECK(reader.check() == 0);
  CHECK_FALSE(reader.next());
}

TEST_CASE("a file that changes after the check is an error, not a mixture") {
  const File file(".txt", "a\nb\n");
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), small_model());
  reader.check();
  std::ofstream(file.path(), std::ios::app) << "c\n";
  CHECK_THROWS_WITH_AS(reader.next(),
                       (file.path() + ": changed while it was in use; start again when it is complete").c_str(),
                       PromptError);
}

TEST_CASE("a replaced file does not disturb the reader") {
  const File file(".txt", "a\nb\n");
  const File other(".txt", "x\n");
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), small_model());
  reader.check();
  std::filesystem::rename(other.path(), file.path());
  CHECK(all(reader).size() == 2);
}

TEST_CASE("a pipe is read once and kept") {
  const File place(".jsonl", "");
  std::filesystem::remove(place.path());
  REQUIRE(::mkfifo(place.path().c_str(), 0600) == 0);
  std::thread writer([&] { std::ofstream(place.path()) << "{\"prompt\": \"a\"}\n{\"tokens\": [1]}\n"; });
  PromptReader reader = PromptReader::from_file(place.path(), &tokenizer(), small_model());
  writer.join();
  CHECK(reader.check() == 2);
  CHECK(all(reader).size() == 2);
}

namespace {

PromptReader from_standard_input(const std::string& text) {
  const File file("", text);
  const int saved = ::dup(STDIN_FILENO);
  const int fd = ::open(file.path().c_str(), O_RDONLY);
  ::dup2(fd, STDIN_FILENO);
  ::close(fd);
  PromptReader reader = PromptReader::from_file("-", &tokenizer(), small_model());
  ::dup2(saved, STDIN_FILENO);
  ::close(saved);
  return reader;
}

}  // namespace

TEST_CASE("standard input is one prompt per line, or JSON lines when its first line is such an object") {
  PromptReader text = from_standard_input("hi\n{\"tokens\n");
  CHECK(text.check() == 2);
  CHECK(all(text).at(1).prompt == "{\"tokens");
  PromptReader braces = from_standard_input("{braces}\n");
  CHECK(all(braces).at(0).prompt == "{braces}");
  PromptReader json = from_standard_input(" {\"id\": 7, \"prompt\": \"ho\"}\n{\"tokens\": [1]}\n");
  CHECK(json.check() == 2);
  CHECK(all(json).at(0).id == "7");
}

TEST_CASE("files that cannot be read") {
  CHECK_THROWS_WITH_AS(PromptReader::from_file("/nowhere/p.txt", nullptr, small_model()),
                       "/nowhere/p.txt: cannot open the prompts: No such file or directory", PromptError);
  CHECK_THROWS_WITH_AS(PromptReader::from_file("/tmp", nullptr, small_model()),
                       "/tmp: is a folder, not a file of prompts", PromptError);
  PromptOptions options = small_model();
  options.temporary_folder = "/nowhere";
  CHECK_THROWS_AS(PromptReader::from_file("/dev/null", nullptr, options), PromptError);
}

TEST_CASE("a line without end is refused before it fills the memory") {
  const File file(".txt", std::string((std::size_t{64} << 20) + 2, 'x'));
  CHECK_THROWS_WITH_AS(PromptReader::from_file(file.path(), &tokenizer(), small_model()).check(),
                       (file.path() + ":1: longer than a line can be (64 MiB)").c_str(), PromptError);
}

TEST_CASE("lines longer than the reader's chunk survive") {
  PromptOptions options = small_model();
  options.n_positions = 1 << 20;
  std::string content;
  for (const std::size_t length : {1, 262143, 262144, 262145, 600000, 3}) content += std::string(length, 'a') + "\n";
  const File file(".txt", content);
  PromptReader reader = PromptReader::from_file(file.path(), &tokenizer(), options);
  CHECK(reader.check() == 6);
  std::string again;
  while (const std::optional<Request> request = reader.next()) again += *request->prompt + "\n";
  CHECK(again == content);
}

}  // namespace
