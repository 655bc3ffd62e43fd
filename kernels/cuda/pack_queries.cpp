#include <cstring>

#include "kernels/cuda/logits.hpp"
#include "kernels/cuda/own_memory.hpp"

namespace stagecoach::cuda {
namespace {

static_assert(sizeof(RowQuery) == kRowQueryBytes);

bool penalises(const LogitsQuery& query) {
  return query.penalty != 1.0 && query.top > 0 && !query.penalised.empty();
}

}  // namespace

std::size_t packed_bytes(std::span<const LogitsQuery> queries, std::int64_t cols) {
  std::size_t bytes = queries.size() * sizeof(RowQuery);
  for (const LogitsQuery& query : queries) {
    if (penalises(query)) bytes += static_cast<std::size_t>(query_words(cols)) * sizeof(std::uint32_t);
  }
  return bytes;
}

void pack(std::span<const LogitsQuery> queries, std::int64_t cols, std::byte* to) {
  auto* rows = reinterpret_cast<RowQuery*>(to);
  auto* bits = reinterpret_cast<std::uint32_t*>(to + queries.size() * sizeof(RowQuery));
  std::int64_t words = 0;
  std::int64_t summary = 0;
  for (const LogitsQuery& query : queries) {
    RowQuery row{query.penalty, -1, summary, query.top, query.wanted};
    summary += summary_bytes(query);
    if (penalises(query)) {
      row.bits = words;
      std::uint32_t* own = bits + words;
      std::memset(own, 0, static_cast<std::size_t>(query_words(cols)) * sizeof(std::uint32_t));
      for (const std::int32_t token : query.penalised) own[token / 32] |= std::uint32_t{1} << (token % 32);
      words += query_words(cols);
    }
    *rows++ = row;
  }
}

}  // namespace stagecoach::cuda
