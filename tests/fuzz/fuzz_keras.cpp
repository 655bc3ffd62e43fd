// A Keras checkpoint as TensorFlow's h5py writes it (the oldest file format, without checksums), with bytes changed and
// perhaps its end cut off: either a WeightError of one line, or a model of which every tensor can be read. The input is
// the number of bytes cut off (two bytes, scaled), then changes, each two bytes of position (scaled to the file) and
// one byte to flip with; without any, it must load.
#include <hdf5.h>

#include "partition/model.hpp"
#include "runtime/keras_h5.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/unit/keras_builder.hpp"

// For the leak sanitizer, which calls it: HDF5 forgets what it had allocated where it finds a file damaged.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5\n";
}

namespace {

using namespace stagecoach;
using fuzz::require;

ModelConfig small_config() {
  ModelConfig config = test::tiny_config();
  config.n_layer = 1;
  return config;
}

void write_old_keras(const std::string& path) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t links = H5Pcreate(H5P_LINK_CREATE);
  require(file >= 0 && H5Pset_create_intermediate_group(links, 1) >= 0);
  for (const test::FakeTensor& tensor : test::tensors_of(small_config(), "")) {
    const std::string name = test::kKerasRoot + test::keras_name(tensor.name, "weight");
    std::vector<hsize_t> shape(tensor.shape.begin(), tensor.shape.end());
    if (name.ends_with("/bias:0")) shape.insert(shape.begin(), 1);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t set = H5Dcreate2(file, name.c_str(), H5T_IEEE_F32LE, space, links, H5P_DEFAULT, H5P_DEFAULT);
    require(set >= 0 && H5Dwrite(set, H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, tensor.bytes.data()) >= 0);
    H5Dclose(set);
    H5Sclose(space);
  }
  H5Pclose(links);
  require(H5Fclose(file) >= 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::FuzzFolder folder;
  const std::string path = folder / "tf_model.h5";
  static const std::string whole = [&] {
    write_old_keras(path);
    return fuzz::contents_of_file(path);
  }();
  std::string bytes = whole;
  const auto scaled = [&](std::size_t at) { return (std::size_t{data[at]} << 8 | data[at + 1]) * bytes.size() >> 16; };
  for (std::size_t i = 2; i + 3 <= size; i += 3) {
    const std::size_t position = scaled(i);
    bytes[position] = static_cast<char>(bytes[position] ^ static_cast<char>(data[i + 2]));
  }
  if (size >= 2) bytes.resize(bytes.size() - scaled(0));
  fuzz::write_file(path, bytes);
  const ModelConfig config = small_config();
  try {
    const auto source = open_keras_h5(path, config);
    for (const TensorSpec& spec : tensor_table(config)) {
      std::vector<std::byte> read(static_cast<std::size_t>(spec.elements() * size_of(source->dtype_of(spec))));
      source->read_rows(spec, 0, spec.rows, read);
    }
  } catch (const WeightError& error) {
    fuzz::require_plain(error.what());
    require(bytes != whole);
  }
  return 0;
}
