#include "runtime/native_format.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <span>

#include "kernels/weight_layout.hpp"
#include "runtime/checksum.hpp"

namespace stagecoach {

std::string native_path(const TensorSpec& tensor) {
  switch (tensor.place) {
    case TensorPlace::kEmbedding:
      return "/embedding/" + tensor.name;
    case TensorPlace::kBlock:
      return fmt::format("/blocks/{}/{}", tensor.block, tensor.name.substr(tensor.name.find('.', 2) + 1));
    case TensorPlace::kFinal:
      return "/final/" + tensor.name;
  }
  return tensor.name;
}

namespace native {

std::string line_of(std::string_view type, const std::vector<std::int64_t>& shape, std::uint64_t xxh3) {
  return fmt::format("{} ({}) {:016x}", type, fmt::join(shape, ", "), xxh3);
}

std::uint64_t contents_of(NativeLayout layout, const Json::Object& fields, const DatasetLines& datasets) {
  std::string text = fmt::format("{} {}\n", kFormat, version_of(layout));
  if (layout == NativeLayout::kPanels) text += fmt::format("{} {}\n", kLayout, kPackedLayout);
  for (const auto& [name, value] : fields) {
    std::string shown;
    if (const std::int64_t* number = value.integer()) shown = fmt::format("{}", *number);
    if (const bool* flag = value.boolean()) shown = *flag ? "true" : "false";
    if (const double* real = value.real()) shown = fmt::format("{:016x}", std::bit_cast<std::uint64_t>(*real));
    if (const std::string* word = value.string()) shown = *word;
    text += fmt::format("{} {}\n", name, shown);
  }
  for (const auto& [path, line] : datasets) text += fmt::format("{} {}\n", path, line);
  return xxh3_of(std::as_bytes(std::span(text)));
}

}  // namespace native
}  // namespace stagecoach
