#include "runtime/tensor_pieces.hpp"

#include <fmt/format.h>

#include <cmath>

namespace stagecoach {

std::string broken_value(const WeightSource& source, const TensorSpec& spec, std::int64_t row, std::int64_t col,
                         float value, DType to) {
  return fmt::format("{}: element {} is {}{}", source.place_of(spec),
                     spec.is_vector ? fmt::format("{}", col) : fmt::format("({}, {})", row, col), value,
                     std::isfinite(value) ? fmt::format(", too large for {}; choose another --dtype", name_of(to))
                                          : ", no finite number; these weights are broken");
}

}  // namespace stagecoach
