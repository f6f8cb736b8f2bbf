#pragma once

#include <memory>
#include <span>

#include <torchcc/function.h>

namespace torchcc::detail {

// What function.cpp needs of a runtime. There are two, which no program has both of: this folder's, and the one in
// ../standalone.

const Signature& signature_of(const FunctionState& state);

/// The state of a function that is not empty. Throws ArgumentError.
const FunctionState& require(const std::shared_ptr<const FunctionState>& state);

/// Checks the arguments of a call and makes it: by compiled code where that is right, else by the graph. `outputs` has
/// a slot for each output. Throws ArgumentError when an argument does not fit.
void call(const FunctionState& state, std::span<Tensor> outputs, std::span<const Argument> arguments);

/// The same, but writes the results into the tensors that `outputs` holds, which are checked too.
void call_out(const FunctionState& state, std::span<Tensor> outputs, std::span<const Argument> arguments);

}  // namespace torchcc::detail
