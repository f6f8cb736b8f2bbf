// The call path: check the arguments, hand them to the compiled code, take the results. Everything that only an error
// needs is in the functions named refuse_*, out of line, so that the path itself stays short.

#include <algorithm>
#include <sstream>

#include <ATen/MemoryOverlap.h>
#include <ATen/ScalarOps.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/inductor/aoti_torch/utils.h>

#include "message.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

using torch::aot_inductor::tensor_handle_to_tensor_pointer;
using torch::aot_inductor::tensor_pointer_to_tensor_handle;

using Symbols = c10::SmallVector<int64_t, 8>;

/// Handles that are ours until the compiled code takes them over.
class Handles {
 public:
  ~Handles() {
    for (AtenTensorHandle handle : handles_) delete tensor_handle_to_tensor_pointer(handle);
  }
  void push_back(at::Tensor tensor) {
    handles_.push_back(nullptr);
    handles_.back() = tensor_pointer_to_tensor_handle(new at::Tensor(std::move(tensor)));
  }
  /// The array for one call of the compiled code, which deletes each handle whether it succeeds or not.
  AtenTensorHandle* release() {
    AtenTensorHandle* data = handles_.data();
    handles_.set_size(0);
    return data;
  }

 private:
  c10::SmallVector<AtenTensorHandle, 16> handles_;
};

constexpr int64_t kUnbound = -1;

// Tensors with these keys are not plain memory: what they mean lies in another tensor or in Python.
constexpr c10::DispatchKeySet kWrappers({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
                                         c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Functionalize,
                                         c10::DispatchKey::ZeroTensor, c10::DispatchKey::NestedTensor});
