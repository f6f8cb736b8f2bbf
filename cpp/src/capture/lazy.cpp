#include "lazy.h"

#include <algorithm>
#include <bit>

#include <ATen/ScalarOps.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CPUAllocator.h>

#include "arguments.h"
#include "handles.h"
#include "log.h"
#include "rerun.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

/// Marks memory that is not there yet.
void no_memory(void*) {}

at::DataPtr placeholder() { return {nullptr, nullptr, &no_memory, at::kCPU}; }

bool is_placeholder(c10::StorageImpl& storage) {
  return storage._mutable_data_ptr_no_checks().get_deleter() == &no_memory;
}

bool is_allocated(c10::StorageImpl& storage) {
  return storage._mutable_data_ptr_no_checks().get_deleter() == c10::GetCPUAllocator()->raw_deleter();
}

c10::StorageImpl& storage_of(const at::Tensor& tensor) { return *tensor.storage().unsafeGetStorageImpl(); }

/// Makes every access to the data an error. Before torch 2.13 that cannot be undone; there, storage().data() is null.
template <class Storage>
void forbid_access(Storage& storage) {
  if constexpr (requires { storage.clear_data_ptr_access_error_msg_(); }) {
    storage.release_data_and_set_meta_custom_data_ptr_error_msg_(std::nullopt);
  }
}
template <class Storage>
void set_data(Storage& storage, at::DataPtr data) {
  if constexpr (requires { storage.clear_data_ptr_access_error_msg_(); }) storage.clear_data_ptr_access_error_msg_();
  storage.set_data_ptr_noswap(std::move(data));
}

int16_t autocast() {
  return at::autocast::is_autocast_enabled(at::kCPU)
             ? static_cast<int16_t>(at::autocast::get_autocast_dtype(at::kCPU))
             : int16_t{-1};
}

/// Whether a predicate holds for one of the tensors among a call's arguments.
template <class Predicate>
bool any_tensor(const Operator& op, const c10::IValue* arguments, const Predicate& predicate) {
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (value.isTensor()) {
      if (value.toTensor().defined() && predicate(value.toTensor())) return true;
    } else if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        if (element.isTensor() && element.toTensor().defined() && predicate(element.toTensor())) return true;
      }
    }
  }
  return false;
}

