#pragma once

#include <string>
#include <vector>

namespace torchcc::detail {

// The calls that led to an operator.

/// Their addresses, the innermost first.
std::vector<void*> callers();

/// The line of the program among them, as "train.cpp:42", or the function that it is in; empty without symbols. Safe
/// from any thread; takes long for a stack that is new.
std::string place_of(const std::vector<void*>& callers);

/// Whether libtorch's own code, and not the program's, has called at::equal, in whose call this is.
bool is_equal_of_libtorch();

}  // namespace torchcc::detail
