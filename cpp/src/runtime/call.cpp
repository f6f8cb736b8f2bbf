// The call path: check the arguments, hand them to the compiled code, take the results. Everything that only an error
// needs is in refusal.cpp, so that the path itself stays short.
#include "call.h"

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>

#include <ATen/MemoryOverlap.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/SmallVector.h>
#include <torchcc/error.h>

#include "device.h"
#include "graphs.h"
#include "handles.h"
#include "refusal.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

/// Room for a call's values of a plain type, which are not initialised; on the stack as long as they are few.
template <class T, size_t few>
class Scratch {
 public:
  explicit Scratch(size_t size)
      : heap_(size > few ? std::make_unique_for_overwrite<T[]>(size) : nullptr),
        data_(heap_ ? heap_.get() : local_.data()),
        size_(size) {}
  size_t size() const { return size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  std::array<T, few> local_;
  std::unique_ptr<T[]> heap_;
  T* data_;
  size_t size_;
};

// A tensor with no other keys than CPU, or CUDA, and these is defined, dense, on that device and no wrapper.
constexpr c10::DispatchKeySet kHarmless({c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutogradFunctionality,
                                         c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA,
                                         c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});
constexpr c10::DispatchKeySet kPendingMath({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

/// Whether a tensor is defined, on the device, dense and no wrapper. One load and compare for most tensors.
bool is_plain(const at::Tensor& tensor, c10::Device device) {
  const c10::DispatchKeySet keys = tensor.key_set() - kHarmless;
  if (keys == c10::DispatchKeySet(c10::DispatchKey::CPU)) [[likely]] {
    return device.is_cpu();
  }
  if (keys == c10::DispatchKeySet(c10::DispatchKey::CUDA)) return tensor.device() == device;
  return tensor.defined() && tensor.device().type() == device.type() &&
         (device.is_cpu() || tensor.device() == device) && tensor.layout() == at::kStrided &&
         !tensor.key_set().has_any(kWrappers);
}

/// Returns whether the result has to carry a gradient.
bool check_input(const FunctionState& state, size_t index, const InputCheck& check, const at::Tensor& tensor,
                 int64_t* symbols) {
  const Signature& signature = state.signature;
  if (!is_plain(tensor, check.device) || tensor.scalar_type() != check.dtype ||
      tensor.sizes().size() != check.sizes.size()) [[unlikely]] {
    refuse_tensor(signature, index, tensor, check.device);
  }
  const bool needs_grad = tensor.requires_grad() && at::GradMode::is_enabled();
  if (needs_grad && state.program == nullptr) [[unlikely]]
    refuse_grad(signature, index);
  check_sizes(signature, index, check, tensor, symbols);
  return needs_grad;
}

/// A number of the caller's as the tensor of rank 0 that the compiled code takes.
at::Tensor number_tensor(const Signature& signature, size_t index, const Argument& argument) {
  const Number number = checked_number(signature, index, argument);
  switch (signature.inputs[index].dtype) {
    case c10::ScalarType::Double: return at::detail::scalar_tensor_static(number.floating, at::kDouble, at::kCPU);
    case c10::ScalarType::Bool: return at::detail::scalar_tensor_static(number.integer != 0, at::kBool, at::kCPU);
    default: return at::detail::scalar_tensor_static(number.integer, at::kLong, at::kCPU);
  }
}

// A number given as a tensor: its value still has to be in range.
void check_number_tensor(const Signature& signature, size_t index, const at::Tensor& tensor) {
  const Value& value = signature.inputs[index];
  if (value.dtype != c10::ScalarType::Long) return;
  checked_number(signature, index, Argument(tensor.item<int64_t>()));
}

/// The checks of a call as one value: tensors by input, symbols bound.
struct Bound {
  explicit Bound(const FunctionState& state) : tensors(state.checks.size()), symbols(state.signature.symbols.size()) {}

  Scratch<const at::Tensor*, 16> tensors;
  Scratch<int64_t, 8> symbols;
  c10::SmallVector<at::Tensor, 8> owned;  ///< the numbers of the call, as tensors, and converted arguments
  bool needs_grad = false;
};

/// Whether an argument differs from the signature in dtype or device alone, and may be converted.
[[gnu::cold]] bool can_convert(const Value& value, c10::Device device, const at::Tensor& tensor) {
  if (!tensor.defined() || value.mutated || tensor.layout() != at::kStrided) return false;
  const bool is_elsewhere = tensor.device().type() != device.type() || (device.is_cuda() && tensor.device() != device);
  return (tensor.scalar_type() != value.dtype || is_elsewhere) && c10::canCast(tensor.scalar_type(), value.dtype);
}

void bind(const FunctionState& state, std::span<const Argument> arguments, Bound& bound) {
  const Signature& signature = state.signature;
  const std::span<const InputCheck> checks = state.checks;
  if (arguments.size() != checks.size()) [[unlikely]] {
    refuse_count(signature, signature.inputs, arguments.size());
  }
  bound.owned.reserve(arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].kind() != Argument::Kind::tensor) {
      bound.owned.push_back(number_tensor(signature, i, arguments[i]));
      bound.tensors[i] = &bound.owned.back();
      continue;
    }
    const at::Tensor* given = &arguments[i].tensor();
    if (state.converts && can_convert(signature.inputs[i], checks[i].device, *given)) [[unlikely]] {
      bound.owned.push_back(given->to(checks[i].device, checks[i].dtype));
      given = &bound.owned.back();
    }
    const at::Tensor& tensor = *given;
    if (check_input(state, i, checks[i], tensor, bound.symbols.data())) bound.needs_grad = true;
    if (checks[i].is_number) check_number_tensor(signature, i, tensor);
    bound.tensors[i] = &tensor;
  }
  if (state.has_relations) [[unlikely]] {
    check_relations(signature, checks, bound.tensors.data(), bound.symbols.data());
  }
}

void check_mutated(const FunctionState& state, const Bound& bound) {
  const Signature& signature = state.signature;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    if (!signature.inputs[i].mutated) continue;
    if (at::has_internal_overlap(*bound.tensors[i]) == at::MemOverlap::Yes) {
      refuse_self_overlap(signature, i, *bound.tensors[i]);
    }
    for (size_t j = 0; j < signature.inputs.size(); ++j) {
      if (i != j && Extent(*bound.tensors[i]).overlaps(Extent(*bound.tensors[j]))) {
        refuse_input_overlap(signature, i, j);
      }
    }
  }
}

