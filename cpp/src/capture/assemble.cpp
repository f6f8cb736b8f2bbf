// Makes a recording of what the recorder saw: the inputs and outputs of the code to be compiled.

#include <algorithm>
#include <map>
#include <set>

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <torchcc/signature.h>

#include "placeholder.h"
#include "recorder.h"
#include "tensors.h"

namespace torchcc::detail {
namespace {

bool overlap(const int64_t* a, const int64_t* b) {
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  return a_begin < b_end && b_begin < a_end;
}

/// Bytes in memory, for storages that are views of the same memory.
std::pair<const std::byte*, const std::byte*> bytes(const at::Tensor& tensor) {
  const auto* begin = static_cast<const std::byte*>(tensor.storage().data());
  return {begin, begin + tensor.storage().nbytes()};
}

/// How many of a tensor's owners are in the result: its handles there, and the views there that have it as their base.
int64_t owners_in(c10::ArrayRef<const at::Tensor*> results, const c10::TensorImpl* tensor) {
  int64_t count = 0;
  std::set<const c10::TensorImpl*> views;
  for (const at::Tensor* one : results) {
    if (!one->defined()) continue;
    if (one->unsafeGetTensorImpl() == tensor) {
      ++count;
    } else if (one->is_view() && one->_base().unsafeGetTensorImpl() == tensor) {
      views.insert(one->unsafeGetTensorImpl());
    }
  }
  return count + static_cast<int64_t>(views.size());
}

/// How many other tensors in the result share a tensor's storage.
int64_t sharers_in(c10::ArrayRef<const at::Tensor*> results, const at::Tensor& tensor) {
  std::set<const c10::TensorImpl*> sharers;
  for (const at::Tensor* one : results) {
    if (one->defined() && !one->is_same(tensor) && one->storage().is_alias_of(tensor.storage())) {
      sharers.insert(one->unsafeGetTensorImpl());
    }
  }
  return static_cast<int64_t>(sharers.size());
}

/// Whether something else than the result has a tensor of it, or its memory.
bool is_held(c10::ArrayRef<const at::Tensor*> results, const at::Tensor& tensor) {
  return static_cast<int64_t>(tensor.use_count()) > owners_in(results, tensor.unsafeGetTensorImpl()) ||
         static_cast<int64_t>(tensor.storage().use_count()) > 1 + sharers_in(results, tensor);
}

}  // namespace

void Recorder::check_all() {
  if (!checks_content_) return;
  for (Memory& memory : memories_) {
    const auto storage = memory.storage.lock();
    if (storage == nullptr || memory.is_unwritten) continue;
    memory.checks = 1;
    check(memory, *storage);
  }
}

void Recorder::check_arguments() {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (argument_values_[i] >= 0 && !has_words(arguments_[i], trace_.value(argument_values_[i]))) {
      refuse("the function changes the sizes or the storage of argument " + std::to_string(i));
    }
  }
}

// Printing a tensor first converts it to double on the CPU, and then reads that, or views of it, where no operator
// shows.
void Recorder::refuse_printing() {
  std::vector<bool> is_read(memories_.size());
  for (size_t i = memories_.size(); i-- > 0;) {  // copies come after what they are copies of
    if (memories_[i].is_read) is_read[i] = true;
    if (is_read[i] && memories_[i].source != Memory::kNone) is_read[memories_[i].source] = true;
  }
  std::set<ValueId> converted;
  for (size_t i = 0; i < trace_.steps.size(); ++i) {
    if (trace_.steps[i].op->is_conversion) converted.insert(trace_.code[trace_.end_of(i) - 1]);
  }
  for (size_t i = 0; i < memories_.size(); ++i) {
    if (is_read[i] || memories_[i].is_external) continue;
    const ValueId first = memories_[i].values.front();
    if (converted.count(first) == 0 || !is_printed(trace_.value(first)[kDtype])) continue;
    refuse("the function converts a tensor to double and does not use the result, as printing does");
  }
}

