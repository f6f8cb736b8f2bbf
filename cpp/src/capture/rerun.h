#pragma once

#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "recording.h"

namespace torchcc::detail {

/// Runs the operators of a recording one by one, as the program did, with the grad modes that it had. `inputs`: of the
/// recording. Gives its outputs. Throws what the operators throw.
std::vector<at::Tensor> rerun(const Recording& recording, c10::ArrayRef<at::Tensor> inputs);

}  // namespace torchcc::detail
