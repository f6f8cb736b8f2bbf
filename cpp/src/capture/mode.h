#pragma once

#include <optional>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace torchcc::detail {

/// Sees every operator call of a thread, in place of PyTorch, while it is switched on. One at a time.
///
/// A call is seen above autograd and autocast, as the program made it; or, if it is sent through autograd first, in the
/// form of the operators that autograd's kernels call.
class Mode {
 public:
  Mode() = default;
  virtual ~Mode() { leave(); }
  Mode(const Mode&) = delete;
  Mode& operator=(const Mode&) = delete;

  /// The one of this thread, or null.
  static Mode* current();

  /// One call: the arguments on the stack become its results. Calls from inside go to PyTorch.
  virtual void step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) = 0;
  /// The same for calls that come out of call_through_autograd().
  virtual void step_below(const c10::OperatorHandle& handle, torch::jit::Stack* stack);
  /// Asked before either: handles a call for which no operator has to be called, or returns false and leaves it.
  virtual bool step_quickly(const c10::OperatorHandle& handle, torch::jit::Stack* stack, bool is_below);

 protected:
  /// From here on. Throws CaptureError when something else in the process uses the key.
  void enter();
  void leave();
  /// Lets PyTorch's autograd and autocast handle a call; what they leave to kernels comes to step_below().
  static void call_through_autograd(const c10::OperatorHandle& handle, torch::jit::Stack* stack);

 private:
  std::optional<c10::impl::IncludeDispatchKeyGuard> guard_;
  bool backward_had_threads_ = false;
};

/// Leaves the mode for a scope, so that torchcc's own operators are not seen.
class Unrecorded {
 public:
  Unrecorded();

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

}  // namespace torchcc::detail
