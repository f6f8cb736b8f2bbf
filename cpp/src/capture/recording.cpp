#include "recording.h"

#include <mutex>

#include <c10/util/flat_hash_map.h>
#include <torchcc/detail/core.h>

#include "content.h"

namespace torchcc::detail {

std::shared_ptr<const Captured> Captured::of(const at::Tensor& tensor) {
  static std::mutex mutex;
  static ska::flat_hash_map<c10::TensorImpl*, std::weak_ptr<const Captured>> known;
  const std::lock_guard lock(mutex);
  std::weak_ptr<const Captured>& entry = known[tensor.unsafeGetTensorImpl()];
  if (auto captured = entry.lock()) return captured;
  auto captured = std::make_shared<const Captured>(tensor);
  entry = captured;
  return captured;
}

std::string disagreement(const Recording& before, const Recording& after) {
  if (std::string text = difference(before.trace, after.trace); !text.empty()) return text;
  if (std::string text = disagreement_beside_trace(before, after); !text.empty()) return text;
  if (before.result_constants != after.result_constants) return "a number in the result changed in the next call";
  return "";
}

std::string disagreement_beside_trace(const Recording& before, const Recording& after) {
  if (before.inputs.size() != after.inputs.size() || before.outputs != after.outputs) {
    return "the function used other inputs, or returned other values, in the next call";
  }
  for (size_t i = 0; i < before.inputs.size(); ++i) {
    const Input& a = before.inputs[i];
    const Input& b = after.inputs[i];
    const std::string type = value_type(after.trace, b.value);
    if (a.kind != b.kind || a.value != b.value || a.argument != b.argument) {
      return "input " + std::to_string(i) + " (" + type + ") came from somewhere else in the next call";
    }
    // Of segments, tensors are given anew each time.
    if (a.kind == Input::Kind::captured && a.captured != nullptr && b.captured != nullptr && a.captured != b.captured &&
        !a.captured->tensor().storage().is_alias_of(b.captured->tensor().storage())) {
      return "a captured tensor (" + type + ") was another tensor in the next call: it is assigned anew";
    }
    if (a.requires_grad != b.requires_grad) {
      return "whether input " + std::to_string(i) + " (" + type + ") requires grad changed in the next call";
    }
    if (a.kind == Input::Kind::constant && a.before.defined() && b.before.defined() &&
        !same_bytes(a.before, b.before)) {
      return "data that C++ code writes (" + type + ") changed in the next call";
    }
  }
  if (before.output_grads != after.output_grads) return "whether a result requires grad changed in the next call";
  return "";
}

void detach_from_program(Recording& recording) {
  for (Input& input : recording.inputs) {
    if (input.kind != Input::Kind::constant) input.before = input.content().detach().clone();
  }
  for (at::Tensor& tensor : recording.expected) tensor = tensor.detach().clone();
  for (at::Tensor& tensor : recording.after) tensor = tensor.detach().clone();
}

void name_captured(Recording& recording, const ModuleView* module) {
  const auto named = module == nullptr ? std::vector<std::pair<std::string, at::Tensor>>() : module->tensors();
  size_t arguments = 0;
  size_t captured = 0;
  size_t constants = 0;
  for (Input& input : recording.inputs) {
    if (input.kind == Input::Kind::argument) {
      arguments = input.argument;
      input.name = "arg" + std::to_string(arguments);
    } else if (input.kind == Input::Kind::constant) {
      input.name = "constant" + std::to_string(constants++);
    } else {
      input.name = "captured" + std::to_string(captured++);
      for (const auto& [name, tensor] : named) {
        if (tensor.is_same(input.captured->tensor())) input.name = name;
      }
    }
  }
}

}  // namespace torchcc::detail
