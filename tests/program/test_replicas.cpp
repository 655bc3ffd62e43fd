// Several pipelines share the prompts: the same file whatever the grid, whoever is slow, dies or is told to stop.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <future>
#include <random>
#include <regex>
#include <string>
#include <system_error>
#include <thread>

#include "tests/program/shared_runs.hpp"

using namespace stagecoach::test;

namespace {

const std::string kModel =
    " --model synthetic:gpt2,n_layer=4,n_embd=64,n_head=2,n_positions=300,vocab_size=400,seed=1 ";
// A step of it takes long enough that another process can be in its way.
const std::string kSlowModel =
    " --model synthetic:gpt2,n_layer=8,n_embd=256,n_head=4,n_positions=300,vocab_size=2000,dtype=float32,seed=1 ";

// A page of it takes 1 MiB.
const std::string kPagesModel =
    " --model synthetic:gpt2,n_layer=8,n_embd=256,n_head=4,n_positions=300,vocab_size=400,seed=1,dtype=float16 ";

std::string prompts_of(int count, std::mt19937& random) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    lines += "{\"tokens\":[7";
    for (auto t = random() % 50; t > 0; --t) lines += fmt::format(",{}", random() % 400);
    lines += fmt::format("],\"max_new_tokens\":{},\"num_samples\":{}}}\n", 1 + random() % 30, 1 + random() % 4);
  }
  return lines;
}

constexpr GridOption kGrids[] = {{0, "--replicas 2"},
                                 {0, "--replicas 2 --stages 2 --threads 1"},
                                 {0, "--replicas 3 --stages 4"},
                                 {2, "--replicas 2"},
                                 {4, "--replicas 2"},
                                 {4, "--replicas 4 --stages 1"},
                                 {6, "--replicas 3 --threads 1"}};

// "samples by replica: 60, 40" as numbers.
std::vector<int> shares(const std::string& said) {
  std::smatch found;
  std::vector<int> numbers;
  if (!std::regex_search(said, found, std::regex("samples by replica: ([0-9, ]+)"))) return numbers;
  const std::string list = found[1];
  const std::regex number("[0-9]+");
  for (std::sregex_iterator it(list.begin(), list.end(), number), end; it != end; ++it) {
    numbers.push_back(std::stoi(it->str()));
  }
  return numbers;
}

}  // namespace

TEST_CASE("every grid writes the same file, in input order") {
  const unsigned seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  const ScratchFolder folder;
  const std::string output = folder / "o.jsonl";
  const std::vector<std::string> commands = {
      "generate --temperature 0.9 --repetition-penalty 1.2 --logprobs --ignore-eos" + kModel,
      "generate --logprobs --chunk-tokens 16" + kModel, "score --stride 100" + kModel};
  for (const int prompts : {60, 3, 1}) {
    write_file(folder / "p.jsonl", prompts_of(prompts, random));
    // Of fewer prompts than ranks one command by chance.
    const auto some = prompts == 60 ? std::span(commands) : std::span(commands).subspan(random() % commands.size(), 1);
    for (const std::string& command : some) {
      const std::string all = command + "--fresh -v --prompts " + (folder / "p.jsonl") + " --output " + output + " ";
      check_grids(all, output, kGrids, 60, [](const Ended& ended) { CHECK(shares(ended.err).size() > 1); });
    }
  }
}

TEST_CASE("when pages run out sequences are put back, and the file is the same") {
  const ScratchFolder folder;
  const std::string output = folder / "o.jsonl";
  std::string lines;
  for (int i = 0; i < 24; ++i) {  // all grow by two pages, five or six begin together
    lines += fmt::format("{{\"tokens\":[{},5,7],\"max_new_tokens\":{}}}\n", i, 170 + i % 20);
  }
  write_file(folder / "p.jsonl", lines);
  const std::string all = "generate --temperature 0.8 --logprobs --ignore-eos --fresh -v --threads 1" + kPagesModel +
                          "--prompts " + (folder / "p.jsonl") + " --output " + output + " ";
  REQUIRE(run_program(0, all, 120).status == 0);
  const std::string expected = read_file(output);
  for (const GridOption& grid : {GridOption{0, ""}, GridOption{2, ""}, GridOption{2, "--replicas 2"}}) {
    // What it says that it needs is for one sequence: a few pages more are far from enough for all.
    const bool pipeline = grid.ranks == 2 && std::string(grid.options).empty();  // pages of half the size
    const Ended refused = run_program(grid.ranks, all + grid.options + " --memory-per-rank 40MiB", 120);
    std::smatch needs;
    INFO(refused.err);
    REQUIRE(refused.status == 3);
    REQUIRE(std::regex_search(refused.err, needs, std::regex("needs ([0-9]+)\\.[0-9] MiB")));
    std::filesystem::remove(output);
    const Ended ended = run_program(
        grid.ranks,
        fmt::format("{}{} --memory-per-rank {}MiB", all, grid.options, std::stoi(needs[1]) + (pipeline ? 7 : 12)), 240);
    INFO(ended.err);
    CHECK(ended.status == 0);
    const bool same = read_file(output) == expected;
    CHECK(same);
    CHECK(ended.says("put back for want of pages"));
    // Of two replicas only the first tells, and half of the prompts may be few enough for it.
    if (std::string(grid.options).empty()) CHECK(!ended.says("for want of pages: 0;"));
  }
}

