// The wire between the two hosts of tests/hosts: carries Ethernet frames from one network namespace to the other, each
// after a delay and no faster than a rate, which the kernel's own tools do not offer everywhere.
//   wire NAMESPACE_A NAMESPACE_B DELAY_US MBIT_PER_S     0: none, no limit
// Each namespace gets an interface eth0 (without address). "up" on standard output: both are there. SIGUSR1 cuts the
// wire: frames that come or are on their way are lost. SIGUSR2 mends it. It ends with SIGTERM.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

constexpr std::size_t kMostQueued = 2000;  // more are dropped, as routers do
constexpr int kFramesAtOnce = 64;

volatile std::sig_atomic_t is_cut = 0;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what + ": " + std::strerror(errno));
}

// An interface of a namespace, whose frames are read and written here. The caller stays in the namespace.
int open_interface(const std::string& name_space) {
  const int space = ::open(("/run/netns/" + name_space).c_str(), O_RDONLY | O_CLOEXEC);
  if (space < 0 || ::setns(space, CLONE_NEWNET) != 0) fail(name_space);
  ::close(space);
  const int device = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) fail("/dev/net/tun");
  ifreq request = {};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  std::strcpy(request.ifr_name, "eth0");
  if (::ioctl(device, TUNSETIFF, &request) != 0) fail("TUNSETIFF");
  return device;
}

// One way of the wire: frames leave one after the other, at the rate, and arrive a delay later.
class Way {
 public:
  Way(int from, int to, nanoseconds delay, double bytes_per_ns)
      : from_(from), to_(to), delay_(delay), bytes_per_ns_(bytes_per_ns) {}

  int from() const { return from_; }

  void take_frames() {
    static char buffer[1 << 16];
    for (int i = 0; i < kFramesAtOnce; ++i) {
      const ssize_t bytes = ::read(from_, buffer, sizeof buffer);
      if (bytes <= 0) return;
      if (is_cut != 0 || under_way_.size() >= kMostQueued) continue;
      free_at_ = std::max(free_at_, Clock::now());
      if (bytes_per_ns_ > 0) free_at_ += nanoseconds(static_cast<long>(static_cast<double>(bytes) / bytes_per_ns_));
      under_way_.push_back({free_at_ + delay_, std::vector<char>(buffer, buffer + bytes)});
    }
  }
  void deliver() {
    while (!under_way_.empty() && under_way_.front().arrives <= Clock::now()) {
      const std::vector<char>& frame = under_way_.front().bytes;
      if (is_cut == 0 && ::write(to_, frame.data(), frame.size()) < 0 && errno != EIO && errno != EAGAIN) fail("write");
      under_way_.pop_front();
    }
  }
  Clock::time_point next_arrival(Clock::time_point at_the_latest) const {
    return under_way_.empty() ? at_the_latest : std::min(at_the_latest, under_way_.front().arrives);
  }

 private:
  struct Frame {
    Clock::time_point arrives;
    std::vector<char> bytes;
  };

  int from_, to_;
  nanoseconds delay_;
  double bytes_per_ns_;
  Clock::time_point free_at_{};
  std::deque<Frame> under_way_;
};

void carry(std::vector<Way> ways) {
  for (;;) {
    Clock::time_point next = Clock::now() + std::chrono::seconds(1);
    for (const Way& way : ways) next = way.next_arrival(next);
    const nanoseconds wait = std::max(nanoseconds(0), std::chrono::duration_cast<nanoseconds>(next - Clock::now()));
    const timespec limit = {wait.count() / 1'000'000'000, wait.count() % 1'000'000'000};
    std::vector<pollfd> polled;
    for (const Way& way : ways) polled.push_back({way.from(), POLLIN, 0});
    ::ppoll(polled.data(), polled.size(), &limit, nullptr);
    for (std::size_t i = 0; i < ways.size(); ++i) {
      if ((polled[i].revents & POLLIN) != 0) ways[i].take_frames();
      ways[i].deliver();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  try {
    std::signal(SIGUSR1, [](int) { is_cut = 1; });
    std::signal(SIGUSR2, [](int) { is_cut = 0; });
    const int a = open_interface(argv[1]);
    const int b = open_interface(argv[2]);
    const nanoseconds delay(std::atol(argv[3]) * 1000);
    const double bytes_per_ns = std::atof(argv[4]) / 8e3;
    std::puts("up");
    std::fflush(stdout);
    carry({Way(a, b, delay, bytes_per_ns), Way(b, a, delay, bytes_per_ns)});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wire: %s\n", error.what());
    return 1;
  }
}
