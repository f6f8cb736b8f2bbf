// Recording while the function runs; assemble.cpp makes the recording of it afterwards.

#include "recorder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <mutex>
#include <string_view>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>
#include <torchcc/error.h>
#include <torchcc/signature.h>

#include "message.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

constexpr c10::DispatchKey kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local Recorder* current_recorder = nullptr;

// Reads of one storage that compare its content with the hash; at the end all are compared.
constexpr int kChecks = 3;

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard inside(kMode);
  if (current_recorder == nullptr) {
    op.callBoxed(stack);
  } else {
    current_recorder->step(op, stack);
  }
}

/// Registers the mode's fallback, once per process and not before the first recording. Of all mode keys, this one alone
/// has no fallback in libtorch. It sees every call of the dispatcher, factories and composite operators included, above
/// autograd and autocast.
c10::DispatchKey require_mode() {
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
  return kMode;
}

size_t hash_of(const c10::StorageImpl& storage) {
  return std::hash<std::string_view>{}({static_cast<const char*>(storage.data()), storage.nbytes()});
}

bool is_default_generator(const at::Generator& generator) {
  return generator.unsafeGetGeneratorImpl() == at::detail::getDefaultCPUGenerator().unsafeGetGeneratorImpl();
}

bool has_mask(const c10::IValue& indices) {
  for (const c10::IValue& index : indices.toListRef()) {
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    const c10::ScalarType dtype = index.toTensor().scalar_type();
    if (dtype == at::kBool || dtype == at::kByte) return true;
  }
  return false;
}

bool has_given_size(const Operator& op, const c10::IValue* arguments) {
  return op.given_size >= 0 && arguments[op.given_size].isInt() && arguments[op.given_size].toInt() >= 0;
}

/// Whether at::equal needs no data: for a tensor and itself, and for tensors of different sizes.
bool is_decided(const c10::IValue& a, const c10::IValue& b) {
  return a.isTensor() && b.isTensor() &&
         (a.toTensor().is_same(b.toTensor()) || a.toTensor().sizes() != b.toTensor().sizes());
}

bool is_written(const Operator& op, size_t position, const c10::IValue* arguments) {
  const Operator::Argument& argument = op.arguments[position];
  if (argument.is_written) return true;
  return argument.is_hidden_state && op.training >= 0 && arguments[op.training].isBool() &&
         arguments[op.training].toBool();
}

// operator<< begins with tensor.to(kCPU, kDouble), or kComplexDouble, and then reads memory, which no operator shows.
// For other dtypes the copy that nobody uses gives it away; see Recorder::refuse_printing.
bool prints(const Operator& op, const c10::IValue* arguments) {
  if (!op.is_to_device || !arguments[0].isTensor() || !arguments[2].isInt()) return false;
  const c10::ScalarType dtype = arguments[0].toTensor().scalar_type();
  return is_printed(static_cast<int64_t>(dtype)) && arguments[2].toInt() == static_cast<int64_t>(dtype) &&
         arguments[1].isDevice() && arguments[1].toDevice().is_cpu() && !arguments[4].toBool();
}

// A double that stands for a number of C++ code takes part in type promotion as one; PyTorch marks it.
bool is_number(const at::Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_wrapped_number(); }

void write(Words& code, Tag tag, int64_t word) {
  code.push_back(static_cast<int64_t>(tag));
  code.push_back(word);
}

void write_text(Words& code, std::string_view text) {
  write(code, Tag::text, static_cast<int64_t>(text.size()));
  for (size_t i = 0; i < text.size(); i += sizeof(int64_t)) {
    int64_t word = 0;
    std::memcpy(&word, text.data() + i, std::min(sizeof word, text.size() - i));
    code.push_back(word);
  }
}

void write_complex(Words& code, c10::complex<double> number) {
  write(code, Tag::complex, std::bit_cast<int64_t>(number.real()));
  code.push_back(std::bit_cast<int64_t>(number.imag()));
}

void write_number(Words& code, const c10::Scalar& number) {
  if (number.isComplex()) {
    write_complex(code, number.toComplexDouble());
  } else if (number.isFloatingPoint()) {
    write(code, Tag::floating, std::bit_cast<int64_t>(number.toDouble()));
  } else if (number.isBoolean()) {
    write(code, Tag::boolean, number.toBool() ? 1 : 0);
  } else {
    write(code, Tag::integer, number.toLong());
  }
}

