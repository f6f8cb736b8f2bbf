#pragma once

#include <cstdint>

namespace torchcc::detail {

/// How often PyTorch's allocator of GPU memory found too little of it for this thread, since this was asked first in
/// the process. 0 where that cannot be known: without CUDA's headers, or with an allocator that does not tell. Fast.
/// Only where has_gpu().
int64_t memory_failures();

}  // namespace torchcc::detail
