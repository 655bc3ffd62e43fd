#include "partition/machine.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <stdexcept>
#include <utility>

#include "partition/run_file.hpp"
#include "partition/wording.hpp"
#include "partition/yaml_values.hpp"

namespace stagecoach {
namespace {

constexpr std::int32_t kMostDevices = 4096;
constexpr std::size_t kMostPoints = 1000;
// Rates and times beyond these are slips; within them nothing overflows.
constexpr double kLeast = 1e-6;
constexpr double kMost = 1e12;
constexpr double kPico = 1e-12;
constexpr double kNano = 1e-9;
constexpr double kMicro = 1e-6;
constexpr double kGiga = 1e9;

double positive(const YamlNode& node, std::string_view key) {
  const std::optional<double> value = number(node);
  if (!value || *value < kLeast || *value > kMost) {
    fail(node, key, fmt::format("{} is not a number from {} to {:g}", kind_of(node), kLeast, kMost));
  }
  return *value;
}

double time_of(const YamlNode& node, std::string_view key) {
  const std::optional<double> value = number(node);
  if (!value || *value < 0.0 || *value > kMost) {
    fail(node, key, fmt::format("{} is not a number from 0 to {:g}", kind_of(node), kMost));
  }
  return *value;
}

Curve curve_of(const YamlNode& node, std::string_view key) {
  if (node.kind != YamlNode::Kind::kList || node.items.empty() || node.items.size() > kMostPoints) {
    fail(node, key, "must be a list of points [rows, time], as in [[1, 130], [8, 190]]");
  }
  std::vector<Curve::Point> points;
  for (const YamlNode& item : node.items) {
    if (item.kind != YamlNode::Kind::kList || item.items.size() != 2) fail(item, key, "must be a point [rows, time]");
    const Curve::Point point{positive(item.items[0], key), time_of(item.items[1], key) * kPico};
    if (!points.empty() && point.x <= points.back().x) {
      fail(item, key, fmt::format("has {} rows after {}; points go by ascending rows", point.x, points.back().x));
    }
    points.push_back(point);
  }
  return Curve(std::move(points));
}

std::string word_of(const YamlNode& node, std::string_view key, const std::vector<std::string>& words) {
  const std::string& text = text_of(node, key);
  if (std::ranges::find(words, text) == words.end()) {
    fail(node, key, fmt::format("{} is not one of {}{}", shown(text), fmt::join(words, ", "), suggestion(text, words)));
  }
  return text;
}

using Reader = std::function<void(const YamlNode& value)>;

// Reads a group whose keys are those of `readers`; `what` names it.
void read_keys(const YamlNode& node, std::string_view what, const std::map<std::string, Reader>& readers) {
  if (node.kind != YamlNode::Kind::kMap) fail(node, what, kind_of(node) + " is not a group of keys");
  std::vector<std::string> known;
  for (const auto& [key, reader] : readers) known.push_back(key);
  for (std::size_t i = 0; i < node.keys.size(); ++i) {
    const auto found = readers.find(node.keys[i].scalar);
    if (found == readers.end()) {
      fail(node.keys[i], shown(node.keys[i].scalar),
           fmt::format("unknown key of {} ({}){}", what, fmt::join(known, ", "),
                       suggestion(node.keys[i].scalar, known)));
    }
    found->second(node.items[i]);
  }
}

// Only for people to read.
std::string name_of(const YamlNode& node) {
  const std::string& name = text_of(node, "name");
  if (shown(name) != name) {
    fail(node, "name", fmt::format("{} is longer than 80 bytes or has control characters", shown(name)));
  }
  return name;
}

MachineDevice device_of(const YamlNode& node) {
  MachineDevice device;
  double bandwidth = 0.0;
  double compute = 0.0;
  DeviceSpeed& speed = device.speed;
  read_keys(node, "a device",
            {{"name", [&](const YamlNode& v) { device.name = name_of(v); }},
             {"count",
              [&](const YamlNode& v) {
                const std::optional<std::int64_t> count = whole(v);
                if (!count || *count < 1 || *count > kMostDevices) {
                  fail(v, "count", fmt::format("{} is not a number from 1 to {}", kind_of(v), kMostDevices));
                }
                device.count = static_cast<std::int32_t>(*count);
              }},
             {"device",
              [&](const YamlNode& v) {
                device.cuda = word_of(v, "device", {"cpu", "cuda"}) == "cuda";
              }},
             {"memory",
              [&](const YamlNode& v) {
                try {
                  device.memory_bytes = parse_size(text_of(v, "memory"));
                } catch (const PlanError& error) {
                  fail(v, "memory", error.what());
                }
              }},
             {"bandwidth_gb_s", [&](const YamlNode& v) { bandwidth = positive(v, "bandwidth_gb_s"); }},
             {"compute_gflop_s", [&](const YamlNode& v) { compute = positive(v, "compute_gflop_s"); }},
             {"dtype",
              [&](const YamlNode& v) {
                device.dtype = word_of(v, "dtype", {"float32", "float16", "bfloat16", "int8"});
              }},
             {"kv_dtype",
              [&](const YamlNode& v) {
                device.kv_dtype = word_of(v, "kv_dtype", {"float32", "float16", "bfloat16"});
              }},
             {"product_ps", [&](const YamlNode& v) { speed.product = curve_of(v, "product_ps"); }},
             {"head_ps", [&](const YamlNode& v) { speed.head = curve_of(v, "head_ps"); }},
             {"attention_ps", [&](const YamlNode& v) { speed.attention = curve_of(v, "attention_ps"); }},
             {"row_ns", [&](const YamlNode& v) { speed.row_s = time_of(v, "row_ns") * kNano; }},
             {"microbatch_us", [&](const YamlNode& v) { speed.microbatch_s = time_of(v, "microbatch_us") * kMicro; }}});
  const bool measured = !speed.product.empty() || !speed.head.empty() || !speed.attention.empty();
  const bool rated = bandwidth > 0.0 || compute > 0.0;
  if (measured == rated) {
    fail(node, "devices",
         "a device has either bandwidth_gb_s and compute_gflop_s, or product_ps, head_ps and attention_ps");
  }
  if (rated && (bandwidth == 0.0 || compute == 0.0)) {
    fail(node, "devices", "bandwidth_gb_s and compute_gflop_s go together");
  }
  if (measured && (speed.product.empty() || speed.head.empty() || speed.attention.empty())) {
    fail(node, "devices", "product_ps, head_ps and attention_ps go together");
  }
  if (rated) device.rates = DeviceRates{bandwidth * kGiga, compute * kGiga};
  speed.name = device.name;
  return device;
}

LinkSpeed link_of(const YamlNode& node) {
  LinkSpeed link;
  read_keys(
      node, "link",
      {{"latency_us", [&](const YamlNode& v) { link.latency_s = time_of(v, "latency_us") * kMicro; }},
       {"bandwidth_gb_s", [&](const YamlNode& v) { link.byte_s = 1.0 / (positive(v, "bandwidth_gb_s") * kGiga); }}});
  return link;
}

std::string points_text(const Curve& curve) {
  std::vector<std::string> points;
  for (const Curve::Point& p : curve.points()) points.push_back(fmt::format("[{:.6g}, {:.5g}]", p.x, p.y / kPico));
  return fmt::format("[{}]", fmt::join(points, ", "));
}

}  // namespace

std::int32_t Machine::device_count() const {
  std::int32_t count = 0;
  for (const MachineDevice& device : devices) count += device.count;
  return count;
}

const MachineDevice& Machine::device(std::int32_t rank) const {
  for (const MachineDevice& device : devices) {
    if (rank < device.count) return device;
    rank -= device.count;
  }
  return devices.back();
}

Machine parse_machine(const std::string& text, const std::string& path) {
  const YamlNode root = parse_yaml(text, path);
  Machine machine;
  if (root.kind == YamlNode::Kind::kNull) throw PlanError(path + ": is empty; a machine file lists devices");
  read_keys(root, "a machine file",
            {{"devices",
              [&](const YamlNode& list) {
                if (list.kind != YamlNode::Kind::kList || list.items.empty()) {
                  fail(list, "devices", kind_of(list) + " is not a list of devices");
                }
                for (const YamlNode& item : list.items) {
                  machine.devices.push_back(device_of(item));
                  if (machine.device_count() > kMostDevices) {
                    fail(item, "devices", fmt::format("more than {} devices", kMostDevices));
                  }
                }
              }},
             {"link", [&](const YamlNode& v) { machine.link = link_of(v); }}});
  if (machine.devices.empty()) fail(root, "devices", "missing; a machine file lists devices");
  return machine;
}

Machine read_machine(const std::string& path) {
  return parse_machine(read_yaml_file(path, "machine file"), path);
}

std::string machine_text(const Machine& machine) {
  std::string text = "devices:\n";
  for (const MachineDevice& d : machine.devices) {
    text += fmt::format("  - name: {}\n    count: {}\n    device: {}\n", yaml_text(d.name), d.count,
                        d.cuda ? "cuda" : "cpu");
    if (d.memory_bytes) text += fmt::format("    memory: {}\n", *d.memory_bytes);
    if (d.rates) {
      text += fmt::format("    bandwidth_gb_s: {:.6g}\n    compute_gflop_s: {:.6g}\n", d.rates->bytes_per_s / kGiga,
                          d.rates->flops_per_s / kGiga);
      continue;
    }
    if (!d.dtype.empty()) text += fmt::format("    dtype: {}\n", d.dtype);
    if (!d.kv_dtype.empty()) text += fmt::format("    kv_dtype: {}\n", d.kv_dtype);
    text += fmt::format(
        "    product_ps: {}\n    head_ps: {}\n    attention_ps: {}\n    row_ns: {:.5g}\n    microbatch_us: {:.5g}\n",
        points_text(d.speed.product), points_text(d.speed.head), points_text(d.speed.attention), d.speed.row_s / kNano,
        d.speed.microbatch_s / kMicro);
  }
  if (machine.link.latency_s > 0.0 || machine.link.byte_s > 0.0) {
    text += fmt::format("link: {{latency_us: {:.5g}", machine.link.latency_s / kMicro);
    if (machine.link.byte_s > 0.0) text += fmt::format(", bandwidth_gb_s: {:.5g}", 1.0 / machine.link.byte_s / kGiga);
    text += "}\n";
  }
  return text;
}

}  // namespace stagecoach
