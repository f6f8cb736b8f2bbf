#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include <c10/core/StorageImpl.h>

namespace torchcc::detail {

/// Counts how often the program has asked for a tensor's data(): another tensor over the same memory, with a version
/// counter of its own. What is written through it leaves no trace in the first one, and torch::optim::SGD and many
/// programs change weights so. libtorch asks one object, which can be replaced, for it
/// (ATen/core/VariableHooksInterface.h); nothing is replaced before the first storage is watched.
class Aliases {
 public:
  /// The counter of a storage, which counts as long as somebody holds it. Safe from any thread.
  static std::shared_ptr<const Aliases> of(const c10::StorageImpl* storage);

  int64_t taken() const { return taken_.load(std::memory_order_acquire); }
  void note() { taken_.fetch_add(1, std::memory_order_acq_rel); }

 private:
  std::atomic<int64_t> taken_{0};
};

}  // namespace torchcc::detail
