// Emulated <nccl.h>: the calls that runtime/nccl_transport.cpp uses.
#pragma once

#include "tests/cuda_emulation/nccl_api.hpp"
