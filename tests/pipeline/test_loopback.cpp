// A stage that gives up takes its memory out of the others' reach.
#include <doctest/doctest.h>

#include <array>

#include "runtime/loopback.hpp"

using namespace stagecoach;

namespace {

using Row = std::array<float, 4>;

Tensor view(Row& row) {
  return make_tensor(row.data(), DType::kFloat32, 1, 4);
}

}  // namespace

TEST_CASE("rendezvous: memory of an abandoned send is not read, of an abandoned receive not written") {
  LoopbackHub hub(LoopbackMode::kRendezvous);
  const auto first = hub.transport(0), second = hub.transport(1), third = hub.transport(2);
  Row sent{1, 2, 3, 4}, received{}, given_up{};

  const auto onward = second->send(view(sent));
  second->receive(view(given_up));
  CHECK(second->abandon());
  const auto late = third->receive(view(received));
  const auto unheard = first->send(view(sent));
  CHECK_FALSE(third->done(late));
  CHECK_FALSE(first->done(unheard));
  CHECK_FALSE(second->done(onward));
  CHECK(received == Row{});
  CHECK(given_up == Row{});
}

TEST_CASE("rendezvous: a transport that goes takes its open operations along") {
  LoopbackHub hub(LoopbackMode::kRendezvous);
  const auto second = hub.transport(1);
  Row received{};
  {
    Row sent{1, 2, 3, 4};
    hub.transport(0)->send(view(sent));
  }
  const auto ticket = second->receive(view(received));
  CHECK_FALSE(second->done(ticket));
  CHECK(received == Row{});
}

TEST_CASE("buffered: what was sent arrives, though the sender has gone") {
  LoopbackHub hub(LoopbackMode::kBuffered);
  const auto second = hub.transport(1);
  Row received{};
  {
    Row sent{1, 2, 3, 4};
    const auto first = hub.transport(0);
    first->send(view(sent));
    CHECK(first->abandon());
  }
  const auto ticket = second->receive(view(received));
  CHECK(second->done(ticket));
  CHECK(received == Row{1, 2, 3, 4});
}