// Captured tensors that nobody else holds were made in this call, by no operator. Those in PyTorch's own memory were
// made inside of an operator that is recorded as a whole (cross_entropy_loss), and kept for a backward within this
// call; lazily, below autograd, operators have made them.
void Recorder::sort_captured() {
  for (External& external : externals_) {
    if (external.argument >= 0 || external.is_constant) continue;
    if (external.tensor.use_count() > 1 || external.tensor.storage().use_count() > 1) continue;
    if (external.tensor.dim() == 0 && is_allocated(storage_of(external.tensor)) &&
        !memories_[external.memory].is_written) {
      external.is_constant = true;  // PyTorch makes such tensors of C++ numbers without an operator
    } else {
      refuse(
          "the function uses a tensor that no operator made and that is gone after the call: memory that it wraps or "
          "fills anew (from_blob, data_ptr, another thread), or a captured tensor that is assigned anew",
          /*touches_memory=*/!is_allocated(storage_of(external.tensor)));
    }
  }
}

void Recorder::add_input(Recording& recording, const External& external) {
  const Memory& memory = memories_[external.memory];
  Input input;
  input.value = external.value;
  input.written = memory.is_written;
  input.requires_grad = tracks_ && requires_grad_[static_cast<size_t>(external.value)];
  if (external.argument >= 0) {
    input.argument = static_cast<size_t>(external.argument);
  } else if (external.is_constant) {
    input.kind = Input::Kind::constant;
  } else {
    input.kind = Input::Kind::captured;
    input.captured = Captured::of(external.tensor);
  }
  const int64_t* words = trace_.value(external.value);
  if (input.requires_grad && external.is_constant) refuse("the function makes a leaf that requires grad");
  if (input.written && words[kFlags] != 0) refuse("the function writes to a tensor with a pending conjugate or sign");
  input.before = memory.original.defined() ? make_view(memory.original.storage(), words) : external.tensor;
  if (input.written) recording.after.push_back(make_view(external.tensor.storage(), words));
  recording.inputs.push_back(std::move(input));
}

// Several views of one storage, which the function writes to: the compiled code gets the storage as a whole, as a
// tensor of one dimension, and makes the views itself, so that it sees that they share memory.
bool Recorder::make_base(Recording& recording, const std::vector<const External*>& views, size_t index) {
  const Memory& memory = memories_[index];
  const int64_t dtype = trace_.value(views.front()->value)[kDtype];
  for (const External* view : views) {
    const int64_t* words = trace_.value(view->value);
    if (words[kDtype] != dtype || words[kFlags] != 0) {
      refuse("the function writes to memory that it also uses as another dtype");
      return false;
    }
  }
  const at::Tensor& leader = views.front()->tensor;
  const auto element = static_cast<int64_t>(c10::elementSize(static_cast<c10::ScalarType>(dtype)));
  const int64_t count = static_cast<int64_t>(leader.storage().nbytes()) / element;
  const std::vector<int64_t> words{dtype, 0, device_word(leader), 0, 1, count, 1};
  const at::Tensor base = make_view(leader.storage(), words.data());
  External external = *views.front();
  external.value = add_value(base);
  const size_t position = recording.inputs.size();
  add_input(recording, external);
  recording.inputs.back().is_base = true;
  recording.inputs.back().before = make_view(memory.original.storage(), words.data());

  Trace made;
  static const Operator& as_strided = operator_named("aten::as_strided");
  made.values = trace_.values;
  made.value_begin = trace_.value_begin;
  std::vector<Recording::Shared> shared{{false, position, 0}};
  for (const External* view : views) {
    made.steps.push_back({&as_strided, static_cast<uint32_t>(made.code.size())});
    append_as_strided(made, external.value, view->value);
  }
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const bool is_view = std::any_of(views.begin(), views.end(),
                                     [&](const External* view) { return view->value == argument_values_[i]; });
    if (is_view) shared.push_back({true, i, arguments_[i].storage_offset()});
  }
  const auto size = static_cast<uint32_t>(made.code.size());
  for (Trace::Step step : trace_.steps) {
    step.begin += size;
    made.steps.push_back(step);
  }
  made.code.insert(made.code.end(), trace_.code.begin(), trace_.code.end());
  trace_ = std::move(made);
  recording.shared.push_back(std::move(shared));
  return true;
}

