#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <torchcc/tensor.h>

namespace torchcc {

namespace detail {

/// Memory that tensors share; the last of them gives it back.
struct Storage {
  std::atomic<int64_t> owners{1};
  size_t capacity = 0;  ///< bytes of memory of an arena; 0 for memory of somebody else
  void* data = nullptr;
  void (*give_back)(void*) = nullptr;  ///< for memory of somebody else, with `owner`
  void* owner = nullptr;
};

/// Memory of some bytes, aligned to 64, from the store of this thread. Throws Error when there is none.
Storage* allocate(size_t bytes);

/// A tensor object for compiled code, which it gives back to delete_handle().
Tensor* new_handle();
void delete_handle(Tensor* handle) noexcept;

}  // namespace detail

/// How the runtime makes tensors.
struct TensorAccess {
  /// Takes over the storage's owner.
  static void set(Tensor& tensor, detail::Storage* storage, void* data, IntArrayRef sizes, IntArrayRef strides,
                  ScalarType dtype);
  static detail::Storage* storage(const Tensor& tensor) { return tensor.storage_; }
  /// Another view of a tensor's memory; `offset` in bytes from the start of its data.
  static void set_view(Tensor& tensor, const Tensor& base, int64_t offset, IntArrayRef sizes, IntArrayRef strides,
                       ScalarType dtype);
};

}  // namespace torchcc
