#include "runtime/hdf5_file.hpp"

#include <fmt/format.h>
#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <new>
#include <source_location>

#include "partition/wording.hpp"

namespace stagecoach {
namespace {

constexpr hsize_t kPageBytes = 4096;

// ---- errors ----

// The library keeps its switch for printing per thread.
void start_quietly() {
  static const herr_t no_exit_hook = H5dont_atexit();  // counts only before the library is first used
  static_cast<void>(no_exit_hook);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

// The reason nearest to the cause; of a failed system call only the system's own words.
std::string innermost_reason() {
  std::string reason;
  const auto take_first = [](unsigned, const H5E_error2_t* error, void* out) noexcept -> herr_t {
    std::string& text = *static_cast<std::string*>(out);
    if (text.empty() && error->desc != nullptr) text = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  constexpr std::string_view kSystem = "error message = '";
  if (const std::size_t at = reason.find(kSystem); at != std::string::npos) {
    reason.erase(0, at + kSystem.size());
    reason.erase(std::min(reason.find('\''), reason.size()));
  }
  return reason.empty() ? "unknown error" : printable(reason, 300);
}

[[noreturn]] void fail(std::source_location where) {
  const std::string_view file = where.file_name();
  throw Hdf5Error(fmt::format("{} (HDF5, {}:{})", innermost_reason(), file.substr(file.rfind('/') + 1), where.line()));
}
hid_t check(hid_t id, std::source_location where = std::source_location::current()) {
  if (id < 0) fail(where);
  return id;
}
int check(herr_t result, std::source_location where = std::source_location::current()) {
  if (result < 0) fail(where);
  return result;
}

// ---- handles ----

template <herr_t (*kClose)(hid_t)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id, std::source_location where = std::source_location::current()) : id_(check(id, where)) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (id_ >= 0) kClose(id_);
  }
  hid_t operator*() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }
  void close(std::source_location where = std::source_location::current()) {
    if (id_ >= 0) check(kClose(std::exchange(id_, H5I_INVALID_HID)), where);
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
};
using File = Handle<H5Fclose>;
using Object = Handle<H5Oclose>;
using Group = Handle<H5Gclose>;
using Dataset = Handle<H5Dclose>;
using Attribute = Handle<H5Aclose>;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using Properties = Handle<H5Pclose>;

// Runs `action` and puts `file` (and `object`) in front of what goes wrong.
template <typename Action>
auto in_file(const std::string& file, const std::string& object, const Action& action) {
  start_quietly();
  try {
    return action();
  } catch (const Hdf5Error& error) {
    throw Hdf5Error(object.empty() ? fmt::format("{}: {}", file, error.what())
                                   : fmt::format("{}: {}: {}", file, printable(object), error.what()));
  }
}

// ---- types ----

struct ElementInfo {
  H5Element element;
  std::string_view name;
  std::int64_t bytes;
};
constexpr ElementInfo kElements[] = {
    {H5Element::kInt8, "int8", 1},         {H5Element::kUInt8, "uint8", 1},     {H5Element::kInt32, "int32", 4},
    {H5Element::kInt64, "int64", 8},       {H5Element::kUInt64, "uint64", 8},   {H5Element::kFloat16, "float16", 2},
    {H5Element::kBFloat16, "bfloat16", 2}, {H5Element::kFloat32, "float32", 4}, {H5Element::kFloat64, "float64", 8},
};

// A 16-bit float with its exponent below the sign bit.
Type small_float(std::size_t exponent_bits, std::size_t bias) {
  const std::size_t fraction_bits = 15 - exponent_bits;
  Type type(H5Tcopy(H5T_IEEE_F32LE));
  check(H5Tset_fields(*type, 15, fraction_bits, exponent_bits, 0, fraction_bits));
  check(H5Tset_size(*type, 2));  // after the fields, which must fit at every step
  check(H5Tset_ebias(*type, bias));
  return type;
}

Type type_of(H5Element element) {
  switch (element) {
    case H5Element::kInt8:
      return Type(H5Tcopy(H5T_STD_I8LE));
    case H5Element::kUInt8:
      return Type(H5Tcopy(H5T_STD_U8LE));
    case H5Element::kInt32:
      return Type(H5Tcopy(H5T_STD_I32LE));
    case H5Element::kInt64:
      return Type(H5Tcopy(H5T_STD_I64LE));
    case H5Element::kUInt64:
      return Type(H5Tcopy(H5T_STD_U64LE));
    case H5Element::kFloat16:
      return small_float(5, 15);
    case H5Element::kBFloat16:
      return small_float(8, 127);
    case H5Element::kFloat32:
      return Type(H5Tcopy(H5T_IEEE_F32LE));
    case H5Element::kFloat64:
      return Type(H5Tcopy(H5T_IEEE_F64LE));
    case H5Element::kOther:
      break;
  }
  throw Hdf5Error("no such type of element");
}

H5Element element_of(hid_t type) {
  for (const ElementInfo& info : kElements) {
    if (check(H5Tequal(type, *type_of(info.element))) > 0) return info.element;
  }
  return H5Element::kOther;
}

std::string description_of(hid_t type, H5Element element) {
  if (element != H5Element::kOther) return std::string(name_of(element));
  const std::size_t bits = 8 * H5Tget_size(type);
  const char* order = H5Tget_order(type) == H5T_ORDER_BE ? " big-endian" : "";
  switch (H5Tget_class(type)) {
    case H5T_INTEGER:
      return fmt::format("{}int{}{}", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits, order);
    case H5T_FLOAT:
      return fmt::format("float{}{}", bits, order);
    case H5T_STRING:
      return "string";
    case H5T_ENUM:
      return "enum";
    case H5T_COMPOUND:
      return "compound";
    default:
      return "another type";
  }
}

Type bool_type() {
  Type type(H5Tenum_create(H5T_STD_I8LE));
  for (const std::int8_t value : {std::int8_t{0}, std::int8_t{1}}) {
    check(H5Tenum_insert(*type, value == 0 ? "FALSE" : "TRUE", &value));
  }
  return type;
}

// ---- reading ----

std::vector<hsize_t> extent_of(hid_t space) {
  const int rank = check(H5Sget_simple_extent_ndims(space));
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  check(H5Sget_simple_extent_dims(space, extent.data(), nullptr));
  return extent;
}

H5Dataset describe(hid_t file, const std::string& path) {
  const Dataset dataset(H5Dopen2(file, path.c_str(), H5P_DEFAULT));
  const Type type(H5Dget_type(*dataset));
  const Space space(H5Dget_space(*dataset));
  const Properties created(H5Dget_create_plist(*dataset));
  H5Dataset result;
  result.path = path;
  result.element = element_of(*type);
  result.type = description_of(*type, result.element);
  std::int64_t bytes = static_cast<std::int64_t>(H5Tget_size(*type));
  for (const hsize_t dimension : extent_of(*space)) {
    std::int64_t size = 0;
    if (__builtin_add_overflow(dimension, 0, &size) || __builtin_mul_overflow(bytes, size, &bytes)) {
      throw Hdf5Error("its shape is too large");
    }
    result.shape.push_back(size);
  }
  result.bytes = bytes;
  const bool plain = H5Pget_layout(*created) == H5D_CONTIGUOUS && H5Pget_external_count(*created) == 0;
  const haddr_t offset = plain ? H5Dget_offset(*dataset) : HADDR_UNDEF;
  if (offset != HADDR_UNDEF && offset <= static_cast<haddr_t>(INT64_MAX)) {
    result.offset = static_cast<std::int64_t>(offset);
  }
  return result;
}

std::string read_text(hid_t attribute, hid_t type) {
  if (check(H5Tis_variable_str(type)) > 0) {
    char* text = nullptr;
    check(H5Aread(attribute, type, &text));
    std::string result(text != nullptr ? text : "");
    H5free_memory(text);
    return result;
  }
  std::string text(H5Tget_size(type), '\0');
  check(H5Aread(attribute, type, text.data()));
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

H5Value read_value(hid_t attribute) {
  const Type type(H5Aget_type(attribute));
  const Space space(H5Aget_space(attribute));
  if (H5Sget_simple_extent_npoints(*space) != 1) throw Hdf5Error("is a list, expected one value");
  switch (H5Tget_class(*type)) {
    case H5T_STRING:
      return read_text(attribute, *type);
    case H5T_ENUM:
      if (check(H5Tequal(*type, *bool_type())) > 0) {
        std::int8_t value = 0;
        check(H5Aread(attribute, *type, &value));
        return value != 0;
      }
      break;
    case H5T_INTEGER:
      if (H5Tget_sign(*type) == H5T_SGN_NONE) {
        std::uint64_t value = 0;
        check(H5Aread(attribute, H5T_NATIVE_UINT64, &value));
        return value;
      } else {
        std::int64_t value = 0;
        check(H5Aread(attribute, H5T_NATIVE_INT64, &value));
        return value;
      }
    case H5T_FLOAT: {
      double value = 0.0;
      check(H5Aread(attribute, H5T_NATIVE_DOUBLE, &value));
      return value;
    }
    default:
      break;
  }
  throw Hdf5Error("is neither a number, a text nor true or false");
}

// ---- writing ----

// Metadata in the newest format of 1.10, which checksums it; alignment of what is allocated from now on.
Properties access(hsize_t alignment) {
  Properties list(H5Pcreate(H5P_FILE_ACCESS));
  check(H5Pset_libver_bounds(*list, H5F_LIBVER_V110, H5F_LIBVER_V110));
  check(H5Pset_file_locking(*list, false, true));
  check(H5Pset_alignment(*list, 1, alignment));
  check(H5Pset_small_data_block_size(*list, 0));
  check(H5Pset_sieve_buf_size(*list, 0));
  return list;
}

// Links and attributes inside the object's header: smaller and quicker than separate indexes.
template <typename Id>
void keep_compact(Id list) {
  check(H5Pset_obj_track_times(list, false));
  check(H5Pset_attr_phase_change(list, 64, 32));
}

Properties created(hid_t kind) {
  Properties list(H5Pcreate(kind));
  keep_compact(*list);
  check(H5Pset_link_phase_change(*list, 128, 64));
  return list;
}

Properties created_dataset() {
  Properties list(H5Pcreate(H5P_DATASET_CREATE));
  keep_compact(*list);
  check(H5Pset_layout(*list, H5D_CONTIGUOUS));
  check(H5Pset_alloc_time(*list, H5D_ALLOC_TIME_LATE));
  check(H5Pset_fill_time(*list, H5D_FILL_TIME_NEVER));
  return list;
}

void write_value(hid_t object, const std::string& name, hid_t type, const void* value) {
  const Space space(H5Screate(H5S_SCALAR));
  const Attribute attribute(H5Acreate2(object, name.c_str(), type, *space, H5P_DEFAULT, H5P_DEFAULT));
  check(H5Awrite(*attribute, type, value));
}

struct ValueWriter {
  hid_t object;
  const std::string& name;

  void operator()(bool value) const {
    const auto byte = static_cast<std::int8_t>(value);
    write_value(object, name, *bool_type(), &byte);
  }
  void operator()(std::int64_t value) const { write_value(object, name, H5T_STD_I64LE, &value); }
  void operator()(std::uint64_t value) const { write_value(object, name, H5T_STD_U64LE, &value); }
  void operator()(double value) const { write_value(object, name, H5T_IEEE_F64LE, &value); }
  void operator()(const std::string& value) const {
    const Type type(H5Tcopy(H5T_C_S1));
    check(H5Tset_size(*type, std::max<std::size_t>(value.size(), 1)));
    check(H5Tset_strpad(*type, H5T_STR_NULLPAD));
    check(H5Tset_cset(*type, H5T_CSET_UTF8));
    write_value(object, name, *type, value.empty() ? "" : value.data());
  }
};

}  // namespace

std::string_view name_of(H5Element element) {
  for (const ElementInfo& info : kElements) {
    if (info.element == element) return info.name;
  }
  return "another type";
}

std::int64_t size_of(H5Element element) {
  for (const ElementInfo& info : kElements) {
    if (info.element == element) return info.bytes;
  }
  return 0;
}

bool looks_like_hdf5(const std::string& path) {
  constexpr char kSignature[8] = {'\x89', 'H', 'D', 'F', '\r', '\n', '\x1a', '\n'};
  char begin[sizeof kSignature] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(begin, sizeof begin) && std::memcmp(begin, kSignature, sizeof begin) == 0;
}

// ---- H5Reader ----

struct H5Reader::State {
  std::string path;
  File file;
};

H5Reader::H5Reader(const std::string& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  in_file(path, "", [&] {
    const Properties list(H5Pcreate(H5P_FILE_ACCESS));
    check(H5Pset_file_locking(*list, false, true));
    state_->file = File(H5Fopen(path.c_str(), H5F_ACC_RDONLY, *list));
  });
}
H5Reader::~H5Reader() = default;
H5Reader::H5Reader(H5Reader&&) noexcept = default;
H5Reader& H5Reader::operator=(H5Reader&&) noexcept = default;

std::vector<H5Dataset> H5Reader::datasets() const {
  const std::vector<std::string> paths = in_file(state_->path, "", [&] {
    std::vector<std::string> found;
    const auto visit = [](hid_t, const char* name, const H5O_info_t* info, void* out) noexcept -> herr_t {
      try {
        if (info->type == H5O_TYPE_DATASET)
          static_cast<std::vector<std::string>*>(out)->push_back(std::string("/").append(name));
        return 0;
      } catch (const std::bad_alloc&) {  // exceptions may not pass through C
        return -1;
      }
    };
    check(H5Ovisit(*state_->file, H5_INDEX_NAME, H5_ITER_INC, visit, &found));
    return found;
  });
  std::vector<H5Dataset> result;
  for (const std::string& path : paths) {
    result.push_back(in_file(state_->path, path, [&] { return describe(*state_->file, path); }));
  }
  std::ranges::sort(result, {}, &H5Dataset::path);
  return result;
}

std::optional<H5Value> H5Reader::attribute(const std::string& object, const std::string& name) const {
  return in_file(state_->path, object + " attribute " + name, [&]() -> std::optional<H5Value> {
    const Object holder(H5Oopen(*state_->file, object.c_str(), H5P_DEFAULT));
    if (check(H5Aexists(*holder, name.c_str())) == 0) return std::nullopt;
    const Attribute attribute(H5Aopen(*holder, name.c_str(), H5P_DEFAULT));
    return read_value(*attribute);
  });
}

std::vector<std::byte> H5Reader::read(const std::string& path, std::int64_t max_bytes) const {
  return in_file(state_->path, path, [&] {
    const H5Dataset info = describe(*state_->file, path);
    if (info.bytes > max_bytes) {
      throw Hdf5Error(fmt::format("has {} bytes, more than the {} that are expected at most", info.bytes, max_bytes));
    }
    const Dataset dataset(H5Dopen2(*state_->file, path.c_str(), H5P_DEFAULT));
    const Type type(H5Dget_type(*dataset));
    std::vector<std::byte> bytes(static_cast<std::size_t>(info.bytes));
    if (!bytes.empty()) check(H5Dread(*dataset, *type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()));
    return bytes;
  });
}

// ---- H5Writer ----

struct H5Writer::State {
  std::string path;
  File file;
  std::string open_path;  // of `open`: pieces of one dataset tend to follow each other
  Dataset open;

