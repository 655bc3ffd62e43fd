#include "runtime/score_results.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "runtime/output_file.hpp"

namespace stagecoach {
namespace {

Score score_of(std::span<const Sample> windows) {
  Score score;
  for (const Sample& window : windows) score.add(window.logprobs);
  return score;
}

std::string perplexity_text(const Score& score) {
  return score.scored > 0 ? fmt::format("{:.6f}", score.perplexity()) : "undefined";
}

class ScoreJsonlSink final : public ResultSink {
 public:
  ScoreJsonlSink(const std::string& path, Score& total) : file_(path), total_(total) {}

  void write(const Request& text, std::span<const Sample> windows) override {
    std::string line = fmt::format("{{\"index\":{},\"id\":{},\"tokens\":[{}],\"logprobs\":[null", text.index,
                                   text.id.value_or("null"), fmt::join(text.tokens, ","));
    for (const Sample& window : windows) {
      for (const float logprob : window.logprobs) (line += ',') += shortest_decimal(logprob);
    }
    const Score score = score_of(windows);
    // A model with one position scores nothing at all.
    for (auto missing = static_cast<std::int64_t>(text.tokens.size()) - 1 - score.scored; missing > 0; --missing) {
      line += ",null";
    }
    line += fmt::format("],\"sum_logprob\":{},\"perplexity\":{}}}\n", json_number(score.sum_logprob),
                        json_number(score.perplexity()));
    file_.write(line);
    total_.add(score);
  }
  void finish() override { file_.commit(); }

 private:
  static std::string json_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

  OutputFile file_;
  Score& total_;
};

class ScoreTextSink final : public ResultSink {
 public:
  ScoreTextSink(int fd, Score& total) : fd_(fd), total_(total) {}

  void write(const Request& text, std::span<const Sample> windows) override {
    const Score score = score_of(windows);
    const std::string id = text.id ? fmt::format(" {}", *text.id) : "";
    write_all(fd_,
              fmt::format("{}{}: {} tokens scored, sum of log-probabilities {:.4f}, perplexity {}\n", text.index, id,
                          score.scored, score.sum_logprob, perplexity_text(score)),
              "standard output");
    total_.add(score);
  }
  void finish() override {}

 private:
  int fd_;
  Score& total_;
};

}  // namespace

std::unique_ptr<ResultSink> make_score_jsonl_sink(const std::string& path, Score& total) {
  return std::make_unique<ScoreJsonlSink>(path, total);
}

std::unique_ptr<ResultSink> make_score_text_sink(int fd, Score& total) {
  return std::make_unique<ScoreTextSink>(fd, total);
}

std::string score_summary(std::int64_t texts, const Score& total) {
  return fmt::format("{} {}, {} tokens scored, perplexity {}", texts, texts == 1 ? "text" : "texts", total.scored,
                     perplexity_text(total));
}

}  // namespace stagecoach
