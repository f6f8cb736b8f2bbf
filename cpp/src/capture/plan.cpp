#include "plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>

#include "capturable.h"
#include "device.h"
#include "gradients.h"
#include "handles.h"
#include "tensors.h"
#include "trace.h"

namespace torchcc::detail {
namespace {

bool has_layout(const at::Tensor& tensor, const int64_t* words) {
  const at::IntArrayRef sizes = tensor.sizes();
  const at::IntArrayRef strides = tensor.strides();
  return words[kRank] == static_cast<int64_t>(sizes.size()) &&
         words[kDtype] == static_cast<int64_t>(tensor.scalar_type()) && words[kDevice] == device_word(tensor) &&
         std::equal(sizes.begin(), sizes.end(), words + kSizes) &&
         std::equal(strides.begin(), strides.end(), words + kSizes + words[kRank]);
}

std::pair<const std::byte*, const std::byte*> bytes(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {nullptr, nullptr};
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const auto* begin = static_cast<const std::byte*>(tensor.const_data_ptr());
  return {begin, begin + (last + 1) * static_cast<int64_t>(tensor.element_size())};
}

/// A view of a tensor that the recording saw; with gradients, one that autograd knows of.
at::Tensor view_of(const at::Tensor& tensor, const int64_t* words, bool requires_grad) {
  if (!requires_grad) return make_view(tensor.storage(), words);
  const c10::AutoGradMode grad(true);
  const auto rank = static_cast<size_t>(words[kRank]);
  return tensor.as_strided({words + kSizes, rank}, {words + kSizes + rank, rank}, words[kOffset]);
}

}  // namespace

bool Frozen::is_current() const {
  return std::all_of(weights.begin(), weights.end(),
                     [](const Weight& weight) { return weight.before.is_current(weight.captured->tensor()); });
}

std::vector<Frozen::Weight> freezable(const Recording& recording, bool inference_tensors) {
  std::vector<Frozen::Weight> weights;
  bool is_worth_it = false;  // packing is for matrices and convolution kernels
  for (const Input& input : recording.inputs) {
    if (input.kind != Input::Kind::captured || input.written) continue;
    const Snapshot now(input.captured->tensor());
    weights.push_back({input.captured.get(), now});
    if (!now.has_version() && !inference_tensors) return {};
    // Somebody may still hold what data() gave, and write through it at any time.
    if (now.was_aliased() && input.captured->storage_owners() > 1) return {};
    is_worth_it = is_worth_it || (input.captured->tensor().dim() >= 2 && input.captured->tensor().is_floating_point());
  }
  if (!is_worth_it) weights.clear();
  return weights;
}

Plan::Plan(std::shared_ptr<const Recording> recording, std::shared_ptr<const Artifact> code,
           const CompileOptions& options, std::shared_ptr<Packed> packed)
    : recording_(std::move(recording)),
      code_(std::move(code)),
      packed_(packed != nullptr ? std::move(packed) : std::make_shared<Packed>()),
      training_(recording_->trains && code_ != nullptr ? std::make_shared<const Training>(recording_, *code_)
                                                       : nullptr),
      lowest_(std::make_unique<Lowest[]>(recording_->inputs.size())),
      mutates_(recording_->mutates()) {
  for (size_t i = 0; i < recording_->same_as.size(); ++i) {
    has_same_arguments_ = has_same_arguments_ || recording_->same_as[i] != i;
  }
  if (options.cuda_graphs && packed_->graphs == nullptr) {
    packed_->graphs =
        std::make_unique<Graphs>(recording_->trains ? Graphs::Results::kept : Graphs::Results::lent,
                                 why_no_graph(*recording_, code_.get()), recording_->random_state.defined());
  }
}

const at::Tensor& Plan::tensor_of(const Input& input, const Leaves& arguments) const {
  switch (input.kind) {
    case Input::Kind::argument: return *arguments.tensors[input.argument];
    case Input::Kind::captured: return input.captured->tensor();
    case Input::Kind::constant: return input.before;
  }
  return input.before;
}

bool Plan::shares_as_recorded(const Leaves& arguments) const {
  for (size_t i = 0; i < recording_->same_as.size(); ++i) {
    const size_t first = recording_->same_as[i];
    if (first == i) continue;
    const at::Tensor& a = *arguments.tensors[first];
    const at::Tensor& b = *arguments.tensors[i];
    if (!a.storage().is_alias_of(b.storage()) || a.storage_offset() != b.storage_offset()) return false;
  }
  for (const std::vector<Recording::Shared>& group : recording_->shared) {
    const Input& base = recording_->inputs[group.front().index];
    const c10::Storage& storage = tensor_of(base, arguments).storage();
    for (const Recording::Shared& member : group) {
      if (!member.is_argument) continue;
      const at::Tensor& tensor = *arguments.tensors[member.index];
      if (!tensor.storage().is_alias_of(storage) || tensor.storage_offset() != member.offset) return false;
    }
  }
  return true;
}

// Whether something that is written shares memory with another input, although it did not in the recording.
bool Plan::overlaps(const Leaves& arguments) const {
  const std::vector<Input>& inputs = recording_->inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].written) continue;
    const at::Tensor& written = tensor_of(inputs[i], arguments);
    const auto [begin, end] = bytes(written);
    for (size_t j = 0; j < inputs.size(); ++j) {
      if (i == j) continue;
      const auto [other_begin, other_end] = bytes(tensor_of(inputs[j], arguments));
      if (begin < other_end && other_begin < end) return true;
    }
  }
  return false;
}

