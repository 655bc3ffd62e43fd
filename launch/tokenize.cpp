#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <system_error>

#include "launch/commands.hpp"
#include "launch/log.hpp"
#include "runtime/results.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {
namespace {

std::string read_whole(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UsageError(fmt::format("{}: {}", path, std::strerror(errno)));
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw UsageError(fmt::format("{}: cannot be read (is it a directory?)", path));
  return text;
}

// Ids separated by white space.
std::vector<std::int32_t> parse_ids(const std::string& text, const std::string& path) {
  std::vector<std::int32_t> ids;
  std::int64_t line = 1;
  for (const char* p = text.data(); p != text.data() + text.size();) {
    if (*p == '\n') ++line;
    if (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') {
      ++p;
      continue;
    }
    std::int32_t id = 0;
    const auto [end, error] = std::from_chars(p, text.data() + text.size(), id);
    if (error != std::errc{}) {
      throw UsageError(fmt::format("{}:{}: token ids separated by spaces are expected", path, line));
    }
    ids.push_back(id);
    p = end;
  }
  return ids;
}

}  // namespace

int run_tokenize(const Options& options, const World& world) {
  world.agree([&] {
    if (world.rank() != 0) return;
    const Tokenizer tokenizer = open_tokenizer(options.model);
    for (const std::string& path : options.files) {
      const std::string text = read_whole(path);
      std::string out;
      if (options.decode) {
        out = tokenizer.decode(parse_ids(text, path));
      } else {
        for (const std::int32_t id : tokenizer.encode(text)) {
          if (!out.empty()) out += ' ';
          fmt::format_to(std::back_inserter(out), "{}", id);
        }
        out += '\n';
      }
      if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0) {
        throw OutputError(fmt::format("standard output: {}", std::strerror(errno)));
      }
    }
  });
  return 0;
}

}  // namespace stagecoach
