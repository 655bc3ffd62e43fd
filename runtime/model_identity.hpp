// Which model it is, by what it computes and not by its path: so that a job that goes on tomorrow is known to go on
// with the same one.
#pragma once

#include <cstddef>
#include <string>

#include "runtime/weight_source.hpp"

namespace stagecoach {

// A hash, in hexadecimal, of the configuration, the vocabulary and the weights: of native files all their checksums, of
// others the first, middle and last row of every tensor, which training changes. Reads some megabytes. Throws
// WeightError.
std::string model_identity(const Model& model);

// The same without the vocabulary, which not every rank has.
std::string weights_identity(const Model& model);
constexpr std::size_t kIdentitySize = 16;  // characters

}  // namespace stagecoach
