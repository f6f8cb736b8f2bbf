#pragma once

#include <memory>
#include <string>

#include <torchcc/signature.h>

#include "backward.h"

namespace torchcc::detail {

/// Compiled code of one trace.
struct Artifact {
  std::shared_ptr<const Library> library;
  Signature signature;                       ///< of the library: for which sizes it is
  std::shared_ptr<const Backward> backward;  ///< null where the trace needs no gradients
  std::string uncapturable;                  ///< of code for GPUs: why no CUDA graph can be made of it; else empty
};

}  // namespace torchcc::detail