/// The value of a CPU tensor of rank 0, read without an operator.
c10::Scalar number_of(const at::Tensor& tensor) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case at::kDouble: return *static_cast<const double*>(data);
    case at::kLong: return *static_cast<const int64_t*>(data);
    case at::kBool: return *static_cast<const bool*>(data);
    case at::kComplexDouble: return *static_cast<const c10::complex<double>*>(data);
    default: return *static_cast<const float*>(data);
  }
}

}  // namespace

Unrecorded::Unrecorded() : guard_(kMode) {}

Recorder* Recorder::current() { return current_recorder; }

Recorder::Recorder(c10::ArrayRef<const at::Tensor*> arguments, const Recording* previous)
    : mode_(require_mode()), checks_content_(previous != nullptr), tracks_(at::GradMode::is_enabled()) {
  static const Operator kCall{.name = "the call"};
  const Unrecorded unrecorded;
  for (const at::Tensor* tensor : arguments) {
    arguments_.push_back(*tensor);
    argument_owners_.emplace_back(tensor->use_count(), tensor->defined() && tensor->has_storage()
                                                           ? static_cast<int64_t>(tensor->storage().use_count())
                                                           : 0);
    argument_values_.push_back(-1);
    if (!tensor->defined()) continue;
    if (!require_ordinary(*tensor, kCall)) break;
    const auto known = memory_of_.find(tensor->storage().unsafeGetStorageImpl());
    const ValueId same = known == memory_of_.end() ? -1 : find(*tensor, memories_[known->second]);
    argument_values_.back() = same >= 0 ? same : add_external(*tensor);
    if (same < 0) externals_.back().argument = static_cast<int64_t>(arguments_.size()) - 1;
  }
  // Enough at first for most functions: growing moves everything.
  const size_t steps = previous == nullptr ? 1024 : previous->trace.steps.size();
  trace_.steps.reserve(steps);
  trace_.code.reserve(16 * steps);
  trace_.values.reserve(8 * steps);
  trace_.value_begin.reserve(steps);
  uses_.reserve(steps);
  memories_.reserve(steps);
  memory_of_.reserve(steps);
  if (previous != nullptr) {
    for (const Input& input : previous->inputs) {
      if (input.kind != Input::Kind::captured) continue;
      const c10::StorageImpl* storage = input.captured->tensor().storage().unsafeGetStorageImpl();
      watched_[storage] = hash_of(*storage);
      owners_[input.captured.get()] = {input.captured->owners(), input.captured->storage_owners()};
    }
  }
  current_recorder = this;
}

Recorder::~Recorder() {
  if (current_recorder == this) current_recorder = nullptr;
}

void Recorder::refuse(std::string reason) {
  if (refusal_.empty()) refusal_ = std::move(reason);
}

bool Recorder::require_ordinary(const at::Tensor& tensor, const Operator& op) {
  if (is_ordinary(tensor)) [[likely]]
    return true;
  refuse(op.name + ": a tensor that is not an ordinary one on the CPU (" + tensor.toString() + ")");
  return false;
}

ValueId Recorder::find(const at::Tensor& tensor, const Memory& memory) {
  const bool requires_grad = tracks_ && tensor.requires_grad();
  for (const ValueId id : memory.values) {
    if ((!tracks_ || requires_grad_[static_cast<size_t>(id)] == requires_grad) && has_words(tensor, trace_.value(id))) {
      return id;
    }
  }
  if (!requires_grad || !memory.is_written) return -1;
  // Something that requires grad was written into it, or into a view of it.
  for (const ValueId id : memory.values) {
    if (!has_words(tensor, trace_.value(id))) continue;
    requires_grad_[static_cast<size_t>(id)] = true;
    return id;
  }
  return -1;
}

ValueId Recorder::add_value(const at::Tensor& tensor) {
  std::vector<uint32_t>& begin = trace_.value_begin;
  if (!begin.empty() && has_words(tensor, trace_.values.data() + begin.back())) {
    begin.push_back(begin.back());
  } else {
    begin.push_back(static_cast<uint32_t>(trace_.values.size()));
    append_words(trace_.values, tensor);
  }
  uses_.push_back(0);
  if (tracks_) {
    const bool requires_grad = tensor.requires_grad();
    requires_grad_.push_back(requires_grad);
    trace_.requires_grad.push_back(requires_grad);
  }
  return static_cast<ValueId>(trace_.value_begin.size()) - 1;
}

