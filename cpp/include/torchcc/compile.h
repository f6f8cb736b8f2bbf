#pragma once

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include <torchcc/compile_options.h>
#include <torchcc/detail/callable.h>
#include <torchcc/detail/core.h>
#include <torchcc/error.h>

namespace torchcc {

/// Members of a compiled function that do not depend on its signature.
class CompiledBase {
 public:
  /// What ran so far, and why. Safe from any thread.
  CompileStats stats() const { return core_->stats(); }

  /// Returns when nothing is being compiled for this function. Safe from any thread.
  void wait() const { core_->wait(); }

  /// The latest recording as JSON, or all segments of a function that runs lazily; `torchcc inspect` prints it
  /// readably. Throws CaptureError when there is none.
  std::string trace() const { return core_->trace(); }

 protected:
  explicit CompiledBase(std::shared_ptr<detail::Core> core) : core_(std::move(core)) {}
  std::shared_ptr<detail::Core> core_;
};

/// A compiled function: what compile() returns. A handle that is cheap to copy; copies are the same function.
///
/// Safe to call from many threads at once where `F` is: calls that run compiled code take no lock, all others run `F`
/// in the calling thread. Exceptions of `F` pass through; such a call leaves nothing behind.
template <class F, class Signature>
class Compiled;

template <class F, class R, class... Args>
class Compiled<F, R(Args...)> : public CompiledBase {
 public:
  Compiled(F function, CompileOptions options)
      : Compiled(std::make_shared<F>(std::move(function)), std::move(options)) {}

  std::decay_t<R> operator()(Args... arguments) const {
    return detail::call<std::decay_t<R>>(*core_, *function_, std::forward<Args>(arguments)...);
  }

 private:
  Compiled(std::shared_ptr<F> function, CompileOptions options)
      : CompiledBase(detail::make_core(*function, std::move(options))), function_(std::move(function)) {}
  std::shared_ptr<F> function_;
};

/// For callables without one signature: generic lambdas, and modules, whose forward may be a template or have default
/// arguments.
template <class F>
class Compiled<F, void> : public CompiledBase {
 public:
  Compiled(F function, CompileOptions options)
      : Compiled(std::make_shared<F>(std::move(function)), std::move(options)) {}

  template <class... Args>
  auto operator()(Args&&... arguments) const {
    using R = std::decay_t<std::invoke_result_t<F&, Args&&...>>;
    return detail::call<R>(*core_, *function_, std::forward<Args>(arguments)...);
  }

 private:
  Compiled(std::shared_ptr<F> function, CompileOptions options)
      : CompiledBase(detail::make_core(*function, std::move(options))), function_(std::move(function)) {}
  std::shared_ptr<F> function_;
};

/// Computes what waits, if the calling thread runs a function in lazy mode. To be called before the memory of `tensor`
/// is read or written by pointer (data_ptr, accessor, storage). Gives `tensor`. Throws what the operators throw.
inline const at::Tensor& materialize(const at::Tensor& tensor) {
  detail::materialize();
  return tensor;
}

/// Gives a callable of the same C++ signature as `function`. At first it runs `function` and records its operators; as
/// soon as two calls have recorded the same, Inductor compiles them in another process, and later calls run the
/// compiled code in place of `function`.
///
/// `function` is a lambda, function pointer or functor, which is copied; or a torch::nn module (holder, shared_ptr, or
/// reference), whose forward is compiled. Arguments: tensors, numbers, bools, strings and enums, and lists, optionals
/// and tuples of them. It returns the same kinds, or nothing. Tensors that it captures (weights) are held by reference:
/// later changes of their values are seen.
///
/// With grad mode on and results that require grad, forward and backward are compiled, and the results are part of
/// autograd's graph as ever. Backward with create_graph runs the recorded operators; then the function stays eager.
///
/// Code that must not be replayed is not: code that reads values on the host (item(), nonzero()), changes C++ state, or
/// writes into tensors that require grad (a step of training) runs in every call, with its operators compiled in pieces
/// (CompileMode::lazy); code that uses memory by pointer, or changes its constants from call to call, runs eagerly.
/// stats() says why. Compiling never throws: without a compiler everything runs eagerly. Options that make no sense
/// (no time, no variants) are an ArgumentError.
template <class F>
auto compile(F&& function, CompileOptions options = {}) {
  using Wrap = detail::CallableOf<std::decay_t<F>>;
  using Callable = typename Wrap::type;
  return Compiled<Callable, typename detail::SignatureOf<Callable>::type>(Wrap::make(std::forward<F>(function)),
                                                                          std::move(options));
}

}  // namespace torchcc
