#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include <ATen/core/Tensor.h>

namespace torchcc {

/// Marks a dimension of a tensor: every compiled function that gets the tensor as an argument has from then on a
/// DynamicSize for it, as if CompileOptions::dynamic said so. `dim` may count from the last one; `range` is the
/// smallest and the largest size. Gives `tensor`. Safe from any thread. Throws ArgumentError for a dimension that the
/// tensor does not have, an empty name, or an empty range.
const at::Tensor& dynamic(const at::Tensor& tensor, int64_t dim, const std::string& name,
                          std::pair<int64_t, int64_t> range = {2, INT64_MAX});

}  // namespace torchcc
