#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "trace.h"

namespace torchcc::detail {

/// Runs the operators of a trace one by one, as the program did, with the grad modes that it had; or those of the steps
/// from `begin` to before `end`. `values`: by id, those of the inputs. Gives all values. Throws what the operators
/// throw.
std::vector<at::Tensor> rerun(const Trace& trace, std::vector<at::Tensor> values, size_t begin = 0,
                              size_t end = SIZE_MAX);

}  // namespace torchcc::detail
