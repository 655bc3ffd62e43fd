// Any bytes: a tree or a JsonError of one printable line.
#include <cstdlib>

#include "runtime/json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    stagecoach::parse_json({reinterpret_cast<const char*>(data), size});
  } catch (const stagecoach::JsonError& error) {
    for (const char* c = error.what(); *c != '\0'; ++c) {
      if (*c < 0x20 || *c > 0x7e) std::abort();
    }
  }
  return 0;
}
