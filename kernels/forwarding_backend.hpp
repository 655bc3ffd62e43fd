// A backend that hands everything on to another one, for decorators: they override what they change.
//
// Steps are not handed on: their operations come one by one, so that a decorator sees all of them.
//
// Owns the inner backend. Buffers are the inner backend's own, so a decorator may be destroyed only after them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/backend.hpp"

namespace stagecoach {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string name() const override { return inner_->name(); }
  Buffer allocate(std::int64_t bytes) override { return inner_->allocate(bytes); }
  void upload(void* device, const void* host, std::int64_t bytes) override { inner_->upload(device, host, bytes); }
  void download(void* host, const void* device, std::int64_t bytes) override { inner_->download(host, device, bytes); }
  std::int64_t bytes_allocated() const override { return inner_->bytes_allocated(); }
  std::int64_t peak_bytes() const override { return inner_->peak_bytes(); }
  std::optional<std::int64_t> memory_limit() const override { return inner_->memory_limit(); }
  Buffer allocate_host(std::int64_t bytes) override { return inner_->allocate_host(bytes); }
  Copy start_download(void* host, const void* device, std::int64_t bytes) override {
    return inner_->start_download(host, device, bytes);
  }
  Copy start_upload(void* device, const void* host, std::int64_t bytes) override {
    return inner_->start_upload(device, host, bytes);
  }
  bool finished(Copy copy) override { return inner_->finished(copy); }
  const MemoryLayout& layout() const override { return inner_->layout(); }
  void reserve(const OperationLimits& limits) override { inner_->reserve(limits); }
  void load_rows(Matrix& matrix, WeightLayout layout, std::int64_t first_row, Tensor host) override {
    inner_->load_rows(matrix, layout, first_row, host);
  }
  void load_panels(Matrix& matrix, DType stored, const PanelReader& read) override {
    inner_->load_panels(matrix, stored, read);
  }
  void set_rows(const RowsView& rows) override { inner_->set_rows(rows); }
  void embed(const Matrix& wte, Tensor wpe, Tensor out) override { inner_->embed(wte, wpe, out); }
  void attention(Tensor qkv, const KvPages& kv, float scale, Tensor out) override {
    inner_->attention(qkv, kv, scale, out);
  }
  void append(Tensor qkv, const KvPages& kv) override { inner_->append(qkv, kv); }
  void attention_parts(Tensor qkv, const KvPages& kv, float scale, std::int64_t first_row, std::int64_t rows,
                       Tensor parts) override {
    inner_->attention_parts(qkv, kv, scale, first_row, rows, parts);
  }
  void merge_parts(Tensor parts, std::int32_t n_head, std::span<const std::int32_t> first,
                   std::span<const std::int32_t> numbers, Tensor out) override {
    inner_->merge_parts(parts, n_head, first, numbers, out);
  }
  void copy_page(const KvPages& kv, std::int32_t from, std::int32_t to) override { inner_->copy_page(kv, from, to); }
  void layer_norm(Tensor x, Tensor gain, Tensor bias, float epsilon, Tensor out) override {
    inner_->layer_norm(x, gain, bias, epsilon, out);
  }
  void linear(Tensor x, const Matrix& w, Tensor bias, Epilogue epilogue, Tensor out) override {
    inner_->linear(x, w, bias, epilogue, out);
  }
  void gather(Tensor x, std::span<const std::int32_t> rows, Tensor out) override { inner_->gather(x, rows, out); }
  void summarize_logits(Tensor logits, std::span<const LogitsQuery> queries, void* out) override {
    inner_->summarize_logits(logits, queries, out);
  }
  void synchronize() override { inner_->synchronize(); }
  bool idle() override { return inner_->idle(); }

 protected:
  Backend& inner() { return *inner_; }
  const Backend& inner() const { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace stagecoach
