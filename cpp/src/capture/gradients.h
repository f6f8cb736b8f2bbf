#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "artifact.h"
#include "recording.h"

namespace torchcc::detail {

/// A recording that needs gradients, with code for both directions. Autograd's graph holds it beyond the function.
struct Training {
  std::shared_ptr<const Recording> recording;
  std::shared_ptr<const Artifact> code;
  std::atomic<bool> is_differentiated_twice{false};  ///< somebody called backward with create_graph
};

/// Runs forward code, and makes its outputs part of autograd's graph. `inputs`: of the recording, as the program has
/// them; `compute` runs the code, and gives its outputs with the extra ones behind them. Gives the recording's outputs.
///
/// Backward runs the code for gradients. It frees what was saved unless the graph is kept, and throws PyTorch's own
/// errors: for a second run through a freed graph, and for saved tensors that were changed. With create_graph, the
/// recorded operators run again one by one; where that cannot give the same (random numbers, inputs that were written
/// into), it throws CaptureError. Safe from many threads.
std::vector<at::Tensor> call_with_gradients(const std::shared_ptr<Training>& training, c10::ArrayRef<at::Tensor> inputs,
                                            const std::function<std::vector<at::Tensor>()>& compute);

}  // namespace torchcc::detail
