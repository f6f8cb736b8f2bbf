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
  explicit Handles(size_t capacity = 0) { handles_.reserve(capacity); }
  ~Handles() {
    if (is_taken_) return;
    for (AtenTensorHandle handle : handles_) delete torch::aot_inductor::tensor_handle_to_tensor_pointer(handle);
  }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  template <class Tensor>
  void push_back(Tensor&& tensor) {
    handles_.push_back(
        torch::aot_inductor::tensor_pointer_to_tensor_handle(new at::Tensor(std::forward<Tensor>(tensor))));
  }
  /// The one that was added last.
  at::Tensor back() const { return *torch::aot_inductor::tensor_handle_to_tensor_pointer(handles_.back()); }
  /// The last thing that can be done with them: the code deletes each, whether it succeeds or not.
  void run(const Library& library, AtenTensorHandle* outputs) {
    is_taken_ = true;
    library.run(handles_.data(), outputs);
  }

 private:
  c10::SmallVector<AtenTensorHandle, 16> handles_;
  bool is_taken_ = false;
};

/// The tensor of a handle that compiled code gave.
inline at::Tensor take(AtenTensorHandle handle) {
  at::Tensor* pointer = torch::aot_inductor::tensor_handle_to_tensor_pointer(handle);
  at::Tensor tensor = std::move(*pointer);
  delete pointer;
  return tensor;
}

}  // namespace torchcc::detail
