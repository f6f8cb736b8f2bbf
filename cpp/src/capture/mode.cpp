// The one file that knows which dispatch keys see all operators.

#include "mode.h"

#include <string>

#include <c10/core/AutogradState.h>
#include <torch/library.h>
#include <torchcc/error.h>

#include "device.h"
#include "message.h"

namespace torchcc::detail {
namespace {

// Of all mode keys, this one alone has no fallback in libtorch. It sees every call of the dispatcher, factories and
// composite operators included, above autograd and autocast.
constexpr c10::DispatchKey kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;

// Below autograd and autocast, above all kernels; without a fallback in libtorch as well.
constexpr c10::DispatchKey kBelow = c10::DispatchKey::Fake;

thread_local Mode* current_mode = nullptr;

using Step = void (Mode::*)(const c10::OperatorHandle&, torch::jit::Stack*);

template <c10::DispatchKey key, Step step>
void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Mode* const mode = current_mode;
  if (mode != nullptr && mode->step_quickly(op, stack, key == kBelow)) return;
  const c10::impl::ExcludeDispatchKeyGuard inside(key);
  if (mode == nullptr) {
    op.callBoxed(stack);
  } else {
    (mode->*step)(op, stack);
  }
}

/// Registers the fallbacks, once per process and not before the first mode.
void require_fallbacks() {
  static const bool registered = [] {
    for (const c10::DispatchKey key : {kMode, kBelow}) {
      if (!c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(key)) continue;
      throw CaptureError(message("recording is not possible: something else in this process uses PyTorch's mode key",
                                 {{"expected", std::string("no fallback for the dispatch key ") + c10::toString(key)},
                                  {"got", "one that another library registered, or a second copy of torchcc::capture"},
                                  {"fix", "link torchcc::capture into one library of the program only"}}));
    }
    static torch::Library library(torch::Library::IMPL, "_", kMode, __FILE__, __LINE__);
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback<kMode, &Mode::step>>());
    static torch::Library below(torch::Library::IMPL, "_", kBelow, __FILE__, __LINE__);
    below.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback<kBelow, &Mode::step_below>>());
    return true;
  }();
  (void)registered;
}

}  // namespace

Mode* Mode::current() { return current_mode; }

void Mode::enter() {
  require_fallbacks();
  guard_.emplace(kMode);
  current_mode = this;
  // For tensors on a GPU, autograd has a thread of its own, which is in no mode.
  c10::AutogradState& autograd = c10::AutogradState::get_tls_state();
  backward_had_threads_ = autograd.get_multithreading_enabled();
  if (has_gpu()) autograd.set_multithreading_enabled(false);
}

void Mode::step_below(const c10::OperatorHandle& handle, torch::jit::Stack* stack) { handle.callBoxed(stack); }

bool Mode::step_quickly(const c10::OperatorHandle&, torch::jit::Stack*, bool) { return false; }

void Mode::call_through_autograd(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const c10::impl::IncludeDispatchKeyGuard below(kBelow);
  handle.callBoxed(stack);
}

void Mode::leave() {
  if (!guard_.has_value()) return;
  guard_.reset();
  current_mode = nullptr;
  if (has_gpu()) c10::AutogradState::get_tls_state().set_multithreading_enabled(backward_had_threads_);
}

Unrecorded::Unrecorded() : guard_(kMode) {}

}  // namespace torchcc::detail
