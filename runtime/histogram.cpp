#include "runtime/histogram.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace stagecoach {
namespace {

constexpr int kPerDoubling = 64;
constexpr int kLowest = -30;
constexpr int kHighest = 24;
constexpr int kBuckets = (kHighest - kLowest) * kPerDoubling;

int bucket_of(double seconds) {
  int exponent = 0;
  const double fraction = std::frexp(seconds, &exponent);  // in [0.5, 1): seconds = fraction * 2^exponent
  if (seconds <= 0.0 || exponent <= kLowest) return 0;
  if (std::isinf(seconds) || exponent > kHighest) return kBuckets - 1;
  return (exponent - 1 - kLowest) * kPerDoubling + static_cast<int>((2.0 * fraction - 1.0) * kPerDoubling);
}

double middle_of(int bucket) {
  const double fraction = 1.0 + (bucket % kPerDoubling + 0.5) / kPerDoubling;
  return std::ldexp(fraction, bucket / kPerDoubling + kLowest);
}

}  // namespace

Histogram::Histogram() : buckets_(kBuckets, 0) {}

void Histogram::add(double seconds, std::int64_t times) {
  if (times <= 0) return;
  if (!(seconds > 0.0)) seconds = 0.0;
  min_ = count_ == 0 ? seconds : std::min(min_, seconds);
  max_ = std::max(max_, seconds);
  count_ += times;
  buckets_[static_cast<std::size_t>(bucket_of(seconds))] += times;
}

void Histogram::merge(const Histogram& other) {
  if (other.count_ == 0) return;
  min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  count_ += other.count_;
  for (std::size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
}

void Histogram::put(wire::Writer& out) const {
  out.put(count_);
  out.put(min_);
  out.put(max_);
  out.put_count(static_cast<std::size_t>(std::ranges::count_if(buckets_, [](std::int64_t n) { return n > 0; })));
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    if (buckets_[i] == 0) continue;
    out.put(static_cast<std::uint32_t>(i));
    out.put(buckets_[i]);
  }
}

Histogram Histogram::read(wire::Reader& in) {
  Histogram histogram;
  histogram.count_ = in.i64();
  histogram.min_ = in.f64();
  histogram.max_ = in.f64();
  std::int64_t sum = 0;
  for (std::size_t n = in.count(12); n > 0; --n) {
    const std::uint32_t bucket = in.u32();
    if (bucket >= histogram.buckets_.size()) throw WireError("a histogram without end");
    sum += histogram.buckets_[bucket] = in.i64();
  }
  if (sum != histogram.count_) throw WireError("a histogram whose count is not that of its buckets");
  return histogram;
}

double Histogram::quantile(double share) const {
  if (count_ == 0) return 0.0;
  const auto wanted =
      std::clamp<std::int64_t>(static_cast<std::int64_t>(std::ceil(share * static_cast<double>(count_))), 1, count_);
  std::int64_t seen = 0;
  int bucket = 0;
  while ((seen += buckets_[static_cast<std::size_t>(bucket)]) < wanted) ++bucket;
  return std::clamp(middle_of(bucket), min_, max_);
}

}  // namespace stagecoach