constexpr c10::DispatchKeySet kPendingMath({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

std::string which(const Signature& signature, const std::vector<Value>& values, size_t index) {
  const bool input = &values == &signature.inputs;
  return signature.name + ": " + (input ? "argument" : "output") + " '" + values[index].name + "' (" +
         std::to_string(index + 1) + " of " + std::to_string(values.size()) + ")";
}

[[noreturn]] void refuse(const Signature& signature, const std::string& subject, const std::string& expected,
                         const std::string& got, const std::string& fix) {
  throw ArgumentError(
      message(subject, {{"signature", signature.str()}, {"expected", expected}, {"got", got}, {"fix", fix}}));
}

std::string list_text(at::IntArrayRef numbers) {
  std::string text = "[";
  for (size_t i = 0; i < numbers.size(); ++i) text += (i ? ", " : "") + std::to_string(numbers[i]);
  return text + "]";
}

/// What a tensor that is not plain memory is.
std::string kind_text(const at::Tensor& tensor) {
  if (tensor.is_nested()) return "a nested tensor";
  if (tensor.layout() == at::kStrided) return "a tensor with the dispatch keys " + c10::toString(tensor.key_set());
  std::ostringstream text;
  text << "a tensor of layout " << tensor.layout();
  return text.str();
}

std::string at_scalar(c10::ScalarType dtype) { return std::string("at::k") + c10::toString(dtype); }

[[noreturn]] void refuse_count(const Signature& signature, const char* what, size_t expected, size_t got) {
  refuse(signature, signature.name + ": wrong number of " + what, std::to_string(expected), std::to_string(got),
         "pass exactly one tensor or number for each entry of the signature");
}

/// Says what is wrong with a tensor that is known not to fit in dtype, device, rank or kind.
[[noreturn]] void refuse_tensor(const Signature& signature, const std::vector<Value>& values, size_t index,
                                const at::Tensor& tensor) {
  const Value& value = values[index];
  const std::string who = which(signature, values, index);
  if (!tensor.defined())
    refuse(signature, who + " is undefined", value.type(), "an undefined tensor", "assign it first");
  const std::string& name = value.name;
  if (tensor.device().type() != value.device) {
    const std::string device = c10::DeviceTypeName(value.device, /*lower_case=*/true);
    refuse(signature, who + " is on the wrong device", device, tensor.device().str(),
           "move it: " + name + ".to(\"" + device + "\")");
  }
  if (tensor.layout() != at::kStrided || tensor.key_set().has_any(kWrappers)) {
    refuse(signature, who + " is not a plain dense tensor", "a dense (strided) tensor", kind_text(tensor),
           "make it dense first, e.g. " + name + ".to_dense()");
  }
  if (tensor.scalar_type() != value.dtype) {
    refuse(signature, who + " has the wrong dtype", dtype_name(value.dtype), dtype_name(tensor.scalar_type()),
           "convert it: " + name + ".to(" + at_scalar(value.dtype) + ")");
  }
  if (tensor.dim() == static_cast<int64_t>(value.sizes.size())) {
    refuse(signature, who + " is a view that is conjugated or negated when it is read", "a tensor as it lies in memory",
           "a tensor with " + c10::toString(tensor.key_set()), "make it with at::empty({...})");
  }
  refuse(signature, who + " has the wrong rank", std::to_string(value.sizes.size()) + " dimensions: " + value.type(),
         std::to_string(tensor.dim()) + " dimensions: sizes " + list_text(tensor.sizes()),
         "reshape it, e.g. with unsqueeze or flatten");
}

[[noreturn]] void refuse_size(const Signature& signature, const std::vector<Value>& values, size_t index,
                              size_t dimension, const at::Tensor& tensor, const std::string& expected) {
  refuse(signature, which(signature, values, index) + " has the wrong size in dimension " + std::to_string(dimension),
         expected,
         std::to_string(tensor.size(static_cast<int64_t>(dimension))) + ": sizes " + list_text(tensor.sizes()),
         "pass a tensor of the right size");
}

/// Where a symbol got its value: the first input dimension that is just that symbol.
std::string origin_of(const Signature& signature, int64_t symbol) {
  for (const Value& input : signature.inputs) {
    for (size_t d = 0; d < input.sizes.size(); ++d) {
      if (input.sizes[d].is_symbol() && input.sizes[d].steps[0].value == symbol) {
        return "dimension " + std::to_string(d) + " of '" + input.name + "'";
      }
    }
  }
  return "an earlier argument";
}

[[noreturn]] void refuse_mismatch(const Signature& signature, size_t index, size_t dimension, const at::Tensor& tensor,
                                  int64_t symbol, int64_t value) {
  refuse_size(signature, signature.inputs, index, dimension, tensor,
              signature.symbols[static_cast<size_t>(symbol)].name + " = " + std::to_string(value) + ", as " +
                  origin_of(signature, symbol) + " has it");
}

[[noreturn]] void refuse_range(const Signature& signature, size_t index, size_t dimension, const at::Tensor& tensor,
                               const Symbol& symbol) {
  const std::string expected = std::to_string(symbol.min) + " <= " + symbol.name +
                               (symbol.max == INT64_MAX ? std::string() : " <= " + std::to_string(symbol.max));
  refuse(
      signature,
      which(signature, signature.inputs, index) + " has a size out of range in dimension " + std::to_string(dimension),
      expected, symbol.name + " = " + std::to_string(tensor.size(static_cast<int64_t>(dimension))),
      "split the call, or build the region with a wider range: ranges={\"" + symbol.name + "\": (min, max)}");
}

[[noreturn]] void refuse_grad(const Signature& signature, size_t index) {
  refuse(signature, which(signature, signature.inputs, index) + " requires grad, and the result would carry none",
         "a tensor that does not require grad, or grad mode off", "requires_grad = true with grad mode on",
         "call under torch::NoGradGuard or c10::InferenceMode, or pass " + signature.inputs[index].name + ".detach()");
}

[[noreturn]] void refuse_kind(const Signature& signature, size_t index, const std::string& got) {
  refuse(signature, which(signature, signature.inputs, index) + " has the wrong kind", signature.inputs[index].type(),
         got, "pass a value of the expected type");
}

/// Checks dtype, device, kind and rank. One branch per property on the way that every good call takes.
void check_plain(const Signature& signature, const std::vector<Value>& values, size_t index, const InputCheck& check,
                 const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != check.device || tensor.layout() != at::kStrided ||
      tensor.key_set().has_any(kWrappers) || tensor.scalar_type() != check.dtype ||
      tensor.sizes().size() != check.sizes.size()) [[unlikely]] {
    refuse_tensor(signature, values, index, tensor);
  }
}

void check_input(const FunctionState& state, size_t index, const at::Tensor& tensor, bool grad_mode, int64_t* symbols) {
  const Signature& signature = state.signature;
  const InputCheck& check = state.checks[index];
  check_plain(signature, signature.inputs, index, check, tensor);
  if (grad_mode && tensor.requires_grad()) [[unlikely]]
    refuse_grad(signature, index);
  const at::IntArrayRef sizes = tensor.sizes();
  for (size_t d = 0; d < sizes.size(); ++d) {
    const SizeCheck& size = check.sizes[d];
    switch (size.kind) {
      case SizeCheck::Kind::number:
        if (sizes[d] != size.value) [[unlikely]] {
          refuse_size(signature, signature.inputs, index, d, tensor, std::to_string(size.value));
        }
        break;
      case SizeCheck::Kind::bind: {
        const Symbol& symbol = signature.symbols[static_cast<size_t>(size.value)];
        if (sizes[d] < symbol.min || sizes[d] > symbol.max) [[unlikely]] {
          refuse_range(signature, index, d, tensor, symbol);
        }
        symbols[size.value] = sizes[d];
        break;
      }
      case SizeCheck::Kind::same:
        if (sizes[d] != symbols[size.value]) [[unlikely]] {
          refuse_mismatch(signature, index, d, tensor, size.value, symbols[size.value]);
        }
        break;
      case SizeCheck::Kind::expression: break;  // after all symbols are bound
    }
  }
}

void check_expressions(const FunctionState& state, const at::Tensor* const* tensors, const int64_t* symbols) {
  const Signature& signature = state.signature;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    for (size_t d = 0; d < signature.inputs[i].sizes.size(); ++d) {
      if (state.checks[i].sizes[d].kind != SizeCheck::Kind::expression) continue;
      const Size& size = signature.inputs[i].sizes[d];
      const int64_t expected = size.evaluate(symbols);
      if (tensors[i]->size(static_cast<int64_t>(d)) != expected) {
        refuse_size(signature, signature.inputs, i, d, *tensors[i], size.text + " = " + std::to_string(expected));
      }
    }
  }
}

