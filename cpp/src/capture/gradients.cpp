// Autograd: what it made of a recorded call.

#include "gradients.h"

#include <algorithm>
#include <set>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>

#include "generator.h"
#include "message.h"
#include "recorder.h"
#include "rerun.h"

namespace torchcc::detail {
namespace {

using torch::autograd::Node;
using torch::autograd::variable_list;

bool has_hooks(Node& node) {
  return !node.pre_hooks().empty() || !node.post_hooks().empty() || !node.tensor_pre_hooks().empty() ||
         !node.retains_grad_hooks().empty();
}

/// Whether autograd::grad() with respect to a tensor would call code of the program.
bool has_hooks(const at::Tensor& tensor) {
  return !torch::autograd::impl::hooks(tensor).empty() || (tensor.grad_fn() != nullptr && has_hooks(*tensor.grad_fn()));
}

using Place = std::pair<Node*, uint32_t>;

Place place_of(const torch::autograd::Edge& edge) { return {edge.function.get(), edge.input_nr}; }

Place place_of(const at::Tensor& tensor) { return place_of(torch::autograd::impl::gradient_edge(tensor)); }

/// A part of autograd's graph: its nodes, and where it ends.
struct Part {
  std::set<Node*> nodes;
  std::set<Place> ends;

  /// Adds everything from `first` on, up to nodes outside.
  void add(Place first, const std::set<Node*>& outside) {
    std::vector<Place> next{first};
    while (!next.empty()) {
      const Place place = next.back();
      next.pop_back();
      if (place.first == nullptr) continue;
      if (outside.count(place.first) != 0) {
        ends.insert(place);
      } else if (nodes.insert(place.first).second) {
        for (const torch::autograd::Edge& edge : place.first->next_edges()) next.push_back(place_of(edge));
      }
    }
  }
};

}  // namespace

Training::Training(std::shared_ptr<const Recording> of, const Artifact& code) : recording(std::move(of)) {
  backward = code.backward;
  output_grads = recording->output_grads;
  covered = recording->covered;
  reached = recording->reached;
  for (const Input& input : recording->inputs) needs.push_back(input.requires_grad);
}

std::string Training::why_not_rerun() const {
  if (recording->random_state.defined()) return "a function that draws random numbers";
  if (recording->mutates()) return "a function that writes into its inputs";
  return "";
}

std::vector<at::Tensor> Training::rerun(std::vector<at::Tensor> inputs) const {
  std::vector<at::Tensor> values(recording->trace.value_begin.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    values[static_cast<size_t>(recording->inputs[i].value)] = std::move(inputs[i]);
  }
  values = detail::rerun(recording->trace, std::move(values));
  std::vector<at::Tensor> outputs;
  for (const ValueId id : recording->outputs) outputs.push_back(values[static_cast<size_t>(id)]);
  return outputs;
}

// What autograd's graph holds beside the operators that were recorded.
void Recorder::refuse_graph(Recording& recording, c10::ArrayRef<const at::Tensor*> results) {
  std::set<Node*> outside;
  for (const External& external : externals_) {
    if (external.tensor.requires_grad()) outside.insert(place_of(external.tensor).first);
  }
  std::vector<Part> parts(recording.outputs.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& result = recording.results[i];
    if (!result.requires_grad) continue;
    const bool is_output = result.source == Result::Source::output || result.source == Result::Source::view_of_output;
    const Place place = place_of(*results[i]);
    bool leads_on = place.first != nullptr;
    if (is_output) {
      Part& part = parts[result.index];
      part.add(place, outside);
      leads_on = !part.ends.empty();
    }
    // A view requires grad if what it is a view of does, also one that is made where grad mode is off.
    if (!leads_on) refuse("a result requires grad, but comes from views alone that were made with grad mode off");
  }
  for (const Part& part : parts) {
    for (Node* node : part.nodes) {
      const std::string name = node->name();
      if (has_hooks(*node)) {
        refuse("the function registers a hook on a tensor that it makes, or retains its gradient");
      } else if (name.find("CppNode") != std::string::npos) {
        refuse("the function uses a torch::autograd::Function of its own (" + name + ")");
      } else if (name.find("AccumulateGrad") != std::string::npos) {
        refuse("the function makes a leaf that requires grad");
      }
    }
    std::vector<size_t>& covered = recording.covered.emplace_back();
    for (size_t other = 0; other < parts.size(); ++other) {
      const std::set<Node*>& nodes = parts[other].nodes;
      if (std::includes(part.nodes.begin(), part.nodes.end(), nodes.begin(), nodes.end())) covered.push_back(other);
    }
    std::vector<size_t>& reached = recording.reached.emplace_back();
    for (size_t i = 0; i < recording.inputs.size(); ++i) {
      if (!recording.inputs[i].requires_grad) continue;
      if (part.ends.count(place_of(tensor_of(recording.inputs[i]))) != 0) reached.push_back(i);
    }
  }
}

const at::Tensor& Recorder::tensor_of(const Input& input) const {
  return input.kind == Input::Kind::argument ? arguments_[input.argument] : input.captured->tensor();
}

// Autograd's graph keeps tensors of the call, as the function may. The same operators are run again, and leave behind
// what the graph alone keeps: whatever has more owners after the function's own run is kept by the function.
void Recorder::refuse_kept_beside_graph(const Recording& recording, c10::ArrayRef<const at::Tensor*> results) {
  std::vector<at::Tensor> values(trace_.value_begin.size());
  const auto value = [&](ValueId id) -> at::Tensor& { return values[static_cast<size_t>(id)]; };
  for (const Input& input : recording.inputs) {
    if (input.written) {
      value(input.value) = input.before.clone();
    } else {
      value(input.value) = input.kind == Input::Kind::constant ? input.before : tensor_of(input);
    }
  }
  try {
    const KeptGenerator generator(at::detail::getDefaultCPUGenerator(), random_state_);
    const at::Tensor on_gpu = device_.is_cuda() ? gpu_random_state_ : at::Tensor();
    const KeptGenerator other(at::globalContext().defaultGenerator(device_), on_gpu);
    values = rerun(trace_, std::move(values));
  } catch (const std::exception& failure) {
    refuse("the recorded operators cannot be run again: " + first_line(failure.what()));
    return;
  }
  // Handles as there are of the function's own results.
  std::vector<at::Tensor> same_results(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i]->defined()) continue;
    const Memory& memory = memories_[memory_of_.find(results[i]->storage().unsafeGetStorageImpl())->second];
    if (!memory.is_external) same_results[i] = value(find(*results[i], memory));
  }
  std::vector<at::Tensor> same_expected;
  for (const ValueId id : recording.outputs) same_expected.push_back(value(id).detach());
  using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;
  std::vector<std::pair<const Memory*, WeakStorage>> made;
  for (const Memory& memory : memories_) {
    const at::Tensor& first = value(memory.values.front());
    if (memory.is_external || memory.is_copied || !first.defined()) continue;
    made.emplace_back(&memory, first.storage().getWeakStorageImpl());
  }
  values.clear();
  for (size_t i = 0; i < results.size(); ++i) {
    if (same_results[i].defined() && results[i]->use_count() > same_results[i].use_count()) {
      refuse("the function keeps its result, in a variable that it does not get as an argument");
    }
  }
  for (const auto& [memory, storage] : made) {
    if (memory->storage.use_count() > storage.use_count()) {
      refuse("the function keeps a tensor that it has made, in a variable that it does not get as an argument");
    }
  }
}

