// Which value of a recording a tensor is.

#include "recorder.h"

#include <algorithm>

#include "arguments.h"
#include "tensors.h"

namespace torchcc::detail {

bool Recorder::knows(const at::Tensor& tensor) const {
  return memory_of_.count(tensor.storage().unsafeGetStorageImpl()) != 0;
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
      memory.expect(watched != watched_.end() ? watched->second : hash(*storage));
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
  if (is_segment_) refuse("a tensor is used through another one that no operator made (data())");
  const ValueId root = memory.values.front();
  const int64_t* words = trace_.value(root);
  if (words[kDtype] != static_cast<int64_t>(tensor.scalar_type()) || words[kFlags] != 0 || tensor.is_conj() ||
      tensor.is_neg()) {
    refuse("memory of one value is used as another dtype without an operator", true);
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
    refuse("memory that was written without operators (data_ptr, accessor) is used through several views", true);
    return old;
  }
  if (!has_copies_) {
    has_copies_ = true;
    for (const at::Tensor& argument : arguments_) {
      if (!argument.defined()) continue;
      argument_hash_ = argument_hash_ * 31 + hash(*argument.storage().unsafeGetStorageImpl());
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

}  // namespace torchcc::detail
