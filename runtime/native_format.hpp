// Names and checksums of native model files, for their reader and their writer (native_model.hpp describes the format).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/json.hpp"
#include "runtime/native_model.hpp"

namespace stagecoach::native {

inline constexpr const char* kFormat = "stagecoach-model";
inline constexpr const char* kFormatVersion = "format_version";
inline constexpr std::int64_t kVersionOfRows = 1;
inline constexpr std::int64_t kVersionOfPanels = 2;  // has the attribute kLayout
inline constexpr const char* kLayout = "layout";
inline constexpr const char* kChecksum = "xxh3";
inline constexpr const char* kContents = "contents";
inline constexpr const char* kVocab = "/tokenizer/vocab.json";
inline constexpr const char* kMerges = "/tokenizer/merges.txt";

constexpr std::int64_t version_of(NativeLayout layout) {
  return layout == NativeLayout::kPanels ? kVersionOfPanels : kVersionOfRows;
}

// Type, shape and checksum of every dataset, in the order of the paths.
using DatasetLines = std::map<std::string, std::string>;
std::string line_of(std::string_view type, const std::vector<std::int64_t>& shape, std::uint64_t xxh3);

// `fields`: config_fields of the model.
std::uint64_t contents_of(NativeLayout layout, const Json::Object& fields, const DatasetLines& datasets);

}  // namespace stagecoach::native