/// A number of the caller's as the tensor of rank 0 that the compiled code takes.
at::Tensor number_tensor(const Signature& signature, size_t index, const Argument& argument) {
  const Value& value = signature.inputs[index];
  if (!value.is_number) refuse_kind(signature, index, "a number");
  const bool integer = argument.kind() == Argument::Kind::integer;
  if (value.dtype == c10::ScalarType::Double) {
    if (argument.kind() == Argument::Kind::boolean) refuse_kind(signature, index, "a bool");
    const double number = integer ? static_cast<double>(argument.integer()) : argument.floating();
    return at::detail::scalar_tensor_static(number, at::kDouble, at::kCPU);
  }
  if (value.dtype == c10::ScalarType::Bool) {
    if (argument.kind() != Argument::Kind::boolean) refuse_kind(signature, index, integer ? "an integer" : "a double");
    return at::detail::scalar_tensor_static(argument.integer() != 0, at::kBool, at::kCPU);
  }
  if (!integer) {
    refuse_kind(signature, index, argument.kind() == Argument::Kind::boolean ? "a bool" : "a double");
  }
  if (argument.integer() < value.min || argument.integer() > value.max) {
    refuse(signature, which(signature, signature.inputs, index) + " is out of range",
           std::to_string(value.min) + " <= " + value.name + " <= " + std::to_string(value.max),
           std::to_string(argument.integer()), "pass a value in the range, or build the region with a wider one");
  }
  return at::detail::scalar_tensor_static(argument.integer(), at::kLong, at::kCPU);
}

// A number given as a tensor: its value still has to be in range.
void check_number_tensor(const Signature& signature, size_t index, const at::Tensor& tensor) {
  const Value& value = signature.inputs[index];
  if (value.dtype != c10::ScalarType::Long) return;
  const int64_t number = tensor.item<int64_t>();
  number_tensor(signature, index, Argument(number));
}

/// The bytes between a tensor's first and last element. Compared by address, since two storages may be views of the
/// same memory (at::from_blob).
std::pair<uintptr_t, uintptr_t> extent(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {0, 0};
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + static_cast<uintptr_t>(last + 1) * tensor.element_size()};
}

bool may_overlap(const at::Tensor& a, const at::Tensor& b) {
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  return a_begin < b_end && b_begin < a_end;
}

/// The checks of a call as one value: tensors by input, symbols bound.
struct Bound {
  c10::SmallVector<const at::Tensor*, 16> tensors;
  c10::SmallVector<at::Tensor, 8> owned;  ///< the numbers of the call, as tensors
  Symbols symbols;
};

