// Arrays on a device for the tests of the CUDA backend: random values, and outputs filled with NaN, between guards that
// an operation must not touch.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "tests/cuda/cuda_backends.hpp"
#include "tests/unit/kernels_fixture.hpp"

namespace stagecoach::test {

// (rows, cols) with `stride`, on the device.
class DeviceArray {
 public:
  DeviceArray(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t stride)
      : backend_(backend),
        storage_(backend.allocate((rows * stride + 2 * kGuard) * size_of(dtype))),
        host_(storage_.bytes()) {
    for (std::size_t i = 0; i < host_.size() / static_cast<std::size_t>(size_of(dtype)); ++i) {
      store_element(host_.data(), dtype, static_cast<std::int64_t>(i), std::numeric_limits<float>::quiet_NaN());
    }
    view_ = {static_cast<std::byte*>(storage_.data()) + kGuard * size_of(dtype), dtype, rows, cols, stride};
    send();
  }
  DeviceArray(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols)
      : DeviceArray(backend, dtype, rows, cols, cols) {}

  Tensor view() const { return view_; }
  Tensor host() {
    Tensor t = view_;
    t.data = host_.data() + kGuard * size_of(t.dtype);
    return t;
  }
  void send() { backend_.upload(storage_.data(), host_.data(), static_cast<std::int64_t>(host_.size())); }
  void fetch() { backend_.download(host_.data(), storage_.data(), static_cast<std::int64_t>(host_.size())); }

  // Values in [-1, 1) times `scale`.
  DeviceArray& randomize(Random& random, float scale = 1.0F) {
    const Tensor t = host();
    for (std::int64_t r = 0; r < t.rows; ++r) {
      for (std::int64_t c = 0; c < t.cols; ++c) store_element(t.row(r), t.dtype, c, scale * random.value());
    }
    send();
    return *this;
  }
  // All that is not an element of the view is still NaN.
  bool guarded() {
    fetch();
    const std::int64_t elements = static_cast<std::int64_t>(host_.size()) / size_of(view_.dtype);
    for (std::int64_t i = 0; i < elements; ++i) {
      const std::int64_t at = i - kGuard;
      const bool inside = at >= 0 && at < view_.rows * view_.stride && at % view_.stride < view_.cols;
      if (!inside && !std::isnan(load_element(host_.data(), view_.dtype, i))) return false;
    }
    return true;
  }
  std::vector<float> values() {
    fetch();
    std::vector<float> values;
    const Tensor t = host();
    for (std::int64_t r = 0; r < t.rows; ++r) {
      for (std::int64_t c = 0; c < t.cols; ++c) values.push_back(load_element(t.row(r), t.dtype, c));
    }
    return values;
  }

 private:
  static constexpr std::int64_t kGuard = 64;  // elements; keeps rows aligned to 128 bytes
  Backend& backend_;
  Buffer storage_;
  std::vector<std::byte> host_;
  Tensor view_;
};

inline constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

}  // namespace stagecoach::test
