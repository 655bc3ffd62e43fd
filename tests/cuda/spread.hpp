// Sequences whose segments are dealt out to several places, and their attention in parts on a device.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda/device_fixture.hpp"

namespace stagecoach::test {

struct Shape {
  std::int32_t n_head = 1;
  std::int32_t head_dim = 64;
  DType dtype = DType::kFloat16;  // of activations
  DType kv_dtype = DType::kFloat16;

  std::int64_t width() const { return std::int64_t{n_head} * head_dim; }
  std::string describe() const {
    return fmt::format("{} heads of {}, {} on {}", n_head, head_dim, name_of(dtype), name_of(kv_dtype));
  }
};

// Rows [first, first + count) of a sequence.
struct Chunk {
  std::int32_t sequence, first, count;
};

// The segments of some sequences, dealt out to places that each have pages of their own, which nobody wrote before.
class Spread {
 public:
  Spread(Backend& backend, std::uint64_t seed, Shape shape, const std::vector<std::int32_t>& lengths,
         std::int32_t places)
      : backend_(backend), random_(seed), shape_(shape) {
    for (const std::int32_t length : lengths) stride_ = std::max(stride_, (length - 1) / kPagePositions + 1);
    const auto tables = static_cast<std::int32_t>(lengths.size());
    std::vector<std::int32_t> order(static_cast<std::size_t>(tables * stride_ + 1));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<std::size_t>(random_.between(0, static_cast<std::int64_t>(i) - 1))]);
    }
    const std::int64_t bytes =
        static_cast<std::int64_t>(order.size()) * backend.kv_page_bytes(shape.n_head, shape.head_dim, shape.kv_dtype);
    const std::vector<unsigned char> garbage(static_cast<std::size_t>(bytes), 0xff);
    for (std::int32_t place = 0; place < places; ++place) {
      Place& made = places_.emplace_back(Place{backend.allocate(bytes), {}, {}});
      backend.upload(made.pages.data(), garbage.data(), bytes);
      made.kv = {made.pages.data(), shape.kv_dtype, static_cast<std::int64_t>(order.size()), shape.n_head,
                 shape.head_dim};
      for (std::int32_t p = 0; p < tables * stride_; ++p) {
        const bool mine = owner(p / stride_, p % stride_ / kSegmentPages, places) == place;
        made.table.push_back(mine ? order[static_cast<std::size_t>(p)] : kElsewhere);
      }
    }
    for (const std::int32_t length : lengths) {
      std::vector<float> rows(static_cast<std::size_t>(length * 3 * shape.width()));
      for (float& value : rows) value = random_.value(-2.0F, 2.0F);
      qkv_.push_back(std::move(rows));
    }
  }

  void append(const std::vector<Chunk>& chunks) {
    Rows rows(*this, chunks);
    for (Place& place : places_) {
      backend_.set_rows({{}, rows.positions, rows.sequences, place.table, stride_});
      backend_.append(rows.qkv.view(), place.kv);
    }
  }

  // Of the rows, appended before; with one place only.
  std::vector<float> attention(const std::vector<Chunk>& chunks) {
    Rows rows(*this, chunks);
    DeviceArray out(backend_, shape_.dtype, rows.count(), shape_.width());
    backend_.set_rows({{}, rows.positions, rows.sequences, places_[0].table, stride_});
    backend_.attention(rows.qkv.view(), places_[0].kv, kScale, out.view());
    const bool guarded = out.guarded();
    CHECK(guarded);
    return out.values();
  }

  // Of the same from parts: each place makes its own in calls of up to `at_once` rows.
  std::vector<float> merged(const std::vector<Chunk>& chunks, std::int64_t at_once) {
    Rows rows(*this, chunks);
    const auto count = static_cast<std::int32_t>(places_.size());
    std::int32_t made = 0;
    std::vector<std::int32_t> ends{0};  // of the calls' parts
    std::vector<std::vector<std::pair<std::int32_t, std::int32_t>>> numbered(rows.positions.size());
    for (std::int32_t place = 0; place < count; ++place) {
      for (std::int64_t r = 0; r < rows.count(); ++r) {
        const auto i = static_cast<std::size_t>(r);
        for (std::int32_t s = 0; s <= rows.positions[i] / kSegmentPositions; ++s) {
          if (owner(rows.sequences[i], s, count) == place) numbered[i].emplace_back(s, made++);
        }
        if ((r + 1) % at_once == 0 || r + 1 == rows.count()) ends.push_back(made);
      }
    }
    const std::int64_t width = part_width(shape_.n_head, shape_.head_dim);
    const std::int64_t stride = width + random_.between(0, 3);
    DeviceArray parts(backend_, DType::kFloat32, made, width, stride),
        again(backend_, DType::kFloat32, made, width, stride);
    std::size_t calls = 0;
    for (const Place& own : places_) {
      backend_.set_rows({{}, rows.positions, rows.sequences, own.table, stride_});
      const std::size_t begin = calls;
      for (const DeviceArray* to : {&parts, &again}) {  // the same calls again, as for another block of a model
        calls = begin;
        for (std::int64_t first = 0; first < rows.count(); first += at_once, ++calls) {
          const Tensor mine = to->view().slice(ends[calls], ends[calls + 1] - ends[calls]);
          backend_.attention_parts(rows.qkv.view(), own.kv, kScale, first, std::min(at_once, rows.count() - first),
                                   mine);
        }
      }
    }
    const bool parts_guarded = parts.guarded();  // which may throw: not in a CHECK
    CHECK(parts_guarded);
    std::vector<std::int32_t> first{0}, all;
    for (auto& of_row : numbered) {
      std::ranges::sort(of_row);
      for (const auto& [segment, number] : of_row) all.push_back(number);
      first.push_back(static_cast<std::int32_t>(all.size()));
    }
    DeviceArray out(backend_, shape_.dtype, rows.count(), shape_.width(), shape_.width() + random_.between(0, 3)),
        out_again(backend_, shape_.dtype, rows.count(), shape_.width());
    backend_.merge_parts(parts.view(), shape_.n_head, first, all, out.view());
    backend_.merge_parts(again.view(), shape_.n_head, first, all, out_again.view());
    const bool guarded = out.guarded();
    CHECK(guarded);
    const bool repeated = parts.values() == again.values() && out.values() == out_again.values();
    CHECK(repeated);
    return out.values();
  }

  static constexpr float kScale = 0.3F;

 private:
  struct Place {
    Buffer pages;
    KvPages kv;
    std::vector<std::int32_t> table;
  };
  struct Rows {
    Rows(Spread& spread, const std::vector<Chunk>& chunks) : qkv(make(spread, chunks)) {
      for (const Chunk& chunk : chunks) {
        for (std::int32_t p = chunk.first; p < chunk.first + chunk.count; ++p) {
          const float* source =
              spread.qkv_[static_cast<std::size_t>(chunk.sequence)].data() + p * 3 * spread.shape_.width();
          const Tensor host = qkv.host();
          for (std::int64_t c = 0; c < host.cols; ++c) store_element(host.row(count()), host.dtype, c, source[c]);
          positions.push_back(p);
          sequences.push_back(chunk.sequence);
        }
      }
      qkv.send();
    }
    static DeviceArray make(Spread& spread, const std::vector<Chunk>& chunks) {
      std::int64_t rows = 0;
      for (const Chunk& chunk : chunks) rows += chunk.count;
      return {spread.backend_, spread.shape_.dtype, rows, 3 * spread.shape_.width()};
    }
    std::int64_t count() const { return static_cast<std::int64_t>(positions.size()); }

    DeviceArray qkv;
    std::vector<std::int32_t> positions, sequences;
  };

  static std::int32_t owner(std::int32_t sequence, std::int32_t segment, std::int32_t places) {
    return (sequence + segment) % places;
  }

  Backend& backend_;
  Random random_;
  Shape shape_;
  std::int32_t stride_ = 1;
  std::vector<Place> places_;
  std::vector<std::vector<float>> qkv_;  // by sequence (length, 3 * width)
};

}  // namespace stagecoach::test
