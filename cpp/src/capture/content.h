#pragma once

#include <cstddef>

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

namespace torchcc::detail {

// What is in memory, of the CPU or of a GPU. For that of a GPU, these wait until it has finished; they are for calls
// that are recorded. They throw c10::OutOfMemoryError where it has too little memory for it.

/// A number that all bytes of a storage, and their order, decide.
size_t hash_of(const c10::StorageImpl& storage);

/// A copy of all bytes, as a tensor of one dimension.
at::Tensor copy_of(const c10::StorageImpl& storage);

/// Whether two tensors have the same dtype, the same sizes, and the same bytes.
bool same_bytes(const at::Tensor& a, const at::Tensor& b);

}  // namespace torchcc::detail
