// What has to be the same on all hosts, though each has a copy of its own: the program and the model. Ranks compare
// both before they rely on it.
#pragma once

#include <string_view>

#include "launch/world.hpp"
#include "runtime/weight_source.hpp"

namespace stagecoach {

// A word for the sources of this program.
std::string_view source_fingerprint();

// Throws StartupFailed on every rank when some run another version or other sources; said once. What ranks tell each
// other and what they compute would not fit otherwise. Builds with other compilers, instruction sets or features are
// the same program when their sources are. Collective, and the first that ranks do.
void require_same_program(const World& world);

// The same for ranks whose `model` has another configuration or other weights. Reads some megabytes where there are no
// checksums. Collective.
void require_same_model(const World& world, const Model& model);

}  // namespace stagecoach
