// A complete JSON Lines file of `generate` or `score` as one HDF5 file.
//
// Root attributes: format = "stagecoach-results" or "stagecoach-scores", format_version = 1. Row i of every dataset is
// line i. One value per line, n lines:
//   index int64     and of results: sample int32, prompt_tokens int32, finish_reason enum of uint8 {length, eos, stop};
//                   of scores: sum_logprob float64, perplexity float64 (NaN for null)
// Several values per line: a group of `offsets`, int64 (n + 1), and `values`, where line i has values[offsets[i]] up to
// values[offsets[i + 1]]:
//   tokens int32, logprobs float32 (the same bits as in the run; NaN for null; no such group when no line has any)
//   prompt, completion of results: UTF-8 bytes as uint8; no such group when all are null
//   id: a text, or a number as it was written, as UTF-8 bytes; id/kind, enum of uint8 {none, string, number}, says
//   which
// Takes little memory for any number of lines, since the file is read twice.
#pragma once

#include <string>

namespace stagecoach {

// A file without lines gives a file of results with empty datasets. The file appears under its name only when it is
// complete and durable. Throws OutputError.
void write_results_h5(const std::string& jsonl_path, const std::string& h5_path);

}  // namespace stagecoach
