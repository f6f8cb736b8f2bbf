#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <torch/nn/module.h>
#include <torchcc/function.h>

namespace torchcc {

/// A function of a package as a torch::nn module, e.g. in a torch::nn::Sequential. Not part of torchcc.h, since it
/// needs PyTorch's own header of modules.
///
/// Its parameters and buffers are the function's own, under their names in Python ("encoder.0.weight"): an optimiser
/// step, torch::load(), or a change in place is seen by the function, and by all others of the same model. Parameters
/// that are floating point require grad, as in a module that is made in C++, and gradients flow with grad mode on: by
/// compiled code where the package was exported for training (`train=True`), else by the portable graph; without
/// gradients, call it under torch::NoGradGuard to get compiled code. What export has burnt in (training mode, dropout)
/// does not follow train() and eval().
///
/// Copies are the same function with the same weights. Safe to call from many threads as the function is.
class Module : public torch::nn::Module {
 public:
  /// Throws ArgumentError for an empty function, and for one without exactly one output.
  explicit Module(Function function);

  /// Calls a function of one input. Throws ArgumentError as the function does.
  at::Tensor forward(const at::Tensor& input);

  /// Calls a function of any number of inputs.
  template <class... Args>
  at::Tensor operator()(const Args&... args) const {
    return function_(args...);
  }

  const Function& function() const { return function_; }

  void pretty_print(std::ostream& stream) const override;

 private:
  Function function_;
};

}  // namespace torchcc
