// Summaries of logits on the device: those of the host's definition, and the tokens that all logits give.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/random.hpp"
#include "runtime/token_picker.hpp"
#include "tests/cuda/device_fixture.hpp"

using namespace stagecoach;
using namespace stagecoach::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::byte kPoison{0xA5};

using Logits = std::vector<float>;

// Logits of several rows on a device, with a stride of their own.
struct OnDevice {
  OnDevice(Backend& backend, const std::vector<Logits>& rows, std::int64_t gap)
      : array(backend, DType::kFloat32, static_cast<std::int64_t>(rows.size()), vocab_of(rows), vocab_of(rows) + gap) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      std::ranges::copy(rows[r], array.host().f32(static_cast<std::int64_t>(r)));
    }
    array.send();
  }
  static std::int64_t vocab_of(const std::vector<Logits>& rows) { return static_cast<std::int64_t>(rows.at(0).size()); }
  DeviceArray array;
};

// The answers, from a poisoned buffer; what lies after them is still poison, and the logits are as they were.
std::vector<std::byte> summarize(Backend& backend, const std::vector<Logits>& rows,
                                 std::span<const LogitsQuery> queries, std::int64_t gap = 0) {
  OnDevice logits(backend, rows, gap);
  const std::vector<float> before = logits.array.values();
  const auto bytes = static_cast<std::size_t>(summary_bytes(queries));
  std::vector<std::byte> host(bytes + 64, kPoison);
  const Buffer out = backend.allocate(static_cast<std::int64_t>(host.size()));
  backend.upload(out.data(), host.data(), static_cast<std::int64_t>(host.size()));
  backend.summarize_logits(logits.array.view(), queries, out.data());
  backend.download(host.data(), out.data(), static_cast<std::int64_t>(host.size()));
  CHECK(std::all_of(host.begin() + static_cast<std::ptrdiff_t>(bytes), host.end(),
                    [](std::byte b) { return b == kPoison; }));
  const std::vector<float> after = logits.array.values();
  CHECK(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)) == 0);
  host.resize(bytes);
  return host;
}

std::int32_t any_token(Random& random, std::int64_t vocab) {
  return static_cast<std::int32_t>(random.between(0, vocab - 1));
}

// Values apart, values in few steps (ties, both zeros), falling, rising, all alike, some or nearly all minus infinity.
Logits random_logits(Random& random, std::int64_t vocab) {
  Logits row(static_cast<std::size_t>(vocab));
  const float scale = static_cast<float>(std::pow(10.0, random.value(-2.0F, 3.0F)));
  const std::int64_t shape = random.between(0, 7);
  const float same = random.value();
  for (std::size_t i = 0; i < row.size(); ++i) {
    const float slope = static_cast<float>(i) / static_cast<float>(vocab);
    row[i] = shape == 0   ? std::round(random.value(-3.0F, 3.0F)) * -0.5F
             : shape == 1 ? -scale * slope
             : shape == 2 ? scale * slope
             : shape == 3 ? same
                          : scale * random.value(-1.0F, 1.0F);
    if ((shape == 4 && random.between(0, 3) == 0) || (shape == 5 && random.between(0, 99) != 0)) row[i] = -kInf;
  }
  if (shape == 4 || shape == 5) row[static_cast<std::size_t>(any_token(random, vocab))] = scale;  // one at least
  return row;
}

std::vector<std::int32_t> some_tokens(Random& random, std::int64_t vocab) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(vocab));
  std::iota(tokens.begin(), tokens.end(), 0);
  for (std::size_t i = tokens.size() - 1; i > 0; --i) {
    std::swap(tokens[i], tokens[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)))]);
  }
  tokens.resize(static_cast<std::size_t>(random.between(0, std::min<std::int64_t>(vocab, 300))));
  return tokens;
}

SamplingOptions random_options(Random& random, std::int64_t vocab) {
  SamplingOptions o;
  o.temperature = random.between(0, 3) == 0 ? 0.0 : std::pow(10.0, random.value(-2.0F, 1.5F));
  o.top_k = random.between(0, 3) == 0 ? 0 : static_cast<std::int32_t>(random.between(1, vocab + 3));
  o.top_p = random.between(0, 1) == 0 ? 1.0 : double{random.value(0.0F, 1.0F)};
  o.repetition_penalty = random.between(0, 1) == 0 ? 1.0 : std::pow(10.0, random.value(-0.7F, 0.7F));
  return o;
}

