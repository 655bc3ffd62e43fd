// Any bytes as model.safetensors. Either a WeightError of one line, or entries that lie inside the file and do not
// overlap; and with the configuration of a one-block model every tensor of an accepted file can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/safetensors.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace stagecoach;

// A directory whose model.safetensors is in memory.
class FuzzDirectory {
 public:
  FuzzDirectory() {
    descriptor_ = ::memfd_create("model", 0);
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(descriptor_), folder_ / "model.safetensors");
  }
  void set(const std::uint8_t* data, std::size_t size) const {
    if (::ftruncate(descriptor_, 0) != 0) std::abort();
    if (::pwrite(descriptor_, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  }
  const std::filesystem::path& path() const { return folder_.path(); }

 private:
  fuzz::FuzzFolder folder_;
  int descriptor_ = -1;
};

void check_entries(const std::vector<SafetensorsEntry>& entries, std::int64_t file_bytes) {
  std::int64_t total = 8;
  std::vector<SafetensorsEntry> by_offset = entries;
  std::ranges::sort(by_offset, {}, &SafetensorsEntry::offset);
  std::int64_t end = 8;
  for (const SafetensorsEntry& entry : by_offset) {
    if (entry.bytes > 0 && entry.offset < end) std::abort();
    end = std::max(end, entry.offset + entry.bytes);
  }
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset < 8 || entry.bytes < 0 || entry.bytes > file_bytes - entry.offset) std::abort();
    total += entry.bytes;
  }
  if (total > file_bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const FuzzDirectory directory;
  directory.set(data, size);
  ModelConfig config;
  config.n_layer = 1;
  config.n_head = 1;
  config.n_embd = 1;
  config.n_inner = 1;
  config.n_positions = 1;
  config.vocab_size = 1;
  try {
    check_entries(read_safetensors_header(InputFile(directory.path() / "model.safetensors")),
                  static_cast<std::int64_t>(size));
    const auto source = open_safetensors(directory.path(), config);
    for (const TensorSpec& spec : tensor_table(config)) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(spec.elements() * size_of(source->dtype_of(spec))));
      source->read_rows(spec, 0, spec.rows, bytes);
    }
  } catch (const WeightError& error) {
    fuzz::require_plain(error.what());
  }
  return 0;
}