void Recorder::make_inputs(Recording& recording) {
  std::map<size_t, std::vector<const External*>> by_memory;
  for (const External& external : externals_) {
    if (uses_[static_cast<size_t>(external.value)] > 0) by_memory[external.memory].push_back(&external);
  }
  for (const External& external : externals_) {
    if (uses_[static_cast<size_t>(external.value)] == 0) continue;
    const std::vector<const External*>& views = by_memory[external.memory];
    if (views.size() == 1 || !memories_[external.memory].is_written) {
      add_input(recording, external);
    } else if (views.front() == &external && !make_base(recording, views, external.memory)) {
      return;
    }
  }
  // Storages of their own over the same memory: nobody can tell then what a write changes.
  for (const Input& written : recording.inputs) {
    if (!written.written) continue;
    const at::Tensor& a =
        written.kind == Input::Kind::argument ? arguments_[written.argument] : written.captured->tensor();
    for (const External& external : externals_) {
      if (external.tensor.storage().unsafeGetStorageImpl() == a.storage().unsafeGetStorageImpl()) continue;
      const auto [a_begin, a_end] = bytes(a);
      const auto [b_begin, b_end] = bytes(external.tensor);
      if (a_begin < b_end && b_begin < a_end) refuse("the function writes to memory that two storages share", true);
    }
  }
}

void Recorder::add_output(Recording& recording, Result& result, ValueId value, const at::Tensor& tensor, bool is_held) {
  const auto known = std::find(recording.outputs.begin(), recording.outputs.end(), value);
  result.index = static_cast<size_t>(known - recording.outputs.begin());
  if (known != recording.outputs.end()) return;
  recording.outputs.push_back(value);
  if (trains_) {
    recording.output_grads.push_back(requires_grad_[static_cast<size_t>(value)]);
    recording.held_outputs.push_back(is_held);
  }
  recording.expected.push_back(trains_ ? tensor.detach() : tensor);  // not to keep autograd's graph
}

void Recorder::make_view_of_outside(Recording& recording, Result& result, const at::Tensor& tensor, size_t memory) {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (argument_values_[i] >= 0 && arguments_[i].is_same(tensor)) {
      result = {Result::Source::argument, i, {}, result.requires_grad};
      return;
    }
  }
  for (size_t i = 0; i < recording.inputs.size(); ++i) {
    const Input& input = recording.inputs[i];
    if (input.kind == Input::Kind::captured && input.captured->tensor().is_same(tensor)) {
      result = {Result::Source::captured, i, {}, result.requires_grad};
      return;
    }
  }
  append_words(result.view, tensor);
  for (const External& external : externals_) {
    if (external.memory != memory) continue;
    if (external.argument >= 0) {
      result.source = Result::Source::view_of_argument;
      result.index = static_cast<size_t>(external.argument);
      result.view[kOffset] -= external.tensor.storage_offset();
      return;
    }
    for (size_t i = 0; i < recording.inputs.size(); ++i) {
      const Input& input = recording.inputs[i];
      if (input.kind == Input::Kind::captured &&
          input.captured->tensor().storage().is_alias_of(external.tensor.storage())) {
        result.source = Result::Source::view_of_captured;
        result.index = i;
        return;
      }
    }
  }
  refuse("the function returns a constant");
}

void Recorder::make_results(Recording& recording, c10::ArrayRef<const at::Tensor*> results) {
  // Values of one storage that overlap have to overlap after a replay too: they become views of the storage's first.
  std::map<size_t, std::vector<ValueId>> by_memory;
  std::vector<std::pair<ValueId, size_t>> places;
  for (const at::Tensor* tensor : results) {
    places.emplace_back(-1, 0);
    if (!tensor->defined()) continue;
    const size_t memory = memory_of_.find(tensor->storage().unsafeGetStorageImpl())->second;
    const ValueId id = find(*tensor, memories_[memory]);
    places.back() = {id, memory};
    std::vector<ValueId>& values = by_memory[memory];
    if (std::find(values.begin(), values.end(), id) == values.end()) values.push_back(id);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    Result& result = recording.results.emplace_back();
    if (!results[i]->defined()) continue;
    const auto [id, memory] = places[i];
    const std::vector<ValueId>& values = by_memory[memory];
    result.requires_grad = trains_ && results[i]->requires_grad();
    if (memories_[memory].is_external) {
      make_view_of_outside(recording, result, *results[i], memory);
      continue;
    }
    const bool overlaps = std::any_of(values.begin(), values.end(), [&, id = id](ValueId other) {
      return other != id && overlap(trace_.value(id), trace_.value(other));
    });
    if (!overlaps) {
      result.source = Result::Source::output;
      add_output(recording, result, id, *results[i], is_held(results, *results[i]));
      continue;
    }
    const ValueId root = memories_[memory].values.front();
    const int64_t* words = trace_.value(root);
    if (words[kFlags] != 0 || words[kOffset] != 0 || std::any_of(values.begin(), values.end(), [&](ValueId one) {
          return extent(trace_.value(one)).second > extent(words).second || trace_.value(one)[kDtype] != words[kDtype];
        })) {
      refuse("the function returns views that overlap, of something that cannot be returned as a whole");
      return;
    }
    if (result.requires_grad && !requires_grad_[static_cast<size_t>(root)]) {
      refuse("the function returns views that overlap, of something that does not require grad as a whole");
      return;
    }
    result.source = Result::Source::view_of_output;
    append_words(result.view, *results[i]);
    add_output(recording, result, root, make_view(results[i]->storage(), words), false);
  }
}