ValueId Recorder::add_external(const at::Tensor& tensor) {
  const ValueId id = add_value(tensor);
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  const auto [entry, is_new] = memory_of_.emplace(storage, memories_.size());
  if (is_new) {
    Memory& memory = memories_.emplace_back(tensor.storage().getWeakStorageImpl());
    memory.is_external = true;
    if (checks_content_) {
      const auto watched = watched_.find(storage);
      memory.hash = watched != watched_.end() ? watched->second : hash_of(*storage);
      memory.checks = kChecks;
    }
  }
  if (!is_new && tracks_ && std::any_of(externals_.begin(), externals_.end(), [&](const External& known) {
        return known.tensor.is_same(tensor);
      })) {
    refuse("the function changes whether a tensor requires grad (requires_grad_, set_requires_grad)");
  }
  memories_[entry->second].values.push_back(id);
  externals_.push_back({.tensor = tensor, .value = id, .memory = entry->second});
  return id;
}

// A view that no operator made: Tensor::data(), a saved variable.
ValueId Recorder::add_alias(const at::Tensor& tensor, Memory& memory) {
  if (memory.is_external) return add_external(tensor);
  const ValueId root = memory.values.front();
  const int64_t* words = trace_.value(root);
  if (words[kDtype] != static_cast<int64_t>(tensor.scalar_type()) || words[kFlags] != 0 || tensor.is_conj() ||
      tensor.is_neg()) {
    refuse("memory of one value is used as another dtype without an operator");
    return root;
  }
  if (tracks_ && tensor.requires_grad() != requires_grad_[static_cast<size_t>(root)]) {
    refuse("whether a tensor requires grad changes without an operator (data(), requires_grad_, a custom Function)");
    return root;
  }
  static const Operator& as_strided = operator_named("aten::as_strided");
  trace_.steps.push_back({&as_strided, static_cast<uint32_t>(trace_.code.size())});
  const ValueId id = add_value(tensor);
  append_as_strided(trace_, root, id);
  memory.values.push_back(id);
  ++uses_[static_cast<size_t>(root)];
  return id;
}

// Content that came from outside the operators (a C++ array in torch::tensor): the value becomes a copy of a constant,
// so that later in-place operators leave the constant alone.
ValueId Recorder::add_copy(const at::Tensor& tensor, ValueId old, size_t memory) {
  static const Operator& clone = operator_named("aten::clone");
  const Unrecorded unrecorded;
  if (memories_[memory].values.size() > 1) {
    refuse("memory that was written without operators (data_ptr, accessor) is used through several views");
    return old;
  }
  if (!has_copies_) {
    has_copies_ = true;
    for (const at::Tensor& argument : arguments_) {
      if (!argument.defined()) continue;
      argument_hash_ = argument_hash_ * 31 + hash_of(*argument.storage().unsafeGetStorageImpl());
    }
  }
  const at::Tensor content = tensor.clone();
  const ValueId constant = add_external(content);
  externals_.back().is_constant = true;
  ++uses_[static_cast<size_t>(constant)];
  trace_.steps.push_back({&clone, static_cast<uint32_t>(trace_.code.size())});
  const ValueId id = add_value(tensor);
  write(trace_.code, Tag::tensor, constant);
  trace_.code.push_back(static_cast<int64_t>(Tag::none));
  write(trace_.code, Tag::tensor, id);
  memories_[memory].values = {id};
  memories_[memory].is_unwritten = false;
  memories_[memory].is_copied = true;
  return id;
}

void Recorder::check(Memory& memory, const c10::StorageImpl& storage) {
  if (memory.checks <= 0) return;
  --memory.checks;
  if (memory.hash == hash_of(storage)) return;
  if (memory.is_unwritten) {
    memory.hash = hash_of(storage);  // see add_copy
    return;
  }
  refuse("the function writes data without operators (data_ptr, accessor, from_blob, another thread)");
}

