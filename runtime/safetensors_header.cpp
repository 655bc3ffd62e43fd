#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "partition/wording.hpp"
#include "runtime/json.hpp"
#include "runtime/safetensors.hpp"

namespace stagecoach {
namespace {

static_assert(std::endian::native == std::endian::little, "values are read as they are stored");

struct StoredType {
  std::string_view name;
  std::int64_t bytes;
};
constexpr StoredType kStoredTypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
    {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8},
};

std::int64_t item_bytes(std::string_view dtype) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == dtype) return type.bytes;
  }
  return 0;
}

[[noreturn]] void fail(const std::string& file, std::string_view what) {
  throw WeightError(fmt::format("{}: {}", file, what));
}
[[noreturn]] void fail_tensor(const std::string& file, std::string_view tensor, std::string_view what) {
  throw WeightError(fmt::format("{}: tensor {}: {}", file, printable(tensor), what));
}

const Json& member(const std::string& file, std::string_view tensor, const Json& entry, std::string_view key) {
  const Json* value = entry.find(key);
  if (value == nullptr) fail_tensor(file, tensor, fmt::format("the header has no {} for it", key));
  return *value;
}

// A list of whole numbers that are not negative.
std::vector<std::int64_t> numbers(const std::string& file, std::string_view tensor, std::string_view key,
                                  const Json& value) {
  const Json::Array* list = value.array();
  if (list == nullptr) fail_tensor(file, tensor, fmt::format("{} is {}, expected a list", key, value.type_name()));
  std::vector<std::int64_t> result;
  for (const Json& item : *list) {
    const std::int64_t* number = item.integer();
    if (number == nullptr || *number < 0) {
      fail_tensor(file, tensor, fmt::format("{} holds what is no whole number from 0 on", key));
    }
    result.push_back(*number);
  }
  return result;
}

// shape's product times `item`; -1 when it does not fit 64 bits.
std::int64_t product_bytes(const std::vector<std::int64_t>& shape, std::int64_t item) {
  std::int64_t bytes = item;
  for (const std::int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, dimension, &bytes)) return -1;
  }
  return bytes;
}

void check_metadata(const std::string& file, const Json& metadata) {
  const Json::Object* members = metadata.object();
  if (members == nullptr) fail(file, fmt::format("__metadata__ is {}, expected an object", metadata.type_name()));
  for (const auto& [key, value] : *members) {
    if (value.string() == nullptr) {
      fail(file, fmt::format("__metadata__: {} is {}, expected a string", printable(key), value.type_name()));
    }
  }
}

// `offset` of the result still counts from the start of the data.
SafetensorsEntry parse_entry(const std::string& file, const std::string& name, const Json& json,
                             std::int64_t data_bytes) {
  if (json.object() == nullptr) {
    fail_tensor(file, name, fmt::format("its header entry is {}, expected an object", json.type_name()));
  }
  SafetensorsEntry entry;
  entry.name = name;
  const std::string* dtype = member(file, name, json, "dtype").string();
  if (dtype == nullptr) fail_tensor(file, name, "dtype is not a string");
  entry.dtype = *dtype;
  entry.shape = numbers(file, name, "shape", member(file, name, json, "shape"));
  const auto offsets = numbers(file, name, "data_offsets", member(file, name, json, "data_offsets"));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    fail_tensor(file, name, "data_offsets are not a begin and an end after it");
  }
  if (offsets[1] > data_bytes) {
    fail_tensor(file, name,
                fmt::format("ends at byte {} of the data, but the file holds only {}; is the download complete?",
                            offsets[1], data_bytes));
  }
  entry.offset = offsets[0];
  entry.bytes = offsets[1] - offsets[0];
  const std::int64_t item = item_bytes(entry.dtype);
  if (item == 0) fail_tensor(file, name, fmt::format("unknown dtype {}", printable(entry.dtype)));
  if (const std::int64_t expected = product_bytes(entry.shape, item); expected != entry.bytes) {
    fail_tensor(file, name,
                expected < 0
                    ? std::string("its shape is too large")
                    : fmt::format("has {} bytes of data, but its shape and dtype make {}", entry.bytes, expected));
  }
  return entry;
}

// The format allows neither holes, in which anything could hide, nor overlaps, nor bytes after the last
// tensor.
void check_cover(const std::string& file, const std::vector<SafetensorsEntry>& entries, std::int64_t data_bytes) {
  std::vector<const SafetensorsEntry*> sorted;
  for (const SafetensorsEntry& entry : entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(), [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry* entry : sorted) {
    if (entry->offset != end) {
      fail_tensor(
          file, entry->name,
          fmt::format("begins at byte {} of the data, but the tensor before it ends at {}", entry->offset, end));
    }
    end += entry->bytes;
  }
  if (end != data_bytes) {
    fail(file, fmt::format("the tensors end at byte {} of the data, but the file holds {}", end, data_bytes));
  }
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(std::string_view json, std::int64_t data_offset,
                                                       std::int64_t data_bytes, const std::string& file) {
  Json header;
  try {
    header = parse_json(json);
  } catch (const JsonError& error) {
    fail(file, fmt::format("its header is no JSON: {}", error.what()));
  }
  const Json::Object* members = header.object();
  if (members == nullptr) fail(file, fmt::format("its header is {}, expected an object", header.type_name()));
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : *members) {
    if (name == "__metadata__") {
      check_metadata(file, value);
    } else {
      entries.push_back(parse_entry(file, name, value, data_bytes));
    }
  }
  check_cover(file, entries, data_bytes);
  for (SafetensorsEntry& entry : entries) entry.offset += data_offset;
  return entries;
}

std::vector<SafetensorsEntry> read_safetensors_header(const InputFile& file) {
  const std::string path = file.path().string();
  constexpr std::int64_t kLengthBytes = 8;
  if (file.bytes() < kLengthBytes) {
    fail(path, fmt::format("is {} bytes long, too short for a safetensors file", file.bytes()));
  }
  std::array<std::byte, kLengthBytes> raw = {};
  file.read(0, raw, "the header length");
  std::uint64_t length = 0;
  std::memcpy(&length, raw.data(), sizeof length);
  if (length > static_cast<std::uint64_t>(kMaxSafetensorsHeaderBytes)) {
    fail(path, fmt::format("says that its header has {} bytes, more than the {} allowed; is it a safetensors file?",
                           length, kMaxSafetensorsHeaderBytes));
  }
  const auto header_bytes = static_cast<std::int64_t>(length);
  if (header_bytes > file.bytes() - kLengthBytes) {
    fail(path, fmt::format("ends inside its header of {} bytes; is the download complete?", header_bytes));
  }
  std::string json(static_cast<std::size_t>(length), '\0');
  file.read(kLengthBytes, std::as_writable_bytes(std::span(json)), "the header");
  const std::int64_t data_offset = kLengthBytes + header_bytes;
  return parse_safetensors_header(json, data_offset, file.bytes() - data_offset, path);
}

}  // namespace stagecoach