/// Whether the compiled code can read this tensor's memory as it is.
bool is_ready(const at::Tensor& tensor) {
  return tensor.is_contiguous() && !tensor.key_set().has_any(kPendingMath) && is_aligned(tensor);
}

at::Tensor made_ready(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.resolve_conj().resolve_neg().contiguous();
  return is_aligned(plain) ? plain : plain.clone();
}

// An input that the function writes into, where the compiled code got a copy because of the input's layout.
struct WriteBack {
  at::Tensor copy;
  const at::Tensor* original;
};
using WriteBacks = c10::SmallVector<WriteBack, 1>;

/// Adds a copy of an input in the layout that the compiled code reads.
[[gnu::cold]] void add_copy(const at::Tensor& tensor, bool mutated, Handles& handles, WriteBacks& write_backs) {
  at::Tensor copy = made_ready(tensor);
  if (mutated) write_backs.push_back({copy, &tensor});
  handles.push_back(std::move(copy));
}

/// Adds the inputs in the layout that the compiled code reads.
void add_inputs(const FunctionState& state, const Bound& bound, Handles& handles, WriteBacks& write_backs) {
  for (size_t i = 0; i < bound.tensors.size(); ++i) {
    const at::Tensor& tensor = *bound.tensors[i];
    if (is_ready(tensor)) [[likely]] {
      handles.push_back(tensor);
    } else {
      add_copy(tensor, state.signature.inputs[i].mutated, handles, write_backs);
    }
  }
}