// A tensor that an operator of this call made, and that outlives it without being in the result: a replay would not put
// it where the function has put it. See refuse_kept_beside_graph() for calls that need gradients.
void Recorder::refuse_kept(c10::ArrayRef<const at::Tensor*> results) {
  for (const at::Tensor* tensor : results) {
    if (!tensor->defined()) continue;
    const size_t index = memory_of_.find(tensor->storage().unsafeGetStorageImpl())->second;
    memories_[index].is_result = true;
    if (!memories_[index].is_external &&
        static_cast<int64_t>(tensor->use_count()) > owners_in(results, tensor->unsafeGetTensorImpl())) {
      refuse("the function keeps its result, in a variable that it does not get as an argument");
    }
  }
  for (const Memory& memory : memories_) {
    if (!memory.is_external && !memory.is_result && !memory.is_copied && !memory.storage.expired()) {
      refuse("the function keeps a tensor that it has made, in a variable that it does not get as an argument");
    }
  }
}

void Recorder::refuse_changed_gradients() {
  if (!tracks_) return;
  for (const External& external : externals_) {
    const bool requires_grad = external.tensor.requires_grad();
    if (memories_[external.memory].is_written && requires_grad) {
      refuse("the function writes to a tensor that requires grad");
    } else if (requires_grad != requires_grad_[static_cast<size_t>(external.value)]) {
      refuse("the function changes whether a tensor requires grad (requires_grad_, set_requires_grad)");
    }
  }
}

// Without owners that end with the call: the result, and Recording::after.
void Recorder::count_owners(Recording& recording, c10::ArrayRef<const at::Tensor*> results) const {
  for (Input& input : recording.inputs) {
    if (trains_ && input.kind == Input::Kind::argument) {
      const at::Tensor& tensor = arguments_[input.argument];
      const auto [owners, storage_owners] = argument_owners_[input.argument];
      input.is_held = static_cast<int64_t>(tensor.use_count()) > owners + 1 ||  // `arguments_` owns it too
                      static_cast<int64_t>(tensor.storage().use_count()) > storage_owners;
    }
    if (input.kind != Input::Kind::captured) continue;
    if (!input.written) input.before.reset();
    const at::Tensor& tensor = input.captured->tensor();
    input.owners = input.captured->owners() - owners_in(results, tensor.unsafeGetTensorImpl());
    input.storage_owners = input.captured->storage_owners() - sharers_in(results, tensor) - (input.written ? 1 : 0);
    if (!trains_) continue;
    // Autograd's graph owns weights too, as long as the result.
    if (const auto before = owners_.find(input.captured.get()); before != owners_.end()) {
      input.is_held = input.owners > before->second.first || input.storage_owners > before->second.second;
      input.owners = std::min(input.owners, before->second.first);
      input.storage_owners = std::min(input.storage_owners, before->second.second);
    }
  }
}

