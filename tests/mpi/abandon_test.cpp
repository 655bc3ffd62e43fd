// What is still being sent when a stage gives up: a peer that comes late finds it unharmed, under asan too.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/tensor.hpp"
#include "runtime/mpi_transport.hpp"

using namespace stagecoach;

namespace {

constexpr std::int64_t kValues = 1 << 20;  // far too many to leave before somebody receives them
constexpr Channel kChannel = Channel::kResults;

Tensor view(std::vector<float>& values) {
  return make_tensor(values.data(), DType::kFloat32, 1, kValues);
}

bool all_are(const std::vector<float>& values, float value) {
  return std::ranges::count(values, value) == kValues;
}

// Both ranks have come here.
void meet(const MpiProcess& process) {
  process.all_gather({});
}

int first_rank(const MpiProcess& process) {
  static std::vector<float> sent(kValues, 3.0F), unsent(kValues);  // stay, as abandon asks
  const auto transport = process.transport(1, 1);
  const auto ticket = transport->send(view(sent));
  transport->receive(view(unsent));
  const bool left = transport->done(ticket);
  const bool free = transport->abandon();
  {
    const auto mailbox = process.mailbox(0);
    mailbox->post(1, kChannel, std::vector<std::byte>(kValues, std::byte{7}));
  }
  const std::vector<std::byte> other(2 * kValues, std::byte{9});  // where the message may have been
  meet(process);
  meet(process);
  if (left || free || !all_are(unsent, 0.0F) || other.front() != std::byte{9}) {
    fmt::print(stderr, "rank 0: sent {}, memory free {}\n", left, free);
    return 1;
  }
  return 0;
}

int second_rank(const MpiProcess& process) {
  meet(process);
  std::vector<float> received(kValues);
  const auto transport = process.transport(0, 0);
  const auto ticket = transport->receive(view(received));
  const auto mailbox = process.mailbox(0);
  std::optional<std::vector<std::byte>> message;
  bool arrived = false;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while ((!arrived || !message) && std::chrono::steady_clock::now() < end) {
    if (!arrived) arrived = transport->done(ticket);
    if (!message) message = mailbox->take(0, kChannel);
    std::this_thread::yield();
  }
  const bool free = transport->abandon();
  meet(process);
  const std::vector<std::byte> expected(kValues, std::byte{7});
  if (!arrived || !all_are(received, 3.0F) || message != expected || !free) {
    fmt::print(stderr, "rank 1: arrived {}, message {}, memory free {}\n", arrived, message.has_value(), free);
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const MpiProcess process(&argc, &argv);
  try {
    return process.rank() == 0 ? first_rank(process) : second_rank(process);
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}
