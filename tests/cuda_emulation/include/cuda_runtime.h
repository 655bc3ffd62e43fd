// Emulated <cuda_runtime.h>: the language and the runtime's calls, as far as kernels/cuda/ uses them.
#pragma once

#include "tests/cuda_emulation/arithmetic.hpp"
#include "tests/cuda_emulation/device_functions.hpp"
#include "tests/cuda_emulation/host_api.hpp"
#include "tests/cuda_emulation/language.hpp"
#include "tests/cuda_emulation/threads.hpp"