std::unique_ptr<Recording> Recorder::finish(c10::ArrayRef<const at::Tensor*> results) {
  const Unrecorded unrecorded;
  static const Operator kResult{.name = "the result"};
  auto recording = std::make_unique<Recording>();
  for (const at::Tensor* tensor : results) {
    if (refusal_.empty()) use(*tensor, kResult, false);
    trains_ = trains_ || (tracks_ && tensor->defined() && tensor->requires_grad());
  }
  if (refusal_.empty()) check_seed();
  if (refusal_.empty()) check_all();
  if (refusal_.empty()) check_arguments();
  if (refusal_.empty()) refuse_printing();
  if (refusal_.empty()) sort_captured();
  if (refusal_.empty() && !trains_) refuse_kept(results);
  if (refusal_.empty()) make_inputs(*recording);
  if (refusal_.empty()) make_results(*recording, results);
  refuse_changed_gradients();
  if (refusal_.empty() && trains_) refuse_graph(*recording, results);
  if (refusal_.empty() && trains_ && checks_content_) refuse_kept_beside_graph(*recording, results);
  if (refusal_.empty() && trains_ && checks_content_) differentiate(*recording, results);
  for (size_t i = 0; i < arguments_.size(); ++i) {
    const auto first = std::find(argument_values_.begin(), argument_values_.end(), argument_values_[i]);
    recording->same_as.push_back(static_cast<size_t>(first - argument_values_.begin()));
    if (argument_values_[i] < 0) recording->same_as.back() = i;
  }
  externals_.clear();  // our own handles, which are not to be counted
  count_owners(*recording, results);
  fill(*recording);
  return recording;
}

void Recorder::fill(Recording& recording) {
  recording.trains = trains_;
  if (!trains_) trace_.requires_grad.clear();
  recording.trace = trace_;  // the buffers stay for the next recording
  recording.by_hand = symbols_.words();
  recording.conditions = symbols_.conditions();
  recording.random_state = random_state_;
  recording.gpu_random_state = gpu_random_state_;
  recording.device = device_;
  recording.matmul_precision = at::globalContext().float32MatmulPrecision();
  recording.has_copies = has_copies_;
  recording.argument_hash = argument_hash_;
  recording.default_dtype = static_cast<int64_t>(c10::get_default_dtype_as_scalartype());
  recording.deterministic = at::globalContext().deterministicAlgorithms();
  recording.inference_mode = c10::InferenceMode::is_enabled();
  recording.refusal = refusal_;
  recording.touches_memory = touches_memory_;
}

std::vector<std::pair<ValueId, at::Tensor>> Recorder::live() {
  std::vector<std::pair<ValueId, at::Tensor>> found;
  for (const Memory& memory : memories_) {
    if (memory.is_external) continue;
    auto storage = memory.storage.lock();
    if (storage == nullptr) continue;
    const ValueId root = memory.values.front();
    const int64_t* words = trace_.value(root);
    const auto end = extent(words).second;
    for (const ValueId id : memory.values) {
      const int64_t* other = trace_.value(id);
      if (words[kFlags] != 0 || words[kOffset] != 0 || other[kDtype] != words[kDtype] || extent(other).second > end) {
        refuse("an operator makes several tensors in one memory, none of which is the whole");
        return {};
      }
    }
    found.emplace_back(root, make_view(c10::Storage(std::move(storage)), words));
  }
  return found;
}

std::unique_ptr<Recording> Recorder::finish_segment() {
  const Unrecorded unrecorded;
  auto recording = std::make_unique<Recording>();
  end_watch();
  if (refusal_.empty()) check_all();
  for (auto& [root, tensor] : refusal_.empty() ? live() : std::vector<std::pair<ValueId, at::Tensor>>()) {
    recording->outputs.push_back(root);
    recording->expected.push_back(std::move(tensor));
  }
  const size_t steps = trace_.steps.size();
  if (refusal_.empty()) make_inputs(*recording);
  Recording::Layout& layout = recording->layout;
  layout.prologue = trace_.steps.size() - steps;
  layout.memories.resize(trace_.value_begin.size());
  layout.externals.resize(trace_.value_begin.size());
  layout.roots.resize(memories_.size(), -1);
  layout.bytes.resize(memories_.size());
  for (size_t memory = 0; memory < memories_.size(); ++memory) {
    for (const ValueId id : memories_[memory].values) layout.memories[static_cast<size_t>(id)] = memory;
    if (memories_[memory].is_external) continue;
    const ValueId root = memories_[memory].values.front();
    layout.roots[memory] = root;
    layout.bytes[memory] = static_cast<size_t>(extent(trace_.value(root)).second);
  }
  for (const External& external : externals_) {
    layout.externals[static_cast<size_t>(external.value)] = true;
  }
  for (const Input& input : recording->inputs) {
    if (!input.is_base) continue;
    for (const External& external : externals_) {
      if (external.tensor.is_same(input.captured->tensor())) {
        layout.memories[static_cast<size_t>(input.value)] = external.memory;
      }
    }
  }
  fill(*recording);
  return recording;
}

}  // namespace torchcc::detail