  Object object(const std::string& name) const { return Object(H5Oopen(*file, name.c_str(), H5P_DEFAULT)); }

  // Makes the groups above `name`.
  void make_parents(const std::string& name) {
    for (std::size_t slash = name.find('/', 1); slash != std::string::npos; slash = name.find('/', slash + 1)) {
      make_group(name.substr(0, slash));
    }
  }
  void make_group(const std::string& name) {
    if (check(H5Lexists(*file, name.c_str(), H5P_DEFAULT)) > 0) return;
    const Group made(H5Gcreate2(*file, name.c_str(), H5P_DEFAULT, *created(H5P_GROUP_CREATE), H5P_DEFAULT));
  }
  void make_dataset(const std::string& name, hid_t type, const std::vector<std::int64_t>& shape) {
    make_parents(name);
    const std::vector<hsize_t> extent(shape.begin(), shape.end());
    const Space space(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
    const Dataset made(H5Dcreate2(*file, name.c_str(), type, *space, H5P_DEFAULT, *created_dataset(), H5P_DEFAULT));
  }
};

H5Writer::H5Writer(const std::string& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  in_file(path, "",
          [&] { state_->file = File(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, *created(H5P_FILE_CREATE), *access(1))); });
}
H5Writer::~H5Writer() = default;
H5Writer::H5Writer(H5Writer&&) noexcept = default;
H5Writer& H5Writer::operator=(H5Writer&&) noexcept = default;

void H5Writer::group(const std::string& path) {
  in_file(state_->path, path, [&] {
    state_->make_parents(path);
    state_->make_group(path);
  });
}

void H5Writer::attribute(const std::string& object, const std::string& name, const H5Value& value) {
  in_file(state_->path, object + " attribute " + name, [&] {
    const Object holder = state_->object(object);
    std::visit(ValueWriter{*holder, name}, value);
  });
}

void H5Writer::dataset(const std::string& path, H5Element element, const std::vector<std::int64_t>& shape) {
  in_file(state_->path, path, [&] { state_->make_dataset(path, *type_of(element), shape); });
}

void H5Writer::enum_dataset(const std::string& path, const std::vector<std::string>& names, std::int64_t count) {
  in_file(state_->path, path, [&] {
    const Type type(H5Tenum_create(H5T_STD_U8LE));
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto value = static_cast<std::uint8_t>(i);
      check(H5Tenum_insert(*type, names[i].c_str(), &value));
    }
    state_->make_dataset(path, *type, {count});
  });
}

