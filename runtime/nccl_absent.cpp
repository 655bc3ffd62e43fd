// In place of the NCCL transport in builds without CUDA or NCCL.
#include "runtime/nccl_transport.hpp"

namespace stagecoach {
namespace {

[[noreturn]] void refuse() {
  throw TransportError("this build has no NCCL");
}

}  // namespace

std::string nccl_version() {
  return "";
}

NcclId make_nccl_id() {
  refuse();
}

std::unique_ptr<Transport> make_nccl_transport(const NcclOptions&, const cuda::DeviceQueue&) {
  refuse();
}

}  // namespace stagecoach
