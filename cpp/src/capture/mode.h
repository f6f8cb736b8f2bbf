#pragma once

#include <optional>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace torchcc::detail {

/// Sees every operator call of a thread, in place of PyTorch, while it is switched on. One at a time.
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

 protected:
  /// From here on. Throws CaptureError when something else in the process uses the key.
  void enter();
  void leave();

 private:
  std::optional<c10::impl::IncludeDispatchKeyGuard> guard_;
};

/// Leaves the mode for a scope, so that torchcc's own operators are not seen.
class Unrecorded {
 public:
  Unrecorded();

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

}  // namespace torchcc::detail
