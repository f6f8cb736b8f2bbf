#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

namespace torchcc::detail {

// Storages whose memory is not there yet. Access to their data is an error of PyTorch's (before torch 2.13:
// storage().data() is null).

/// The storage of a tensor that has one.
inline c10::StorageImpl& storage_of(const at::Tensor& tensor) {
  return *tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

/// What PyTorch's error says when somebody reads the memory of placeholders that this thread makes from now on; null:
/// PyTorch's own words. Returns what it was. Before torch 2.13 without effect.
const char* set_access_message(const char* message);

bool is_placeholder(const c10::StorageImpl& storage);
/// A new one, for memory of a device.
c10::intrusive_ptr<c10::StorageImpl> make_placeholder(size_t bytes, c10::Device device);
/// Makes one of a storage, and gives its memory.
at::DataPtr take_data(c10::StorageImpl& storage);
/// Gives it memory.
void set_data(c10::StorageImpl& storage, at::DataPtr data);

/// Whether memory is of PyTorch's allocator, and not the program's own (from_blob), to which it may write at any time.
bool is_allocated(const c10::StorageImpl& storage);

}  // namespace torchcc::detail
