// What a killed job leaves: everything that was durable, nothing that was not, whatever happened to the file.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "runtime/journal.hpp"
#include "runtime/results.hpp"
#include "runtime/wire.hpp"
#include "tests/rounds.hpp"
#include "tests/unit/safetensors_builder.hpp"

using namespace stagecoach;

namespace {

const JobIdentity kJob{{{"command", "generate"}, {"--seed", "7"}, {"prompts", "3 with hash 1"}}};

bool same(const Sample& a, const Sample& b) {
  return a.index == b.index && a.sample == b.sample && a.prompt_tokens == b.prompt_tokens && a.tokens == b.tokens &&
         a.logprobs == b.logprobs && a.finish == b.finish && a.text_bytes == b.text_bytes;
}

Sample random_sample(std::mt19937& random, std::int64_t index, std::int32_t number) {
  Sample sample;
  sample.index = index;
  sample.sample = number;
  sample.prompt_tokens = static_cast<std::int32_t>(random() % 1000);
  sample.tokens.resize(random() % 40);
  for (std::int32_t& token : sample.tokens) token = static_cast<std::int32_t>(random() % 50257);
  sample.logprobs.resize(random() % 3 == 0 ? 0 : sample.tokens.size());
  for (float& value : sample.logprobs) value = -static_cast<float>(random() % 100000) / 7777.0F;
  sample.finish = static_cast<FinishReason>(random() % 3);
  sample.text_bytes = sample.finish == FinishReason::kStop ? static_cast<std::int64_t>(random() % 100) : -1;
  return sample;
}

void record_one(Journal& journal, std::mt19937& random) {
  journal.append(random_sample(random, 0, 0));
  journal.sync();
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void put_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::vector<Sample> all_recorded(const Journal& journal, std::int64_t prompts) {
  std::vector<Sample> all;
  for (std::int64_t i = 0; i < prompts; ++i) std::ranges::move(journal.recorded(i), std::back_inserter(all));
  return all;
}

}  // namespace

TEST_CASE("what was recorded is there again, by prompt and number, each once") {
  std::mt19937 random(std::random_device{}());
  const test::TemporaryDirectory folder;
  const std::string output = folder.name() + "/o.jsonl";
  std::vector<Sample> samples;
  for (std::int64_t index = 0; index < 30; ++index) {
    for (std::int32_t number = 0; number < 4; ++number) samples.push_back(random_sample(random, index, number));
  }
  std::vector<Sample> order = samples;
  std::ranges::shuffle(order, random);
  for (std::size_t i = 0; i < order.size(); i += 20) {  // six runs, each kills the one before
    Journal journal(output, kJob, false, {});
    CHECK(journal.recorded_samples() == static_cast<std::int64_t>(i));
    for (std::size_t k = i; k < i + 20; ++k) journal.append(order[k]);
    if (i > 0) journal.append(order[i - 1]);  // once more
    journal.sync();
  }
  const Journal journal(output, kJob, false, {});
  CHECK(journal.damaged_bytes() == 0);
  CHECK(std::ranges::equal(all_recorded(journal, 30), samples, same));
}

TEST_CASE("cut anywhere, the journal has every record before the cut; flipped anywhere, all records but one") {
  std::mt19937 random(std::random_device{}());
  const test::TemporaryDirectory folder;
  const std::string output = folder.name() + "/o.jsonl";
  const std::string path = Journal::path_of(output);
  std::vector<Sample> samples;
  std::vector<std::size_t> ends;
  {
    Journal journal(output, kJob, false, {});
    for (std::int32_t i = 0; i < 25; ++i) {
      samples.push_back(random_sample(random, i, 0));
      journal.append(samples.back());
      journal.sync();
      ends.push_back(bytes_of(path).size());
    }
  }
  const std::string whole = bytes_of(path);
  for (int round = 0; round < test::rounds(200); ++round) {
    const std::size_t cut = random() % (whole.size() + 1);
    put_bytes(path, whole.substr(0, cut));
    const auto expected = std::ranges::count_if(ends, [cut](std::size_t end) { return end <= cut; });
    {
      const Journal journal(output, kJob, false, {});
      CHECK(journal.recorded_samples() == expected);
      CHECK(std::ranges::equal(all_recorded(journal, 25), std::span(samples).first(static_cast<std::size_t>(expected)),
                               same));
    }
    std::string flipped = whole;
    const std::size_t at = random() % whole.size();
    flipped[at] = static_cast<char>(flipped[at] ^ static_cast<char>(1U << (random() % 8)));
    put_bytes(path, flipped);
    const Journal journal(output, kJob, false, {});
    CAPTURE(at);
    CHECK(journal.recorded_samples() >= 24);
    CHECK(journal.damaged_bytes() > 0);
    for (const Sample& sample : all_recorded(journal, 25)) {
      CHECK(same(sample, samples[static_cast<std::size_t>(sample.index)]));
    }
  }
}

TEST_CASE("another job's journal is refused with what changed, unless it is to be begun anew") {
  std::mt19937 random(std::random_device{}());
  const test::TemporaryDirectory folder;
  const std::string output = folder.name() + "/o.jsonl";
  {
    Journal journal(output, kJob, false, {});
    record_one(journal, random);
  }
  JobIdentity other = kJob;
  other.parts[1].second = "8";
  const auto open_other = [&] { const Journal journal(output, other, false, {}); };
  CHECK_THROWS_WITH_AS(open_other(),
                       (Journal::path_of(output) +
                        ": this job was begun with --seed 7, and now it is 8; start it again as it was, give --fresh "
                        "to begin anew, or another --output")
                           .c_str(),
                       JournalMismatch);
  CHECK(Journal(output, kJob, false, {}).recorded_samples() == 1);
  {
    Journal journal(output, other, true, {});
    CHECK(journal.recorded_samples() == 0);
    record_one(journal, random);
  }
  CHECK_THROWS_AS(Journal(output, kJob, false, {}), JournalMismatch);
}

TEST_CASE("complete results are known again by their bytes") {
  std::mt19937 random(std::random_device{}());
  const test::TemporaryDirectory folder;
  const std::string output = folder.name() + "/o.jsonl";
  {
    Journal journal(output, kJob, false, {});
    record_one(journal, random);
    put_bytes(output, "results\n");
    journal.finish("3 texts");
  }
  CHECK(Journal(output, kJob, false, {}).complete() == "3 texts");
  CHECK_FALSE(Journal(output, kJob, true, {}).complete());
  {
    Journal journal(output, kJob, false, {});  // --fresh had begun anew
    put_bytes(output, "results\n");
    journal.finish("3 texts");
  }
  put_bytes(output, "resultS\n");
  CHECK_FALSE(Journal(output, kJob, false, {}).complete());
  // A job that never finished anything leaves nothing.
  CHECK_FALSE(std::filesystem::exists(Journal::path_of(output)));
}

TEST_CASE("one writer: a second waits for the first; one that was cut off notices that it was replaced") {
  std::mt19937 random(std::random_device{}());
  const test::TemporaryDirectory folder;
  const std::string output = folder.name() + "/o.jsonl";
  auto first = std::make_unique<Journal>(output, kJob, false, std::function<void()>{});
  record_one(*first, random);
  int waits = 0;
  {
    const Journal second(output, kJob, false, [&] {
      if (++waits == 2) first.reset();
    });
    CHECK(waits == 2);
    CHECK(second.recorded_samples() == 1);
  }
  const auto impatient = [&] {
    const Journal holder(output, kJob, false, {});
    const Journal other(output, kJob, false, [] { throw std::runtime_error("enough"); });
  };
  CHECK_THROWS_WITH(impatient(), "enough");

  Journal cut_off(output, kJob, false, {});
  cut_off.append(random_sample(random, 1, 0));
  // Its host is gone, and the lock with it: someone else's journal takes the name.
  put_bytes(Journal::path_of(output) + ".other", bytes_of(Journal::path_of(output)));
  std::filesystem::rename(Journal::path_of(output) + ".other", Journal::path_of(output));
  CHECK_THROWS_AS(cut_off.sync(), OutputError);
  CHECK_THROWS_AS(cut_off.require_mine(), OutputError);
  const std::string theirs = bytes_of(Journal::path_of(output));
  put_bytes(output, "results\n");
  CHECK_THROWS_AS(cut_off.finish(""), OutputError);
  CHECK(bytes_of(Journal::path_of(output)) == theirs);
}

TEST_CASE("records of samples survive any change of bytes as themselves or not at all") {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < test::rounds(2000); ++round) {
    const Sample sample = random_sample(random, static_cast<std::int64_t>(random()), 3);
    std::vector<std::byte> record = record_of(5, sample);
    CHECK(same(sample_of(record), sample));
    record[random() % record.size()] ^= static_cast<std::byte>(1U << (random() % 8));
    CHECK_THROWS_AS(sample_of(record), WireError);
    CHECK(read_journal(record, 5).samples.empty());
  }
}
