#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torchcc/signature.h>
#include <torchcc/tensor.h>

namespace torchcc::detail {

#ifndef TORCHCC_STANDALONE
// Tensors with these keys are not plain memory: what they mean lies in another tensor or in Python.
constexpr c10::DispatchKeySet kWrappers({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
                                         c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Functionalize,
                                         c10::DispatchKey::ZeroTensor, c10::DispatchKey::NestedTensor});
#endif

// The errors of a call: each function throws ArgumentError with the message for one kind of mistake. `values` is the
// signature's inputs or outputs, `index` a position in it, `dimension` one of the tensor's.

/// Another number of arguments or outputs.
[[noreturn, gnu::cold]] void refuse_count(const Signature& signature, const std::vector<Value>& values, size_t got);

/// An argument that does not fit in device, layout, dtype or rank; it has to be on this device.
[[noreturn, gnu::cold]] void refuse_tensor(const Signature& signature, size_t index, const Tensor& tensor,
                                           Device device);

/// A number where a tensor belongs, or the other way round, or a number of another type.
[[noreturn, gnu::cold]] void refuse_kind(const Signature& signature, size_t index, const std::string& got);

/// An integer that is not in its range.
[[noreturn, gnu::cold]] void refuse_number(const Signature& signature, size_t index, int64_t number);

/// A size other than the number in the signature.
[[noreturn, gnu::cold]] void refuse_size(const Signature& signature, size_t index, size_t dimension,
                                         const Tensor& tensor, int64_t expected);

/// A size other than the value that its symbol already has.
[[noreturn, gnu::cold]] void refuse_mismatch(const Signature& signature, size_t index, size_t dimension,
                                             const Tensor& tensor, int64_t symbol, int64_t value);

/// A size that is not in its symbol's range.
[[noreturn, gnu::cold]] void refuse_range(const Signature& signature, size_t index, size_t dimension,
                                          const Tensor& tensor, const Symbol& symbol);

/// A size other than what the expression in the signature gives.
[[noreturn, gnu::cold]] void refuse_expression(const Signature& signature, size_t index, size_t dimension,
                                               const Tensor& tensor, int64_t expected);

/// Sizes for which the function's code is not, given one value per symbol.
[[noreturn, gnu::cold]] void refuse_guard(const Signature& signature, const SizeGuard& guard, const int64_t* symbols);

/// An argument that requires grad.
[[noreturn, gnu::cold]] void refuse_grad(const Signature& signature, size_t index);

/// An argument that is written to, some of whose elements are the same memory.
[[noreturn, gnu::cold]] void refuse_self_overlap(const Signature& signature, size_t index, const Tensor& tensor);

/// An argument that is written to and shares memory with another.
[[noreturn, gnu::cold]] void refuse_input_overlap(const Signature& signature, size_t index, size_t other);

/// An output that cannot be written into; it has to have these sizes, on this device.
[[noreturn, gnu::cold]] void refuse_output(const Signature& signature, size_t index, const Tensor& tensor,
                                           IntArrayRef sizes, Device device);

/// An output that shares memory with another tensor of the call.
[[noreturn, gnu::cold]] void refuse_output_overlap(const Signature& signature, size_t index, const Tensor& tensor);

/// A call by name with a name that no input has.
[[noreturn, gnu::cold]] void refuse_name(const Signature& signature, std::string_view name);

/// A call by name that gives an input twice.
[[noreturn, gnu::cold]] void refuse_twice(const Signature& signature, std::string_view name);

/// A call by name that leaves an input out.
[[noreturn, gnu::cold]] void refuse_missing(const Signature& signature, size_t index);

/// New weights for a function that has none.
[[noreturn, gnu::cold]] void refuse_weights(const Signature& signature);

/// A new weight of a name that the function does not have.
[[noreturn, gnu::cold]] void refuse_weight_name(std::string_view function, const std::string& name);

/// A new weight that does not have the form of the one that it should replace.
[[noreturn, gnu::cold]] void refuse_weight_form(std::string_view function, const std::string& name, const Tensor& old,
                                                const Tensor& tensor);

/// Outputs for a function that has no variant which writes into them.
[[noreturn, gnu::cold]] void refuse_outputs(const Signature& signature);

}  // namespace torchcc::detail
