// A valid native model file with bytes changed: either a WeightError of one line, or the model as it was. The input is
// a list of changes, each two bytes of position (scaled to the file) and one byte to flip with; without any, it must
// load. How many bytes are left over says which file: rows, panels, or int8.
#include <string>

#include "runtime/native_model.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/unit/all_weights.hpp"

// For the leak sanitizer, which calls it: HDF5 forgets what it had allocated where it finds a file damaged.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}

namespace {

using namespace stagecoach;

class Sample {
 public:
  explicit Sample(const NativeOptions& options) {
    const std::string tokenizer = STAGECOACH_SOURCE_DIR "/tests/data/tiny_tokenizer/";
    const Model model = open_model("synthetic:gpt2,n_layer=1,n_head=1,n_embd=2,n_inner=3,n_positions=4,vocab_size=700");
    write_native_model(model,
                       TokenizerTexts{fuzz::contents_of_file(tokenizer + "vocab.json"),
                                      fuzz::contents_of_file(tokenizer + "merges.txt")},
                       options, path(), {});
    whole_ = fuzz::contents_of_file(path());
    contents_ = test::all_weights(path());
  }
  std::string path() const { return folder_ / "m.h5"; }
  const std::string& whole() const { return whole_; }
  const std::string& contents() const { return contents_; }

 private:
  fuzz::FuzzFolder folder_;
  std::string whole_;
  std::string contents_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Sample samples[] = {Sample({std::nullopt, NativeLayout::kRows}), Sample({}), Sample({DType::kInt8})};
  const Sample& sample = samples[size % 3];
  std::string bytes = sample.whole();
  for (std::size_t i = 0; i + 3 <= size; i += 3) {
    const std::size_t position = (std::size_t{data[i]} << 8 | data[i + 1]) * bytes.size() >> 16;
    bytes[position] = static_cast<char>(bytes[position] ^ static_cast<char>(data[i + 2]));
  }
  fuzz::write_file(sample.path(), bytes);
  try {
    if (test::all_weights(sample.path()) != sample.contents()) std::abort();
  } catch (const WeightError& error) {
    fuzz::require_plain(error.what());
    if (bytes == sample.whole()) std::abort();
  }
  return 0;
}
