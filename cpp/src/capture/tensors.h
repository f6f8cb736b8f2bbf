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
         tensor.unsafeGetTensorImpl()->unsafe_storage();
}

/// The device of an ordinary tensor as a word; see ValueWord.
inline int64_t device_word(const at::Tensor& tensor) { return tensor.is_cuda() ? 1 + tensor.get_device() : 0; }

/// Appends what makes a value, besides its storage: see ValueWord.
void append_words(Words& to, const at::Tensor& tensor);

/// Conjugation and negation that a tensor's readers have to do.
inline int64_t conjugation_of(const at::Tensor& tensor) {
  return (tensor.is_conj() ? kConjugate : 0) | (tensor.is_neg() ? kNegative : 0);
}

/// Whether a tensor is what the words say.
inline bool has_words(const at::Tensor& tensor, const int64_t* words) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  if (words[kRank] != static_cast<int64_t>(sizes.size()) || words[kOffset] != tensor.storage_offset() ||
      words[kDtype] != static_cast<int64_t>(tensor.scalar_type()) || words[kFlags] != conjugation_of(tensor) ||
      words[kDevice] != device_word(tensor)) {
    return false;
  }
  const int64_t* given = words + kSizes;  // a loop, since these are too few for the call that std::equal becomes
  for (const int64_t size : sizes) {
    if (*given++ != size) return false;
  }
  for (const int64_t stride : strides) {
    if (*given++ != stride) return false;
  }
  return true;
}

/// The bytes of a storage between the first element and behind the last; equal numbers when there are none.
std::pair<int64_t, int64_t> extent(const int64_t* words);

/// A tensor over an existing storage, on the device of that.
at::Tensor make_view(c10::Storage storage, const int64_t* words);

}  // namespace torchcc::detail