/// As every in-place operator does, so that autograd refuses a backward pass through values that are gone.
void mark_changed(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

void finish_mutations(const FunctionState& state, const Bound& bound, const WriteBacks& write_backs) {
  for (const WriteBack& entry : write_backs) entry.original->copy_(entry.copy);
  for (size_t i = 0; i < bound.tensors.size(); ++i) {
    if (state.signature.inputs[i].mutated) mark_changed(*bound.tensors[i]);
  }
}

/// Runs the code by a CUDA graph. False when there is none yet, or never will be: the code is to run as it is.
bool run_captured(const FunctionState& state, const Library& library, const Bound& bound, std::span<at::Tensor> outputs,
                  const Weights::Set* weights, const std::vector<size_t>& positions) {
  c10::SmallVector<Graphs::Input, 16> inputs;
  for (size_t i = 0; i < bound.tensors.size(); ++i) {
    const at::Tensor& tensor = *bound.tensors[i];
    inputs.push_back({&tensor, is_ready(tensor), state.signature.inputs[i].mutated, /*is_weight=*/false});
  }
  for (const size_t position : positions) {
    inputs.push_back({&weights->tensors[position], /*is_ready=*/true, /*is_mutated=*/false, /*is_weight=*/true});
  }
  if (!state.graphs->run(library, inputs, outputs)) return false;
  if (state.mutates) finish_mutations(state, bound, {});
  return true;
}

void run_code(const FunctionState& state, const Library& library, const Bound& bound, std::span<at::Tensor> outputs,
              const Weights::Set* weights, const std::vector<size_t>& positions) {
  if (state.graphs != nullptr && !state.graphs->is_refused() &&
      run_captured(state, library, bound, outputs, weights, positions)) {
    return;
  }
  Handles in(bound.tensors.size() + positions.size());
  WriteBacks write_backs;
  add_inputs(state, bound, in, write_backs);
  for (const size_t position : positions) in.push_back(weights->tensors[position]);
  Scratch<AtenTensorHandle, 8> out(outputs.size());
  in.run(library, out.data());
  for (size_t i = 0; i < outputs.size(); ++i) {
    // Code that gives one tensor twice gives one handle twice.
    const AtenTensorHandle* same = std::find(out.data(), out.data() + i, out[i]);
    outputs[i] = same == out.data() + i ? take(out[i]) : outputs[static_cast<size_t>(same - out.data())];
  }
  if (state.mutates) finish_mutations(state, bound, write_backs);
}

/// Whether the weights that are burnt into compiled code are still what they were.
bool is_current(const FunctionState& state, const Weights::Set& weights) {
  return std::all_of(state.burnt_in.begin(), state.burnt_in.end(),
                     [&](size_t position) { return weights.is_current(position); });
}

/// Results of the graph as tensors; Python's None and strings are none of the signature's outputs.
void take_results(const FunctionState& state, std::vector<c10::IValue> results, std::span<at::Tensor> outputs) {
  size_t next = 0;
  for (c10::IValue& result : results) {
    if (result.isNone() || result.isString()) continue;
    if (next == outputs.size()) throw Error(state.signature.name + ": the graph gives more results than its signature");
    if (result.isTensor()) {
      outputs[next++] = std::move(result).toTensor();
    } else {
      outputs[next] =
          at::detail::scalar_tensor_static(result.toScalar(), state.signature.outputs[next].dtype, at::kCPU);
      ++next;
    }
  }
  if (next != outputs.size()) throw Error(state.signature.name + ": the graph gives fewer results than its signature");
}

c10::IValue graph_argument(const portable::Program::Input& input, const at::Tensor& tensor) {
  if (!input.is_number) return tensor;
  const at::Scalar number = tensor.item();
  if (number.isFloatingPoint()) return number.toDouble();
  if (number.isBoolean()) return number.toBool();
  return number.toLong();
}

void run_graph(const FunctionState& state, const Bound& bound, std::span<at::Tensor> outputs,
               const Weights::Set& weights, const char* reason) {
  state.portable_calls.fetch_add(1, std::memory_order_relaxed);
  state.portable_reason.store(reason, std::memory_order_relaxed);
  std::unique_ptr<c10::DeviceGuard> guard;
  if (state.device.is_cuda()) guard = std::make_unique<c10::DeviceGuard>(state.device);
  std::vector<c10::IValue> arguments;
  arguments.reserve(bound.tensors.size());
  // Python code may have gone another way for other strides than those of the example, which were contiguous.
  WriteBacks write_backs;
  for (const portable::Program::Input& input : state.program->inputs()) {
    if (input.kind != portable::Program::Input::Kind::argument) continue;
    const size_t position = arguments.size();
    const at::Tensor& tensor = *bound.tensors[position];
    if (is_ready(tensor)) {
      arguments.push_back(graph_argument(input, tensor));
      continue;
    }
    const at::Tensor copy = made_ready(tensor);
    if (state.signature.inputs[position].mutated) write_backs.push_back({copy, &tensor});
    arguments.push_back(graph_argument(input, copy));
  }
  take_results(state, state.program->run(std::move(arguments), weights.tensors, state.program_weights), outputs);
  for (const WriteBack& entry : write_backs) entry.original->copy_(entry.copy);
  if (at::GradMode::is_enabled()) return;
  for (size_t i = 0; i < bound.tensors.size(); ++i) {
    if (state.signature.inputs[i].mutated) mark_changed(*bound.tensors[i]);
  }
}

/// Calls code that carries gradients. Returns why it cannot, or null when it did.
const char* run_training(const FunctionState& state, const Bound& bound, std::span<at::Tensor> outputs,
                         const Weights::Set& weights) {
  const char* reason = "a gradient is wanted, which compiled code does not have";
  for (const std::shared_ptr<const TrainingCode>& code : state.training) {
    if (code->is_differentiated_twice.load(std::memory_order_relaxed)) {
      return "backward ran with create_graph, which compiled code cannot do";
    }
  }
  for (const std::shared_ptr<const TrainingCode>& code : state.training) {
    c10::SmallVector<at::Tensor, 16> inputs;
    for (const at::Tensor* tensor : bound.tensors) inputs.push_back(is_ready(*tensor) ? *tensor : made_ready(*tensor));
    for (const size_t position : code->weights) inputs.push_back(weights.tensors[position]);
    if (!code->gives_gradients_of(inputs)) {
      reason = "a gradient is wanted of a tensor for which the compiled code has none";
      continue;
    }
    state.training_calls.fetch_add(1, std::memory_order_relaxed);
    std::vector<at::Tensor> results = TrainingCode::call(code, inputs);
    std::move(results.begin(), results.end(), outputs.begin());
    return nullptr;
  }
  return reason;
}

/// Whether torchcc::compile records what this thread does. It sees the graph's operators, but not compiled code.
bool is_recorded() { return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::TESTING_ONLY_GenericMode); }

