#include "runtime/h5_inventory.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "runtime/descriptor.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxMessageBytes = std::size_t{256} << 20;

// ---- the list as bytes: numbers are 64 bits, texts and lists begin with their length ----

// First byte of the child's message; a list also ends with kList, so that a child that died while sending is noticed.
constexpr char kList = 'L';
constexpr char kError = 'E';

class Encoder {
 public:
  void number(std::uint64_t value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void text(std::string_view text) {
    number(text.size());
    bytes_.append(text);
  }
  void value(const H5Value& value) {
    number(value.index());
    if (const bool* flag = std::get_if<bool>(&value)) number(*flag ? 1 : 0);
    if (const std::int64_t* whole = std::get_if<std::int64_t>(&value)) number(static_cast<std::uint64_t>(*whole));
    if (const std::uint64_t* whole = std::get_if<std::uint64_t>(&value)) number(*whole);
    if (const double* real = std::get_if<double>(&value)) number(std::bit_cast<std::uint64_t>(*real));
    if (const std::string* word = std::get_if<std::string>(&value)) text(*word);
  }
  void inventory(const H5Inventory& inventory) {
    number(inventory.datasets.size());
    for (const H5Dataset& dataset : inventory.datasets) {
      text(dataset.path);
      number(static_cast<std::uint64_t>(dataset.element));
      text(dataset.type);
      number(dataset.shape.size());
      for (const std::int64_t size : dataset.shape) number(static_cast<std::uint64_t>(size));
      number(static_cast<std::uint64_t>(dataset.bytes));
      number(static_cast<std::uint64_t>(dataset.offset.value_or(-1)));
    }
    number(inventory.attributes.size());
    for (const auto& [place, held] : inventory.attributes) {
      text(place.first);
      text(place.second);
      value(held);
    }
  }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
};

// Throws Hdf5Error where the bytes end too early.
class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : rest_(bytes) {}

  std::uint64_t number() {
    std::uint64_t value = 0;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::int64_t whole() { return static_cast<std::int64_t>(number()); }
  std::string text() { return std::string(take(number())); }
  H5Value value() {
    switch (number()) {
      case 0:
        return number() != 0;
      case 1:
        return whole();
      case 2:
        return number();
      case 3:
        return std::bit_cast<double>(number());
      default:
        return text();
    }
  }
  H5Inventory inventory() {
    H5Inventory result;
    for (std::uint64_t left = number(); left > 0; --left) {
      H5Dataset dataset;
      dataset.path = text();
      dataset.element = static_cast<H5Element>(number());
      dataset.type = text();
      for (std::uint64_t dimensions = number(); dimensions > 0; --dimensions) dataset.shape.push_back(whole());
      dataset.bytes = whole();
      if (const std::int64_t offset = whole(); offset >= 0) dataset.offset = offset;
      result.datasets.push_back(std::move(dataset));
    }
    for (std::uint64_t left = number(); left > 0; --left) {
      std::string object = text();
      std::string name = text();
      result.attributes.emplace(std::pair(std::move(object), std::move(name)), value());
    }
    return result;
  }

 private:
  std::string_view take(std::uint64_t count) {
    if (count > rest_.size()) throw Hdf5Error("cannot be read: its list is cut off");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }
  std::string_view rest_;
};

// ---- the child ----

H5Inventory read_inventory(const std::string& path, const std::vector<std::string>& of_root,
                           const std::vector<std::string>& of_datasets) {
  const H5Reader reader(path);
  H5Inventory result;
  const auto add = [&](const std::string& object, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      if (std::optional<H5Value> value = reader.attribute(object, name)) {
        result.attributes.emplace(std::pair(object, name), std::move(*value));
      }
    }
  };
  result.datasets = reader.datasets();
  add("/", of_root);
  for (const H5Dataset& dataset : result.datasets) add(dataset.path, of_datasets);
  return result;
}

void limit(__rlimit_resource_t resource, rlim_t soft) {
  rlimit limits = {};
  ::getrlimit(resource, &limits);
  limits.rlim_cur = std::min(soft, limits.rlim_max);
  ::setrlimit(resource, &limits);
}