void bump_version(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

Lazy::Lazy(Segments& segments) : segments_(segments) { enter(); }

Lazy::~Lazy() {
  leave();
  try {
    flush("the end of the function");
  } catch (const std::exception& failure) {
    log(Topic::capture, "lazy", std::string("what was pending could not be computed: ") + failure.what());
    clear();
  }
  segments_.count(compiled_ops_, eager_ops_);
}

void Lazy::finish() { flush("the end of the function"); }

void Lazy::materialize() { flush("materialize()"); }

/// Whether an operator may wait.
bool Lazy::waits(const Operator& op, const c10::IValue* arguments) const {
  if (op.is_random || op.is_uninitialized || op.changes_tensors || op.is_equal ||
      (op.may_depend && !dependence(op, arguments).empty()) ||
      may_print(op, arguments)) {
    return false;
  }
  const bool tracks = at::GradMode::is_enabled();
  bool has_tensors = false;
  const bool has_other = any_tensor(op, arguments, [&](const at::Tensor& tensor) {
    if (is_number(tensor)) return false;
    has_tensors = true;
    if (!is_ordinary(tensor) || tensor.is_conj() || tensor.is_neg() || (tracks && tensor.requires_grad())) return true;
    return !is_placeholder(storage_of(tensor)) && !is_allocated(storage_of(tensor));
  });
  return has_tensors && !has_other;
}

/// Whether an operator that does not wait touches something that is pending, or that pending operators use.
bool Lazy::is_involved(const Operator& op, const c10::IValue* arguments) const {
  return any_tensor(op, arguments, [&](const at::Tensor& tensor) {
    if (!tensor.has_storage()) return true;
    if (state_ == State::recording) return recorder_->knows(tensor);
    return is_placeholder(storage_of(tensor)) || memory_of_.count(&storage_of(tensor)) != 0;
  });
}

void Lazy::step(const c10::OperatorHandle& handle, torch::jit::Stack* stack) {
  const Operator& op = operator_of(handle);
  const c10::IValue* arguments = stack->data() + (stack->size() - op.arguments.size());
  if (op.is_metadata || (op.is_equal && is_decided(arguments[0], arguments[1]))) {
    handle.callBoxed(stack);
    return;
  }
  if (state_ == State::following) {
    if (matches(op, arguments)) {
      give(op, stack);
      return;
    }
    if (!waits(op, arguments)) {
      if (is_involved(op, arguments)) flush(op.name);
      ++eager_ops_;
      handle.callBoxed(stack);
      return;
    }
    const bool forgets = differs_in_number_;
    if (forgets) segments_.forget_code(*segment_);
    flush(forgets ? "" : op.name);
    state_ = forgets ? State::passing : State::idle;
  } else if (!waits(op, arguments)) {
    if (state_ != State::idle && (state_ == State::passing || is_involved(op, arguments))) flush(op.name);
    ++eager_ops_;
    handle.callBoxed(stack);
    return;
  }
  if (state_ == State::idle && begin(op, arguments)) {
    give(op, stack);
    return;
  }
  ++eager_ops_;
  if (state_ == State::passing) {
    handle.callBoxed(stack);
  } else {
    recorder_->step(handle, stack);
  }
}

/// Looks for a segment that begins with this operator. False: it has to run now.
bool Lazy::begin(const Operator& op, const c10::IValue* arguments) {
  bool passes = false;
  for (std::shared_ptr<Segment>& segment : segments_.beginning_with(op)) {
    Segments::Known known = segments_.know(*segment);
    if (known.state == Segment::State::recorded) continue;
    start(known, std::move(segment));
    const bool fits = matches(op, arguments);
    if (fits && known.state == Segment::State::compiled) return true;
    passes = passes || fits;
    clear();
  }
  if (passes) {
    state_ = State::passing;
  } else {
    recorder_ = std::make_unique<Recorder>();
    state_ = State::recording;
  }
  return false;
}

void Lazy::start(const Segments::Known& known, std::shared_ptr<Segment> segment) {
  const Recording& recording = *known.recording;
  known_ = known;
  segment_ = std::move(segment);
  position_ = recording.layout.prologue;
  values_.resize(recording.trace.value_begin.size());
  storages_.resize(recording.layout.roots.size());
  tracked_.resize(recording.layout.roots.size());
  state_ = State::following;
}

bool Lazy::matches(const Operator& op, const c10::IValue* arguments) {
  const Trace& trace = known_.recording->trace;
  differs_in_number_ = false;
  if (position_ >= trace.steps.size()) return false;
  const Trace::Step& step = trace.steps[position_];
  if (step.op != &op || step.grad != at::GradMode::is_enabled() || step.autocast != autocast()) return false;
  used_.clear();
  word_ = trace.code.data() + step.begin;
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    if (!matches_argument(arguments[i], op.arguments[i].number, is_written(op, i, arguments))) return false;
  }
  return true;
}

bool Lazy::matches_argument(const c10::IValue& value, Tag number, bool written) {
  const Tag tag = static_cast<Tag>(*word_);
  if (value.isTensor()) return matches_tensor(value.toTensor(), written);
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
  Words words;
  if (!write_constant(words, value, number) || !std::equal(words.begin(), words.end(), word_)) return false;
  word_ += words.size();
  return true;
}

bool Lazy::matches_number(double number) {
  const auto bits = std::bit_cast<int64_t>(number);
  const int64_t word = word_[1];
  const bool is_input = static_cast<Tag>(*word_) == Tag::number;
  word_ += 2;
  if (!is_input) {
    differs_in_number_ = word != bits;
    return word == bits;
  }
  at::Tensor& held = values_[static_cast<size_t>(word)];
  if (!held.defined()) {
    const Unrecorded unrecorded;
    held = at::scalar_tensor(number, at::kDouble);
    return true;
  }
  // Numbers that were equal in all recordings are one input.
  differs_in_number_ = std::bit_cast<int64_t>(*held.const_data_ptr<double>()) != bits;
  return !differs_in_number_;
}

bool Lazy::matches_tensor(const at::Tensor& tensor, bool written) {
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
    Words words;
    write_number(words, number);
    if (!std::equal(words.begin(), words.end(), word_)) return false;
    word_ += words.size();
    return true;
  }
  const ValueId id = word_[1];
  word_ += 2;
  const at::Tensor& known = values_[static_cast<size_t>(id)];
  if (known.unsafeGetTensorImpl() != tensor.unsafeGetTensorImpl()) {
    if (!is_ordinary(tensor) || !has_words(tensor, known_.recording->trace.value(id))) return false;
    if (!known.defined()) {
      if (!matches_external(tensor, id)) return false;
    } else if (!known.storage().is_alias_of(tensor.storage()) || known.requires_grad() != tensor.requires_grad()) {
      return false;
    }
  }
  used_.push_back({id, &tensor, written});
  return true;
}