/// Calls that may take weights, or run the graph.
void call_with_weights(const FunctionState& state, const Bound& bound, std::span<at::Tensor> outputs) {
  std::unique_lock<std::mutex> lock;
  if (state.writes_weights) lock = std::unique_lock(state.weights->writing());
  const std::shared_ptr<const Weights::Set> weights = state.weights->current();
  bool needs_grad = bound.needs_grad;
  if (at::GradMode::is_enabled()) {
    for (const size_t position : state.program_weights) {
      needs_grad = needs_grad || weights->tensors[position].requires_grad();
    }
  }
  if (state.program != nullptr && is_recorded()) {
    run_graph(state, bound, outputs, *weights, "the call is part of a function that torchcc::compile records");
  } else if (needs_grad) {
    if (const char* reason = run_training(state, bound, outputs, *weights)) {
      run_graph(state, bound, outputs, *weights, reason);
    }
  } else if (state.library != nullptr && is_current(state, *weights)) {
    run_code(state, *state.library, bound, outputs, weights.get(), state.library_weights);
  } else if (state.updatable.library != nullptr) {
    run_code(state, *state.updatable.library, bound, outputs, weights.get(), state.updatable.weights);
  } else {
    run_graph(state, bound, outputs, *weights,
              state.library == nullptr ? "" : "a weight was changed that is burnt into the compiled code");
  }
}

