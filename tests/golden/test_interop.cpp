// Checkpoints as other software writes them (data_interop/, by make_interop.py) give the logits and the token ids that
// Hugging Face computed, as they are and converted.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/native_model.hpp"
#include "tests/golden/golden_model.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace fs = std::filesystem;

namespace {

// A native file of `name`, removed at the end.
struct Converted {
  explicit Converted(const std::string& name)
      : file((fs::temp_directory_path() / fmt::format("stagecoach-interop-{}.h5", ::getpid())).string()) {
    write_native_model(open_model(name), read_tokenizer_texts(name), {}, file, {});
  }
  ~Converted() { fs::remove(file); }
  Converted(const Converted&) = delete;
  Converted& operator=(const Converted&) = delete;
  std::string file;
};

}  // namespace

TEST_CASE("other software's checkpoints: logits") {
  const std::vector<Golden> all = all_golden(STAGECOACH_SOURCE_DIR "/tests/golden/data_interop");
  REQUIRE(all.size() >= 8);
  for (const Golden& golden : all) {
    const std::string name = golden.directory.string();
    INFO(name);
    const double worst = worst_difference(golden, make_cpu_backend({1, Simd::kBest}), name);
    CHECK(worst < kTolerance);
    CHECK(worst_difference(golden, make_reference_backend(), name) < kTolerance);
    CHECK(worst_difference(golden, make_cpu_backend({1, Simd::kBest}), Converted(name).file) == worst);
  }
}

TEST_CASE("other software's checkpoints: token ids") {
  std::size_t strings = 0;
  for (const Golden& golden : all_golden(STAGECOACH_SOURCE_DIR "/tests/golden/data_interop")) {
    const Json root = read_json(golden.directory / "golden.json");
    const std::string name = golden.directory.string();
    INFO(name);
    const Json* texts = root.find("texts");
    CHECK(open_model(name).tokenizer.has_value() == (texts != nullptr));
    if (texts == nullptr) continue;
    const Converted converted(name);
    const Tokenizer direct = open_tokenizer(name);
    const Tokenizer native = open_tokenizer(converted.file);
    for (const Json& item : *texts->array()) {
      const std::string& text = *item.array()->front().string();
      const std::vector<std::int32_t> expected = ids(item.array()->back());
      INFO(text);
      CHECK(direct.encode(text) == expected);
      CHECK(native.encode(text) == expected);
      CHECK(direct.decode(expected) == text);
      ++strings;
    }
    for (std::int32_t id = 0; id < direct.vocab_size(); ++id) CHECK(direct.token_bytes(id) == native.token_bytes(id));
  }
  CHECK(strings > 100);
}
