#pragma once

#include <span>

#include "state.h"

namespace torchcc::detail {

/// Checks the arguments of a call and makes it: by compiled code where that is right, else by the graph. `outputs` has
/// a slot for each output. Throws ArgumentError when an argument does not fit.
void call(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments);

/// The same, but writes the results into the tensors that `outputs` holds, which are checked too.
void call_out(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments);

}  // namespace torchcc::detail
