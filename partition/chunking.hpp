// Into which chunks to cut a prompt so that its first token comes soonest: later chunks see more keys, so equal lengths
// do not cost the same, and the longest chunk is what every stage waits for (TeraPipe, arXiv 2102.07988).
//
// Chunk lengths are a function of the position in the prompt and so serve prompts of all lengths; tokens do not depend
// on them.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace stagecoach {

// Chunk lengths by position of the prompt, the last one repeated: {512, 256} is 512, 256, 256, ...
using ChunkPlan = std::vector<std::int32_t>;
// Where the chunk that holds `position` ends.
std::int64_t chunk_end(const ChunkPlan& chunks, std::int64_t position);
std::int32_t longest_chunk(const ChunkPlan& chunks);

struct ChunkProblem {
  std::int64_t prompt_tokens = 0;
  std::int32_t most = 0;  // rows in a chunk
  std::int32_t unit = 1;  // lengths are multiples of it, but for the last one
  std::int32_t stages = 1;
  // Of the chunk [first, first + rows) on the slowest stage, what travelling to the next one costs it included.
  std::function<double(std::int64_t first, std::int64_t rows)> seconds;
};

struct PlannedChunks {
  ChunkPlan chunks;  // end exactly with the prompt
  double seconds = 0.0;
};

// Of all cuts into multiples of the unit, the one with the least sum(t) + (stages - 1) * max(t): exactly the time to
// the first token over equal stages. Exact; work grows with the fourth power of prompt_tokens / unit at worst, so units
// are to be chosen (chunk_unit).
PlannedChunks plan_chunks(const ChunkProblem& problem);
// The same over equal lengths, the last chunk perhaps shorter.
PlannedChunks best_uniform_chunks(const ChunkProblem& problem);

// A unit fine enough for a good plan and coarse enough to plan in a moment: a multiple of 16, at most 256 units.
std::int32_t chunk_unit(std::int64_t prompt_tokens);

}  // namespace stagecoach