void Plan::lower_owners(Recording& later) const {
  for (size_t i = 0; i < later.inputs.size(); ++i) {
    Input& input = later.inputs[i];
    input.owners = std::min(input.owners, lowest_[i].owners.load());
    input.storage_owners = std::min(input.storage_owners, lowest_[i].storage_owners.load());
  }
}

bool Plan::holds(const Leaves& arguments) const {
  const bool tracks = at::GradMode::is_enabled();
  for (size_t i = 0; i < recording_->inputs.size(); ++i) {
    const Input& input = recording_->inputs[i];
    if (input.kind != Input::Kind::captured) continue;
    const Captured& captured = *input.captured;
    const int64_t owners = captured.owners();
    const int64_t storage_owners = captured.storage_owners();
    if (owners < input.owners || storage_owners < input.storage_owners) {
      lowest_[i].owners = owners;
      lowest_[i].storage_owners = storage_owners;
      return false;
    }
    const int64_t* words = recording_->trace.value(input.value);
    if (!input.is_base && !has_layout(captured.tensor(), words)) return false;
    if (tracks && captured.tensor().requires_grad() != input.requires_grad) return false;
    if (input.is_base && static_cast<int64_t>(captured.tensor().storage().nbytes() /
                                              captured.tensor().element_size()) != words[kSizes]) {
      return false;
    }
  }
  if ((has_same_arguments_ || !recording_->shared.empty()) && !shares_as_recorded(arguments)) return false;
  return !mutates_ || !overlaps(arguments);
}

std::shared_ptr<Recording> Plan::sample(const Leaves& arguments) const {
  const c10::AutoGradMode no_grad(false);
  auto made = std::make_shared<Recording>(*recording_);
  made->drop_samples();
  Handles handles;
  for (Input& input : made->inputs) {
    at::Tensor tensor = tensor_of(input, arguments).detach();
    if (input.is_base) tensor = make_view(tensor.storage(), made->trace.value(input.value));
    if (input.written || input.kind == Input::Kind::argument) input.before = tensor.clone();
    if (input.written) tensor = made->after.emplace_back(tensor.clone());
    handles.push_back(tensor.resolve_conj().resolve_neg());
  }
  c10::SmallVector<AtenTensorHandle, 4> outputs(made->outputs.size());
  handles.run(*code_->library, outputs.data());
  for (AtenTensorHandle handle : outputs) made->expected.push_back(take(handle));
  return made;
}

/// Runs the code by a CUDA graph. False when there is none yet, or never will be.
bool Plan::compute_by_graph(const Leaves& arguments, Computed& computed) const {
  if (graphs() == nullptr || graphs()->is_refused()) return false;
  c10::SmallVector<at::Tensor, 4> bases;
  bases.reserve(recording_->inputs.size());
  c10::SmallVector<Graphs::Input, 16> inputs;
  for (const Input& input : recording_->inputs) {
    const at::Tensor* tensor = &tensor_of(input, arguments);
    if (input.is_base) tensor = &bases.emplace_back(make_view(tensor->storage(), recording_->trace.value(input.value)));
    const bool is_weight = input.kind != Input::Kind::argument;
    // A copy of it would have other strides, or other values.
    if (!is_weight && (!tensor->is_non_overlapping_and_dense() || tensor->is_conj() || tensor->is_neg())) return false;
    inputs.push_back({tensor, is_aligned(*tensor), input.written, is_weight, /*has_own_strides=*/true});
  }
  computed.results.resize(code_->library->outputs());
  std::shared_ptr<const Graphs::Lease>* const lease = recording_->trains ? &computed.lease : nullptr;
  if (packed_->graphs->run(*code_->library, inputs, computed.results, lease)) return true;
  computed.results.clear();
  return false;
}

