#include "runtime/synthetic.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#include "kernels/convert.hpp"
#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/model_config.hpp"
#include "runtime/row_range.hpp"

namespace stagecoach {
namespace {

constexpr std::string_view kScheme = "synthetic:";

struct Preset {
  std::string_view name;
  std::int32_t n_layer, n_head, n_embd;
};
constexpr Preset kPresets[] = {
    {"gpt2", 12, 12, 768}, {"gpt2-medium", 24, 16, 1024}, {"gpt2-large", 36, 20, 1280}, {"gpt2-xl", 48, 25, 1600}};
constexpr std::string_view kConfigKeys[] = {"n_layer",
                                            "n_head",
                                            "n_embd",
                                            "n_inner",
                                            "n_positions",
                                            "vocab_size",
                                            "activation_function",
                                            "layer_norm_epsilon",
                                            "scale_attn_weights",
                                            "scale_attn_by_inverse_layer_idx",
                                            "reorder_and_upcast_attn",
                                            "tie_word_embeddings",
                                            "eos_token_id"};
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

// SplitMix64's finalizer (Steele, Lea and Flood 2014): every output bit depends on every input bit.
constexpr std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}
constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15U;

std::uint64_t key_of(std::uint64_t seed, std::string_view tensor) {
  std::uint64_t hash = 0xcbf29ce484222325U;  // FNV-1a
  for (const char c : tensor) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return mix(mix(seed + kStep) ^ hash);
}

// Uniform values mean + k * spacing for whole k with |k| <= range.
struct Distribution {
  double mean;
  double spacing;
  std::int32_t range;
};

// The finest power-of-two spacing with at most `max_range` steps to either side.
Distribution uniform(double mean, double deviation, int max_range) {
  const double limit = deviation * std::sqrt(3.0);
  const double spacing = std::exp2(std::ceil(std::log2(limit / (max_range + 0.5))));
  return {mean, spacing, static_cast<std::int32_t>(std::floor(limit / spacing))};
}
constexpr double kDeviation = 0.02;
constexpr int kFineRange = 2047;  // whole numbers of 11 bits, which float16 holds
constexpr int kGainRange = 60;    // spacing 2^-10, which float16 holds up to 2

// The values that one kind of tensor takes, by number, as `dtype`.
template <typename T>
class Levels {
 public:
  Levels(const Distribution& distribution, DType dtype)
      : count_(static_cast<std::uint32_t>(2 * distribution.range + 1)) {
    for (std::int32_t k = -distribution.range; k <= distribution.range; ++k) {
      store_element(values_.data(), dtype, k + distribution.range,
                    static_cast<float>(distribution.mean + k * distribution.spacing));
    }
  }
  T pick(std::uint32_t bits16) const { return values_[(bits16 * count_) >> 16]; }

 private:
  std::array<T, 4096> values_ = {};
  std::uint32_t count_;
};

// Elements [first, first + count). One hash serves four elements: 4j + c takes bits 16c to 16c + 15 of hash
// j.
template <typename T>
void fill(std::uint64_t key, const Levels<T>& levels, std::int64_t first, std::int64_t count, std::byte* out) {
  const auto pick = [&](std::uint64_t hash, std::int64_t c) {
    return levels.pick(static_cast<std::uint32_t>(hash >> (16 * c)) & 0xffffU);
  };
  const auto hash_of = [&](std::int64_t group) { return mix(key + static_cast<std::uint64_t>(group + 1) * kStep); };
  const std::int64_t end = first + count;
  std::int64_t i = first;
  const auto put_one = [&] {
    const T value = pick(hash_of(i / 4), i % 4);
    std::memcpy(out, &value, sizeof value);
    out += sizeof value;
    ++i;
  };
  while (i < end && i % 4 != 0) put_one();
  for (; i + 4 <= end; i += 4) {
    const std::uint64_t hash = hash_of(i / 4);
    const T values[4] = {pick(hash, 0), pick(hash, 1), pick(hash, 2), pick(hash, 3)};
    std::memcpy(out, values, sizeof values);
    out += sizeof values;
  }
  while (i < end) put_one();
}

template <typename T>
class SyntheticSource final : public WeightSource {
 public:
  explicit SyntheticSource(const SyntheticModel& model)
      : seed_(model.seed),
        dtype_(model.dtype),
        plain_(uniform(0.0, kDeviation, kFineRange), dtype_),
        gain_(uniform(1.0, kDeviation, kGainRange), dtype_),
        from_embd_(uniform(0.0, 1.0 / std::sqrt(model.config.n_embd), kFineRange), dtype_),
        from_inner_(uniform(0.0, 1.0 / std::sqrt(model.config.n_inner), kFineRange), dtype_) {}

  DType dtype_of(const TensorSpec&) const override { return dtype_; }

