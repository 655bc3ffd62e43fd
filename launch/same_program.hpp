// Whether all ranks run the same program: what they tell each other and what they compute would not fit otherwise.
// Builds with other compilers, instruction sets or features are the same program when their sources are.
#pragma once

#include <string_view>

#include "launch/world.hpp"

namespace stagecoach {

// A word for the sources of this program.
std::string_view source_fingerprint();

// Throws StartupFailed on every rank when some run another version or other sources; said once. Collective, and the
// first that ranks do.
void require_same_program(const World& world);

}  // namespace stagecoach