// An operator that gives a view where it can (contiguous, to, reshape) has made a copy: it has read after all.
void Recorder::check_source(Memory& copy, const Operator& op) {
  if (first_used_ == Memory::kNone) return;
  copy.source = first_used_;
  Memory& memory = memories_[first_used_];
  const auto storage = memory.storage.lock();
  if (storage == nullptr || storage->nbytes() == 0) return;
  check(memory, *storage);
  if (memory.is_unwritten)
    refuse("memory that was written without operators (data_ptr, accessor) is copied by " + op.name);
}

void Recorder::copy_original(Memory& memory, const c10::StorageImpl& storage) {
  const Unrecorded unrecorded;
  memory.original = at::empty({static_cast<int64_t>(storage.nbytes())}, at::kByte);
  std::memcpy(memory.original.mutable_data_ptr(), storage.data(), storage.nbytes());
}

void Recorder::use(const at::Tensor& tensor, const Operator& op, bool written) {
  if (!tensor.defined() || !require_ordinary(tensor, op)) {
    used_.push_back(-1);
    return;
  }
  const c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  const auto known = memory_of_.find(storage);
  if (known == memory_of_.end() && is_number(tensor)) {
    used_.push_back(-1);
    return;
  }
  const size_t index = known == memory_of_.end() ? memories_.size() : known->second;
  ValueId id = -1;
  if (index == memories_.size()) {
    id = add_external(tensor);
  } else {
    id = find(tensor, memories_[index]);
    if (id < 0) id = add_alias(tensor, memories_[index]);
  }
  if (first_used_ == Memory::kNone) first_used_ = index;
  const bool reads = !op.is_view && !op.ignores_data;
  if (reads || written) {
    check(memories_[index], *storage);
    memories_[index].is_read = true;
  }
  if (reads && !written && memories_[index].is_unwritten && storage->nbytes() != 0) id = add_copy(tensor, id, index);
  if (written) {
    Memory& memory = memories_[index];
    if (memory.is_external && !memory.is_written) copy_original(memory, *storage);
    memory.is_written = true;
    memory.is_unwritten = false;
    written_.push_back(index);
  }
  ++uses_[static_cast<size_t>(id)];
  used_.push_back(id);
}

void Recorder::use_all(const Operator& op, const c10::IValue* arguments) {
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (value.isTensor()) {
      use(value.toTensor(), op, is_written(op, i, arguments));
    } else if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        if (element.isTensor()) use(element.toTensor(), op, is_written(op, i, arguments));
      }
    }
  }
}

void Recorder::encode(const c10::IValue& value, const Operator& op, const Operator::Argument& argument,
                      size_t& position) {
  Words& code = trace_.code;
  if (value.isTensor()) {
    const ValueId id = used_[position++];
    if (id >= 0) {
      write(code, Tag::tensor, id);
    } else if (value.toTensor().defined() && is_number(value.toTensor())) {
      write_number(code, number_of(value.toTensor()));
    } else {
      code.push_back(static_cast<int64_t>(Tag::none));
    }
  } else if (value.isInt()) {
    write(code, argument.number, value.toInt());
  } else if (value.isNone()) {
    code.push_back(static_cast<int64_t>(Tag::none));
  } else if (value.isBool()) {
    write(code, Tag::boolean, value.toBool() ? 1 : 0);
  } else if (value.isDouble()) {
    write(code, Tag::floating, std::bit_cast<int64_t>(value.toDouble()));
  } else if (value.isList()) {
    const c10::ArrayRef<c10::IValue> elements = value.toListRef();
    write(code, Tag::list, static_cast<int64_t>(elements.size()));
    for (const c10::IValue& element : elements) encode(element, op, argument, position);
  } else if (value.isComplexDouble()) {
    write_complex(code, value.toComplexDouble());
  } else if (value.isString()) {
    write_text(code, value.toStringView());
  } else if (value.isDevice()) {
    write(code, Tag::device, static_cast<int64_t>(value.toDevice().type()));
    code.push_back(value.toDevice().index());
  } else if (value.isGenerator() && is_default_generator(value.toGenerator())) {
    code.push_back(static_cast<int64_t>(Tag::none));
  } else if (value.isSymInt() && !value.toSymInt().is_heap_allocated()) {
    write(code, Tag::integer, value.toSymInt().expect_int());
  } else {
    refuse(op.name + ": an argument of a kind that cannot be compiled (" + value.tagKind() + ")");
  }
}