void bind(const FunctionState& state, std::span<const Argument> arguments, Bound& bound) {
  const Signature& signature = state.signature;
  if (arguments.size() != signature.inputs.size()) [[unlikely]] {
    refuse_count(signature, "arguments", signature.inputs.size(), arguments.size());
  }
  bound.symbols.resize(signature.symbols.size(), kUnbound);
  bound.tensors.resize(arguments.size());
  bound.owned.reserve(arguments.size());
  const bool grad_mode = at::GradMode::is_enabled();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i].kind() != Argument::Kind::tensor) {
      bound.owned.push_back(number_tensor(signature, i, arguments[i]));
      bound.tensors[i] = &bound.owned.back();
      continue;
    }
    const at::Tensor& tensor = arguments[i].tensor();
    check_input(state, i, tensor, grad_mode, bound.symbols.data());
    if (state.checks[i].is_number) check_number_tensor(signature, i, tensor);
    bound.tensors[i] = &tensor;
  }
  if (state.has_expressions) check_expressions(state, bound.tensors.data(), bound.symbols.data());
}

void check_mutated(const FunctionState& state, const Bound& bound) {
  const Signature& signature = state.signature;
  for (size_t i = 0; i < signature.inputs.size(); ++i) {
    if (!signature.inputs[i].mutated) continue;
    if (at::has_internal_overlap(*bound.tensors[i]) == at::MemOverlap::Yes) {
      refuse(signature, which(signature, signature.inputs, i) + " is written to and overlaps itself",
             "a tensor with one place in memory per element", "an expanded tensor",
             "pass " + signature.inputs[i].name + ".clone()");
    }
    for (size_t j = 0; j < signature.inputs.size(); ++j) {
      if (i != j && may_overlap(*bound.tensors[i], *bound.tensors[j])) {
        refuse(signature,
               which(signature, signature.inputs, i) + " is written to and shares memory with '" +
                   signature.inputs[j].name + "'",
               "arguments that do not share memory", "two views of the same memory",
               "pass " + signature.inputs[j].name + ".clone()");
      }
    }
  }
}

/// Whether the compiled code can read this tensor's memory as it is.
bool is_ready(const at::Tensor& tensor) { return tensor.is_contiguous() && !tensor.key_set().has_any(kPendingMath); }

at::Tensor made_ready(const at::Tensor& tensor) { return tensor.resolve_conj().resolve_neg().contiguous(); }

at::Tensor take(AtenTensorHandle handle) {
  at::Tensor* pointer = tensor_handle_to_tensor_pointer(handle);
  at::Tensor tensor = std::move(*pointer);
  delete pointer;
  return tensor;
}

// An input that the function writes into, where the compiled code got a copy because of the input's layout.
struct WriteBack {
  at::Tensor copy;
  const at::Tensor* original;
};
using WriteBacks = c10::SmallVector<WriteBack, 1>;

