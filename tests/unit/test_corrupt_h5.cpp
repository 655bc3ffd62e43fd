// Damaged HDF5 models: one clear error or a correct model, never a crash, a hang or a silent wrong answer. Files are
// opened in this process, as the program does: what the HDF5 library makes of them must stay in its child.
// STAGECOACH_CORRUPTIONS=20000 in the environment makes a longer campaign of it.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <iterator>

#include "runtime/hdf5_file.hpp"
#include "runtime/native_model.hpp"
#include "tests/unit/all_weights.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

std::string bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::string kKerasBase = STAGECOACH_SOURCE_DIR "/tests/golden/data/keras_base";

// One model file, changed at will.
class Victim {
 public:
  // `name`: what to open; `file`: the HDF5 file in it.
  Victim(std::string name, std::string file) : name_(std::move(name)), file_(std::move(file)) {
    whole_ = bytes_of_file(file_);
    weights_ = all_weights(name_);
    std::vector<bool> data(whole_.size());
    for (const H5Dataset& dataset : H5Reader(file_).datasets()) {
      for (std::int64_t i = 0; i < dataset.bytes; ++i) data[static_cast<std::size_t>(*dataset.offset + i)] = true;
    }
    for (std::size_t at = 0; at < data.size(); ++at) {
      if (!data[at]) metadata_.push_back(at);
    }
  }

  const std::string& whole() const { return whole_; }
  const std::vector<std::size_t>& metadata() const { return metadata_; }  // positions outside of the datasets' values

  int broken() const { return broken_; }  // opens in which the HDF5 library itself broke down

  enum class Outcome : std::uint8_t { kSame, kRefused, kWrong };
  Outcome open(const std::string& bytes) {
    std::ofstream(file_, std::ios::binary) << bytes;
    try {
      return all_weights(name_) == weights_ ? Outcome::kSame : Outcome::kWrong;
    } catch (const WeightError& error) {
      const std::string what = error.what();
      CHECK(what.starts_with(file_));
      if (contains(what, "HDF5 library")) ++broken_;
      CHECK(what.size() < 1000);
      return Outcome::kRefused;
    }
  }

 private:
  std::string name_, file_, whole_, weights_;
  std::vector<std::size_t> metadata_;
  int broken_ = 0;
};

struct Tally {
  int same = 0, refused = 0, wrong = 0;
  double slowest_s = 0.0;
};

// Mostly one byte; else up to four, or the rest cut off.
std::string corrupted(const Victim& victim, std::mt19937& random) {
  std::string bytes = victim.whole();
  if (random() % 50 == 0) return bytes.substr(0, random() % bytes.size());
  for (std::size_t flips = random() % 4 == 0 ? 1 + random() % 4 : 1; flips > 0; --flips) {
    char& byte = bytes[victim.metadata()[random() % victim.metadata().size()]];
    const char before = byte;
    switch (random() % 4) {
      case 0:
        byte = static_cast<char>(random());
        break;
      case 1:
        byte = '\xff';
        break;
      case 2:
        ++byte;
        break;
      default:
        byte ^= static_cast<char>(1 << random() % 8);
    }
    if (byte == before) byte ^= 1;
  }
  return bytes;
}

Tally campaign(Victim& victim, int count) {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random{seed};
  Tally tally;
  for (int i = 0; i < count; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const Victim::Outcome outcome = victim.open(corrupted(victim, random));
    ++(outcome == Victim::Outcome::kSame      ? tally.same
       : outcome == Victim::Outcome::kRefused ? tally.refused
                                              : tally.wrong);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    tally.slowest_s = std::max(tally.slowest_s, took.count());
  }
  MESSAGE(count << " corruptions: " << tally.same << " without effect, " << tally.refused
                << " refused (the library broke down in " << victim.broken() << "), " << tally.wrong
                << " unnoticed; slowest " << tally.slowest_s << " s");
  return tally;
}

int corruptions() {
  const char* given = std::getenv("STAGECOACH_CORRUPTIONS");
  return given != nullptr ? std::atoi(given) : rounds(400);
}

struct KerasCopy : TemporaryDirectory {
  KerasCopy() {
    for (const char* file : {"config.json", "tf_model.h5"}) write(file, bytes_of_file(kKerasBase + "/" + file));
  }
};

struct NativeCopy : TemporaryDirectory {
  explicit NativeCopy(const NativeOptions& options) {
    write_native_model(open_model(kKerasBase), {}, options, name() + "/model.h5", {});
  }
};

}  // namespace

TEST_CASE("damaged native files: refused or without effect") {
  int refused = 0;  // a few dozen corruptions of one file may all be without effect
  for (const NativeOptions& options : {NativeOptions{std::nullopt, NativeLayout::kRows}, NativeOptions{},
                                       NativeOptions{DType::kInt8, NativeLayout::kPanels}}) {
    const NativeCopy directory(options);
    Victim victim(directory.name(), directory.name() + "/model.h5");
    const Tally tally = campaign(victim, corruptions() / 3 + 1);
    CHECK(tally.wrong == 0);
    refused += tally.refused;
  }
  CHECK(refused > 0);
}

// Keras files have no checksums: a changed address can point at other bytes of the file that look like weights. What
// the checks of shapes, extents and overlaps leave is counted here, and must stay rare.
TEST_CASE("damaged Keras files: refused or without effect, but for addresses that no check can tell") {
  const KerasCopy directory;
  Victim victim(directory.name(), directory.name() + "/tf_model.h5");
  const Tally tally = campaign(victim, corruptions());
  CHECK(tally.wrong <= 3 + corruptions() / 100);
  CHECK(tally.refused > 0);
}

TEST_CASE("damaged HDF5 files that break the library: a crash and a loop become errors") {
  const KerasCopy directory;
  const std::string file = directory.name() + "/tf_model.h5";
  const std::string whole = bytes_of_file(file);
  // Found by a campaign over libhdf5 1.10.8, which on looking for attributes of the root crashes on the first and never
  // ends on the second. A Keras file by its own name is an error anyway; here it must be one at all.
  for (const auto& [at, value] : {std::pair<std::size_t, char>(2139, 1), std::pair<std::size_t, char>(3617, 8)}) {
    std::string bytes = whole;
    bytes[at] = value;
    directory.write("tf_model.h5", bytes);
    const std::string error = message_of<WeightError>([&] { open_model(file); });
    MESSAGE(error);
    CHECK(error.starts_with(file));
  }
}

TEST_CASE("cut HDF5 files are refused") {
  const KerasCopy directory;
  Victim victim(directory.name(), directory.name() + "/tf_model.h5");
  std::mt19937 random{std::random_device{}()};
  for (int i = 0; i < 40; ++i) {
    const std::size_t size = i < 10 ? static_cast<std::size_t>(i) : random() % victim.whole().size();
    CHECK(victim.open(victim.whole().substr(0, size)) == Victim::Outcome::kRefused);
  }
}