ValueId Recorder::give_tensor(const at::Tensor& tensor, const Operator& op) {
  if (!require_ordinary(tensor, op)) return 0;
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  const auto [entry, is_new] = memory_of_.emplace(storage, memories_.size());
  if (!is_new) {
    const ValueId known = find(tensor, memories_[entry->second]);
    if (known >= 0) return known;
  } else {
    Memory& memory = memories_.emplace_back(tensor.storage().getWeakStorageImpl());
    memory.is_unwritten = op.is_uninitialized;
    if (op.is_view) check_source(memory, op);
    if (checks_content_) {
      memory.hash = hash_of(*storage);
      memory.checks = kChecks;
    }
  }
  const ValueId id = add_value(tensor);
  memories_[entry->second].values.push_back(id);
  return id;
}

void Recorder::give(const c10::IValue& value, const Operator& op) {
  if (value.isTensor() && value.toTensor().defined()) {
    const ValueId id = give_tensor(value.toTensor(), op);
    write(trace_.code, Tag::tensor, id);
  } else if (value.isTensor() || value.isNone()) {
    trace_.code.push_back(static_cast<int64_t>(Tag::none));
  } else if (value.isList()) {
    const c10::ArrayRef<c10::IValue> elements = value.toListRef();
    write(trace_.code, Tag::list, static_cast<int64_t>(elements.size()));
    for (const c10::IValue& element : elements) give(element, op);
  } else {
    refuse(op.name + ": a result of a kind that cannot be compiled (" + value.tagKind() + ")");
  }
}

bool Recorder::is_refused(const Operator& op, const c10::IValue* arguments) {
  if (op.reads_host) {
    refuse("the function reads a value on the host (" + op.name + ")");
  } else if (op.is_equal && !is_decided(arguments[0], arguments[1])) {
    refuse("the function reads a value on the host (" + op.name + ")");
  } else if (op.has_dynamic_shape && !(op.is_index && !has_mask(arguments[1])) && !has_given_size(op, arguments)) {
    refuse("the sizes of a result depend on data (" + op.name + ")");
  } else if (op.changes_storage) {
    refuse("the function changes the storage of a tensor (" + op.name + ")");
  }
  return !refusal_.empty();
}

void Recorder::note_random(const Operator& op, const c10::IValue* arguments) {
  if (random_state_.defined()) return;
  if (op.training >= 0 && arguments[op.training].isBool() && !arguments[op.training].toBool()) return;
  if (op.probability >= 0 && arguments[op.probability].isDouble() && arguments[op.probability].toDouble() == 0) return;
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  random_state_ = generator.get_state();
}

void Recorder::rehash_written() {
  if (!checks_content_) return;
  for (const size_t index : written_) {
    Memory& memory = memories_[index];
    if (const auto storage = memory.storage.lock()) {
      memory.hash = hash_of(*storage);
      memory.checks = kChecks;
    }
  }
}

void Recorder::step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const Operator& op = operator_of(handle);
  const size_t first = stack->size() - op.arguments.size();
  if (!refusal_.empty() || op.is_metadata || is_refused(op, stack->data() + first)) {
    handle.callBoxed(stack);
    return;
  }
  if (op.is_equal) {
    handle.callBoxed(stack);
    return;
  }
  if (prints(op, stack->data() + first)) {
    refuse("the function converts a tensor on the CPU to double although it is that already, as printing does");
    handle.callBoxed(stack);
    return;
  }
  used_.clear();
  written_.clear();
  first_used_ = Memory::kNone;
  use_all(op, stack->data() + first);
  Trace::Step step{&op, static_cast<uint32_t>(trace_.code.size()), -1, !tracks_ || at::GradMode::is_enabled()};
  if (at::autocast::is_autocast_enabled(at::kCPU)) {
    step.autocast = static_cast<int16_t>(at::autocast::get_autocast_dtype(at::kCPU));
  }
  size_t position = 0;
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    encode((*stack)[first + i], op, op.arguments[i], position);
  }
  if (op.is_random) note_random(op, stack->data() + first);
  try {
    handle.callBoxed(stack);
  } catch (...) {
    // The function may catch it; then the arguments stand in the trace without an operator.
    refuse(op.name + " threw an exception");
    throw;
  }
  for (size_t i = stack->size() - op.returns; i < stack->size(); ++i) give((*stack)[i], op);
  trace_.steps.push_back(step);
  rehash_written();
}

}  // namespace torchcc::detail