using Sizes = c10::SmallVector<int64_t, 8>;

Sizes output_sizes(const Value& value, const Bound& bound) {
  Sizes sizes;
  for (const Size& size : value.sizes) sizes.push_back(evaluate(size, bound.symbols.data()));
  return sizes;
}

void check_output(const FunctionState& state, size_t index, const at::Tensor& tensor, const Bound& bound) {
  const Value& value = state.signature.outputs[index];
  const Sizes sizes = output_sizes(value, bound);
  const c10::Device device = state.device_of(value);
  if (!is_plain(tensor, device) || tensor.key_set().has_any(kPendingMath) || tensor.scalar_type() != value.dtype ||
      tensor.sizes() != at::IntArrayRef(sizes) || !tensor.is_contiguous() || !is_aligned(tensor) ||
      (tensor.requires_grad() && at::GradMode::is_enabled())) [[unlikely]] {
    refuse_output(state.signature, index, tensor, sizes, device);
  }
}

}  // namespace

void call(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments) {
  Bound bound(state);
  bind(state, arguments, bound);
  if (state.mutates) check_mutated(state, bound);
  if (state.is_plain && !bound.needs_grad && (state.program == nullptr || !is_recorded())) [[likely]] {
    run_code(state, *state.library, bound, outputs, nullptr, {});
  } else {
    call_with_weights(state, bound, outputs);
  }
}

void call_out(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments) {
  if (state.library_out == nullptr) refuse_outputs(state.signature);
  Bound bound(state);
  bind(state, arguments, bound);
  if (bound.needs_grad) [[unlikely]] {
    for (size_t i = 0; i < bound.tensors.size(); ++i) {
      if (bound.tensors[i]->requires_grad()) refuse_grad(state.signature, i);
    }
  }
  if (state.mutates) check_mutated(state, bound);
  for (size_t i = 0; i < outputs.size(); ++i) {
    check_output(state, i, outputs[i], bound);
    const Extent own(outputs[i]);
    const auto shares = [&](const at::Tensor& other) { return own.overlaps(Extent(other)); };
    if (std::any_of(bound.tensors.begin(), bound.tensors.end(), [&](const at::Tensor* t) { return shares(*t); }) ||
        std::any_of(outputs.begin(), outputs.begin() + static_cast<std::ptrdiff_t>(i), shares)) [[unlikely]] {
      refuse_output_overlap(state.signature, i, outputs[i]);
    }
  }
  if (!state.is_plain && !is_current(state, *state.weights->current())) {
    std::vector<at::Tensor> results(outputs.size());
    call_with_weights(state, bound, results);
    for (size_t i = 0; i < outputs.size(); ++i) outputs[i].copy_(results[i]);
    return;
  }
  Handles in(arguments.size() + outputs.size());
  WriteBacks write_backs;
  add_inputs(state, bound, in, write_backs);
  for (const at::Tensor& tensor : outputs) in.push_back(tensor);
  in.run(*state.library_out, nullptr);
  if (state.mutates) finish_mutations(state, bound, write_backs);
  for (const at::Tensor& tensor : outputs) mark_changed(tensor);
}

void FunctionState::prepare(const std::string& origin) {
  checks = input_checks(signature, origin);
  for (size_t i = 0; i < checks.size(); ++i) {
    checks[i].device = device_of(signature.inputs[i]);
  }
  has_relations = detail::has_relations(signature, checks);
  for (const Value& input : signature.inputs) mutates = mutates || input.mutated;
}

}  // namespace detail
}  // namespace torchcc
