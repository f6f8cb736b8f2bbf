// The call path without libtorch: check the arguments, hand them to the generated code, take the results. The checks
// and their messages are those of ../runtime.
#include "call.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include <torchcc/error.h>

#include "arena.h"
#include "message.h"
#include "refusal.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

/// Room for a call's values, on the stack as long as they are few.
template <class T, size_t few>
class Scratch {
 public:
  explicit Scratch(size_t size) : heap_(size > few ? std::make_unique<T[]>(size) : nullptr), size_(size) {}
  T* data() { return heap_ ? heap_.get() : local_.data(); }
  T& operator[](size_t index) { return data()[index]; }
  size_t size() const { return size_; }

 private:
  std::array<T, few> local_{};
  std::unique_ptr<T[]> heap_;
  size_t size_;
};

/// Tensor objects that are ours until the generated code takes them, and those that it gave.
class Handles {
 public:
  explicit Handles(size_t size) : handles_(size) {}
  ~Handles() {
    for (size_t i = 0; i < handles_.size(); ++i) delete_handle(handles_[i]);
  }
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  void push_back(const Tensor& tensor) {
    handles_[count_] = new_handle();
    *handles_[count_++] = tensor;
  }
  Tensor** data() { return handles_.data(); }
  Tensor* operator[](size_t index) { return handles_[index]; }

 private:
  Scratch<Tensor*, 16> handles_;
  size_t count_ = 0;
};

/// The checks of a call as one value: tensors by input, symbols bound.
struct Bound {
  explicit Bound(const FunctionState& state)
      : tensors(state.checks.size()), numbers(state.checks.size()), symbols(state.signature.symbols.size()) {}

  Scratch<const Tensor*, 16> tensors;
  Scratch<Tensor, 4> numbers;  ///< numbers of the call, as tensors of rank 0, by input; few inputs are no numbers
  Scratch<int64_t, 8> symbols;
};

/// A number of the caller's as the tensor of rank 0 that the code takes.
Tensor number_tensor(const Signature& signature, size_t index, const Argument& argument) {
  const Number number = checked_number(signature, index, argument);
  const ScalarType dtype = signature.inputs[index].dtype;
  Tensor tensor = empty({}, dtype);
  if (dtype == kDouble) {
    *tensor.data_ptr<double>() = number.floating;
  } else if (dtype == kBool) {
    *tensor.data_ptr<bool>() = number.integer != 0;
  } else {
    *tensor.data_ptr<int64_t>() = number.integer;
  }
  return tensor;
}

void bind(const FunctionState& state, std::span<const Argument> arguments, Bound& bound) {
  const Signature& signature = state.signature;
  if (arguments.size() != state.checks.size()) [[unlikely]] {
    refuse_count(signature, signature.inputs, arguments.size());
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    const InputCheck& check = state.checks[i];
    if (arguments[i].kind() != Argument::Kind::tensor) {
      bound.numbers[i] = number_tensor(signature, i, arguments[i]);
      bound.tensors[i] = &bound.numbers[i];
      continue;
    }
    const Tensor& tensor = arguments[i].tensor();
    if (!tensor.defined() || tensor.scalar_type() != check.dtype || tensor.sizes().size() != check.sizes.size())
        [[unlikely]] {
      refuse_tensor(signature, i, tensor, Device());
    }
    check_sizes(signature, i, check, tensor, bound.symbols.data());
    if (check.is_number && check.dtype == kLong) checked_number(signature, i, Argument(tensor.item<int64_t>()));
    bound.tensors[i] = &tensor;
  }
  if (state.has_relations) [[unlikely]] {
    check_relations(signature, state.checks, bound.tensors.data(), bound.symbols.data());
  }
}

/// Whether two elements share a place because of a stride of 0, as libtorch's has_internal_overlap() finds it.
bool overlaps_itself(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) == 0) return true;
  }
  return false;
}

void check_mutated(const FunctionState& state, Bound& bound) {
  const Signature& signature = state.signature;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    if (!signature.inputs[i].mutated) continue;
    if (overlaps_itself(*bound.tensors[i])) refuse_self_overlap(signature, i, *bound.tensors[i]);
    for (size_t j = 0; j < signature.inputs.size(); ++j) {
      if (i != j && Extent(*bound.tensors[i]).overlaps(Extent(*bound.tensors[j]))) {
        refuse_input_overlap(signature, i, j);
      }
    }
  }
}

// Kernels that divide whole numbers report a zero divisor through one pointer of PyTorch's header, which all generated
// code of a program shares. Such a function runs alone; while a program has none, nobody waits.
std::shared_mutex exclusion;
std::atomic<int> exclusive_functions{0};