// Backwards and forwards: rounding of one float32 sum, and of the log-probability itself.
double tolerance_of(float logprob) {
  return 2e-6 + 0x1p-23 * std::abs(double{logprob});
}

}  // namespace

TEST_CASE("summaries on the device are those of the host's definition") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = make_checking_backend(cuda_backend());
  for (const std::int64_t vocab : {1, 7, 33, 300, 1000, 4095, 4096, 9000}) {
    for (int round = 0; round < 4; ++round) {
      const auto count = static_cast<std::size_t>(random.between(1, 5));
      std::vector<Logits> rows;
      std::vector<std::vector<std::int32_t>> seen;
      std::vector<LogitsQuery> queries;
      for (std::size_t r = 0; r < count; ++r) {
        rows.push_back(random_logits(random, vocab));
        seen.push_back(some_tokens(random, vocab));
      }
      for (std::size_t r = 0; r < count; ++r) {
        constexpr std::array<std::int64_t, 8> kTops{0, 1, 2, 5, 40, 128, 255, 256};
        LogitsQuery query{static_cast<std::int32_t>(std::min(vocab, kTops.at(random.bits() % kTops.size()))),
                          any_token(random, vocab)};
        if (random.between(0, 1) == 0) query = {query.top, query.wanted, double{random.value(0.1F, 9.0F)}, seen[r]};
        queries.push_back(query);
      }
      INFO("vocab " << vocab << " round " << round);
      summarize(*backend, rows, queries, random.between(0, 3));
    }
  }
}

TEST_CASE("a vocabulary as large as GPT-2's: the largest in order, in reverse, alike and in a few threads' share") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = make_checking_backend(cuda_backend());
  constexpr std::int64_t kVocab = 50257;
  std::vector<Logits> rows(5, Logits(kVocab));
  for (std::size_t i = 0; i < kVocab; ++i) {
    rows[0][i] = 0.001F * static_cast<float>(i);
    rows[1][i] = -0.001F * static_cast<float>(i);
    rows[2][i] = -1.5F;
    // Thousands of keys outdo the largest of most threads' shares, and each of them those before it.
    rows[3][i] = i % 1024 < 200 ? 5.0F + 0.001F * static_cast<float>(i) : random.value();
    rows[4][i] = random.value(-20.0F, 20.0F);
  }
  const std::vector<std::int32_t> edges{0, 31, 32, 1023, 1024, 50255, 50256};
  const std::vector<LogitsQuery> queries{
      {256, 0}, {256, 50256, 2.0, edges}, {40, 7, 0.5, edges}, {256, 1, 1.3, edges}, {1, 2, 5.0, edges}};
  summarize(*backend, rows, queries, 3);
  const std::vector<LogitsQuery> greedy(5, LogitsQuery{.top = 1});
  summarize(*backend, rows, greedy);
}

TEST_CASE("what is wrong with logits is told, and does not reach the rows beside them") {
  const std::unique_ptr<Backend> backend = cuda_backend();
  std::vector<Logits> rows(5, Logits(100, 0.5F));
  rows[0][99] = kNan;
  rows[1][40] = kInf;
  std::ranges::fill(rows[2], -kInf);
  rows[3][3] = -3e38F;
  rows[3][5] = 3e38F;
  rows[4][0] = -kNan;
  rows[4][7] = kInf;
  for (const std::int32_t top : {0, 1, 3, 100}) {
    const std::vector<LogitsQuery> queries(5, LogitsQuery{top, 5});
    const std::vector<std::byte> bytes = summarize(*backend, rows, queries);
    const std::byte* at = bytes.data();
    const bool sound[] = {false, false, false, true, false};
    for (std::size_t r = 0; r < 5; ++r) {
      const LogitsSummary summary = read_summary(at, queries[r]);
      INFO("row " << r << " top " << top);
      CHECK(summary.sound() == sound[r]);
      CHECK((summary.totals->has_nan != 0) == (r == 0 || r == 4));
      if (r != 3) continue;
      CHECK(summary.totals->largest == 3e38F);
      CHECK(summary.totals->sum == 1.0F);
      CHECK(summary.log_probability(summary.totals->wanted) == 0.0F);
      if (top > 0) CHECK(summary.top[0].token == 5);
      if (top == 100) CHECK(summary.top[99].token == 3);
    }
  }
  // Finite as they are, but not after the penalty.
  const std::vector<std::int32_t> five{5};
  const std::vector<LogitsQuery> query{{1, 0, 0.001, five}};
  const std::vector<std::byte> bytes = summarize(*backend, {rows[3]}, query);
  const std::byte* at = bytes.data();
  CHECK_FALSE(read_summary(at, query[0]).sound());
}

