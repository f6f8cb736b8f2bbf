#pragma once

#include <optional>
#include <string>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Scalar.h>

#include "trace.h"

namespace torchcc::detail {

// Arguments of operator calls: what they mean for capture, and how a trace writes them down.

/// Why the call reads a value on the host, gives sizes that depend on data, or changes a storage; empty when it does
/// none of these.
std::string dependence(const Operator& op, const c10::IValue* arguments);

/// Whether a call draws random numbers: dropout does not in evaluation, nor attention with a dropout of 0.
bool draws(const Operator& op, const c10::IValue* arguments);

/// Autocast as it is now.
Autocast autocast_now();

/// Where a call copies tensors to another device than they are on: to(), copy_(); else null. The host waits for copies
/// to the CPU, and may read them then without an operator.
std::optional<c10::DeviceType> moves_to(const Operator& op, const c10::IValue* arguments);

/// Whether the call writes into an argument.
inline bool is_written(const Operator& op, size_t position, const c10::IValue* arguments) {
  const Operator::Argument& argument = op.arguments[position];
  return argument.is_written || (argument.is_hidden_state && op.training >= 0 && arguments[op.training].isBool() &&
                                 arguments[op.training].toBool());
}

/// What at::equal gives where it needs no data: for tensors of different sizes, and for a tensor and itself. A NaN is
/// not equal to itself, so that floating-point data are needed, but for libtorch's own code: nn::MultiheadAttention
/// asks whether its arguments are one, and computes the same otherwise.
std::optional<bool> decided(const c10::IValue& a, const c10::IValue& b);

/// Whether the call is the one that operator<< begins with: to(kCPU, kDouble), or kComplexDouble, of a tensor that is
/// that already. It then reads memory, which no operator shows. For tensors of other dtypes, the copy is all there is.
bool prints(const Operator& op, const c10::IValue* arguments);
bool may_print(const Operator& op, const c10::IValue* arguments);

/// Whether a tensor stands for a number of C++ code, as PyTorch marks it: it takes part in type promotion as one.
inline bool is_number(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_wrapped_number(); }
/// The value of such a tensor, read without an operator.
c10::Scalar number_of(const at::Tensor& tensor);

inline void write(Words& code, Tag tag, int64_t word) {
  code.push_back(static_cast<int64_t>(tag));
  code.push_back(word);
}
void write_number(Words& code, const c10::Scalar& number);
/// Anything but tensors and lists. False when a trace cannot hold it.
bool write_constant(Words& code, const c10::IValue& value, Tag number);

}  // namespace torchcc::detail
