#include "kernels/cuda/device_copies.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace stagecoach::cuda {

Event DeviceCopies::event() {
  if (spare_.empty()) return make_event();
  Event event = std::move(spare_.back());
  spare_.pop_back();
  return event;
}

std::uint64_t DeviceCopies::start(void* to, const void* from, std::int64_t bytes, cudaMemcpyKind kind) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream_.get()));
  Event ended = event();
  check(cudaEventRecord(ended.get(), stream_.get()));
  open_.emplace(++last_, std::move(ended));
  return last_;
}

std::uint64_t DeviceCopies::download(cudaStream_t operations, void* host, const void* device, std::int64_t bytes) {
  Event computed = event();
  check(cudaEventRecord(computed.get(), operations));
  check(cudaStreamWaitEvent(stream_.get(), computed.get(), 0));
  spare_.push_back(std::move(computed));  // the wait is for what was recorded, whatever is recorded next
  return start(host, device, bytes, cudaMemcpyDeviceToHost);
}

std::uint64_t DeviceCopies::upload(cudaStream_t operations, void* device, const void* host, std::int64_t bytes) {
  const std::uint64_t copy = start(device, host, bytes, cudaMemcpyHostToDevice);
  check(cudaStreamWaitEvent(operations, open_.at(copy).get(), 0));
  return copy;
}

bool DeviceCopies::finished(std::uint64_t copy) {
  const auto found = open_.find(copy);
  if (found == open_.end()) throw std::invalid_argument(fmt::format("copy {} is not open", copy));
  const cudaError_t result = cudaEventQuery(found->second.get());
  if (result == cudaErrorNotReady) return false;
  check(result);
  spare_.push_back(std::move(found->second));
  open_.erase(found);
  return true;
}

}  // namespace stagecoach::cuda
