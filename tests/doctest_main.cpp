#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

// For the leak sanitizer, which calls it: HDF5 forgets what it had allocated where it finds a file damaged or full.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}