void run_alone(const FunctionState& state, Tensor** inputs, Tensor** outputs) {
  if (state.is_exclusive) {
    const std::unique_lock lock(exclusion);
    state.run(inputs, outputs, state.constants.data());
  } else if (exclusive_functions.load(std::memory_order_acquire) != 0) [[unlikely]] {
    const std::shared_lock lock(exclusion);
    state.run(inputs, outputs, state.constants.data());
  } else {
    state.run(inputs, outputs, state.constants.data());
  }
}

void run(const FunctionState& state, Bound& bound, Handles& outputs) {
  const Signature& signature = state.signature;
  Handles inputs(signature.inputs.size() + state.states.size());
  Scratch<Tensor, 1> copies(state.mutates ? signature.inputs.size() : 0);  // of what is written to, by input
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    const Tensor& tensor = *bound.tensors[i];
    if (tensor.is_contiguous()) [[likely]] {
      inputs.push_back(tensor);
    } else if (!signature.inputs[i].mutated) {
      inputs.push_back(tensor.clone());
    } else {
      copies[i] = tensor.clone();
      inputs.push_back(copies[i]);
    }
  }
  std::unique_lock<std::mutex> lock;
  if (!state.states.empty()) lock = std::unique_lock(state.writing);
  for (const NamedTensor& one : state.states) inputs.push_back(one.second);
  try {
    run_alone(state, inputs.data(), outputs.data());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(message(signature.name + ": the compiled code failed while it ran",
                        {{"reason", first_line(error.what())},
                         {"fix", "check the values of the arguments (an index out of range, a division by zero)"}}));
  }
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copies[i].defined()) bound.tensors[i]->copy_(copies[i]);
  }
}

void check_output(const FunctionState& state, size_t index, const Tensor& tensor, Bound& bound) {
  const Value& value = state.signature.outputs[index];
  std::array<int64_t, Tensor::kMaxRank> sizes{};
  for (size_t d = 0; d < value.sizes.size(); ++d) sizes[d] = evaluate(value.sizes[d], bound.symbols.data());
  const IntArrayRef expected(sizes.data(), value.sizes.size());
  if (!tensor.defined() || tensor.scalar_type() != value.dtype || !(tensor.sizes() == expected) ||
      !tensor.is_contiguous()) [[unlikely]] {
    refuse_output(state.signature, index, tensor, expected, Device());
  }
}

}  // namespace

void count_exclusive() { exclusive_functions.fetch_add(1, std::memory_order_release); }

const Signature& signature_of(const FunctionState& state) { return state.signature; }

void call(const FunctionState& state, std::span<Tensor> outputs, std::span<const Argument> arguments) {
  Bound bound(state);
  bind(state, arguments, bound);
  if (state.mutates) check_mutated(state, bound);
  Handles results(outputs.size());
  run(state, bound, results);
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = std::move(*results[i]);
}

void call_out(const FunctionState& state, std::span<Tensor> outputs, std::span<const Argument> arguments) {
  for (const Value& output : state.signature.outputs) {
    for (const Size& size : output.sizes) {
      if (!size.is_known()) refuse_outputs(state.signature);
    }
  }
  Bound bound(state);
  bind(state, arguments, bound);
  if (state.mutates) check_mutated(state, bound);
  for (size_t i = 0; i < outputs.size(); ++i) {
    check_output(state, i, outputs[i], bound);
    const Extent own(outputs[i]);
    bool shares = false;
    for (size_t j = 0; j < bound.tensors.size(); ++j) shares = shares || own.overlaps(Extent(*bound.tensors[j]));
    for (size_t j = 0; j < i; ++j) shares = shares || own.overlaps(Extent(outputs[j]));
    if (shares) refuse_output_overlap(state.signature, i, outputs[i]);
  }
  Handles results(outputs.size());
  run(state, bound, results);
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i].copy_(*results[i]);
}

}  // namespace detail

Stats Function::stats() const { return detail::require(state_).stats; }

std::vector<NamedTensor> Function::weights() const { return detail::require(state_).states; }

void Function::set_weights(std::span<const NamedTensor> weights) const {
  const detail::FunctionState& state = detail::require(state_);
  const std::lock_guard lock(state.writing);
  std::vector<const Tensor*> found;
  for (const auto& [name, tensor] : weights) {
    const auto target = std::find_if(state.states.begin(), state.states.end(),
                                     [&name = name](const NamedTensor& one) { return one.first == name; });
    if (target == state.states.end()) detail::refuse_weight_name(state.signature.name, name);
    const Tensor& old = target->second;
    if (!tensor.defined() || tensor.scalar_type() != old.scalar_type() || !(tensor.sizes() == old.sizes())) {
      detail::refuse_weight_form(state.signature.name, name, old, tensor);
    }
    found.push_back(&old);
  }
  for (size_t i = 0; i < weights.size(); ++i) found[i]->copy_(weights[i].second);
}

}  // namespace torchcc
