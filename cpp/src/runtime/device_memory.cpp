// Uses the header of PyTorch's allocator, which needs CUDA's headers, but no library of CUDA.
#include "device_memory.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>

namespace torchcc::detail {
namespace {

thread_local int64_t failures = 0;

/// The allocator calls it in the thread that gets no memory.
bool watch() {
  at::globalContext().lazyInitDevice(c10::kCUDA);  // the allocator forgets who watches before
  try {
    c10::cuda::CUDACachingAllocator::attachOutOfMemoryObserver([](auto&&...) { ++failures; });
    return true;
  } catch (const c10::Error&) {  // that of CUDA's own pools, or a program's, cannot be watched
    return false;
  }
}

}  // namespace

int64_t memory_failures() {
  [[maybe_unused]] static const bool is_watched = watch();
  return failures;
}

}  // namespace torchcc::detail
