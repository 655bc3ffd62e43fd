// Encodes many strings for the comparison with Hugging Face: encode_lines vocab.json merges.txt
// Standard input: per string its length in bytes (32 bits, little endian) and its bytes.
// Standard output: per string a line of ids separated by spaces.

#include "runtime/tokenizer.hpp"

#include <array>
#include <cstdint>
#include <exception>
#include <iostream>
#include <string>

namespace {

bool read_string(std::istream& in, std::string& text) {
  std::array<char, 4> length{};
  if (!in.read(length.data(), length.size())) return false;
  std::uint32_t bytes = 0;
  for (std::size_t i = 0; i < length.size(); ++i) {
    bytes |= static_cast<std::uint32_t>(static_cast<unsigned char>(length[i])) << 8 * i;
  }
  text.resize(bytes);
  return static_cast<bool>(in.read(text.data(), static_cast<std::streamsize>(bytes)));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: encode_lines vocab.json merges.txt\n";
    return 2;
  }
  std::ios::sync_with_stdio(false);
  const auto tokenizer = stagecoach::Tokenizer::from_files(argv[1], argv[2]);
  std::string text;
  while (read_string(std::cin, text)) {
    const char* separator = "";
    for (const std::int32_t id : tokenizer.encode(text)) {
      std::cout << separator << id;
      separator = " ";
    }
    std::cout << '\n';
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "encode_lines: " << error.what() << '\n';
  return 1;
}
