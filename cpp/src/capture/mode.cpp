// The one file that knows which dispatch key sees all operators.

#include "mode.h"

#include <torch/library.h>
#include <torchcc/error.h>

#include "message.h"

namespace torchcc::detail {
namespace {

// Of all mode keys, this one alone has no fallback in libtorch. It sees every call of the dispatcher, factories and
// composite operators included, above autograd and autocast.
constexpr c10::DispatchKey kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local Mode* current_mode = nullptr;

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard inside(kMode);
  if (current_mode == nullptr) {
    op.callBoxed(stack);
  } else {
    current_mode->step(op, stack);
  }
}

/// Registers the fallback, once per process and not before the first mode.
void require_fallback() {
  static const bool registered = [] {
    if (c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(kMode)) {
      throw CaptureError(message("recording is not possible: something else in this process uses PyTorch's mode key",
                                 {{"expected", "no fallback for the dispatch key TESTING_ONLY_GenericMode"},
                                  {"got", "one that another library registered, or a second copy of torchcc::capture"},
                                  {"fix", "link torchcc::capture into one library of the program only"}}));
    }
    static torch::Library library(torch::Library::IMPL, "_", kMode, __FILE__, __LINE__);
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
    return true;
  }();
  (void)registered;
}

}  // namespace

Mode* Mode::current() { return current_mode; }

void Mode::enter() {
  require_fallback();
  guard_.emplace(kMode);
  current_mode = this;
}

void Mode::leave() {
  if (!guard_.has_value()) return;
  guard_.reset();
  current_mode = nullptr;
}

Unrecorded::Unrecorded() : guard_(kMode) {}

}  // namespace torchcc::detail
