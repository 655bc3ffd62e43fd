// Element types, views and owned memory of one backend.
//
// A `Tensor` is a view of a 2-D array: it owns nothing and is passed by value. A `Buffer` owns bytes that one backend
// gave out and frees them with that backend; a buffer must not outlive its backend. Neither knows what the values mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace stagecoach {

// kInt8 occurs in matrices only (backend.hpp: int8 weights); tensors are floating-point.
enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kInt8 };

constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}
constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt8:
      return "int8";
  }
  return "?";
}

// Row-major (rows, cols); element (r, c) stands `r * stride + c` elements after `data`.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // elements from one row to the next, >= cols

  float* f32(std::int64_t r) const { return static_cast<float*>(data) + r * stride; }
  std::byte* row(std::int64_t r) const { return static_cast<std::byte*>(data) + r * stride * size_of(dtype); }
  // Rows [first, first + count) of the same array.
  Tensor slice(std::int64_t first, std::int64_t count) const { return {row(first), dtype, count, cols, stride}; }
  std::int64_t bytes() const { return rows * cols * size_of(dtype); }
};

inline Tensor make_tensor(void* data, DType dtype, std::int64_t rows, std::int64_t cols) {
  return {data, dtype, rows, cols, cols};
}

// Move-only owner of bytes. `release` is called once with `context`, the pointer and the size.
class Buffer {
 public:
  using Release = void (*)(void* context, void* data, std::size_t bytes) noexcept;

  Buffer() = default;
  Buffer(void* data, std::size_t bytes, Release release, void* context)
      : data_(data), bytes_(bytes), release_(release), context_(context) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) release_(context_, data_, bytes_);
  }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }
  // Never released: for memory that something outside may read until the process ends.
  void leave() { data_ = nullptr; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
    std::swap(context_, other.context_);
  }
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Release release_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace stagecoach