/// A value that the segment takes from outside, seen for the first time.
bool Lazy::matches_external(const at::Tensor& tensor, ValueId id) {
  const Recording::Layout& layout = known_.recording->layout;
  const Recording::External external = layout.externals[static_cast<size_t>(id)];
  if (external == Recording::External::no ||
      (external == Recording::External::tracked) != tensor.requires_grad()) {
    return false;
  }
  c10::StorageImpl* storage = &storage_of(tensor);
  const size_t memory = layout.memories[static_cast<size_t>(id)];
  const auto found = memory_of_.find(storage);
  if (storages_[memory] != nullptr) {
    if (storages_[memory].get() != storage) return false;
  } else {
    if (found != memory_of_.end() || is_placeholder(*storage) || !is_allocated(*storage)) return false;
    storages_[memory] = tensor.storage().getWeakStorageImpl().lock();
    memory_of_[storage] = memory;
  }
  values_[static_cast<size_t>(id)] = tensor;
  return true;
}

/// The arguments on the stack become placeholders.
void Lazy::give(const Operator& op, torch::jit::Stack* stack) {
  for (const Used& used : used_) {
    if (!used.written) continue;
    bump_version(*used.tensor);
    park(used.id);
  }
  c10::SmallVector<c10::IValue, 2> results;
  for (size_t i = 0; i < op.returns; ++i) results.push_back(given());
  torch::jit::drop(*stack, op.arguments.size());
  for (c10::IValue& result : results) stack->push_back(std::move(result));
  ++position_;
}

c10::IValue Lazy::given() {
  switch (static_cast<Tag>(*word_++)) {
    case Tag::tensor: {
      const ValueId id = *word_++;
      for (const Used& used : used_) {
        if (used.written && used.id == id) return *used.tensor;
      }
      return make(id);
    }
    case Tag::list: {
      c10::List<at::Tensor> list;
      for (int64_t left = *word_++; left > 0; --left) list.push_back(given().toTensor());
      return list;
    }
    default: return at::Tensor();
  }
}

at::Tensor Lazy::make(ValueId id) {
  const Recording& recording = *known_.recording;
  const size_t memory = recording.layout.memories[static_cast<size_t>(id)];
  c10::intrusive_ptr<c10::StorageImpl>& storage = storages_[memory];
  const ValueId root = recording.layout.roots[memory];
  if (storage == nullptr) {
    const auto size = static_cast<size_t>(extent(recording.trace.value(root)).second);
    storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), size, placeholder(),
                                                    c10::GetCPUAllocator(), true);
    forbid_access(*storage);
  }
  at::Tensor tensor = make_view(c10::Storage(storage), recording.trace.value(id));
  at::Tensor& known = values_[static_cast<size_t>(id)];
  if (!tensor.is_inference()) {
    // Of one memory, any tensor will do.
    const ValueId first = root >= 0 ? root : id;
    const at::Tensor& other = values_[static_cast<size_t>(first)];
    if (other.defined() && !other.is_inference()) {
      tensor.unsafeGetTensorImpl()->set_version_counter(other.unsafeGetTensorImpl()->version_counter());
    }
  }
  if (!known.defined()) {
    known = tensor;
    ++tracked_[memory];
  }
  return tensor;
}

/// Takes the data out of memory from outside that is to be written into.
void Lazy::park(ValueId id) {
  const size_t memory = known_.recording->layout.memories[static_cast<size_t>(id)];
  const c10::intrusive_ptr<c10::StorageImpl>& storage = storages_[memory];
  if (is_placeholder(*storage)) return;
  parked_.push_back({storage, storage->set_data_ptr(placeholder())});
  forbid_access(*storage);
}

/// Which memories of the followed segment the program still has.
std::vector<bool> Lazy::live() const {
  const Recording::Layout& layout = known_.recording->layout;
  std::vector<bool> found(storages_.size());
  for (size_t memory = 0; memory < storages_.size(); ++memory) {
    if (layout.roots[memory] < 0 || storages_[memory] == nullptr) continue;
    found[memory] = static_cast<int64_t>(storages_[memory].use_count()) > tracked_[memory] + 1;
  }
  for (size_t id = 0; id < values_.size(); ++id) {
    if (!values_[id].defined() || layout.memories[id] == SIZE_MAX || layout.roots[layout.memories[id]] < 0) continue;
    if (values_[id].use_count() > 1) found[layout.memories[id]] = true;
  }
  return found;
}

/// Values that the segment's operators take.
std::vector<at::Tensor> Lazy::inputs() const {
  const Recording& recording = *known_.recording;
  std::vector<at::Tensor> tensors(recording.trace.value_begin.size());
  for (size_t id = 0; id < values_.size(); ++id) {
    if (recording.layout.externals[id] != Recording::External::no) tensors[id] = values_[id];
  }
  for (const Input& input : recording.inputs) {
    const auto id = static_cast<size_t>(input.value);
    const size_t memory = recording.layout.memories[id];
    if (memory == SIZE_MAX) {
      tensors[id] = values_[id];
    } else if (input.is_base && storages_[memory] != nullptr) {
      tensors[id] = make_view(c10::Storage(storages_[memory]), recording.trace.value(input.value));
    }
  }
  return tensors;
}

