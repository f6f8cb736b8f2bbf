#include "follow.h"

#include <algorithm>
#include <bit>
#include <utility>

#include <ATen/ScalarOps.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

#include "arguments.h"
#include "device.h"
#include "handles.h"
#include "mode.h"
#include "numbers.h"
#include "placeholder.h"
#include "rerun.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

/// Lets PyTorch know that a tensor is a view, made without gradients. It then keeps alive what it is a view of, as when
/// it was recorded: autograd adds gradients up in place where their memory has one owner.
void make_known_view(const at::Tensor& tensor, const at::Tensor& of) {
  using namespace torch::autograd;
  at::Tensor base = of;
  if (of.is_view()) base = of._base();
  make_variable_differentiable_view(tensor, ViewInfo(std::move(base), nullptr, nullptr), std::nullopt,
                                    /*shared_view_info=*/false, CreationMeta::NO_GRAD_MODE);
}

}  // namespace

Follow::Follow(Segments::Known known, std::shared_ptr<Segment> segment)
    : known_(std::move(known)),
      segment_(std::move(segment)),
      trace_(recording().trace),
      layout_(recording().layout),
      position_(layout_.prologue),
      is_known_(trace_.value_begin.size()),
      held_(trace_.value_begin.size()),
      memories_(layout_.roots.size()) {}

bool Follow::matches(const Operator& op, const c10::IValue* arguments, Autocast autocast) {
  differs_in_number_ = false;
  if (is_whole()) return false;
  const Trace::Step& step = trace_.steps[position_];
  if (step.op != &op || step.autocast != autocast) return false;
  used_.clear();
  word_ = trace_.code.data() + step.begin;
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    if (!matches_argument(arguments[i], op.arguments[i].number, is_written(op, i, arguments))) return false;
  }
  return true;
}

std::string Follow::expected() const {
  if (is_whole()) return "its end";
  return "operator " + std::to_string(position_) + ", " + recording().trace.steps[position_].op->name;
}

bool Follow::matches_argument(const c10::IValue& value, Tag number, bool written) {
  const Tag tag = static_cast<Tag>(*word_);
  if (value.isTensor()) return matches_tensor(value.toTensor(), written);
  if (value.isInt()) {
    if (tag != number || word_[1] != value.toInt()) return false;
    word_ += 2;
    return true;
  }
  if (value.isDouble()) {
    if (tag == Tag::floating || tag == Tag::number) return matches_number(value.toDouble());
    return false;
  }
  if (value.isList()) {
    const c10::ArrayRef<c10::IValue> elements = value.toListRef();
    if (tag != Tag::list || word_[1] != static_cast<int64_t>(elements.size())) return false;
    word_ += 2;
    return std::all_of(elements.begin(), elements.end(),
                       [&](const c10::IValue& element) { return matches_argument(element, number, written); });
  }
  constant_.clear();
  return write_constant(constant_, value, number) && matches_constant();
}

/// Whether `constant_` is what comes next.
bool Follow::matches_constant() {
  for (const int64_t word : constant_) {
    if (*word_++ != word) return false;
  }
  return true;
}

bool Follow::matches_number(double number) {
  const auto bits = std::bit_cast<int64_t>(number);
  const int64_t word = word_[1];
  const bool is_input = static_cast<Tag>(*word_) == Tag::number;
  word_ += 2;
  if (!is_input) {
    differs_in_number_ = word != bits;
    return word == bits;
  }
  at::Tensor& held = held_[static_cast<size_t>(word)];
  if (!held.defined()) {
    const Unrecorded unrecorded;
    held = at::scalar_tensor(number, at::kDouble);
    return true;
  }
  // Numbers that were equal in all recordings are one input.
  differs_in_number_ = std::bit_cast<int64_t>(*held.const_data_ptr<double>()) != bits;
  return !differs_in_number_;
}

