#pragma once

#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include "library.h"

namespace torchcc::detail {

/// Handles for one call of compiled code, which takes them over.
class Handles {
 public:
  ~Handles() {
    for (AtenTensorHandle handle : handles_) delete torch::aot_inductor::tensor_handle_to_tensor_pointer(handle);
  }
  void push_back(at::Tensor tensor) {
    handles_.push_back(torch::aot_inductor::tensor_pointer_to_tensor_handle(new at::Tensor(std::move(tensor))));
  }
  /// The one that was added last.
  at::Tensor back() const { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handles_.back()); }
  void run(const Library& library, AtenTensorHandle* outputs) {
    c10::SmallVector<AtenTensorHandle, 16> given(handles_.begin(), handles_.end());
    handles_.clear();
    library.run(given.data(), outputs);
  }

 private:
  c10::SmallVector<AtenTensorHandle, 16> handles_;
};

/// The tensor of a handle that compiled code gave.
inline at::Tensor take(AtenTensorHandle handle) {
  at::Tensor* pointer = torch::aot_inductor::tensor_handle_to_tensor_pointer(handle);
  at::Tensor tensor = std::move(*pointer);
  delete pointer;
  return tensor;
}

}  // namespace torchcc::detail
