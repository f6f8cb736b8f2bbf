#pragma once

#include <cstdint>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>

#include "trace.h"

namespace torchcc::detail {

// A tensor with no other keys than CPU and these is defined, dense, on the CPU, and no wrapper.
inline constexpr c10::DispatchKeySet kOrdinaryKeys({c10::DispatchKey::ADInplaceOrView,
                                                    c10::DispatchKey::AutogradFunctionality,
                                                    c10::DispatchKey::AutocastCPU, c10::DispatchKey::Conjugate,
                                                    c10::DispatchKey::Negative});

inline bool is_ordinary(const at::Tensor& tensor) {
  return tensor.key_set() - kOrdinaryKeys == c10::DispatchKeySet(c10::DispatchKey::CPU) && tensor.has_storage();
}

/// Appends what makes a value, besides its storage: dtype, flags, offset, rank, sizes, strides (see ValueWord).
void append_words(Words& to, const at::Tensor& tensor);

/// Whether a tensor is what the words say.
bool has_words(const at::Tensor& tensor, const int64_t* words);

/// The bytes of a storage between the first element and behind the last; equal numbers when there are none.
std::pair<int64_t, int64_t> extent(const int64_t* words);

/// A tensor over an existing storage.
at::Tensor make_view(const c10::Storage& storage, const int64_t* words);

}  // namespace torchcc::detail
