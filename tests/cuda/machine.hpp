// The GPUs that a test program runs on: real ones, or an emulated machine in a state that finds mistakes.
#pragma once

namespace stagecoach::test {

void prepare_machine();  // machine_real.cpp or machine_emulated.cpp

}  // namespace stagecoach::test
