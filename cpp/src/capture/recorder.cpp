// Recording while the function runs: operators, and what they take and give.

#include "recorder.h"

#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torchcc/signature.h>

#include "arguments.h"
#include "device.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

/// What grows while a function runs, kept for the next recording of this thread: new memory comes from the system page
/// by page, which takes longer than everything else.
struct Buffers {
  Trace trace;
  std::vector<Memory> memories;
  ska::flat_hash_map<const c10::StorageImpl*, size_t> memory_of;
  std::vector<int32_t> uses;
};
// More than this is given back to the system.
constexpr size_t kMostSteps = 16384;

Buffers& buffers() {
  thread_local Buffers kept;
  return kept;
}

}  // namespace

void Recorder::swap_buffers() {
  Buffers& kept = buffers();
  std::swap(trace_, kept.trace);
  memories_.swap(kept.memories);
  memory_of_.swap(kept.memory_of);
  uses_.swap(kept.uses);
}

Recorder::~Recorder() {
  leave();
  end_watch();
  if (trace_.steps.capacity() > kMostSteps) return;
  trace_.clear();
  memories_.clear();
  memory_of_.clear();
  uses_.clear();
  swap_buffers();
}

Recorder::Recorder(c10::ArrayRef<const at::Tensor*> arguments, const Recording* previous)
    : checks_content_(previous != nullptr), tracks_(at::GradMode::is_enabled()) {
  static const Operator kCall{.name = "the call"};
  swap_buffers();
  const Unrecorded unrecorded;
  seed_watch_.emplace();
  if (has_gpu()) stream_ = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(current_gpu());
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
  reserve(previous == nullptr ? 1024 : previous->trace.steps.size());  // enough at first for most functions
  if (previous != nullptr) {
    for (const Input& input : previous->inputs) {
      if (input.kind != Input::Kind::captured) continue;
      const c10::StorageImpl* storage = input.captured->tensor().storage().unsafeGetStorageImpl();
      watched_[storage] = hash(*storage);
      owners_[input.captured.get()] = {input.captured->owners(), input.captured->storage_owners()};
    }
  }
  enter();
}

Recorder::Recorder() : checks_content_(true), tracks_(false), is_segment_(true) {
  swap_buffers();
  reserve(256);
}

// Growing moves everything.
void Recorder::reserve(size_t steps) {
  trace_.steps.reserve(steps);
  trace_.code.reserve(16 * steps);
  trace_.values.reserve(8 * steps);
  trace_.value_begin.reserve(steps);
  uses_.reserve(steps);
  memories_.reserve(steps);
  memory_of_.reserve(steps);
}

void Recorder::refuse(std::string reason, bool touches_memory) {
  if (!refusal_.empty()) return;
  refusal_ = std::move(reason);
  touches_memory_ = touches_memory;
}

bool Recorder::require_ordinary(const at::Tensor& tensor, const Operator& op) {
  if (is_ordinary(tensor)) [[likely]] {
    if (tensor.is_cuda()) note_gpu(tensor.device());
    return true;
  }
  refuse(op.name + ": a tensor that is not an ordinary one on the CPU or a GPU (" + tensor.toString() + ")", true);
  return false;
}

void Recorder::note_gpu(c10::Device device) {
  if (device_ == device) return;
  if (device_.is_cuda()) {
    refuse("the function uses tensors on several GPUs");
    return;
  }
  device_ = device;
  if (!stream_ || stream_->device() != device) stream_ = c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(device);
}