void Lazy::flush(std::string end) {
  const State state = std::exchange(state_, State::idle);
  if (state == State::recording) {
    std::unique_ptr<Recording> recording = recorder_->finish_segment();
    recorder_.reset();
    if (recording->trace.steps.size() > recording->layout.prologue) {
      segments_.commit(std::move(recording), std::move(end));
    }
  }
  if (state != State::following) return;
  const Unrecorded unrecorded;
  const c10::AutoGradMode no_grad(false);
  for (Parked& parked : parked_) set_data(*parked.storage, std::move(parked.data));
  parked_.clear();
  const std::vector<bool> needed = live();
  const Recording& recording = *known_.recording;
  const bool is_whole = position_ == recording.trace.steps.size();
  std::vector<bool> is_output(storages_.size());
  for (const ValueId id : recording.outputs) is_output[recording.layout.memories[static_cast<size_t>(id)]] = true;
  bool has_all = true;
  for (size_t memory = 0; memory < needed.size(); ++memory) {
    has_all = has_all && (!needed[memory] || is_output[memory]);
  }
  if (is_whole && has_all) {
    compute(needed);
  } else {
    compute_one_by_one(needed, is_whole, end);
  }
  clear();
}

void Lazy::compute(const std::vector<bool>& needed) {
  const Recording& recording = *known_.recording;
  const std::vector<at::Tensor> tensors = inputs();
  Handles handles;
  for (const Input& input : recording.inputs) handles.push_back(tensors[static_cast<size_t>(input.value)]);
  const Library& library = *known_.code->library;
  c10::SmallVector<AtenTensorHandle, 8> outputs(library.outputs());
  handles.run(library, outputs.data());
  std::vector<at::Tensor> made;
  for (AtenTensorHandle handle : outputs) made.push_back(take(handle));
  for (size_t i = 0; i < made.size(); ++i) {
    const size_t memory = recording.layout.memories[static_cast<size_t>(recording.outputs[i])];
    if (needed[memory]) bind(memory, made[i]);
  }
  compiled_ops_ += static_cast<int64_t>(recording.trace.steps.size() - recording.layout.prologue);
  segments_.note_replayed(segment_);
}

/// Runs the operators so far. What ran then is the segment that later calls follow, but where only a number differed.
void Lazy::compute_one_by_one(const std::vector<bool>& needed, bool is_whole, const std::string& end) {
  const Recording& recording = *known_.recording;
  std::vector<at::Tensor> values = inputs();
  auto made = std::make_unique<Recording>(recording);
  made->outputs.clear();
  made->inputs.clear();
  for (const Input& input : recording.inputs) {
    const at::Tensor& tensor = values[static_cast<size_t>(input.value)];
    if (!tensor.defined()) continue;  // used by later operators only
    Input& one = made->inputs.emplace_back(input);
    one.before = input.written ? tensor.clone() : tensor;
  }
  values = rerun(recording.trace, std::move(values), recording.layout.prologue, position_);
  for (size_t memory = 0; memory < needed.size(); ++memory) {
    if (!needed[memory]) continue;
    const ValueId root = recording.layout.roots[memory];
    made->outputs.push_back(root);
    made->expected.push_back(values[static_cast<size_t>(root)].clone());
  }
  for (const Input& input : made->inputs) {
    if (input.written) made->after.push_back(values[static_cast<size_t>(input.value)].clone());
  }
  eager_ops_ += static_cast<int64_t>(position_ - recording.layout.prologue);
  segments_.note_eager(*segment_);
  for (size_t memory = 0; memory < needed.size(); ++memory) {
    if (needed[memory]) bind(memory, values[static_cast<size_t>(recording.layout.roots[memory])]);
  }
  if (!is_whole) {
    made->trace.code.resize(made->trace.end_of(position_ - 1));
    made->trace.steps.resize(position_);
  }
  if (!differs_in_number_ && (is_whole || recording.layout.prologue == 0)) {
    segments_.replace(segment_, std::move(made), end);
  }
}

/// Gives memory to placeholders.
void Lazy::bind(size_t memory, const at::Tensor& tensor) {
  set_data(*storages_[memory], storage_of(tensor).set_data_ptr(placeholder()));
}

void Lazy::clear() {
  values_.clear();
  storages_.clear();
  tracked_.clear();
  memory_of_.clear();
  parked_.clear();
  segment_.reset();
  known_ = {};
}

}  // namespace torchcc::detail
