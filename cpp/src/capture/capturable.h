#pragma once

#include <string>

#include "artifact.h"
#include "recording.h"

namespace torchcc::detail {

/// Why no CUDA graph can be made of a recording's code, with the operator that is in the way where one is; empty when
/// one can. `code` may be null.
std::string why_no_graph(const Recording& recording, const Artifact* code);

}  // namespace torchcc::detail
