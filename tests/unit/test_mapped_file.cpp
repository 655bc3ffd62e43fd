// Mapped files: what they hold, and that a change or a loss is told, without the end of the process.
#include "runtime/mapped_file.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime/weight_source.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

constexpr std::size_t kPage = 4096;

std::string random_text(std::size_t bytes) {
  std::mt19937 random(std::random_device{}());
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

std::string text_of(const MappedFile& mapped) {
  return {reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()};
}

// File times may be as coarse as the system's clock tick.
void let_time_pass() {
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
}

void write_at(const std::string& path, off_t offset, const std::string& text) {
  const int file = ::open(path.c_str(), O_WRONLY);
  REQUIRE(file >= 0);
  CHECK(::pwrite(file, text.data(), text.size(), offset) == static_cast<ssize_t>(text.size()));
  ::close(file);
}

}  // namespace

TEST_CASE("a mapped file has the bytes of the file, also once it was removed or replaced") {
  const TemporaryDirectory folder;
  const std::string path = folder.name() + "/weights";
  const std::string text = random_text(5 * kPage + 123);
  folder.write("weights", text);
  const InputFile file(path);
  const MappedFile mapped(file);
  const auto expect_text = [&] {
    const bool same = text_of(mapped) == text;
    CHECK(same);
    CHECK_NOTHROW(mapped.check());
  };
  mapped.expect(kPage + 7, 2 * kPage);
  mapped.expect(0, static_cast<std::int64_t>(text.size()));
  expect_text();
  let_time_pass();
  folder.write("other", "short");
  std::filesystem::rename(folder.name() + "/other", path);
  expect_text();
  std::filesystem::remove(path);
  expect_text();
}

TEST_CASE("a mapped file that was changed says so") {
  const std::string text = random_text(3 * kPage);
  const std::function<void(const std::string&)> changes[] = {
      [](const std::string& path) { write_at(path, kPage + 5, "x"); },
      [&](const std::string& path) { write_at(path, 0, text); },  // the same bytes: nobody can know
      [&](const std::string& path) { write_at(path, 3 * kPage, "more"); },
      [](const std::string& path) { std::filesystem::resize_file(path, 3 * kPage - 1); },
      [](const std::string& path) { std::filesystem::resize_file(path, 4 * kPage); },
  };
  for (const auto& change : changes) {
    const TemporaryDirectory folder;
    folder.write("weights", text);
    const std::string path = folder.name() + "/weights";
    const InputFile file(path);
    const MappedFile mapped(file);
    CHECK_NOTHROW(mapped.check());
    let_time_pass();
    change(path);
    CHECK(contains(message_of<std::runtime_error>([&] { mapped.check(); }),
                   path + ": was changed while weights were used in it (--map-weights); leave it alone"));
  }
}

TEST_CASE("bytes of a file that was cut read as zeros, by any number of threads, and that is told; others stay") {
  const TemporaryDirectory folder;
  const std::string text = random_text(64 * kPage);
  folder.write("whole", text);
  const InputFile other(folder.name() + "/whole");
  for (int round = 0; round < 3; ++round) {  // places of mappings are used again
    folder.write("cut", text);
    const InputFile file(folder.name() + "/cut");
    const MappedFile mapped(file);
    const MappedFile whole(other);
    std::filesystem::resize_file(folder.name() + "/cut", kPage);
    std::vector<int> sums(4);
    {
      std::vector<std::jthread> threads;
      for (std::size_t t = 0; t < sums.size(); ++t) {
        threads.emplace_back([&, t] {
          for (std::size_t at = mapped.bytes().size(); at > 2 * kPage; at -= 64) {
            sums[t] += static_cast<int>(mapped.bytes()[at - 1 - t]);
          }
        });
      }
    }
    CHECK(std::accumulate(sums.begin(), sums.end(), 0) == 0);
    CHECK(contains(message_of<std::runtime_error>([&] { mapped.check(); }), "cut: was cut, or its disk failed, while"));
    CHECK_NOTHROW(whole.check());
    const bool same = text_of(whole) == text;
    CHECK(same);
  }
}

TEST_CASE("a file that is empty, or that was cut after it was opened, is not mapped") {
  const TemporaryDirectory folder;
  folder.write("empty", "");
  const InputFile empty(folder.name() + "/empty");
  CHECK(contains(message_of<WeightError>([&] { const MappedFile mapped(empty); }), "empty: cannot map: it is empty"));
  folder.write("cut", random_text(2 * kPage));
  const InputFile cut(folder.name() + "/cut");
  std::filesystem::resize_file(folder.name() + "/cut", kPage);
  CHECK(contains(message_of<WeightError>([&] { const MappedFile mapped(cut); }), "cut: cannot map: its size"));
}

TEST_CASE("an error of someone else's mapping still ends the process") {
  const TemporaryDirectory folder;
  folder.write("weights", random_text(kPage));
  folder.write("theirs", random_text(2 * kPage));
  const InputFile file(folder.name() + "/weights");
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);  // where a sanitizer would tell of it
    std::signal(SIGBUS, SIG_DFL);
    const MappedFile mapped(file);
    const int theirs = ::open((folder.name() + "/theirs").c_str(), O_RDONLY);
    const auto* bytes = static_cast<volatile char*>(::mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, theirs, 0));
    std::filesystem::resize_file(folder.name() + "/theirs", kPage);
    static_cast<void>(bytes[kPage]);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGBUS);
}
