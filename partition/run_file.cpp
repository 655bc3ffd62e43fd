#include "partition/run_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <system_error>
#include <utility>

#include "partition/wording.hpp"
#include "partition/yaml_values.hpp"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxStages = 100000;  // as many as a model may have blocks

enum class Type : std::uint8_t {
  kText,
  kTexts,  // a text; a list of texts (or one)
  kWhole,
  kWholeOrAuto,
  kChunks,  // a whole number, a list of them, or auto
  kNumber,
  kFlag,
  kSize,    // bytes with or without unit
  kStages,  // list, number or "auto"
};

struct Key {
  std::string_view group;  // empty: top level
  std::string_view name;
  Type type;
};

// The one table of what may stand in a run file. `_` in a key is `-` in the option of the same meaning.
constexpr Key kKeys[] = {
    {"", "model", Type::kText},
    {"", "dtype", Type::kText},
    {"", "map_weights", Type::kFlag},
    {"", "kv_dtype", Type::kText},
    {"", "layout", Type::kText},
    {"", "device", Type::kText},
    {"", "threads", Type::kWholeOrAuto},
    {"", "memory_per_rank", Type::kSize},
    {"", "deterministic", Type::kFlag},
    {"", "transport", Type::kText},
    {"", "timeout", Type::kNumber},
    {"", "metrics", Type::kText},
    {"", "trace", Type::kText},
    {"", "quiet", Type::kFlag},
    {"", "verbose", Type::kFlag},
    {"", "machine", Type::kText},
    {"", "simd", Type::kText},
    {"", "check", Type::kFlag},
    {"", "prompt", Type::kTexts},
    {"", "prompts", Type::kText},
    {"", "output", Type::kText},
    {"", "shard", Type::kText},
    {"", "fresh", Type::kFlag},
    {"pipeline", "stages", Type::kStages},
    {"pipeline", "replicas", Type::kWhole},
    {"pipeline", "context_shards", Type::kWhole},
    {"pipeline", "chunk_tokens", Type::kChunks},
    {"pipeline", "in_flight", Type::kWholeOrAuto},
    {"generation", "max_new_tokens", Type::kWhole},
    {"generation", "temperature", Type::kNumber},
    {"generation", "top_k", Type::kWhole},
    {"generation", "top_p", Type::kNumber},
    {"generation", "repetition_penalty", Type::kNumber},
    {"generation", "seed", Type::kWhole},
    {"generation", "stop", Type::kTexts},
    {"generation", "num_samples", Type::kWhole},
    {"generation", "ignore_eos", Type::kFlag},
    {"generation", "logprobs", Type::kFlag},
    {"generation", "long_prompt", Type::kText},
    {"", "text", Type::kTexts},
    {"score", "stride", Type::kWhole},
    {"bench", "prompt_tokens", Type::kWhole},
    {"bench", "new_tokens", Type::kWhole},
    {"bench", "batch", Type::kWhole},
    {"bench", "repeat", Type::kWhole},
    {"bench", "profile", Type::kFlag},
    {"bench", "json", Type::kText},
    {"plan", "context", Type::kWhole},
    {"plan", "batch", Type::kWhole},
    {"plan", "new_tokens", Type::kWhole},
    {"plan", "write", Type::kText},
    {"plan", "svg", Type::kText},
    {"slurm", "time", Type::kText},
    {"slurm", "partition", Type::kText},
    {"slurm", "write", Type::kText},
};
constexpr std::string_view kGroups[] = {"pipeline", "generation", "score", "bench", "plan", "slurm"};

void require_type(const YamlNode& node, std::string_view key, Type type) {
  const auto require = [&](bool good, const char* wanted) {
    if (!good) fail(node, key, fmt::format("{} is not {}", kind_of(node), wanted));
  };
  switch (type) {
    case Type::kText:
      text_of(node, key);
      break;
    case Type::kWhole:
      require(whole(node).has_value(), "a whole number (without quotes)");
      break;
    case Type::kWholeOrAuto:
      require(whole(node).has_value() || is_word(node, "auto"), "a whole number (without quotes) or auto");
      break;
    case Type::kNumber:
      require(number(node).has_value(), "a number (without quotes)");
      break;
    case Type::kFlag:
      require(!node.quoted && (is_word(node, "true") || is_word(node, "false")), "true or false");
      break;
    case Type::kSize:
      try {
        parse_size(text_of(node, key));
      } catch (const PlanError& error) {
        fail(node, key, error.what());
      }
      break;
    case Type::kTexts:
    case Type::kChunks:
    case Type::kStages:
      break;  // have their own readers
  }
}

