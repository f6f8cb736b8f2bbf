#pragma once

// The part of a compiled function that does not depend on its C++ types, and the call that goes through it.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/SmallVector.h>
#include <torchcc/compile_options.h>
#include <torchcc/detail/callable.h>
#include <torchcc/detail/leaves.h>

namespace torchcc::detail {

/// Where a function object lies in memory; see cpp/src/capture/closure.h.
struct ClosureBytes {
  const std::byte* begin = nullptr;
  size_t size = 0;
};

/// What a replayed call gives back, in the order of the result's leaves.
struct Replayed {
  c10::SmallVector<at::Tensor, 4> tensors;
  const int64_t* constants = nullptr;  ///< owned by the core
};

struct CoreState;

/// Guards, recordings and compiled code of one function.
class Core {
 public:
  Core(CompileOptions options, ClosureBytes closure, std::unique_ptr<ModuleView> module);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  /// Runs compiled code if there is some that fits the call. False: the caller has to run the function, with a Run
  /// around it.
  bool replay(const Leaves& arguments, Replayed& results);

  CompileStats stats() const;
  void wait() const;
  std::string trace() const;

 private:
  friend class Run;
  std::shared_ptr<CoreState> state_;
};

/// One call that runs the C++ function: recorded if that may lead to compiled code. Destroyed without finish(), as an
/// exception does, it leaves nothing behind.
class Run {
 public:
  Run(Core& core, const Leaves& arguments);
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  /// Throws a CaptureError in place of PyTorch's error that memory is not there, if the function runs lazily.
  void explain(const c10::Error& error) const;

  /// After the function. `unchanged`: every argument that was passed by reference still is the same tensor or number.
  void finish(const Leaves& results, bool unchanged);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// See torchcc::materialize().
void materialize();

template <class F>
std::shared_ptr<Core> make_core(F& function, CompileOptions options) {
  ClosureBytes closure;
  std::unique_ptr<ModuleView> module;
  if constexpr (requires { function.view(); }) {
    module = function.view();
  } else if constexpr (!std::is_empty_v<F> && !std::is_pointer_v<F>) {
    closure = {reinterpret_cast<const std::byte*>(&function), sizeof(F)};
  }
  return std::make_shared<Core>(std::move(options), closure, std::move(module));
}

/// Whether the arguments that the function got by reference are what they were.
template <class... Args>
bool is_unchanged(const Leaves& before, c10::ArrayRef<c10::TensorImpl*> tensors, Args&... arguments) {
  Leaves after;
  (Leaf<std::decay_t<Args>>::take(arguments, after), ...);
  if (after.constants != before.constants || after.tensors.size() != tensors.size()) return false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (after.tensors[i]->unsafeGetTensorImpl() != tensors[i]) return false;
  }
  return true;
}

/// Runs the function itself.
template <class R, class F, class... Args>
[[gnu::noinline]] R run(Core& core, F& function, Args&&... arguments) {
  std::string text;
  Leaves leaves;
  leaves.text = &text;
  (Leaf<std::decay_t<Args>>::take(arguments, leaves), ...);
  c10::SmallVector<c10::TensorImpl*, 8> tensors;
  for (const at::Tensor* tensor : leaves.tensors) tensors.push_back(tensor->unsafeGetTensorImpl());
  Run run(core, leaves);
  // Values that were moved into the function cannot be looked at afterwards, nor can it have changed them for others.
  constexpr bool kept = (std::is_lvalue_reference_v<Args> && ...);
  const auto unchanged = [&] {
    if constexpr (kept) {
      return is_unchanged(leaves, tensors, arguments...);
    } else {
      return true;
    }
  };
  Leaves results;
  const auto call = [&]() -> R {
    try {
      return function(std::forward<Args>(arguments)...);
    } catch (const c10::Error& error) {
      run.explain(error);
      throw;
    }
  };
  if constexpr (std::is_void_v<R>) {
    call();
    run.finish(results, unchanged());
  } else {
    R result = call();
    Leaf<R>::take(result, results);
    run.finish(results, unchanged());
    return result;
  }
}

template <class R, class F, class... Args>
R call(Core& core, F& function, Args&&... arguments) {
  {
    Leaves leaves;
    (Leaf<std::decay_t<Args>>::take(arguments, leaves), ...);
    Replayed results;
    if (core.replay(leaves, results)) [[likely]] {
      if constexpr (std::is_void_v<R>) {
        return;
      } else {
        LeafReader reader{results.tensors.data(), results.constants};
        return Leaf<R>::build(reader);
      }
    }
  }
  return run<R>(core, function, std::forward<Args>(arguments)...);
}

}  // namespace torchcc::detail
