// HDF5 files, read and written through a few typed calls: the sole user of the HDF5 library.
//
// Reading lists what a file holds and where the bytes of each dataset stand, so that others can read them without the
// library. Writing has two phases, which makes files dense and quick to open: first everything is declared (groups,
// attributes, datasets), which puts all metadata side by side at the front with checksums of its own; then
// `begin_data` fixes the layout and the datasets are filled piece by piece, each contiguous and at a multiple of 4096
// bytes. Values are never converted inside HDF5, which is slow for 16-bit floats. Files carry no times: the same calls
// give the same bytes. File locking stays off, since file systems without locks are common on clusters.
//
// Knows nothing of models or results. Objects are named by absolute paths ("/blocks/3"). Each object is for one thread
// at a time. Errors are Hdf5Errors that begin with the file's name and end with HDF5's own innermost reason; HDF5
// itself prints nothing. HDF5's hook at exit is switched off: it would try again, with noise, to write what a full disk
// has refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace stagecoach {

class Hdf5Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Little-endian. bool is a two-value enum, as h5py writes it.
enum class H5Element : std::uint8_t {
  kInt8,
  kUInt8,
  kInt32,
  kInt64,
  kUInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kOther,  // anything else: strings, compounds, big-endian numbers, enums
};
std::string_view name_of(H5Element element);  // "float16"
std::int64_t size_of(H5Element element);      // 0 for kOther

using H5Value = std::variant<bool, std::int64_t, std::uint64_t, double, std::string>;

struct H5Dataset {
  std::string path;
  H5Element element = H5Element::kOther;
  std::string type;  // name_of(element), or what else it is: "float64 big-endian", "string"
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;
  std::optional<std::int64_t> offset;  // in the file; none when chunked, compressed, elsewhere or never written
};

// Whether the file begins as HDF5 files without a user block do. False when it cannot be read.
bool looks_like_hdf5(const std::string& path);

class H5Reader {
 public:
  explicit H5Reader(const std::string& path);
  ~H5Reader();
  H5Reader(H5Reader&&) noexcept;
  H5Reader& operator=(H5Reader&&) noexcept;

  // All datasets that are reached over hard links, by path. Links to other files are not followed.
  std::vector<H5Dataset> datasets() const;
  // None when `object` has no such attribute. Throws when it holds something other than one H5Value.
  std::optional<H5Value> attribute(const std::string& object, const std::string& name) const;
  // The stored bytes of a dataset of at most `max_bytes`.
  std::vector<std::byte> read(const std::string& path, std::int64_t max_bytes) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class H5Writer {
 public:
  // Makes the file, or empties one that is there.
  explicit H5Writer(const std::string& path);
  ~H5Writer();  // closes quietly; without `close` the file is not complete
  H5Writer(H5Writer&&) noexcept;
  H5Writer& operator=(H5Writer&&) noexcept;

  // ---- until begin_data. Groups on the way to a path are made as needed. ----
  void attribute(const std::string& object, const std::string& name, const H5Value& value);
  void dataset(const std::string& path, H5Element element, const std::vector<std::int64_t>& shape);
  // One byte per element; value i is named `names[i]`.
  void enum_dataset(const std::string& path, const std::vector<std::string>& names, std::int64_t count);
  void group(const std::string& path);

  void begin_data();

  // ---- after begin_data ----
  // Elements from [first_row, ...) on, in whole rows (elements of 1-D datasets are rows), in any order.
  void write(const std::string& path, std::int64_t first_row, std::span<const std::byte> bytes);
  // Another value of the same kind for an attribute that was declared.
  void replace(const std::string& object, const std::string& name, std::uint64_t value);

  // Everything has been handed to the system when it returns; making it durable is the caller's.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace stagecoach
