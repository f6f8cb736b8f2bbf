#pragma once

#include <memory>

#include "backward.h"

namespace torchcc::detail {

/// Compiled code of one trace.
struct Artifact {
  std::shared_ptr<const Library> library;
  std::shared_ptr<const Backward> backward;  ///< null where the trace needs no gradients
};

}  // namespace torchcc::detail
