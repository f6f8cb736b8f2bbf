#pragma once

#include "manifest.h"

namespace torchcc::detail {

class Archive;

/// What a manifest would say about a `.pt2` file that torch.export.save wrote: its graphs as functions without compiled
/// code, by their names in the file ("model"). Throws PackageError when the file holds no graph, or one whose inputs
/// are not tensors and numbers.
Manifest read_plain(Archive& archive);

}  // namespace torchcc::detail
