#include "runtime/device_layout.hpp"

#include "kernels/backend.hpp"
#include "kernels/logits.hpp"

namespace stagecoach {

OperationLimits operation_limits(const StageOperations& operations, const ModelConfig& model, DType weights) {
  return {.rows = operations.rows,
          .columns = operations.columns,
          .weights = weights,
          .n_head = model.n_head,
          .head_dim = model.head_dim(),
          .table_words = operations.table_words,
          .logits_rows = operations.head_rows,
          .vocab = model.vocab_size,
          .parts = operations.parts};
}

DeviceLayout device_layout(const MemoryLayout& layout, const ModelConfig& model, DType weights, DType kv) {
  DeviceLayout result;
  result.matrix_bytes = [&layout, weights](std::int64_t in, std::int64_t out) {
    return layout.matrix_bytes(in, out, weights);
  };
  result.own_bytes = [&layout, model, weights](const StageOperations& operations) {
    return layout.own_bytes(operation_limits(operations, model, weights));
  };
  result.kv_page_bytes = layout.kv_page_bytes(model.n_head, model.head_dim(), kv);
  result.page_positions = kPagePositions;
  result.segment_pages = kSegmentPages;
  result.activation_bytes = size_of(layout.activation_dtype(weights));
  result.table_bytes = weights == DType::kInt8 ? 4 : size_of(weights);
  result.unit_bytes = layout.unit_bytes();
  result.in_host_memory = layout.in_host_memory();
  result.summary_bytes = result.in_host_memory ? 0 : kMostSummaryBytes;
  return result;
}

}  // namespace stagecoach