std::string option_name(std::string_view key) {
  std::string name(key);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::int32_t block_number(const YamlNode& node) {
  const std::optional<std::int64_t> value = whole(node);
  if (!value || *value < 0 || *value >= static_cast<std::int64_t>(kMaxStages)) {
    fail(node, "blocks", kind_of(node) + " is not the number of a block; they count from 0");
  }
  return static_cast<std::int32_t>(*value);
}

BlockRange read_blocks(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kList || node.items.size() != 2) {
    fail(node, "blocks", "must be [first, last], both counted from 0 and both included");
  }
  const BlockRange blocks{block_number(node.items[0]), block_number(node.items[1])};
  if (blocks.first > blocks.last) {
    fail(node, "blocks",
         fmt::format("[{}, {}] ends before it begins; write [{}, {}]", blocks.first, blocks.last, blocks.last,
                     blocks.first));
  }
  return blocks;
}

// As the command line takes them: "512,448,384".
std::string chunks_of(const YamlNode& node, std::string_view key) {
  if (node.kind != YamlNode::Kind::kList) {
    if (!whole(node) && !is_word(node, "auto")) {
      fail(node, key, kind_of(node) + " is not a whole number (without quotes), a list of them, or auto");
    }
    return node.scalar;
  }
  if (node.items.empty()) fail(node, key, "the list is empty; leave it out to let the program choose");
  std::string text;
  for (const YamlNode& item : node.items) {
    if (!whole(item)) fail(item, key, kind_of(item) + " is not a whole number (without quotes)");
    text += (text.empty() ? "" : ",") + item.scalar;
  }
  return text;
}

StageSpec read_stage(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kMap) {
    fail(node, "stages", kind_of(node) + " is no stage; write {blocks: [first, last]}");
  }
  static const std::vector<std::string> known = {"blocks", "device", "memory", "host"};
  StageSpec stage;
  bool has_blocks = false;
  for (std::size_t i = 0; i < node.keys.size(); ++i) {
    const YamlNode& key = node.keys[i];
    const YamlNode& value = node.items[i];
    if (key.scalar == "blocks") {
      stage.blocks = read_blocks(value);
      has_blocks = true;
    } else if (key.scalar == "device") {
      const std::optional<DeviceWish> device = parse_device(text_of(value, key.scalar));
      if (!device) fail(value, key.scalar, kind_of(value) + " is not auto, cpu, cuda or cuda:N");
      stage.device = *device;
    } else if (key.scalar == "memory") {
      require_type(value, key.scalar, Type::kSize);
      stage.memory_bytes = parse_size(value.scalar);
    } else if (key.scalar == "host") {
      stage.host = text_of(value, key.scalar);
      if (stage.host.empty()) fail(value, key.scalar, "is empty; leave it out for any host");
    } else {
      fail(key, shown(key.scalar),
           "unknown key of a stage (blocks, device, memory, host)" + suggestion(key.scalar, known));
    }
  }
  if (!has_blocks) fail(node, "stages", "a stage without blocks; write {blocks: [first, last]}");
  return stage;
}

void read_stages(const YamlNode& node, RunFile& file) {
  if (node.kind != YamlNode::Kind::kList) {
    if (!whole(node) && !is_word(node, "auto")) {
      fail(node, "stages", kind_of(node) + " is not a list of stages, a number or auto");
    }
    file.settings.push_back({"stages", node.scalar, node.where});
    return;
  }
  if (node.items.empty()) fail(node, "stages", "the list is empty; leave stages out for as many as there are ranks");
  if (node.items.size() > kMaxStages) fail(node, "stages", "more stages than a model can have blocks");
  file.stages.emplace();
  std::int32_t next = 0;
  for (const YamlNode& item : node.items) {
    StageSpec stage = read_stage(item);
    if (stage.blocks.first != next) {
      const char* what = stage.blocks.first > next ? "leaves out blocks" : "repeats blocks or is out of order";
      fail(item, "blocks",
           fmt::format("stage {} [{}, {}] {}; it must begin with block {}", file.stages->size(), stage.blocks.first,
                       stage.blocks.last, what, next));
    }
    next = stage.blocks.last + 1;
    file.stages->push_back(std::move(stage));
    file.stage_places.push_back(item.where);
  }
}

void read_value(const Key& key, const YamlNode& value, RunFile& file) {
  if (key.type == Type::kStages) return read_stages(value, file);
  if (key.type == Type::kChunks) {
    file.settings.push_back({option_name(key.name), chunks_of(value, key.name), value.where, std::string(key.group)});
    return;
  }
  require_type(value, key.name, key.type);
  if (key.type == Type::kTexts && value.kind == YamlNode::Kind::kList) {
    for (const YamlNode& item : value.items) {
      file.settings.push_back({option_name(key.name), text_of(item, key.name), item.where, std::string(key.group)});
    }
    return;
  }
  file.settings.push_back({option_name(key.name), text_of(value, key.name), value.where, std::string(key.group)});
}

