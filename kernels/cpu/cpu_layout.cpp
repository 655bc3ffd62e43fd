#include "kernels/checks.hpp"
#include "kernels/cpu/layout.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/scratch.hpp"
#include "kernels/memory_layout.hpp"

namespace stagecoach {
namespace {

class CpuLayout final : public MemoryLayout {
 public:
  explicit CpuLayout(int threads) : threads_(threads) {}

  std::int64_t matrix_bytes(std::int64_t in, std::int64_t out, DType dtype) const override {
    check_matrix_shape(in, out);
    return PackedLayout{in, out, dtype}.bytes();
  }
  std::int64_t kv_page_bytes(std::int32_t n_head, std::int32_t head_dim, DType dtype) const override {
    return cpu::PageLayout{n_head, head_dim}.elements() * size_of(dtype);
  }
  std::int64_t own_bytes(const OperationLimits& limits) const override {
    const cpu::ProductScratch products = cpu::product_scratch(limits.rows, limits.columns, limits.weights);
    return threads_ * (cpu::kLinearScratchBytes + cpu::attention_scratch_bytes(limits.head_dim)) +
           4 * (products.packed + products.quantized);
  }
  std::int64_t staging_bytes(std::int64_t in, std::int64_t out, DType stored, DType dtype) const override {
    return threads_ * cpu::staging_bytes(PackedLayout{in, out, stored}, dtype);
  }
  bool has_panels() const override { return true; }

 private:
  int threads_;
};

}  // namespace

std::unique_ptr<MemoryLayout> cpu_layout(int threads) {
  return std::make_unique<CpuLayout>(threads);
}

}  // namespace stagecoach
