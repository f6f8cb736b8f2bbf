#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

namespace torchcc {

// Sizes for code that computes with them. While a compiled function is recorded, such a number remembers how it follows
// from sizes of tensors, through the arithmetic of c10::SymInt, and so do the arguments of operators that are made of
// it (x.view_symint({n * d})). A comparison that the code asks for (n > 20, in an `if`) becomes a condition of the
// compiled code; sizes for which it would go the other way have code of their own. Where an int64_t is wanted
// (guard_int()), the number itself is such a condition. Outside of recordings they are plain numbers.
//
// Tensor::sym_size() itself gives a plain number for every tensor that has data: PyTorch reads it from the tensor
// without asking anybody.

/// The size of a dimension; negative ones count from the last. Throws c10::IndexError for one that is not there.
c10::SymInt sym_size(const at::Tensor& tensor, int64_t dim);
/// All sizes.
std::vector<c10::SymInt> sym_sizes(const at::Tensor& tensor);
/// Their product.
c10::SymInt sym_numel(const at::Tensor& tensor);

}  // namespace torchcc