Computed Plan::compute(const Leaves& arguments, const Frozen* packed) const {
  Computed computed;
  if (compute_by_graph(arguments, computed)) return computed;
  std::vector<at::Tensor>& made = computed.results;
  const std::vector<Input>& inputs = recording_->inputs;
  Handles handles;
  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 1> written;  // copies, and what they are copies of
  const auto give = [&](const Input& input) {
    const at::Tensor& tensor = tensor_of(input, arguments);
    if (input.is_base) {
      handles.push_back(make_view(tensor.storage(), recording_->trace.value(input.value)));
    } else if (tensor.is_conj() || tensor.is_neg()) {
      handles.push_back(tensor.resolve_conj().resolve_neg());
    } else if (!is_aligned(tensor)) {
      handles.push_back(aligned(tensor));
      if (input.written) written.emplace_back(handles.back(), tensor);
    } else {
      handles.push_back(tensor);
    }
  };
  const Library& library = packed != nullptr ? *packed->code->library : *code_->library;
  if (packed != nullptr) {
    for (const size_t i : packed->inputs) give(inputs[i]);
  } else {
    for (const Input& input : inputs) give(input);
  }
  c10::SmallVector<AtenTensorHandle, 4> outputs(library.outputs());
  handles.run(library, outputs.data());
  made.reserve(outputs.size());
  for (AtenTensorHandle handle : outputs) made.push_back(take(handle));
  for (const auto& [copy, original] : written) original.copy_(copy);
  return computed;
}

std::vector<at::Tensor> Plan::compute_with_gradients(const Leaves& arguments) const {
  c10::SmallVector<at::Tensor, 16> inputs;
  for (const Input& input : recording_->inputs) inputs.push_back(tensor_of(input, arguments));
  return call_with_gradients(training_, inputs, training_->needs, [&] { return compute(arguments, nullptr); });
}

bool Plan::is_differentiated_twice() const {
  return training_ != nullptr && training_->is_differentiated_twice.load(std::memory_order_relaxed);
}

bool Plan::run(const Leaves& arguments, Replayed& results) const {
  const Recording& recording = *recording_;
  const Frozen* packed = frozen();
  if (packed != nullptr && !packed->is_current()) packed = nullptr;
  std::vector<at::Tensor> made;
  if (training_ != nullptr) made = compute_with_gradients(arguments);
  const c10::AutoGradMode no_grad(false);
  if (training_ == nullptr && code_ != nullptr) made = compute(arguments, packed).results;
  for (const Input& input : recording.inputs) {
    if (!input.written) continue;
    const at::Tensor& tensor = tensor_of(input, arguments);
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
  for (const Result& result : recording.results) {
    switch (result.source) {
      case Result::Source::undefined: results.tensors.emplace_back(); break;
      case Result::Source::argument: results.tensors.push_back(*arguments.tensors[result.index]); break;
      case Result::Source::captured:
        results.tensors.push_back(recording.inputs[result.index].captured->tensor());
        break;
      case Result::Source::output: results.tensors.push_back(made[result.index]); break;
      case Result::Source::view_of_argument: {
        const at::Tensor& argument = *arguments.tensors[result.index];
        c10::SmallVector<int64_t, 16> words(result.view.begin(), result.view.end());
        words[kOffset] += argument.storage_offset();
        results.tensors.push_back(view_of(argument, words.data(), result.requires_grad));
        break;
      }
      case Result::Source::view_of_captured:
        results.tensors.push_back(
            view_of(recording.inputs[result.index].captured->tensor(), result.view.data(), result.requires_grad));
        break;
      case Result::Source::view_of_output:
        results.tensors.push_back(view_of(made[result.index], result.view.data(), result.requires_grad));
        break;
    }
  }
  results.constants = recording.result_constants.data();
  return packed != nullptr;
}

}  // namespace torchcc::detail