  void read_rows(const TensorSpec& tensor, std::int64_t first_row, std::int64_t rows,
                 std::span<std::byte> out) const override {
    const std::span<std::byte> wanted = row_bytes(tensor, dtype_, first_row, rows, out);
    fill(key_of(seed_, tensor.name), levels_of(tensor.role), first_row * tensor.cols, rows * tensor.cols,
         wanted.data());
    bytes_made_.fetch_add(static_cast<std::int64_t>(wanted.size()), std::memory_order_relaxed);
  }

  std::int64_t bytes_read() const override { return bytes_made_.load(std::memory_order_relaxed); }

 private:
  const Levels<T>& levels_of(TensorRole role) const {
    switch (role) {
      case TensorRole::kQkvWeight:
      case TensorRole::kProjWeight:
      case TensorRole::kFcWeight:
        return from_embd_;
      case TensorRole::kOutWeight:
        return from_inner_;
      case TensorRole::kLn1Gain:
      case TensorRole::kLn2Gain:
      case TensorRole::kFinalGain:
        return gain_;
      default:
        return plain_;
    }
  }

  std::uint64_t seed_;
  DType dtype_;
  Levels<T> plain_;
  Levels<T> gain_;
  Levels<T> from_embd_;
  Levels<T> from_inner_;
  mutable std::atomic<std::int64_t> bytes_made_{0};
};

[[noreturn]] void fail(std::string_view name, std::string_view what) {
  throw WeightError(fmt::format("{}: {}", printable(name), what));
}

const Preset& preset_of(std::string_view name, std::string_view wanted) {
  std::string known;
  for (const Preset& preset : kPresets) {
    if (preset.name == wanted) return preset;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", preset.name);
  }
  fail(name, fmt::format("unknown model \"{}\"; known are {}", printable(wanted), known));
}

// Numbers, true, false and null as in config.json; anything else is a string.
Json value_of(std::string_view text) {
  try {
    return parse_json(text);
  } catch (const JsonError&) {
    return Json(std::string(text));
  }
}

DType parse_dtype(std::string_view name, std::string_view value) {
  for (const DType dtype : kDTypes) {
    if (name_of(dtype) == value) return dtype;
  }
  fail(name, fmt::format("dtype: is \"{}\", expected float32, float16 or bfloat16", printable(value)));
}

std::uint64_t parse_seed(std::string_view name, std::string_view value) {
  const Json json = value_of(value);
  if (json.integer() == nullptr || *json.integer() < 0) {
    fail(name, fmt::format("seed: is \"{}\", expected a whole number from 0 on", printable(value)));
  }
  return static_cast<std::uint64_t>(*json.integer());
}

}  // namespace

bool is_synthetic(std::string_view name) {
  return name.starts_with(kScheme);
}

SyntheticModel parse_synthetic(std::string_view name) {
  std::string_view rest = name.substr(std::min(name.size(), kScheme.size()));
  const auto next = [&rest] {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view item = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    return item;
  };
  if (rest.ends_with(',')) fail(name, "ends with a comma; write key=value after it, or leave it out");
  SyntheticModel model;
  const Preset& preset = preset_of(name, next());
  Json::Object fields;
  std::vector<std::string_view> seen;
  while (!rest.empty()) {
    const std::string_view item = next();
    const std::size_t equals = item.find('=');
    const std::string_view key = item.substr(0, equals);
    if (std::find(seen.begin(), seen.end(), key) != seen.end())
      fail(name, fmt::format("{}: is given twice", printable(key)));
    seen.push_back(key);
    const bool is_config_key = std::find(std::begin(kConfigKeys), std::end(kConfigKeys), key) != std::end(kConfigKeys);
    if (!is_config_key && key != "seed" && key != "dtype") {
      fail(name,
           fmt::format("unknown key \"{}\"; known are seed, dtype, {}", printable(key), fmt::join(kConfigKeys, ", ")));
    }
    if (equals == std::string_view::npos) fail(name, fmt::format("{}: has no value; write {}=VALUE", key, key));
    const std::string_view value = item.substr(equals + 1);
    if (key == "seed") {
      model.seed = parse_seed(name, value);
    } else if (key == "dtype") {
      model.dtype = parse_dtype(name, value);
    } else {
      fields.emplace_back(std::string(key), value_of(value));
    }
  }
  const auto set_default = [&](const char* key, std::int64_t value) {
    if (std::find(seen.begin(), seen.end(), key) == seen.end()) fields.emplace_back(key, Json(value));
  };
  set_default("n_layer", preset.n_layer);
  set_default("n_head", preset.n_head);
  set_default("n_embd", preset.n_embd);
  model.config = parse_model_config(Json(std::move(fields)), printable(name));
  return model;
}

std::unique_ptr<WeightSource> make_synthetic_source(const SyntheticModel& model) {
  if (model.dtype == DType::kFloat32) return std::make_unique<SyntheticSource<float>>(model);
  return std::make_unique<SyntheticSource<std::uint16_t>>(model);
}

}  // namespace stagecoach