bool Follow::matches_tensor(const at::Tensor& tensor, bool written) {
  const Tag tag = static_cast<Tag>(*word_);
  if (!tensor.defined()) {
    ++word_;
    return tag == Tag::none;
  }
  if (tag != Tag::tensor) {
    if (!is_number(tensor)) return false;
    const c10::Scalar number = number_of(tensor);
    if (number.isFloatingPoint() && (tag == Tag::floating || tag == Tag::number)) {
      return matches_number(number.toDouble());
    }
    constant_.clear();
    write_number(constant_, number);
    return matches_constant();
  }
  const ValueId id = word_[1];
  word_ += 2;
  if (!is_ordinary(tensor) || !has_words(tensor, trace_.value(id))) return false;
  const bool has_place = is_known_[static_cast<size_t>(id)] != 0
                             ? memories_[memory_of(id)].storage == &storage_of(tensor)
                             : matches_external(tensor, id);
  if (!has_place) return false;
  Used& used = used_.emplace_back();  // filled in place: a copy would wait for what is being written
  used.id = id;
  used.tensor = &tensor;
  used.is_written = written;
  return true;
}

/// A value that the segment takes from outside, seen for the first time.
bool Follow::matches_external(const at::Tensor& tensor, ValueId id) {
  if (!layout_.externals[static_cast<size_t>(id)]) return false;
  c10::StorageImpl* storage = &storage_of(tensor);
  Memory& memory = memories_[memory_of(id)];
  if (memory.storage != nullptr) {
    if (memory.storage != storage) return false;
  } else {
    if (memory_of_outside_.count(storage) != 0 || is_placeholder(*storage) || !is_allocated(*storage)) return false;
    memory.storage = storage;
    memory.held = tensor.storage().getWeakStorageImpl().lock();
    memory_of_outside_[storage] = memory_of(id);
  }
  is_known_[static_cast<size_t>(id)] = 1;
  held_[static_cast<size_t>(id)] = tensor;
  return true;
}

bool Follow::involves(const at::Tensor& tensor) const {
  return is_placeholder(storage_of(tensor)) || memory_of_outside_.count(&storage_of(tensor)) != 0;
}

void Follow::give(const Operator& op, torch::jit::Stack* stack, bool counts) {
  op_ = &op;
  for (const Used& used : used_) {
    if (!used.is_written) continue;
    if (counts && !used.tensor->is_inference()) used.tensor->unsafeGetTensorImpl()->bump_version();
    park(used.id);
  }
  ++position_;
  if (op.returns == 1) {  // nearly always
    c10::IValue result = given(counts && op.is_view);
    torch::jit::drop(*stack, op.arguments.size());
    stack->push_back(std::move(result));
    return;
  }
  c10::SmallVector<c10::IValue, 4> results;
  for (size_t i = 0; i < op.returns; ++i) results.push_back(given(counts && op.is_view));
  torch::jit::drop(*stack, op.arguments.size());
  for (c10::IValue& result : results) stack->push_back(std::move(result));
}

c10::IValue Follow::given(bool is_view) {
  switch (static_cast<Tag>(*word_++)) {
    case Tag::tensor: {
      const ValueId id = *word_++;
      for (const Used& used : used_) {
        if (used.is_written && used.id == id) return *used.tensor;
      }
      return make(id, is_view);
    }
    case Tag::list: {
      c10::List<at::Tensor> list;
      for (int64_t left = *word_++; left > 0; --left) list.push_back(given(is_view).toTensor());
      return list;
    }
    case Tag::integer: return *word_++;
    default: return at::Tensor();
  }
}