/// Adds the inputs in the layout that the compiled code reads.
void add_inputs(const FunctionState& state, const Bound& bound, Handles& handles, WriteBacks& write_backs) {
  for (size_t i = 0; i < bound.tensors.size(); ++i) {
    const at::Tensor& tensor = *bound.tensors[i];
    if (is_ready(tensor)) [[likely]] {
      handles.push_back(tensor);
      continue;
    }
    at::Tensor copy = made_ready(tensor);
    if (state.signature.inputs[i].mutated) write_backs.push_back({copy, &tensor});
    handles.push_back(std::move(copy));
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

void call(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments) {
  Bound bound;
  bind(state, arguments, bound);
  if (state.mutates) check_mutated(state, bound);
  Handles in;
  WriteBacks write_backs;
  add_inputs(state, bound, in, write_backs);
  c10::SmallVector<AtenTensorHandle, 4> out(outputs.size());
  state.library->run(in.release(), out.data());
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = take(out[i]);
  if (state.mutates) finish_mutations(state, bound, write_backs);
}

void check_output(const FunctionState& state, size_t index, const at::Tensor& tensor, const Bound& bound) {
  const Signature& signature = state.signature;
  const Value& value = signature.outputs[index];
  if (!tensor.defined() || tensor.device().type() != value.device || tensor.layout() != at::kStrided ||
      tensor.key_set().has_any(kWrappers | kPendingMath) || tensor.scalar_type() != value.dtype ||
      tensor.sizes().size() != value.sizes.size()) {
    refuse_tensor(signature, signature.outputs, index, tensor);
  }
  for (size_t d = 0; d < value.sizes.size(); ++d) {
    const int64_t expected = value.sizes[d].evaluate(bound.symbols.data());
    if (tensor.size(static_cast<int64_t>(d)) != expected) {
      const bool plain = value.sizes[d].is_number();
      refuse_size(signature, signature.outputs, index, d, tensor,
                  (plain ? "" : value.sizes[d].text + " = ") + std::to_string(expected));
    }
  }
  if (!tensor.is_contiguous()) {
    refuse(signature, which(signature, signature.outputs, index) + " is not contiguous", "a contiguous tensor",
           "another layout: sizes " + list_text(tensor.sizes()) + ", strides " + list_text(tensor.strides()),
           "make it with at::empty({...})");
  }
  if (at::GradMode::is_enabled() && tensor.requires_grad()) {
    refuse(signature, which(signature, signature.outputs, index) + " requires grad",
           "a tensor that does not require grad, or grad mode off", "requires_grad = true with grad mode on",
           "call under torch::NoGradGuard");
  }
}

void call_out(const FunctionState& state, std::span<at::Tensor> outputs, std::span<const Argument> arguments) {
  const Signature& signature = state.signature;
  if (state.library_out == nullptr) {
    refuse(signature, signature.name + ": no variant that writes into given outputs", "a region built with out=True",
           "one built with out=False", "call it without outputs, or build it with out=True");
  }
  Bound bound;
  bind(state, arguments, bound);
  if (state.mutates) check_mutated(state, bound);
  for (size_t i = 0; i < outputs.size(); ++i) {
    check_output(state, i, outputs[i], bound);
    const auto shares = [&](const at::Tensor& other) { return may_overlap(outputs[i], other); };
    if (std::any_of(bound.tensors.begin(), bound.tensors.end(), [&](const at::Tensor* t) { return shares(*t); }) ||
        std::any_of(outputs.begin(), outputs.begin() + static_cast<std::ptrdiff_t>(i), shares)) {
      refuse(signature, which(signature, signature.outputs, i) + " shares memory with another tensor of the call",
             "memory of its own", "a view of an input or of another output", "make it with at::empty({...})");
    }
  }
  Handles in;
  WriteBacks write_backs;
  add_inputs(state, bound, in, write_backs);
  for (const at::Tensor& tensor : outputs) in.push_back(tensor);
  state.library_out->run(in.release(), nullptr);
  if (state.mutates) finish_mutations(state, bound, write_backs);
  for (const at::Tensor& tensor : outputs) mark_changed(tensor);
}

const FunctionState& require(const std::shared_ptr<const FunctionState>& state) {
  if (state == nullptr) throw ArgumentError("an empty torchcc::Function is called: assign one from a package first");
  return *state;
}

void check_output_count(const FunctionState& state, size_t count) {
  if (count != state.signature.outputs.size()) [[unlikely]] {
    refuse_count(state.signature, "outputs", state.signature.outputs.size(), count);
  }
}

}  // namespace

void FunctionState::prepare(const std::string& origin) {
  std::vector<bool> bound(signature.symbols.size(), false);
  for (const Value& input : signature.inputs) {
    InputCheck check{input.dtype, input.device, input.is_number, {}};
    mutates = mutates || input.mutated;
    for (const Size& size : input.sizes) {
      if (size.is_number()) {
        check.sizes.push_back({SizeCheck::Kind::number, size.steps[0].value});
      } else if (size.is_symbol()) {
        const auto symbol = static_cast<size_t>(size.steps[0].value);
        check.sizes.push_back({bound[symbol] ? SizeCheck::Kind::same : SizeCheck::Kind::bind, size.steps[0].value});
        bound[symbol] = true;
      } else {
        check.sizes.push_back({SizeCheck::Kind::expression, 0});
        has_expressions = true;
      }
    }
    checks.push_back(std::move(check));
  }
  for (size_t i = 0; i < bound.size(); ++i) {
    if (!bound[i]) {
      throw PackageError(origin + ": function '" + signature.name + "': no input has the plain size " +
                         signature.symbols[i].name);
    }
  }
}

}  // namespace detail

const Signature& Function::signature() const { return detail::require(state_).signature; }

Stats Function::stats() const { return detail::require(state_).stats; }

std::vector<at::Tensor> Function::call(std::span<const Argument> arguments) const {
  std::vector<at::Tensor> outputs(signature().outputs.size());
  detail::call(*state_, outputs, arguments);
  return outputs;
}

std::vector<at::Tensor> Function::call(std::initializer_list<Argument> arguments) const {
  return call(std::span<const Argument>(arguments.begin(), arguments.size()));
}

void Function::call_into(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call(*state_, outputs, arguments);
}

void Function::call_out(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call_out(*state_, outputs, arguments);
}

}  // namespace torchcc
