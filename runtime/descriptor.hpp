// Owns a file descriptor: closed at the end of the scope unless closed or handed on before.
#pragma once

#include <unistd.h>

#include <utility>

namespace stagecoach {

class Descriptor {
 public:
  explicit Descriptor(int descriptor) : descriptor_(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(); }

  int get() const { return descriptor_; }
  int release() { return std::exchange(descriptor_, -1); }
  void close() {
    if (descriptor_ >= 0) ::close(release());
  }

 private:
  int descriptor_;  // negative: none
};

}  // namespace stagecoach