at::Tensor Follow::make(ValueId id, bool is_view) {
  Memory& memory = memories_[memory_of(id)];
  c10::intrusive_ptr<c10::StorageImpl> storage = memory.held;
  if (memory.storage == nullptr) {
    sweep();
    has_work_ = true;
    const int64_t on_gpu = trace_.value(layout_.roots[memory_of(id)])[kDevice];
    const c10::Device device =
        on_gpu == 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(on_gpu - 1));
    storage = make_placeholder(layout_.bytes[memory_of(id)], device);
    memory.storage = storage.get();
    memory.made = c10::weak_intrusive_ptr<c10::StorageImpl>(storage);
    living_.push_back(memory_of(id));
  } else if (storage == nullptr) {
    storage = memory.made.lock();  // an argument of the operator has it
  }
  at::Tensor tensor = make_view(c10::Storage(std::move(storage)), trace_.value(id));
  if (is_view && !tensor.is_inference()) {
    const auto base = std::find_if(used_.begin(), used_.end(), [&](const Used& used) {
      return memory_of(used.id) == memory_of(id) && !used.tensor->is_inference();
    });
    if (base != used_.end() && tensor.is_cuda() && !op_->is_detach) {
      make_known_view(tensor, *base->tensor);
    } else if (base != used_.end()) {
      tensor.unsafeGetTensorImpl()->set_version_counter(base->tensor->unsafeGetTensorImpl()->version_counter());
    }
  }
  is_known_[static_cast<size_t>(id)] = 1;
  return tensor;
}

/// Lets go of memories that the program no longer has, a few at a time: what is held weakly is not freed, and new
/// memory costs more than memory that was used just before.
void Follow::sweep() {
  for (int left = 2; left > 0 && !living_.empty(); --left) {
    if (sweep_ >= living_.size()) sweep_ = 0;
    Memory& memory = memories_[living_[sweep_]];
    if (memory.made.use_count() > 0) {
      ++sweep_;
      continue;
    }
    memory.made.reset();
    memory.storage = nullptr;  // the address may come again
    living_[sweep_] = living_.back();
    living_.pop_back();
    return;
  }
}

/// Takes the data out of memory from outside that is to be written into.
void Follow::park(ValueId id) {
  Memory& memory = memories_[memory_of(id)];
  has_work_ = has_written_ = memory.is_written = true;
  if (!is_placeholder(*memory.storage)) parked_.push_back({memory.storage, take_data(*memory.storage)});
}

/// Which memories the program still has.
std::vector<bool> Follow::needed() const {
  std::vector<bool> found(memories_.size());
  for (const size_t memory : living_) found[memory] = memories_[memory].made.use_count() > 0;
  return found;
}

/// What an input of the code is in this run; undefined when no operator so far takes it.
at::Tensor Follow::tensor_of(const Input& input) const {
  if (!input.is_base) return held_[static_cast<size_t>(input.value)];
  const Memory& memory = memories_[memory_of(input.value)];
  return memory.held == nullptr ? at::Tensor() : make_view(c10::Storage(memory.held), trace_.value(input.value));
}

void Follow::finish(Segments& segments, const std::string& end) {
  const Unrecorded unrecorded;
  const at::AutoDispatchBelowADInplaceOrView below;  // what autograd and versions have to know, they know already
  const c10::AutoGradMode no_grad(false);
  for (Parked& parked : parked_) set_data(*parked.storage, std::move(parked.data));
  parked_.clear();
  if (position_ == layout_.prologue) return;
  const std::vector<bool> needs = needed();
  std::vector<bool> is_output(memories_.size());
  for (const ValueId id : recording().outputs) is_output[memory_of(id)] = true;
  bool has_all = is_whole();
  bool has_use = has_written_;
  for (const size_t memory : living_) {
    has_all = has_all && (!needs[memory] || is_output[memory]);
    has_use = has_use || needs[memory];
  }
  if (!has_use) return;
  if (has_all) {
    compute(segments, needs);
  } else {
    compute_one_by_one(segments, needs, end);
  }
}

/// Runs the code by a CUDA graph. False when there is none yet, or never will be.
bool Follow::compute_by_graph(std::vector<at::Tensor>& made) const {
  if (known_.graphs == nullptr || known_.graphs->is_refused()) return false;
  std::vector<at::Tensor> tensors;
  tensors.reserve(recording().inputs.size());
  std::vector<Graphs::Input> inputs;
  for (const Input& input : recording().inputs) {
    const at::Tensor& tensor = tensors.emplace_back(tensor_of(input));
    if (!tensor.is_non_overlapping_and_dense()) return false;  // a copy of it would have other strides
    Graphs::Input& given = inputs.emplace_back();
    given.tensor = &tensor;
    given.is_ready = is_aligned(tensor);
    given.is_mutated = input.written;
    given.has_own_strides = true;
    given.is_number = is_number_for(known_.code->signature.inputs[tensors.size() - 1], tensor);
  }
  made.resize(known_.code->library->outputs());
  if (known_.graphs->run(*known_.code->library, inputs, made)) return true;
  made.clear();
  return false;
}

