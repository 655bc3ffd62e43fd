// The GPUs that a test program runs on: real ones, or an emulated machine in a state that finds mistakes.
#pragma once

namespace stagecoach::test {

// machine_real.cpp or machine_emulated.cpp:
void prepare_machine();
bool wants_small_jobs();  // emulated, the largest would take minutes

}  // namespace stagecoach::test
