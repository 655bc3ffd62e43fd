// Bytes of messages and records: numbers in little-endian order, counts as u32.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace stagecoach {

// Bytes that are not what they should be.
class WireError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace wire {

class Writer {
 public:
  template <typename T>
  requires std::is_unsigned_v<T>
  void put(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void put(std::int32_t value) { put(static_cast<std::uint32_t>(value)); }
  void put(std::int64_t value) { put(static_cast<std::uint64_t>(value)); }
  void put(float value) { put(std::bit_cast<std::uint32_t>(value)); }
  void put(double value) { put(std::bit_cast<std::uint64_t>(value)); }
  void put_count(std::size_t count) { put(static_cast<std::uint32_t>(count)); }
  void put(std::string_view text) {
    put_count(text.size());
    const auto bytes = std::as_bytes(std::span(text));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// Throws WireError where the bytes end too soon.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  std::uint8_t u8() { return number<std::uint8_t>(); }
  std::uint32_t u32() { return number<std::uint32_t>(); }
  std::uint64_t u64() { return number<std::uint64_t>(); }
  std::int32_t i32() { return static_cast<std::int32_t>(u32()); }
  std::int64_t i64() { return static_cast<std::int64_t>(u64()); }
  float f32() { return std::bit_cast<float>(u32()); }
  double f64() { return std::bit_cast<double>(u64()); }
  // A count of items that take at least `item_bytes` each: bounded by what is left, so that it is safe to reserve.
  std::size_t count(std::size_t item_bytes) {
    const std::size_t n = u32();
    if (n > rest_.size() / item_bytes) {
      throw WireError(
          fmt::format("message announces {} items of {} bytes, {} bytes are left", n, item_bytes, rest_.size()));
    }
    return n;
  }
  std::string text() {
    const std::size_t size = count(1);
    std::string result(reinterpret_cast<const char*>(rest_.data()), size);
    rest_ = rest_.subspan(size);
    return result;
  }
  void end() const {
    if (!rest_.empty()) throw WireError(fmt::format("message has {} bytes too many", rest_.size()));
  }

 private:
  template <typename T>
  T number() {
    if (rest_.size() < sizeof(T)) throw WireError("message is cut off");
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value |= static_cast<std::uint64_t>(rest_[i]) << (8 * i);
    rest_ = rest_.subspan(sizeof(T));
    return static_cast<T>(value);
  }
  std::span<const std::byte> rest_;
};

}  // namespace wire
}  // namespace stagecoach