TEST_CASE("queries that make no sense are refused") {
  const std::unique_ptr<Backend> cuda = cuda_backend();
  const std::unique_ptr<Backend> reference = make_reference_backend();
  for (Backend* backend : {cuda.get(), reference.get()}) {
    DeviceArray logits(*backend, DType::kFloat32, 1, 300);
    const Buffer out = backend->allocate(kMostSummaryBytes);
    const auto refused = [&](const std::vector<LogitsQuery>& queries) {
      CHECK_THROWS_AS(backend->summarize_logits(logits.view(), queries, out.data()), std::invalid_argument);
    };
    const std::vector<std::int32_t> stray{3, 300};
    refused({});
    refused({{}, {}});
    refused({{257, 0}});
    refused({{-1, 0}});
    refused({{1, 300}});
    refused({{1, -1}});
    refused({{1, 0, 2.0, stray}});
    refused({{1, 0, 0.0}});
    CHECK_THROWS_AS(backend->summarize_logits(logits.view(), std::vector<LogitsQuery>(1), nullptr),
                    std::invalid_argument);
    DeviceArray few(*backend, DType::kFloat32, 1, 7);
    CHECK_THROWS_AS(backend->summarize_logits(few.view(), std::vector<LogitsQuery>{{8, 0}}, out.data()),
                    std::invalid_argument);
  }
}

TEST_CASE("a row's summary does not depend on the rows beside it, nor on how rows are laid out") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = cuda_backend();
  for (const std::int64_t vocab : {50, 5000}) {
    std::vector<Logits> rows;
    std::vector<LogitsQuery> queries;
    const std::vector<std::int32_t> seen = some_tokens(random, vocab);
    for (std::int32_t r = 0; r < 4; ++r) {
      rows.push_back(random_logits(random, vocab));
      queries.push_back({10 * r, r, 1.0 + 0.3 * r, seen});
    }
    const std::vector<std::byte> together = summarize(*backend, rows, queries);
    std::vector<std::byte> apart;
    for (std::size_t r = 0; r < 4; ++r) {
      const std::vector<std::byte> one = summarize(*backend, {rows[r]}, std::span(queries).subspan(r, 1), 5);
      apart.insert(apart.end(), one.begin(), one.end());
    }
    CHECK(together == apart);
  }
}

