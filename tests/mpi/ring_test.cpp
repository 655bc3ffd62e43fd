// The test of all links at start-up: sound ones are measured, a silent rank and a changed payload are named. Usage:
// mpirun -n N mpi_ring_test, N at least 2.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "kernels/backend.hpp"
#include "runtime/mpi_transport.hpp"
#include "runtime/ring_test.hpp"

using namespace stagecoach;

namespace {

// Sends what it is given, but the last byte.
class BentTransport final : public Transport {
 public:
  explicit BentTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  Ticket send(Tensor tensor) override {
    tensor.f32(0)[tensor.cols - 1] += 1.0F;
    return inner_->send(tensor);
  }
  Ticket receive(Tensor tensor) override { return inner_->receive(tensor); }
  bool done(Ticket ticket) override { return inner_->done(ticket); }
  bool abandon() noexcept override { return inner_->abandon(); }

 private:
  std::unique_ptr<Transport> inner_;
};

// What this rank's test ends with; empty when all is well.
std::string outcome(const MpiProcess& process, double timeout_s, bool bent) {
  const std::unique_ptr<Backend> backend = make_reference_backend();
  const std::unique_ptr<Mailbox> mailbox = process.mailbox(0);
  std::unique_ptr<Transport> transport = process.transport(process.rank() - 1, process.rank() + 1);
  if (bent) transport = std::make_unique<BentTransport>(std::move(transport));
  RingParts parts;
  parts.stage = process.rank();
  parts.stages = process.size();
  parts.timeout_s = timeout_s;
  parts.backend = backend.get();
  parts.mailbox = mailbox.get();
  parts.transport = transport.get();
  parts.name = [](std::int32_t stage) { return fmt::format("rank {}", stage); };
  try {
    const std::optional<RingFigures> figures = ring_test(parts);
    if (figures.has_value() != (process.rank() > 0)) return "figures of another rank";
    if (figures && !(figures->latency_us > 0 && figures->gigabytes_per_s > 0)) return "figures that cannot be";
    return "";
  } catch (const TransportError& e) {
    return e.what();
  }
}

// Every rank's, by rank. Collective.
std::vector<std::string> gather(const MpiProcess& process, const std::string& mine) {
  std::vector<std::string> all;
  for (const std::vector<std::byte>& bytes : process.all_gather(std::as_bytes(std::span(mine)))) {
    all.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return all;
}

int test(const MpiProcess& process) {
  int failures = 0;
  const auto expect = [&](bool right, const char* what, const std::vector<std::string>& all) {
    if (right) return;
    ++failures;
    if (process.rank() == 0) fmt::print(stderr, "{}: '{}'\n", what, fmt::join(all, "' '"));
  };
  const auto well = gather(process, outcome(process, 60.0, false));
  expect(std::ranges::all_of(well, &std::string::empty), "sound links", well);

  // What the last but one sends is changed: the last one complains and names it. They are the last so that no message
  // is left behind, which would be taken for one of the next test.
  const int last = process.size() - 1;
  const auto bent = gather(process, outcome(process, 3.0, process.rank() == last - 1));
  expect(bent[static_cast<std::size_t>(last)] ==
             fmt::format("what rank {} sends as rows reaches rank {} changed", last - 1, last),
         "a changed payload", bent);

  const int silent = process.size() / 2;
  const auto all = gather(process, process.rank() == silent ? "" : outcome(process, 1.0, false));
  const auto first = std::ranges::find_if(all, [](const std::string& text) { return !text.empty(); });
  const auto rank = static_cast<int>(first - all.begin());
  expect(rank < process.size() && first->starts_with(fmt::format("rank {} and rank {} cannot talk",
                                                                 std::min(rank, silent), std::max(rank, silent))),
         "a silent rank", all);
  return failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const MpiProcess process(&argc, &argv);
  try {
    return test(process);
  } catch (const std::exception& e) {
    fmt::print(stderr, "rank {}: {}\n", process.rank(), e.what());
    process.abort(1);
  }
}