// Address space in use: MPI and sanitizers map much that is never touched.
rlim_t mapped_bytes() {
  std::array<char, 64> text = {};
  const int file = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  const ssize_t got = file < 0 ? -1 : ::read(file, text.data(), text.size() - 1);
  if (file >= 0) ::close(file);
  if (got <= 0) return RLIM_INFINITY;
  return std::strtoull(text.data(), nullptr, 10) * static_cast<rlim_t>(::sysconf(_SC_PAGESIZE));
}

// A crash is for the parent to report: without the handlers that MPI or a sanitizer has installed, without a word.
void be_quiet_and_small() {
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTERM, SIGINT, SIGUSR1, SIGPIPE, SIGXCPU}) {
    std::signal(signal, SIG_DFL);
  }
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere >= 0) ::dup2(nowhere, STDERR_FILENO);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_CPU, kInventoryCpuSeconds);
  const rlim_t mapped = mapped_bytes();
  if (mapped != RLIM_INFINITY) limit(RLIMIT_AS, mapped + kInventoryBytes);
}

std::string message_of_child(const std::string& path, const std::vector<std::string>& of_root,
                             const std::vector<std::string>& of_datasets) {
  try {
    Encoder encoder;
    encoder.bytes() = kList;
    encoder.inventory(read_inventory(path, of_root, of_datasets));
    encoder.bytes() += kList;
    return std::move(encoder.bytes());
  } catch (const Hdf5Error& error) {
    return kError + std::string(error.what());
  } catch (const std::bad_alloc&) {
    return kError + path + ": listing it needs too much memory; the file is damaged";
  }
}

[[noreturn]] void run_child(int out, const std::string& path, const std::vector<std::string>& of_root,
                            const std::vector<std::string>& of_datasets) noexcept {
  be_quiet_and_small();
  const std::string message = message_of_child(path, of_root, of_datasets);
  for (std::size_t done = 0; done < message.size();) {
    const ssize_t sent = ::write(out, message.data() + done, message.size() - done);
    if (sent < 0 && errno != EINTR) break;
    if (sent > 0) done += static_cast<std::size_t>(sent);
  }
  ::_exit(0);
}

// ---- the parent ----

[[noreturn]] void fail_to_start(const std::string& path, int error) {
  throw Hdf5Error(fmt::format("{}: cannot start a process that lists it: {}", path, std::strerror(error)));
}

// Everything until the child closes its end, or is sending without an end.
std::string receive(int in) {
  std::string message;
  std::array<char, 65536> part = {};
  while (message.size() <= kMaxMessageBytes) {
    const ssize_t got = ::read(in, part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    message.append(part.data(), static_cast<std::size_t>(got));
  }
  return message;
}

int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return 0;  // somebody ignores SIGCHLD: the message alone tells how it went
  }
  return status;
}

}  // namespace

std::optional<H5Value> H5Inventory::attribute(const std::string& object, const std::string& name) const {
  const auto found = attributes.find({object, name});
  return found == attributes.end() ? std::nullopt : std::optional(found->second);
}

H5Inventory inventory_of(const std::string& path, const std::vector<std::string>& of_root,
                         const std::vector<std::string>& of_datasets) {
  std::array<int, 2> ends = {};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail_to_start(path, errno);
  Descriptor in(ends[0]);
  Descriptor out(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) fail_to_start(path, errno);
  if (child == 0) run_child(out.get(), path, of_root, of_datasets);
  out.close();
  const std::string message = receive(in.get());
  in.close();  // a child that still sends ends here
  const int status = wait_for(child);
  if (message.starts_with(kError)) throw Hdf5Error(message.substr(1));
  if (message.size() < 2 || message.front() != kList || message.back() != kList) {
    const int signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    throw Hdf5Error(signal == SIGXCPU
                        ? fmt::format("{}: is damaged: listing it with the HDF5 library does not end", path)
                        : fmt::format("{}: is damaged: the HDF5 library breaks down on it ({})", path,
                                      signal != 0 ? fmt::format("signal {}", signal) : "without an answer"));
  }
  return Decoder(std::string_view(message).substr(1)).inventory();
}

}  // namespace stagecoach
