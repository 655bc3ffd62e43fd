// Calls about graphs: a stream's captured work, to be queued as often as it is launched.
//
// What a capture does not allow makes it invalid, as the CUDA documentation says for cudaStreamCaptureModeThreadLocal;
// stricter than real ones, events cannot be captured, and copies must not touch pageable memory.
#include <algorithm>
#include <memory>
#include <utility>

#include "tests/cuda_emulation/machine_state.hpp"

namespace emulation = stagecoach::cuda_emulation;
using emulation::counted_call;
using emulation::Kind;
using emulation::Machine;

namespace {

constexpr std::size_t kBytesPerNode = 256;  // of the device, about; real ones take some as well

CUstream_st* find(const Machine& m, cudaStream_t handle) {
  const auto found = m.stream_handles.find(handle);
  return found == m.stream_handles.end() ? nullptr : found->second.get();
}

emulation::DeviceMemory& memory_of(const Machine& m, const CUgraphExec_st& exec) {
  return m.devices[static_cast<std::size_t>(exec.device)]->memory;
}

}  // namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return counted_call("cudaStreamBeginCapture", [&](Machine& m) {
    CUstream_st* const stream = find(m, handle);  // the default stream cannot be captured
    if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) return cudaErrorInvalidValue;
    if (stream->capture) return cudaErrorInvalidValue;
    stream->capture.emplace();
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->relaxed = mode == cudaStreamCaptureModeRelaxed;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return counted_call<Kind::kReleases>("cudaStreamEndCapture", [&](Machine& m) {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    CUstream_st* const stream = find(m, handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (!stream->capture) return cudaErrorInvalidValue;
    if (!stream->capture->relaxed && stream->capture->thread != std::this_thread::get_id()) {
      return cudaErrorStreamCaptureWrongThread;
    }
    emulation::Capture capture = std::move(*stream->capture);
    stream->capture.reset();
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    auto made = std::make_unique<CUgraph_st>(CUgraph_st{stream->device, std::move(capture.work)});
    *graph = made.get();
    m.graphs[*graph] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return counted_call("cudaGraphInstantiate", [&](Machine& m) {
    const auto found = m.graphs.find(graph);
    if (exec == nullptr || found == m.graphs.end() || flags != 0) return cudaErrorInvalidValue;
    if (const cudaError_t error = m.refuse_in_capture()) return error;
    const CUgraph_st& source = *found->second;
    auto made = std::make_unique<CUgraphExec_st>(CUgraphExec_st{source.device, ++m.graphs_made, source.work, nullptr});
    made->memory = memory_of(m, *made).allocate((source.work.size() + 1) * kBytesPerNode);
    if (made->memory == nullptr) return cudaErrorMemoryAllocation;
    *exec = made.get();
    m.graph_execs[*exec] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return counted_call("cudaGraphUpload", [&](Machine& m) {
    if (m.graph_execs.count(exec) == 0 || find(m, stream) == nullptr) return cudaErrorInvalidValue;
    return m.refuse_in_capture();
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
  return counted_call("cudaGraphLaunch", [&](Machine& m) {
    const auto found = m.graph_execs.find(handle);
    const CUstream_st* const target = find(m, stream);
    if (found == m.graph_execs.end() || target == nullptr) return cudaErrorInvalidValue;
    if (const cudaError_t error = m.refuse_in_capture(target->id)) return error;  // no graphs within graphs
    const CUgraphExec_st* exec = found->second.get();
    if (m.mutations.first_graph) {
      for (const auto& [other_handle, other] : m.graph_execs) {
        if (other->device == exec->device && other->number < exec->number) exec = other.get();
      }
    }
    ++m.graph_launches;
    for (const emulation::Work& work : exec->work) m.enqueue(target->id, work.device, work.run, {}, work.also);
    return m.devices[static_cast<std::size_t>(exec->device)]->sticky;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return counted_call<Kind::kReleases>(
      "cudaGraphDestroy", [&](Machine& m) { return m.graphs.erase(graph) == 1 ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return counted_call<Kind::kReleases>("cudaGraphExecDestroy", [&](Machine& m) {
    const auto found = m.graph_execs.find(exec);
    if (found == m.graph_execs.end()) return cudaErrorInvalidValue;
    memory_of(m, *found->second).release(found->second->memory);
    m.graph_execs.erase(found);  // launches of it that are queued still run
    return cudaSuccess;
  });
}
