// Which arithmetic this program computes with.
#pragma once

namespace stagecoach {

// Counts the changes of any operation's last bits, on any device, and of what tokens are drawn from them: a job that
// was begun with other arithmetic is not gone on with. tests/unit/test_arithmetic.cpp notices changes of the CPU's.
inline constexpr int kArithmetic = 2;

}  // namespace stagecoach
