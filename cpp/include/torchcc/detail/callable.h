#pragma once

// What compile() accepts as a function, and which C++ signature it has.

#include <concepts>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace torchcc::detail {

/// `type` is the signature R(Args...), or void for a callable that has none of its own (overloads, templates).
template <class F>
struct SignatureOf {
  using type = void;
};
template <class R, class... Args>
struct SignatureOf<R (*)(Args...)> {
  using type = R(Args...);
};
template <class R, class... Args>
struct SignatureOf<R (*)(Args...) noexcept> {
  using type = R(Args...);
};
template <class T>
struct MemberSignature;
template <class C, class R, class... Args>
struct MemberSignature<R (C::*)(Args...)> {
  using type = R(Args...);
};
template <class C, class R, class... Args>
struct MemberSignature<R (C::*)(Args...) const> {
  using type = R(Args...);
};
template <class C, class R, class... Args>
struct MemberSignature<R (C::*)(Args...) noexcept> {
  using type = R(Args...);
};
template <class C, class R, class... Args>
struct MemberSignature<R (C::*)(Args...) const noexcept> {
  using type = R(Args...);
};
template <class F>
  requires requires { &F::operator(); }
struct SignatureOf<F> {
  using type = typename MemberSignature<decltype(&F::operator())>::type;
};

/// A torch::nn module, by what torchcc uses of it; this header does not include torch::nn.
template <class M>
concept IsModule = requires(M& module) {
  module.named_parameters();
  module.named_buffers();
  { module.is_training() } -> std::convertible_to<bool>;
  module.modules(false);
};
template <class P>
concept IsModulePointer = requires(P& pointer) {
  { *pointer };
  requires IsModule<std::remove_reference_t<decltype(*pointer)>>;
};

/// What torchcc knows of a function that is a module: its tensors' names, and whether its parts are in training mode.
class ModuleView {
 public:
  virtual ~ModuleView() = default;
  virtual std::vector<std::pair<std::string, at::Tensor>> tensors() const = 0;
  /// Appends the training flags of all submodules, 64 to a word.
  virtual void append_modes(std::vector<int64_t>& words) const = 0;
};

template <class M>
class ModuleViewOf final : public ModuleView {
 public:
  explicit ModuleViewOf(M& module) : module_(module), parts_(module.modules(false)) {}

  std::vector<std::pair<std::string, at::Tensor>> tensors() const override {
    std::vector<std::pair<std::string, at::Tensor>> named;
    for (const auto& item : module_.named_parameters()) named.emplace_back(item.key(), item.value());
    for (const auto& item : module_.named_buffers()) named.emplace_back(item.key(), item.value());
    return named;
  }
  void append_modes(std::vector<int64_t>& words) const override {
    uint64_t word = module_.is_training() ? 1 : 0;
    size_t bits = 1;
    for (const auto& part : parts_) {
      word = word << 1 | (part->is_training() ? 1U : 0U);
      if (++bits % 64 == 0) words.push_back(static_cast<int64_t>(std::exchange(word, 0)));
    }
    words.push_back(static_cast<int64_t>(word));
  }

 private:
  M& module_;
  std::decay_t<decltype(std::declval<M&>().modules(false))> parts_;
};

/// Calls a module's forward. `P` is a holder, a shared_ptr or a plain pointer.
template <class P>
struct ModuleForward {
  P pointer;

  template <class... Args>
  auto operator()(Args&&... arguments) -> decltype((*pointer).forward(std::forward<Args>(arguments)...)) {
    return (*pointer).forward(std::forward<Args>(arguments)...);
  }
  std::unique_ptr<ModuleView> view() {
    return std::make_unique<ModuleViewOf<std::remove_reference_t<decltype(*pointer)>>>(*pointer);
  }
};

/// The callable that compile() keeps for a function of type F.
template <class F>
struct CallableOf {
  using type = F;
  template <class G>
  static F make(G&& function) {
    return std::forward<G>(function);
  }
};
template <IsModulePointer P>
struct CallableOf<P> {
  using type = ModuleForward<P>;
  static type make(P pointer) { return {std::move(pointer)}; }
};
template <IsModule M>
struct CallableOf<M> {
  using type = ModuleForward<M*>;
  static type make(M& module) { return {&module}; }
};

}  // namespace torchcc::detail
