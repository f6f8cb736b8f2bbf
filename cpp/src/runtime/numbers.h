#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <torchcc/signature.h>

namespace torchcc::detail {

/// Memory on a GPU for numbers that compiled code takes there: doubles, as tensors of rank 0.
class Numbers {
 public:
  Numbers() = default;
  /// For so many; without content.
  Numbers(size_t count, c10::Device device);

  /// One of them.
  at::Tensor at(size_t position) const;
  /// Copies them there on the current stream, without waiting for it. They are tensors of rank 0 on the CPU, which may
  /// be freed at once.
  void copy(std::span<const at::Tensor* const> numbers) const;

 private:
  at::Tensor memory_;
};

/// Whether code takes an input on the GPU although it is on the CPU: a number.
inline bool is_number_for(const Value& value, const at::Tensor& input) {
  return value.device == c10::DeviceType::CUDA && input.is_cpu();
}

/// Puts copies on the GPU in place of such inputs.
void move_numbers(std::vector<at::Tensor>& inputs, const Signature& signature, c10::Device device);

}  // namespace torchcc::detail