void H5Writer::begin_data() {
  in_file(state_->path, "", [&] {
    state_->file.close();
    state_->file = File(H5Fopen(state_->path.c_str(), H5F_ACC_RDWR, *access(kPageBytes)));
  });
}

void H5Writer::write(const std::string& path, std::int64_t first_row, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  in_file(state_->path, path, [&] {
    if (!state_->open || state_->open_path != path) {
      state_->open = Dataset(H5Dopen2(*state_->file, path.c_str(), H5P_DEFAULT));
      state_->open_path = path;
    }
    const Type type(H5Dget_type(*state_->open));
    const Space space(H5Dget_space(*state_->open));
    std::vector<hsize_t> count = extent_of(*space);
    hsize_t row_bytes = H5Tget_size(*type);
    for (std::size_t d = 1; d < count.size(); ++d) row_bytes *= count[d];
    const auto first = static_cast<hsize_t>(first_row);
    const hsize_t rows = bytes.size() / row_bytes;
    if (bytes.size() % row_bytes != 0 || first > count.at(0) || rows > count.at(0) - first) {
      throw Hdf5Error(fmt::format("{} bytes from row {} on do not fit {} rows of {} bytes", bytes.size(), first_row,
                                  count.at(0), row_bytes));
    }
    std::vector<hsize_t> start(count.size(), 0);
    start[0] = first;
    count[0] = rows;
    check(H5Sselect_hyperslab(*space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr));
    const Space memory(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr));
    check(H5Dwrite(*state_->open, *type, *memory, *space, H5P_DEFAULT, bytes.data()));
  });
}

void H5Writer::replace(const std::string& object, const std::string& name, std::uint64_t value) {
  in_file(state_->path, object + " attribute " + name, [&] {
    const Object holder = state_->object(object);
    const Attribute attribute(H5Aopen(*holder, name.c_str(), H5P_DEFAULT));
    check(H5Awrite(*attribute, H5T_NATIVE_UINT64, &value));
  });
}

void H5Writer::close() {
  in_file(state_->path, "", [&] {
    state_->open.close();
    check(H5Fflush(*state_->file, H5F_SCOPE_GLOBAL));
    state_->file.close();
  });
}

}  // namespace stagecoach
