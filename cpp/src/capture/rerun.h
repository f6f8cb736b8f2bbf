#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "trace.h"

namespace torchcc::detail {

/// Runs the operators of a trace one by one, as the program did, with the grad modes that it had. `values`: by id,
/// those of the inputs. Gives all values. Throws what the operators throw.
std::vector<at::Tensor> rerun(const Trace& trace, std::vector<at::Tensor> values);

}  // namespace torchcc::detail
