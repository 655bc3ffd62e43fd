// Tokenizer throughput: English-like prose, prose of several scripts, and single words of 1 MB that make
// naive implementations quadratic. By default with the small vocabulary of the tests; STAGECOACH_BENCH_VOCAB
// names a folder with another vocab.json and merges.txt (figures that we quote are with GPT-2's own).

#include "runtime/tokenizer.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kMegabyte = 1'000'000;

std::filesystem::path vocabulary_folder() {
  const char* folder = std::getenv("STAGECOACH_BENCH_VOCAB");
  return folder != nullptr ? std::filesystem::path(folder) : STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer";
}

const stagecoach::Tokenizer& tokenizer() {
  static const auto instance =
      stagecoach::Tokenizer::from_files(vocabulary_folder() / "vocab.json", vocabulary_folder() / "merges.txt");
  return instance;
}

// Running text with the word lengths, punctuation and rare words of prose: common words mostly, and some
// made-up ones, which need merging.
std::string prose(const std::vector<std::string>& common) {
  std::mt19937 draw(7);
  std::string text;
  while (text.size() < kMegabyte) {
    const auto kind = draw() % 20;
    if (kind == 0) {
      for (auto length = 4 + draw() % 8; length > 0; --length) text.push_back(static_cast<char>('a' + draw() % 26));
    } else {
      text.append(common[draw() % common.size()]);
    }
    text.append(kind == 1 ? ", " : kind == 2 ? ".\n" : kind == 3 ? " \"" : kind == 4 ? "'s " : " ");
  }
  return text;
}

std::string english() {
  return prose({"the",     "of",     "and",        "to",     "in",   "that",  "stage",    "coach",
                "was",     "with",   "passengers", "before", "when", "river", "station",  "would",
                "because", "others", "pipeline",   "horses", "a",    "I",     "standing", "travel"});
}

std::string many_scripts() {
  return prose({"über", "Straße", "naïve", "путь", "дорога", "ταξίδι", "馬車は町を出て", "안녕하세요", "नमस्ते", "مرحبا",
                "the", "stage", "1999", "😀", "l’auberge"});
}

std::string repeated(const std::string& unit) {
  std::string text;
  while (text.size() < kMegabyte) text.append(unit);
  return text;
}

std::string random_letters() {
  std::mt19937 draw(8);
  std::string text;
  while (text.size() < kMegabyte) text.push_back(static_cast<char>('a' + draw() % 26));
  return text;
}

void encode(benchmark::State& state, const std::string& text) {
  std::size_t ids = 0;
  for (auto step : state) {
    (void)step;
    const auto encoded = tokenizer().encode(text);
    benchmark::DoNotOptimize(encoded.data());
    ids = encoded.size();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * text.size()));
  state.counters["bytes/id"] = static_cast<double>(text.size()) / static_cast<double>(ids);
}

void decode(benchmark::State& state) {
  const std::string text = english();
  const auto ids = tokenizer().encode(text);
  for (auto step : state) {
    (void)step;
    benchmark::DoNotOptimize(tokenizer().decode(ids));
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * text.size()));
}

void load(benchmark::State& state) {
  for (auto step : state) {
    (void)step;
    benchmark::DoNotOptimize(
        stagecoach::Tokenizer::from_files(vocabulary_folder() / "vocab.json", vocabulary_folder() / "merges.txt"));
  }
}

BENCHMARK_CAPTURE(encode, english, english());
BENCHMARK_CAPTURE(encode, many_scripts, many_scripts());
BENCHMARK_CAPTURE(encode, word_of_a, repeated("a"));
BENCHMARK_CAPTURE(encode, word_of_random_letters, random_letters());
BENCHMARK_CAPTURE(encode, spaces, repeated(" "));
BENCHMARK_CAPTURE(encode, newlines, repeated("\n"));
BENCHMARK_CAPTURE(encode, emoji, repeated("😀"));
BENCHMARK_CAPTURE(encode, digits, repeated("1"));
BENCHMARK_CAPTURE(encode, invalid_bytes, repeated("\xFF"));
BENCHMARK_CAPTURE(encode, alternating_invalid_bytes, repeated("a\xFF"));
BENCHMARK_CAPTURE(encode, end_of_text_almost, repeated("<|endoftext|"));
BENCHMARK(decode);
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
