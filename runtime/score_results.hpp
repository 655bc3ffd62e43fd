// What `score` says: per text one line for people or one JSON object, and the sum over all texts.
#pragma once

#include <memory>
#include <string>

#include "runtime/results.hpp"
#include "runtime/scoring.hpp"

namespace stagecoach {

// Samples are the windows of a text, in order. One object per text and line:
// {"index","id","tokens","logprobs" (null for the first token),"sum_logprob","perplexity"}; `perplexity` is null when
// nothing was scored. `total` hears every text's score and must outlive the sink.
std::unique_ptr<ResultSink> make_score_jsonl_sink(const std::string& path, Score& total);

// "INDEX: N tokens scored, sum of log-probabilities S, perplexity P" per text; with its id when it has one.
std::unique_ptr<ResultSink> make_score_text_sink(int fd, Score& total);

// "70 texts, 17945 tokens scored, perplexity 1.786438"
std::string score_summary(std::int64_t texts, const Score& total);

}  // namespace stagecoach
