// Any bytes as the JSON Lines of a run. Either an OutputError of one line and no file, or an HDF5 file with a row per
// line, whose offsets ascend from 0 to the number of values.
#include <algorithm>
#include <cstring>

#include "runtime/hdf5_file.hpp"
#include "runtime/results.hpp"
#include "runtime/results_h5.hpp"
#include "tests/fuzz/fuzz.hpp"

namespace {

using namespace stagecoach;
using fuzz::require;

constexpr std::int64_t kMaxBytes = 1 << 30;

std::int64_t rows_of(const std::vector<H5Dataset>& datasets, const std::string& path) {
  for (const H5Dataset& dataset : datasets) {
    if (dataset.path == path) return dataset.shape.at(0);
  }
  return -1;
}

void check(const std::string& path, std::int64_t lines) {
  const H5Reader file(path);
  const std::vector<H5Dataset> datasets = file.datasets();
  require(rows_of(datasets, "/index") == lines);
  for (const H5Dataset& dataset : datasets) {
    if (!dataset.path.ends_with("/offsets")) continue;
    require(dataset.shape.at(0) == lines + 1);
    const std::vector<std::byte> bytes = file.read(dataset.path, kMaxBytes);
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(lines + 1));
    require(bytes.size() == offsets.size() * 8);
    std::memcpy(offsets.data(), bytes.data(), bytes.size());
    require(offsets.front() == 0);
    for (std::size_t i = 1; i < offsets.size(); ++i) require(offsets[i] >= offsets[i - 1]);
    const std::string values = dataset.path.substr(0, dataset.path.rfind('/')) + "/values";
    require(offsets.back() == rows_of(datasets, values));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::FuzzFolder folder;
  const std::string_view text = fuzz::text_of(data, size);
  const std::string lines = folder / "r.jsonl";
  const std::string h5 = folder / "r.h5";
  fuzz::write_file(lines, text);
  std::filesystem::remove(h5);
  try {
    write_results_h5(lines, h5);
    std::int64_t count = std::count(text.begin(), text.end(), '\n');
    if (!text.empty() && text.back() != '\n') ++count;
    check(h5, count);
  } catch (const OutputError& error) {
    fuzz::require_plain(error.what());
    require(!std::filesystem::exists(h5));
  }
  require(!std::filesystem::exists(h5 + ".partial"));
  return 0;
}
