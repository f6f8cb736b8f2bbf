#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

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
  /// The gradient of an output, and the strides that it has to have.
  struct Tangent {
    size_t output = 0;
    std::vector<int64_t> strides;
  };
  std::shared_ptr<const Library> library;
  std::vector<Saved> saved;
  std::vector<Tangent> tangents;
  std::vector<size_t> gradients;  ///< inputs, by its outputs
  size_t extras = 0;
};

/// Compiled code of one trace.
struct Artifact {
  std::shared_ptr<const Library> library;
  std::shared_ptr<const Backward> backward;  ///< null where the trace needs no gradients
};

/// Reads what the compiler states of a backward; see python/torchcc/training.py. Throws nlohmann::json's exceptions.
Backward parse_backward(const std::string& json);

}  // namespace torchcc::detail
