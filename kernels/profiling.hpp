// Where a stage's time goes: a decorator that waits for every operation to end and adds up what it took.
//
// Times are of the host's clock; on a device whose queue runs by itself, waiting after each operation costs some time
// that a run without profile does not need. Bytes and operations are what the definition of an operation needs at
// least, whatever the backend does. Counting begins with a set_rows, so loading weights is never part of it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/forwarding_backend.hpp"
#include "kernels/row_set.hpp"

namespace stagecoach {

enum class Operation : std::uint8_t {
  kSetRows,
  kEmbed,
  kAttention,  // also in parts: append, attention_parts, merge_parts; its rows are those attended for
  kCopyPage,
  kLayerNorm,
  kLinear,
  kGather,
  kSummarizeLogits,
  kDownload,
};

// One kind of operation; of `linear` also its matrix and activation, otherwise 0 and kNone.
struct OperationKind {
  Operation operation = Operation::kSetRows;
  std::int64_t in = 0;
  std::int64_t out = 0;
  Activation activation = Activation::kNone;
  bool operator==(const OperationKind&) const = default;
};

struct OperationTotals {
  OperationKind kind;
  std::int64_t calls = 0;
  double seconds = 0.0;
  std::int64_t rows = 0;
  // linear: the packed matrix; attention: each sequence's keys and values once, in parts those that are here; others:
  // their rows of input
  std::int64_t bytes_read = 0;
  std::int64_t flops = 0;  // of linear 2 * rows * in * out, of attention 4 * keys * width per row; otherwise 0
};

// Microbatches are the operations from one set_rows to the next. Those with one row of each sequence are kDecode,
// including the rare ends of prompts that are alike; copy_page counts with the microbatch before it.
enum class Phase : std::uint8_t { kPrefill, kDecode };

struct PhaseProfile {
  std::int64_t microbatches = 0;
  std::int64_t rows = 0;
  std::vector<OperationTotals> operations;  // in order of their first call
  double between_operations_s = 0.0;        // of the same microbatch
  double before_microbatches_s = 0.0;       // after the previous one ended: waiting, messages, picking tokens

  double operations_s() const;
};

struct Profile {
  std::array<PhaseProfile, 2> phases;  // by Phase

  PhaseProfile& operator[](Phase phase) { return phases[static_cast<std::size_t>(phase)]; }
  const PhaseProfile& operator[](Phase phase) const { return phases[static_cast<std::size_t>(phase)]; }
};

class ProfilingBackend final : public ForwardingBackend {
 public:
  // Microbatches are not counted until `skip_rows` rows have been set: for a run that warms up.
  explicit ProfilingBackend(std::unique_ptr<Backend> inner, std::int64_t skip_rows = 0);

  // Without counting, operations pass through without a wait.
  void set_counting(bool counting);
  // Not while another thread calls operations.
  const Profile& profile() const { return profile_; }

  std::string name() const override;
  void download(void* host, const void* device, std::int64_t bytes) override;
  Copy start_download(void* host, const void* device, std::int64_t bytes) override;
  void set_rows(const RowsView& rows) override;
  void embed(const Matrix& wte, Tensor wpe, Tensor out) override;
  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override;
  void append(Tensor qkv, const KvPages& kv) override;
  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override;
  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override;
  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override;
  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override;
  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override;
  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override;
  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override;

 private:
  using Clock = std::chrono::steady_clock;
  struct Cost {
    std::int64_t rows = 0;
    std::int64_t bytes_read = 0;
    std::int64_t flops = 0;
  };

  template <typename Body>
  void timed(const OperationKind& kind, const Cost& cost, const Body& body);
  void add(const OperationKind& kind, const Cost& cost, Clock::time_point start, Clock::time_point end);
  void look_at(const RowsView& rows);
  Cost cost_of_parts(const KvPages& kv, std::int64_t first_row, std::int64_t rows);

  Profile profile_;
  std::int64_t rows_to_skip_;
  bool counting_ = false;
  std::optional<Clock::time_point> last_end_;  // of the last operation that counted

  // Of the last set_rows.
  Phase phase_ = Phase::kPrefill;
  std::int64_t positions_attended_ = 0;    // sum over rows
  std::int64_t positions_kept_ = 0;        // sum over sequences, as far as their last row sees
  std::vector<std::int64_t> by_sequence_;  // scratch: positions of each sequence
  RowSet rows_;                            // for attention in parts
};

}  // namespace stagecoach
