#include "aliases.h"

#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>

#include <ATen/core/Tensor.h>
#include <ATen/core/VariableHooksInterface.h>

namespace torchcc::detail {
namespace {

/// The watched storages. Never destroyed: threads may still run when the program's statics go.
struct Registry {
  std::shared_mutex mutex;
  std::unordered_map<const c10::StorageImpl*, std::weak_ptr<Aliases>> storages;
};
Registry& registry() {
  static auto& instance = *new Registry;
  return instance;
}

void note(const at::TensorBase& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  const std::shared_lock lock(registry().mutex);
  const auto known = registry().storages.find(tensor.storage().unsafeGetStorageImpl());
  if (known == registry().storages.end()) return;
  if (const auto aliases = known->second.lock()) aliases->note();
}

using Hooks = at::impl::VariableHooksInterface;

// These are not in every version of PyTorch's interface.
template <class H>
std::optional<c10::ScalarType> grad_dtype_of(const H& hooks, const at::TensorBase& tensor) {
  if constexpr (requires { hooks.grad_dtype(tensor); }) {
    return hooks.grad_dtype(tensor);
  } else {
    return std::nullopt;
  }
}
template <class H>
void set_grad_dtype_of(const H& hooks, const at::TensorBase& tensor, const std::optional<c10::ScalarType>& dtype) {
  if constexpr (requires { hooks.set_grad_dtype(tensor, dtype); }) hooks.set_grad_dtype(tensor, dtype);
}

/// An intrusive_ptr since torch 2.13, before that a shared_ptr.
using GradFn = decltype(std::declval<const Hooks&>().grad_fn(std::declval<const at::TensorBase&>()));

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsuggest-override"
#endif
/// Passes everything on, and notes data() and its kin.
class Watch final : public Hooks {
 public:
  explicit Watch(const Hooks& hooks) : hooks_(hooks) {}

  at::TensorBase tensor_data(const at::TensorBase& tensor) const override {
    note(tensor);
    return hooks_.tensor_data(tensor);
  }
  at::TensorBase variable_data(const at::TensorBase& tensor) const override {
    note(tensor);
    return hooks_.variable_data(tensor);
  }
  at::TensorBase data(const at::TensorBase& tensor) const override {
    note(tensor);
    return hooks_.data(tensor);
  }
  GradFn grad_fn(const at::TensorBase& tensor) const override { return hooks_.grad_fn(tensor); }
  unsigned _register_hook(const at::TensorBase& tensor,
                          std::function<at::TensorBase(const at::TensorBase&)> hook) const override {
    return hooks_._register_hook(tensor, std::move(hook));
  }
  void remove_hook(const at::TensorBase& tensor, unsigned position) const override {
    hooks_.remove_hook(tensor, position);
  }
  bool is_view(const at::TensorBase& tensor) const override { return hooks_.is_view(tensor); }
  const at::TensorBase& base(const at::TensorBase& tensor) const override { return hooks_.base(tensor); }
  const std::string& name(const at::TensorBase& tensor) const override { return hooks_.name(tensor); }
  bool is_leaf(const at::TensorBase& tensor) const override { return hooks_.is_leaf(tensor); }
  int64_t output_nr(const at::TensorBase& tensor) const override { return hooks_.output_nr(tensor); }
  void set_data(const at::TensorBase& tensor, const at::TensorBase& data) const override {
    hooks_.set_data(tensor, data);
  }
  int64_t _version(const at::TensorBase& tensor) const override { return hooks_._version(tensor); }
  void retain_grad(const at::TensorBase& tensor) const override { hooks_.retain_grad(tensor); }
  bool retains_grad(const at::TensorBase& tensor) const override { return hooks_.retains_grad(tensor); }
  void _backward(const at::Tensor& tensor, at::TensorList inputs, const std::optional<at::Tensor>& gradient,
                 std::optional<bool> keep_graph, bool create_graph) const override {
    hooks_._backward(tensor, inputs, gradient, keep_graph, create_graph);
  }
  void requires_grad_(const at::TensorBase& tensor, bool requires_grad) const override {
    hooks_.requires_grad_(tensor, requires_grad);
  }
  void basic_autograd_not_implemented_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                                               torch::jit::Stack* stack) const override {
    hooks_.basic_autograd_not_implemented_fallback(op, keys, stack);
  }
  std::optional<c10::ScalarType> grad_dtype(const at::TensorBase& tensor) const {
    return grad_dtype_of(hooks_, tensor);
  }
  void set_grad_dtype(const at::TensorBase& tensor, const std::optional<c10::ScalarType>& dtype) const {
    set_grad_dtype_of(hooks_, tensor, dtype);
  }

 private:
  const Hooks& hooks_;
};
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/// Goes with the library that this is in, which a program may unload.
class Installation {
 public:
  Installation() : original_(at::impl::GetVariableHooks()), watch_(new Watch(*original_)) {
    at::impl::SetVariableHooks(watch_);
  }
  ~Installation() {
    // The watch itself stays: a thread may be in it.
    if (at::impl::GetVariableHooks() == watch_) at::impl::SetVariableHooks(original_);
  }
  Installation(const Installation&) = delete;
  Installation& operator=(const Installation&) = delete;

 private:
  Hooks* original_;
  Hooks* watch_;
};

void install() { static const Installation installation; }

}  // namespace

std::shared_ptr<const Aliases> Aliases::of(const c10::StorageImpl* storage) {
  install();
  const std::unique_lock lock(registry().mutex);
  auto& storages = registry().storages;
  std::weak_ptr<Aliases>& entry = storages[storage];
  if (auto known = entry.lock()) return known;
  // An entry goes with its last holder, so that another storage at the same address begins anew.
  std::shared_ptr<Aliases> made(new Aliases, [storage](Aliases* gone) {
    delete gone;
    const std::unique_lock inner(registry().mutex);
    const auto known = registry().storages.find(storage);
    if (known != registry().storages.end() && known->second.expired()) registry().storages.erase(known);
  });
  entry = made;
  return made;
}

}  // namespace torchcc::detail