TEST_CASE("picked tokens are those of all logits, for any options") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = cuda_backend();
  int rows_picked = 0;
  std::size_t differing = 0;
  for (const std::int64_t vocab : {1, 2, 7, 33, 200, 256, 257, 600, 5000}) {
    constexpr std::int32_t kRows = 32;
    TokenPicker picker(*backend, kRows, vocab);
    SlotSampler on_device(kRows, static_cast<std::int32_t>(vocab));
    SlotSampler on_host(kRows, static_cast<std::int32_t>(vocab));
    for (int round = 0; round < (vocab < 1000 ? 16 : 2); ++round) {
      std::vector<Logits> logits;
      std::vector<SlotCommand> commands;
      std::vector<Row> asked;
      std::vector<Row> fed;
      for (std::int32_t r = 0; r < kRows; ++r) {
        logits.push_back(random_logits(random, vocab));
        SlotCommand command{SlotCommand::Kind::kSampling, r};
        command.sampling = {random_options(random, vocab), random.bits(), static_cast<std::uint32_t>(r)};
        commands.push_back({SlotCommand::Kind::kDrop, r});
        commands.push_back(command);
        const std::int32_t position = any_token(random, 1000);
        if (random.between(0, 7) == 0) {
          asked.push_back({0, r, position, kRowScore, any_token(random, vocab)});
        } else {
          asked.push_back({0, r, position, kRowSample | kRowLogprob});
        }
        for (const std::int32_t token : some_tokens(random, vocab)) fed.push_back({token, r, 0, 0});
      }
      for (SlotSampler* sampler : {&on_device, &on_host}) {
        sampler->apply(commands);
        sampler->feed(fed);
      }
      OnDevice array(*backend, logits, 0);
      std::vector<PickedToken> picked;
      picker.pick(
          on_device, asked, array.array.view(), [] {}, picked);
      REQUIRE(picked.size() == asked.size());
      for (std::size_t r = 0; r < asked.size(); ++r) {
        const PickedToken expected = on_host.pick(asked[r], logits[r]);
        INFO("vocab " << vocab << " round " << round << " row " << r);
        CHECK(picked[r].slot == expected.slot);
        CHECK(picked[r].token == expected.token);
        if (picked[r].logprob == expected.logprob) continue;  // minus infinity too
        CHECK(std::abs(double{picked[r].logprob} - double{expected.logprob}) <= tolerance_of(expected.logprob));
        ++differing;
      }
      rows_picked += kRows;
    }
  }
  MESSAGE(rows_picked << " rows, " << differing << " log-probabilities rounded otherwise");
}

TEST_CASE("draws from the largest logits are those from all of them") {
  Random random = fresh_random();
  const std::unique_ptr<Backend> backend = cuda_backend();
  Sampler sampler;
  for (int round = 0; round < 40; ++round) {
    const std::int64_t vocab = random.between(1, 60);
    const Logits row = random_logits(random, vocab);
    const std::vector<std::int32_t> seen = some_tokens(random, vocab);
    SamplingOptions options = random_options(random, vocab);
    if (options.top_k == 0) options.top_k = 300;
    const std::vector<LogitsQuery> query{
        {std::min(options.top_k, static_cast<std::int32_t>(vocab)), 0, options.repetition_penalty, seen}};
    const std::vector<std::byte> bytes = summarize(*backend, {row}, query);
    const std::byte* at = bytes.data();
    const LogitsSummary summary = read_summary(at, query[0]);
    REQUIRE(summary.sound());
    for (int draw = 0; draw < 100; ++draw) {
      const double u = draw == 0 ? 0.0 : draw == 1 ? 0x1.fffffffffffffp-1 : uniform(random.bits(), 0, 0);
      CHECK(sampler.pick(summary.top, options, u) == sampler.pick(row, options, seen, u));
    }
  }
}

TEST_CASE("damaged logits end with the host's own words") {
  const std::unique_ptr<Backend> backend = cuda_backend();
  TokenPicker picker(*backend, 2, 50);
  SlotSampler sampler(2, 50);
  std::vector<PickedToken> picked;
  const auto pick = [&](const Logits& damaged, std::uint32_t flags) {
    OnDevice array(*backend, {Logits(50, 1.0F), damaged}, 0);
    picker.pick(
        sampler, std::vector<Row>{{0, 0, 0, kRowSample}, {0, 1, 0, flags, 3}}, array.array.view(), [] {}, picked);
  };
  Logits damaged(50, 0.0F);
  pick(damaged, kRowSample);
  CHECK(picked.size() == 2);
  damaged[7] = kNan;
  for (const std::uint32_t flags : {kRowSample, kRowScore}) {
    CHECK_THROWS_WITH(pick(damaged, flags),
                      "the logit of token 7 is not a number: the weights overflow or are damaged");
  }
  damaged[7] = kInf;
  for (const std::uint32_t flags : {kRowSample, kRowScore}) {
    CHECK_THROWS_WITH(pick(damaged, flags),
                      "the largest logit, of token 7, is inf: the weights overflow or are damaged");
  }
  CHECK_THROWS_AS(picker.pick(
                      sampler, std::vector<Row>{{0, 0, 0, kRowScore, 50}},
                      OnDevice(*backend, {Logits(50)}, 0).array.view(), [] {}, picked),
                  WireError);
}
