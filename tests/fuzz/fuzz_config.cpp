// Any bytes as config.json: a configuration that `validate` accepts, or a WeightError of one line. The same bytes as
// the name of a synthetic model.
#include <string>

#include "runtime/model_config.hpp"
#include "runtime/synthetic.hpp"
#include "tests/fuzz/fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace stagecoach;
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    validate(parse_model_config(text, "config.json"));
  } catch (const WeightError& error) {
    fuzz::require_plain(error.what());
  }
  try {
    validate(parse_synthetic("synthetic:" + text).config);
  } catch (const WeightError& error) {
    fuzz::require_plain(error.what());
  }
  return 0;
}
