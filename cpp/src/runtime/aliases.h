#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include <ATen/core/TensorBase.h>

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

/// What a tensor was at some moment: tells later whether it was changed since then, or may have been.
class Snapshot {
 public:
  Snapshot() = default;
  explicit Snapshot(const at::TensorBase& tensor)
      : storage_(tensor.storage().unsafeGetStorageImpl()),
        aliases_(Aliases::of(storage_)),
        taken_(aliases_->taken()),
        has_version_(!tensor.is_inference()),
        version_(has_version_ ? version_of(tensor) : 0) {}

  /// Tensors of inference mode have no version counter.
  bool has_version() const { return has_version_; }
  /// Whether the program had asked for data() before.
  bool was_aliased() const { return taken_ > 0; }
  /// Whether the tensor has the same memory, at the same version, and nobody has asked for data() since.
  bool is_current(const at::TensorBase& tensor) const {
    return tensor.storage().unsafeGetStorageImpl() == storage_ && aliases_->taken() == taken_ &&
           (!has_version_ || version_of(tensor) == version_);
  }
  bool operator==(const Snapshot&) const = default;

 private:
  static uint32_t version_of(const at::TensorBase& tensor) {
    return static_cast<uint32_t>(tensor.unsafeGetTensorImpl()->version_counter().current_version());
  }

  const c10::StorageImpl* storage_ = nullptr;
  std::shared_ptr<const Aliases> aliases_{};
  int64_t taken_ = 0;
  bool has_version_ = false;
  uint32_t version_ = 0;
};

}  // namespace torchcc::detail
