#pragma once

#include <cstdint>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>

#include "trace.h"

namespace torchcc::detail {

// A tensor with no other keys than CPU, or CUDA, and these is defined, dense, there, and no wrapper.
inline constexpr c10::DispatchKeySet kOrdinaryKeys({c10::DispatchKey::ADInplaceOrView,
                                                    c10::DispatchKey::AutogradFunctionality,
                                                    c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA,
                                                    c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

inline bool is_ordinary(const at::Tensor& tensor) {
  const c10::DispatchKeySet backend = tensor.key_set() - kOrdinaryKeys;
  return (backend == c10::DispatchKeySet(c10::DispatchKey::CPU) ||
          backend == c10::DispatchKeySet(c10::DispatchKey::CUDA)) &&
         tensor.has_storage();
}

/// The device of an ordinary tensor as a word; see ValueWord.
inline int64_t device_word(const at::Tensor& tensor) { return tensor.is_cuda() ? 1 + tensor.get_device() : 0; }

/// Appends what makes a value, besides its storage: see ValueWord.
void append_words(Words& to, const at::Tensor& tensor);

/// Whether a tensor is what the words say.
bool has_words(const at::Tensor& tensor, const int64_t* words);

/// The bytes of a storage between the first element and behind the last; equal numbers when there are none.
std::pair<int64_t, int64_t> extent(const int64_t* words);

/// A tensor over an existing storage, on the device of that.
at::Tensor make_view(const c10::Storage& storage, const int64_t* words);

}  // namespace torchcc::detail