void Recorder::differentiate(Recording& recording, c10::ArrayRef<const at::Tensor*> results) {
  std::vector<at::Tensor> by_output(recording.outputs.size());
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& result = recording.results[i];
    if (result.source == Result::Source::output) by_output[result.index] = *results[i];
  }
  variable_list outputs;
  for (size_t i = 0; i < by_output.size(); ++i) {
    if (!recording.output_grads[i]) continue;
    if (!by_output[i].defined()) return;  // memory of which several views are returned: no tensor of the program is it
    outputs.push_back(by_output[i]);
  }
  variable_list inputs;
  for (const Input& input : recording.inputs) {
    if (!input.requires_grad) continue;
    inputs.push_back(tensor_of(input));
    if (has_hooks(inputs.back())) return;
  }
  if (outputs.empty()) return;
  const at::Generator generator = at::detail::createCPUGenerator(recording.trace.steps.size());
  for (const at::Tensor& output : outputs) {
    const at::Tensor tangent = at::randn(output.sizes(), generator, output.options().device(at::kCPU));
    recording.tangents.push_back(tangent.to(output.device()));
  }
  try {
    recording.gradients = torch::autograd::grad(outputs, inputs, recording.tangents, /*retain_graph=*/true,
                                                /*create_graph=*/false, /*allow_unused=*/true);
  } catch (const std::exception& failure) {
    refuse("autograd cannot differentiate it: " + first_line(failure.what()));
  }
}

}  // namespace torchcc::detail
