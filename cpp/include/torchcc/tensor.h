#pragma once

// What a program holds its data in: at::Tensor of LibTorch, or torchcc's own view of memory where the program links
// torchcc::standalone. Code that says torchcc::Tensor, torchcc::empty, torchcc::from_memory and torchcc::kFloat
// compiles against both.

#ifdef TORCHCC_STANDALONE
#include <torchcc/standalone/tensor.h>
#else
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

namespace torchcc {

using at::IntArrayRef;
using at::kBFloat16, at::kBool, at::kByte, at::kChar, at::kDouble, at::kFloat, at::kHalf, at::kInt, at::kLong,
    at::kShort;
using at::ScalarType;
using at::Tensor;
using c10::Device;
using c10::DeviceType;

/// A contiguous tensor whose content is not set.
inline Tensor empty(IntArrayRef sizes, ScalarType dtype = kFloat) { return at::empty(sizes, dtype); }

/// A contiguous tensor over memory of the caller's, which has to outlive it.
template <class T>
Tensor from_memory(T* data, IntArrayRef sizes) {
  return at::from_blob(const_cast<std::remove_const_t<T>*>(data), sizes,
                       c10::CppTypeToScalarType<std::remove_const_t<T>>::value);
}

}  // namespace torchcc
#endif