std::vector<at::Tensor> Follow::compute_code() const {
  const Library& library = *known_.code->library;
  std::vector<at::Tensor> inputs;
  inputs.reserve(recording().inputs.size());
  for (const Input& input : recording().inputs) inputs.push_back(tensor_of(input));
  move_numbers(inputs, known_.code->signature, library.device());
  Handles handles;
  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 1> written;  // copies, and what they are copies of
  for (size_t i = 0; i < inputs.size(); ++i) {
    at::Tensor given = aligned(inputs[i]);
    if (recording().inputs[i].written && !given.is_same(inputs[i])) written.emplace_back(given, inputs[i]);
    handles.push_back(std::move(given));
  }
  c10::SmallVector<AtenTensorHandle, 8> outputs(library.outputs());
  handles.run(library, outputs.data());
  std::vector<at::Tensor> made;
  for (AtenTensorHandle handle : outputs) made.push_back(take(handle));
  for (const auto& [copy, original] : written) original.copy_(copy);
  return made;
}

void Follow::compute(Segments& segments, const std::vector<bool>& needs) {
  std::vector<at::Tensor> made;
  if (!compute_by_graph(made)) made = compute_code();
  for (size_t i = 0; i < made.size(); ++i) {
    const size_t memory = memory_of(recording().outputs[i]);
    if (needs[memory]) bind(memory, made[i]);
  }
  compiled_ = static_cast<int64_t>(position_ - layout_.prologue);
  segments.note_replayed(segment_);
}

/// Runs the operators so far. What ran then is the segment that later calls follow, but where only a number differed.
void Follow::compute_one_by_one(Segments& segments, const std::vector<bool>& needs, const std::string& end) {
  std::vector<at::Tensor> values = held_;
  auto made = std::make_unique<Recording>(recording());
  made->outputs.clear();
  made->inputs.clear();
  for (const Input& input : recording().inputs) {
    const at::Tensor tensor = values[static_cast<size_t>(input.value)] = tensor_of(input);
    if (!tensor.defined()) continue;  // used by later operators only
    Input& one = made->inputs.emplace_back(input);
    one.written = input.written && memories_[memory_of(input.value)].is_written;
    one.before = one.written ? tensor.clone() : tensor.detach();
  }
  values = rerun(recording().trace, std::move(values), layout_.prologue, position_);
  for (size_t memory = 0; memory < needs.size(); ++memory) {
    if (!needs[memory]) continue;
    const ValueId root = layout_.roots[memory];
    made->outputs.push_back(root);
    made->expected.push_back(values[static_cast<size_t>(root)].clone());
  }
  for (const Input& input : made->inputs) {
    if (input.written) made->after.push_back(values[static_cast<size_t>(input.value)].clone());
  }
  eager_ = static_cast<int64_t>(position_ - layout_.prologue);
  segments.note_eager(*segment_);
  for (size_t memory = 0; memory < needs.size(); ++memory) {
    if (needs[memory]) bind(memory, values[static_cast<size_t>(layout_.roots[memory])]);
  }
  if (!is_whole()) {
    made->trace.code.resize(made->trace.end_of(position_ - 1));
    made->trace.steps.resize(position_);
  }
  if (differs_in_number_) {
    segments.forget_code(*segment_);
  } else if (!end.empty() && (is_whole() || layout_.prologue == 0)) {
    segments.replace(segment_, std::move(made), end);
  }
}

/// Gives memory to placeholders.
void Follow::bind(size_t memory, const at::Tensor& tensor) {
  if (const auto storage = memories_[memory].made.lock()) set_data(*storage, take_data(storage_of(tensor)));
}

}  // namespace torchcc::detail
