#pragma once

#include <functional>

namespace torchcc::detail {

/// Runs jobs one after another in a thread that ends with the program; a compilation that is then under way is given
/// up.
void run_in_background(std::function<void()> job);

}  // namespace torchcc::detail
