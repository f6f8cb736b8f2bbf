#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <nlohmann/json_fwd.hpp>

#include "graphs.h"
#include "library.h"

namespace torchcc::detail {

/// Compiled code for gradients. It takes the saved tensors, then the gradients of outputs (tangents), and gives
/// gradients of inputs.
struct Backward {
  /// Where a tensor comes from that is kept for it.
  struct Saved {
    enum class From : uint8_t { input, output, extra };  ///< extra: the forward code returns it behind its outputs
    From from = From::input;
    size_t index = 0;
  };
  /// The gradient of an output, and the strides that it has to have; without them it is contiguous.
  struct Tangent {
    size_t output = 0;
    std::optional<std::vector<int64_t>> strides;
  };
  std::shared_ptr<const Library> library;
  std::vector<Saved> saved;
  std::vector<Tangent> tangents;
  std::vector<size_t> gradients;  ///< inputs, by its outputs
  size_t extras = 0;
};

/// Reads what the compiler states of a backward; see python/torchcc/training.py and gradients.py. Throws
/// nlohmann::json's exceptions, and Error.
Backward parse_backward(const nlohmann::json& content);

/// A function with compiled code for both directions. Autograd's graph holds it beyond the function's own end.
struct Differentiable {
  std::shared_ptr<const Backward> backward;
  std::vector<bool> output_grads;  ///< per output, whether it requires grad
  /// Per output, those whose part of autograd's graph is a part of its own, itself included: backward through it frees
  /// what they have saved.
  std::vector<std::vector<size_t>> covered;
  /// Per output, the inputs that its gradient flows to: backward through it leaves all others without one.
  std::vector<std::vector<size_t>> reached;
  mutable std::atomic<bool> is_differentiated_twice{false};  ///< somebody called backward with create_graph

  Differentiable() = default;
  virtual ~Differentiable() = default;
  Differentiable(const Differentiable&) = delete;
  Differentiable& operator=(const Differentiable&) = delete;

  /// Why rerun() would not give what the code gave; empty when it would.
  virtual std::string why_not_rerun() const = 0;
  /// Runs PyTorch's operators one by one, which leaves autograd's graph behind. Gives the outputs; one that does not
  /// require grad may be undefined.
  virtual std::vector<at::Tensor> rerun(std::vector<at::Tensor> inputs) const = 0;
};

/// What forward code gave: its outputs, and the extra ones behind them; and the lease of these, where it ran by a CUDA
/// graph. Backward then does too, where it can.
struct Computed {
  std::vector<at::Tensor> results;
  std::shared_ptr<const Graphs::Lease> lease = nullptr;
};

/// Runs forward code, and makes its outputs part of autograd's graph. `inputs`: as the program has them; `needs`: which
/// of them get a gradient; `compute` runs the code. Gives the outputs.
///
/// Backward runs the code for gradients. It frees what was saved unless the graph is kept, and throws PyTorch's own
/// errors: for a second run through a freed graph, and for saved tensors that were changed. With create_graph,
/// PyTorch's operators run again one by one; where that cannot give the same (random numbers, inputs that were written
/// into), it throws CaptureError. Safe from many threads.
std::vector<at::Tensor> call_with_gradients(const std::shared_ptr<const Differentiable>& function,
                                            c10::ArrayRef<at::Tensor> inputs, const std::vector<bool>& needs,
                                            const std::function<Computed()>& compute);

}  // namespace torchcc::detail
