#include <fmt/format.h>

#include <algorithm>

#include "partition/plan_report.hpp"
#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr double kLeft = 150.0;
constexpr double kWidth = 900.0;
constexpr double kRow = 26.0;
constexpr double kBar = 18.0;
constexpr double kTitle = 34.0;

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else if (byte >= 0x20) {
      result += c;
    }
  }
  return result;
}

std::string label(double x, double y, const std::string& text, const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>\n", x, y, more, escaped(text));
}

std::string box(double x, double y, double width, const char* color, const std::string& tip) {
  return fmt::format(
      "<rect x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.0f}\" fill=\"{}\"><title>{}</title></rect>\n", x, y,
      std::max(width, 0.3), kBar, color, escaped(tip));
}

std::string memory(const PlanReport& r, double& y) {
  std::int64_t whole = 1;
  for (const PlannedStage& s : r.plan.stages) {
    whole = std::max({whole, s.needed_bytes(), s.budget_bytes.value_or(0)});
  }
  std::string svg = label(10, y, "memory", " class=\"h\"");
  const struct {
    const char* name;
    const char* color;
  } kParts[] = {
      {"weights", "#4c78a8"}, {"KV cache", "#f58518"}, {"activations and scratch", "#54a24b"}, {"process", "#9d9d9d"}};
  double x = kLeft;
  for (const auto& part : kParts) {
    svg += box(x, y - 14, 14, part.color, part.name) + label(x + 20, y, part.name);
    x += 40 + 7.0 * static_cast<double>(std::string(part.name).size());
  }
  y += kRow / 2;
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) {
    const PlannedStage& stage = r.plan.stages[s];
    svg += label(10, y + 14, fmt::format("{}: blocks {}-{}", s, stage.blocks.first, stage.blocks.last));
    double at = kLeft;
    const std::int64_t sizes[] = {stage.bytes.weights, stage.bytes.kv,
                                  stage.bytes.device() - stage.bytes.weights - stage.bytes.kv, stage.process_bytes};
    for (std::size_t i = 0; i < 4; ++i) {
      const double width = static_cast<double>(sizes[i]) / static_cast<double>(whole) * kWidth;
      svg += box(at, y, width, kParts[i].color, fmt::format("{} {}", kParts[i].name, readable_bytes(sizes[i])));
      at += width;
    }
    svg += label(kLeft + kWidth + 8, y + 14, readable_bytes(stage.needed_bytes()));
    if (stage.budget_bytes) {
      const double mark = kLeft + static_cast<double>(*stage.budget_bytes) / static_cast<double>(whole) * kWidth;
      svg += fmt::format(
          "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"#d62728\" "
          "stroke-width=\"2\"><title>budget {3}</title></line>\n",
          mark, y - 2, y + kBar + 2, readable_bytes(*stage.budget_bytes));
    }
    y += kRow;
  }
  return svg;
}

std::string timeline(const PlanReport& r, double& y) {
  const Prediction& p = r.plan.prediction;
  if (p.timeline.empty()) return "";
  double end_s = 0.0;
  for (const Busy& b : p.timeline) end_s = std::max(end_s, b.end_s);
  y += kTitle;
  std::string svg = label(10, y, "simulated time", " class=\"h\"");
  svg += box(kLeft, y - 14, 14, "#4c78a8", "") + label(kLeft + 20, y, "prompt chunks");
  svg += box(kLeft + 130, y - 14, 14, "#f58518", "") + label(kLeft + 150, y, "decoding");
  svg += label(
      kLeft + 240, y,
      fmt::format("first token after {:.3g} s; the share of the run that each stage idles at the right", p.ttft_s));
  y += kRow / 2;
  const double top = y;
  for (std::size_t s = 0; s < r.plan.stages.size(); ++s) {
    svg += label(10, y + 14, fmt::format("stage {}", s));
    for (const Busy& b : p.timeline) {
      if (b.stage != static_cast<std::int32_t>(s)) continue;
      const char* color =
          b.prompt ? (b.microbatch % 2 == 0 ? "#4c78a8" : "#7ba3cc") : (b.microbatch % 2 == 0 ? "#f58518" : "#fbb26a");
      svg += box(kLeft + b.start_s / end_s * kWidth, y, (b.end_s - b.start_s) / end_s * kWidth, color,
                 fmt::format("microbatch {}: {:.4g} to {:.4g} s", b.microbatch, b.start_s, b.end_s));
    }
    svg += label(kLeft + kWidth + 8, y + 14, fmt::format("{:.0f} %", 100.0 * p.bubble[s]));
    y += kRow;
  }
  if (p.ttft_s <= end_s) {
    const double mark = kLeft + p.ttft_s / end_s * kWidth;
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"#d62728\" "
        "stroke-width=\"1.5\"><title>first token</title></line>\n",
        mark, top - 4, y);
  }
  for (int tick = 0; tick <= 5; ++tick) {
    const double x = kLeft + kWidth * tick / 5.0;
    svg += label(x, y + 14, fmt::format("{:.3g} s", end_s * tick / 5.0), " text-anchor=\"middle\"");
  }
  y += kRow;
  return svg;
}

}  // namespace

std::string plan_svg(const PlanReport& r) {
  double y = kTitle;
  std::string body = label(10, y - 8,
                           fmt::format("{} ({}, {} stages): {} x {} positions", r.model, r.dtype, r.plan.stages.size(),
                                       r.plan.slots, r.positions()),
                           " class=\"t\"");
  y += kTitle / 2 + 6;
  body += memory(r, y);
  body += timeline(r, y);
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} "
      "{1:.0f}\">\n"
      "<style>text {{ font: 13px sans-serif; fill: #222 }} .t {{ font-size: 16px; font-weight: bold }} .h {{ "
      "font-weight: bold }}</style>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{2}</svg>\n",
      kLeft + kWidth + 100, y + 20, body);
}

}  // namespace stagecoach