TEST_CASE("grids that cannot be are refused once, before anything runs") {
  const auto refused = [](int ranks, const std::string& options, const std::string& message) {
    const Ended ended = run_program(ranks, "generate --prompt x" + kModel + options);
    INFO(ended.err);
    CHECK(ended.status == 2);
    CHECK(ended.messages() == 1);
    CHECK(ended.says(message));
  };
  refused(3, "--replicas 2", "3 ranks are not 2 replicas");
  refused(4, "--stages 2", "4 ranks but 2 stages; start 2 ranks (mpirun -n 2), or give --replicas 2");
  refused(4, "--stages 2 --replicas 4", "4 ranks but 4 replicas of 2 stages; start 8 ranks");
  refused(0, "--replicas 0", "--replicas: 0 is not a number from 1");
  const ScratchFolder folder;
  write_file(folder / "run.yaml", "pipeline: {replicas: 2, stages: [{blocks: [0, 1]}, {blocks: [2, 3]}]}\n");
  const Ended bench = run_program(4, "bench" + kModel + "--config " + (folder / "run.yaml"));
  CHECK(bench.status == 2);
  CHECK(bench.says("replicas: bench measures one pipeline"));
}

TEST_CASE("without --output too, and one prompt still comes as it is made") {
  const std::string demo = "generate --max-new-tokens 10 --model " STAGECOACH_SOURCE_DIR "/configs/demo ";
  for (const std::string& prompts :
       {std::string("--prompt 'The coach'"), std::string("--prompt 'The coach' --prompt A")}) {
    const Ended plain = run_program(0, demo + prompts);
    REQUIRE(plain.status == 0);
    CHECK(run_program(0, demo + prompts + " --replicas 2").out == plain.out);
    CHECK(run_program(4, demo + prompts + " --replicas 2").out == plain.out);
    CHECK(run_program(2, demo + prompts + " --replicas 2 --stop ' '").out ==
          run_program(0, demo + prompts + " --stop ' '").out);
  }
}

TEST_CASE("a slow replica gets fewer prompts, and is not accused of silence") {
  const ScratchFolder folder;
  std::string lines;
  for (int i = 0; i < 400; ++i) lines += fmt::format("{{\"tokens\":[{},5,7]}}\n", i);
  write_file(folder / "p.jsonl", lines);
  const std::string output = folder / "o.jsonl";
  const std::string command =
      "generate --ignore-eos --max-new-tokens 20 --threads 1 --in-flight 1 --timeout 2 -v --prompts " +
      (folder / "p.jsonl") + " --output " + output + kSlowModel + "--replicas 2";
  auto job = std::async(std::launch::async, [&] { return run_program(2, command, 120); });
  std::vector<int> pids;
  bool over = false;
  while (!over) {  // stops rank 1 for most of its time
    over = job.wait_for(std::chrono::milliseconds(20)) == std::future_status::ready;
    const std::vector<pid_t> ranks = ranks_with(output, 2);
    if (ranks[1] == 0 || !std::filesystem::exists(output + ".partial")) continue;
    kill(ranks[1], SIGSTOP);
    over = job.wait_for(std::chrono::milliseconds(200)) == std::future_status::ready;
    kill(ranks[1], SIGCONT);
  }
  const Ended ended = job.get();
  INFO(ended.err);
  REQUIRE(ended.status == 0);
  const std::vector<int> by_replica = shares(ended.err);
  REQUIRE(by_replica.size() == 2);
  CHECK(by_replica[0] + by_replica[1] == 400);
  CHECK(by_replica[0] > 2 * by_replica[1]);
  CHECK(by_replica[1] > 0);
}

TEST_CASE("a rank of any replica that dies or falls silent ends the job, which goes on when started again") {
  std::mt19937 random(std::random_device{}());
  const ScratchFolder folder;
  std::string lines;
  for (int i = 0; i < 300; ++i) lines += fmt::format("{{\"tokens\":[{},5,7]}}\n", i);
  write_file(folder / "p.jsonl", lines);
  const std::string command = "generate --ignore-eos --max-new-tokens 30 --threads 1 --timeout 3 --prompts " +
                              (folder / "p.jsonl") + kSlowModel + "--output ";
  REQUIRE(run_program(0, command + (folder / "whole.jsonl"), 120).status == 0);
  const std::string expected = read_file(folder / "whole.jsonl");
  const std::string output = folder / "o.jsonl";
  for (const int signal : {SIGKILL, SIGSTOP, SIGUSR1}) {
    for (const int victim : {0, 2, 3}) {  // its leader and the others' desk, another leader, and that one's follower
      if (signal != SIGSTOP && victim == 2 + (signal == SIGUSR1 ? 1 : 0)) continue;  // much the same
      CAPTURE(signal);
      std::filesystem::remove(output);
      CAPTURE(victim);
      auto job = std::async(std::launch::async,
                            [&] { return run_program(4, command + output + " --replicas 2 --fresh", 120); });
      for (int i = 0; i < 6000; ++i) {
        std::error_code none_yet;
        const auto bytes = std::filesystem::file_size(output + ".journal", none_yet);
        if (!none_yet && bytes > 3000 && ranks_with(output, 4)[0] != 0) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      const std::vector<pid_t> pids = ranks_with(output, 4);
      REQUIRE(pids[static_cast<std::size_t>(victim)] != 0);
      kill(pids[static_cast<std::size_t>(victim)], signal);
      const auto start = std::chrono::steady_clock::now();
      const Ended ended = job.get();
      INFO(ended.err);
      CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 20.0);
      CHECK(ended.has_status(signal == SIGKILL ? 137 : signal == SIGSTOP ? 1 : 75));
      CHECK(ended.messages() <= 1);
      if (signal != SIGKILL) CHECK(ended.messages() == 1);
      if (signal == SIGSTOP) CHECK(ended.says("heard nothing from "));
      CHECK(all_gone(output));
      REQUIRE(!std::filesystem::exists(output));
      REQUIRE(run_program(random() % 2 == 0 ? 0 : 2, command + output + " --replicas 2", 120).status == 0);
      const bool same = read_file(output) == expected;
      CHECK(same);
    }
  }
}
