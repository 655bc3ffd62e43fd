// HDF5 datasets as tensors of a catalogue, for the formats that use HDF5.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>

#include "kernels/tensor.hpp"
#include "partition/wording.hpp"
#include "runtime/hdf5_file.hpp"
#include "runtime/stored_tensors.hpp"

namespace stagecoach {

constexpr const char* kH5TensorTypes = "float32, float16 or bfloat16";

inline std::optional<DType> dtype_of(H5Element element) {
  switch (element) {
    case H5Element::kFloat32:
      return DType::kFloat32;
    case H5Element::kFloat16:
      return DType::kFloat16;
    case H5Element::kBFloat16:
      return DType::kBFloat16;
    default:
      return std::nullopt;
  }
}

inline H5Element element_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return H5Element::kFloat32;
    case DType::kFloat16:
      return H5Element::kFloat16;
    case DType::kBFloat16:
      return H5Element::kBFloat16;
    case DType::kInt8:
      return H5Element::kInt8;
  }
  return H5Element::kOther;
}

// Throws WeightError when its bytes do not stand in one piece.
inline StoredTensor stored_tensor(const H5Dataset& dataset, std::string name, const std::string& file) {
  if (!dataset.offset) {
    throw WeightError(fmt::format(
        "{}: tensor {}: is chunked, compressed or not in this file; rewrite the file with h5repack -l CONTI "
        "-f NONE OLD.h5 NEW.h5",
        file, printable(dataset.path)));
  }
  StoredTensor tensor;
  tensor.name = std::move(name);
  tensor.stored_name = dataset.path;
  tensor.type = dataset.type;
  tensor.dtype = dtype_of(dataset.element);
  tensor.shape = dataset.shape;
  tensor.offset = *dataset.offset;
  tensor.bytes = dataset.bytes;
  return tensor;
}

}  // namespace stagecoach
