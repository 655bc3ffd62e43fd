#include "launch/same_everywhere.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "launch/command_line.hpp"
#include "launch/sources.inc"  // kSources, made by the build
#include "runtime/model_identity.hpp"

namespace stagecoach {
namespace {

// What a rank runs, and where.
struct Installed {
  std::string program;
  std::string path;
  std::string host;
};

// Its bytes are those of a failed first step of start-up (launch/world.cpp), as which versions before this check take
// them.
std::string bytes_of(const Installed& installed) {
  return fmt::format("\2{}\n{}\n{}", installed.program, installed.path, installed.host);
}

Installed installed_of(const std::vector<std::byte>& bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t program_end = text.find('\n');
  const std::size_t path_end = text.find('\n', program_end == std::string::npos ? program_end : program_end + 1);
  if (path_end == std::string::npos || text.front() != '\2') return {"an older version", "", "not known"};
  return {text.substr(1, program_end - 1), text.substr(program_end + 1, path_end - program_end - 1),
          text.substr(path_end + 1)};
}

std::string own_path() {
  std::error_code failed;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", failed);
  return failed ? "" : path.string();
}

}  // namespace

std::string_view source_fingerprint() {
  return kSources;
}

void require_same_program(const World& world) {
  if (world.size() == 1) return;
  const Installed mine{version_text({fmt::format("sources {}", source_fingerprint())}), own_path(), world.host()};
  const std::string bytes = bytes_of(mine);
  std::vector<Installed> all;
  for (const auto& other : world.from_all(std::as_bytes(std::span(bytes)))) all.push_back(installed_of(other));
  world.agree([&] {
    const Installed& first = all.front();
    const auto differs = [&first](const Installed& other) { return other.program != first.program; };
    const auto found = std::ranges::find_if(all, differs);
    if (found == all.end()) return;
    const auto others = std::ranges::count_if(all, differs) - 1;
    throw UsageError(
        fmt::format("{}{} runs another program than {}: {} {} there, {} {} here; install one version on all hosts",
                    world.name_of(static_cast<std::int32_t>(found - all.begin())),
                    others > 0 ? fmt::format(", like {} more,", others) : "", world.name_of(0), found->path,
                    found->program, first.path, first.program));
  });
}

void require_same_model(const World& world, const Model& model) {
  if (world.size() == 1) return;
  std::string mine;
  world.agree([&] { mine = weights_identity(model); });
  const auto all = world.from_all(std::as_bytes(std::span(mine)));
  world.agree([&] {
    const auto identity = [](const std::vector<std::byte>& of) { return std::span(of).first(kIdentitySize); };
    const auto found = std::ranges::find_if(
        all, [&](const auto& other) { return !std::ranges::equal(identity(other), identity(all.front())); });
    if (found == all.end()) return;
    throw UsageError(fmt::format("{}: {} has another model there than {}; copy the same files to all hosts", model.name,
                                 world.name_of(static_cast<std::int32_t>(found - all.begin())), world.name_of(0)));
  });
}

}  // namespace stagecoach