// What is compiled runs on one stream.
void Recorder::check_stream() {
  if (!device_.is_cuda() || c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(device_) == *stream_) return;
  refuse("the function changes the current stream of the GPU");
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
  const bool reads = (!op.is_view || moves_) && !op.ignores_data;
  check_access(memories_[index], *storage);
  touched_.push_back(index);
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
  moves_ = op.may_move && moves_to(op, arguments).has_value();
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
  } else if (value.isList()) {
    const c10::ArrayRef<c10::IValue> elements = value.toListRef();
    write(code, Tag::list, static_cast<int64_t>(elements.size()));
    for (const c10::IValue& element : elements) encode(element, op, argument, position);
  } else if (!write_constant(code, value, argument.number)) {
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
    if (op.is_view && !moves_) check_source(memory, op);
    if (device_.is_cuda() && !tensor.is_cuda()) check_origin(op);
    if (checks_content_) memory.expect(hash(*storage));
  }
  const ValueId id = add_value(tensor);
  memories_[entry->second].values.push_back(id);
  touched_.push_back(entry->second);
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
  } else if (op.gives_sizes && value.isInt()) {
    write(trace_.code, Tag::integer, value.toInt());
  } else {
    refuse(op.name + ": a result of a kind that cannot be compiled (" + value.tagKind() + ")");
  }
}

void Recorder::note_random(const Operator& op, const c10::IValue* arguments) {
  if (random_state_.defined() || !draws(op, arguments)) return;
  check_seed();
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  {
    const std::lock_guard lock(generator.mutex());
    random_state_ = generator.get_state();
  }
  if (!has_gpu()) return;
  generator = at::globalContext().defaultGenerator(device_.is_cuda() ? device_ : current_gpu());
  const std::lock_guard lock(generator.mutex());
  gpu_random_state_ = generator.get_state();
}

void Recorder::check_seed() {
  const Unrecorded unrecorded;
  if (seed_watch_ && seed_watch_->was_seeded()) refuse("the function seeds PyTorch's generator (torch::manual_seed)");
}

c10::SymInt Recorder::size(const at::Tensor& tensor, int64_t dim) {
  const int64_t number = tensor.size(dim);
  if (!refusal_.empty() || is_segment_ || !is_ordinary(tensor)) return number;
  const auto known = memory_of_.find(tensor.storage().unsafeGetStorageImpl());
  if (known == memory_of_.end()) return number;
  const ValueId id = find(tensor, memories_[known->second]);
  if (id < 0) return number;
  ++uses_[static_cast<size_t>(id)];  // it is an input, even if no operator uses it
  return symbols_.size({id, dim < 0 ? dim + tensor.dim() : dim}, number, trace_.steps.size());
}

void Recorder::step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const Operator& op = operator_of(handle);
  symbols_.take(op, stack->data() + (stack->size() - op.arguments.size()));
  const c10::IValue* arguments = stack->data() + (stack->size() - op.arguments.size());
  if (op.may_depend && refusal_.empty()) refuse(dependence(op, arguments));
  if (refusal_.empty() && prints(op, arguments)) {
    refuse("the function converts a tensor on the CPU to double although it is that already, as printing does");
  }
  if (op.is_metadata || op.is_equal) {
    handle.callBoxed(stack);
  } else {
    record(op, handle, stack, !tracks_ || at::GradMode::is_enabled(), autocast_now());
  }
}

void Recorder::record(const Operator& op, const c10::OperatorHandle& handle, torch::jit::Stack* stack, bool grad,
                      Autocast autocast) {
  if (refusal_.empty()) check_stream();
  if (!refusal_.empty()) {
    handle.callBoxed(stack);
    return;
  }
  const size_t first = stack->size() - op.arguments.size();
  used_.clear();
  written_.clear();
  touched_.clear();
  first_used_ = Memory::kNone;
  use_all(op, stack->data() + first);
  const Trace::Step step{&op, static_cast<uint32_t>(trace_.code.size()), autocast, grad};
  size_t position = 0;
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    const size_t begin = trace_.code.size();
    encode((*stack)[first + i], op, op.arguments[i], position);
    symbols_.note_position(i, begin);
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
  symbols_.end_step(trace_.steps.size());
  rehash_written();
  watch_touched();
}

}  // namespace torchcc::detail