[[noreturn]] void fail_unknown(const YamlNode& key, std::string_view group) {
  const auto home =
      std::find_if(std::begin(kKeys), std::end(kKeys), [&](const Key& k) { return k.name == key.scalar; });
  const auto in = [](std::string_view g) { return g.empty() ? std::string("top level") : fmt::format("group {}", g); };
  if (home != std::end(kKeys)) {
    fail(key, key.scalar, fmt::format("stands in the {} but belongs in the {}", in(group), in(home->group)));
  }
  std::vector<std::string> known;
  for (const Key& k : kKeys) {
    if (k.group == group) known.emplace_back(k.name);
  }
  if (group.empty()) known.insert(known.end(), std::begin(kGroups), std::end(kGroups));
  std::string hint = suggestion(key.scalar, known);
  if (hint.empty()) {  // perhaps a slip of a key that belongs elsewhere
    known.clear();
    for (const Key& k : kKeys) known.emplace_back(k.name);
    hint = suggestion(key.scalar, known);
  }
  fail(key, shown(key.scalar), "unknown key" + hint);
}

void read_group(const YamlNode& map, std::string_view group, RunFile& file) {
  for (std::size_t i = 0; i < map.keys.size(); ++i) {
    const YamlNode& key = map.keys[i];
    const YamlNode& value = map.items[i];
    const bool opens_group = group.empty() && std::count(std::begin(kGroups), std::end(kGroups), key.scalar) > 0;
    if (opens_group) {
      if (value.kind == YamlNode::Kind::kMap) {
        read_group(value, key.scalar, file);
      } else if (value.kind != YamlNode::Kind::kNull) {
        fail(value, key.scalar, kind_of(value) + " is not a group of keys");
      }
      continue;
    }
    const auto known = std::find_if(std::begin(kKeys), std::end(kKeys),
                                    [&](const Key& k) { return k.group == group && k.name == key.scalar; });
    if (known == std::end(kKeys)) fail_unknown(key, group);
    read_value(*known, value, file);
  }
}

}  // namespace

RunFile parse_run_file(const std::string& text, const std::string& path) {
  RunFile file;
  file.path = path;
  const YamlNode root = parse_yaml(text, path);
  if (root.kind == YamlNode::Kind::kNull) return file;
  if (root.kind != YamlNode::Kind::kMap) {
    throw PlanError(fmt::format("{}: {} where keys were expected; write key: value", root.where, kind_of(root)));
  }
  read_group(root, "", file);
  return file;
}

RunFile read_run_file(const std::string& path) {
  return parse_run_file(read_yaml_file(path, "run file"), path);
}

void check_stage_blocks(const RunFile& file, const ModelConfig& model) {
  if (!file.stages) return;
  for (std::size_t s = 0; s < file.stages->size(); ++s) {
    const BlockRange blocks = (*file.stages)[s].blocks;
    const std::string& where = file.stage_places.at(s);
    if (blocks.last >= model.n_layer) {
      throw PlanError(fmt::format("{}: blocks: stage {} [{}, {}] but the model has blocks 0 to {}", where, s,
                                  blocks.first, blocks.last, model.n_layer - 1));
    }
    if (s + 1 == file.stages->size() && blocks.last != model.n_layer - 1) {
      throw PlanError(fmt::format("{}: blocks: the last stage ends with block {} but the model's last block is {}",
                                  where, blocks.last, model.n_layer - 1));
    }
  }
}

std::vector<std::string> run_file_keys() {
  std::vector<std::string> names;
  for (const Key& key : kKeys) {
    std::string name = option_name(key.name);
    if (std::ranges::find(names, name) == names.end()) names.push_back(std::move(name));
  }
  return names;
}

std::int64_t parse_size(const std::string& text) {
  std::int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  const std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  std::int64_t factor = 0;
  if (unit.empty()) factor = 1;
  if (unit == "KiB") factor = std::int64_t{1} << 10;
  if (unit == "MiB") factor = std::int64_t{1} << 20;
  if (unit == "GiB") factor = std::int64_t{1} << 30;
  if (error != std::errc() || factor == 0 || number < 1 || number > std::numeric_limits<std::int64_t>::max() / factor) {
    throw PlanError(
        fmt::format("{} is not a size; write bytes or a whole number with KiB, MiB or GiB, as in 8GiB", shown(text)));
  }
  return number * factor;
}

}  // namespace stagecoach
