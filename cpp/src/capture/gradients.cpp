// Autograd: what it made of a recorded call, and how it calls compiled code.

#include "gradients.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <set>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "handles.h"
#include "message.h"
#include "recorder.h"
#include "rerun.h"

namespace torchcc::detail {
namespace {

using torch::autograd::AutogradContext;
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

/// A tensor of the program that backward needs, as it was.
class Unchanged {
 public:
  explicit Unchanged(at::Tensor tensor)
      : tensor_(std::move(tensor)), version_(tensor_.is_inference() ? 0 : tensor_._version()) {}

  /// Throws what PyTorch's saved variables throw when the tensor was written into since.
  const at::Tensor& get() const {
    const int64_t now = tensor_.is_inference() ? 0 : tensor_._version();
    TORCH_CHECK(now == version_,
                "one of the variables needed for gradient computation has been modified by an inplace operation: [",
                tensor_.toString(), " ", tensor_.sizes(), "], which a compiled function takes or gives, is at version ",
                now, "; expected version ", version_, " instead.");
    return tensor_;
  }

 private:
  at::Tensor tensor_;
  int64_t version_;
};

/// What a node of autograd's graph keeps for compiled code. Not as saved variables: these are freed with the first
/// backward, when other outputs may still need theirs, as eager operators' would.
struct Kept final : torch::CustomClassHolder {
  std::shared_ptr<Training> training;
  std::mutex mutex;
  std::vector<Unchanged> saved;  ///< inputs and outputs, in the order of Backward::saved
  std::vector<at::Tensor> extras;
  std::vector<std::pair<size_t, Unchanged>> others;  ///< inputs that only create_graph needs
  std::vector<bool> is_spent;                        ///< per output, whether backward has freed what it needs

  /// Notes that backward runs for the outputs with a gradient. Throws if it has, and freed the graph; returns whether
  /// it was the last time.
  bool spend(const variable_list& gradients, bool keeps_graph) {
    const Recording& recording = *training->recording;
    for (size_t i = 0; i < gradients.size(); ++i) {
      TORCH_CHECK(!gradients[i].defined() || !is_spent[i], torch::autograd::ERR_BACKWARD_TWICE);
    }
    if (keeps_graph) return false;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      for (const size_t covered : recording.covered[i]) is_spent[covered] = true;
    }
    for (size_t i = 0; i < is_spent.size(); ++i) {
      if (recording.output_grads[i] && !is_spent[i]) return false;
    }
    return true;
  }
  void release() {
    saved.clear();
    extras.clear();
    others.clear();
  }
};

constexpr const char* kKept = "torchcc";

struct Call {
  const std::shared_ptr<Training>* training;
  c10::ArrayRef<at::Tensor> inputs;
  const std::function<std::vector<at::Tensor>()>* compute;
};

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

/// Gives the generator a state for a scope, if there is one, and its own back afterwards.
class KeptGenerator {
 public:
  explicit KeptGenerator(const at::Tensor& state) : generator_(at::detail::getDefaultCPUGenerator()) {
    if (!state.defined()) return;
    const std::lock_guard lock(generator_.mutex());
    before_ = generator_.get_state();
    generator_.set_state(state);
  }
  ~KeptGenerator() {
    if (!before_.defined()) return;
    const std::lock_guard lock(generator_.mutex());
    generator_.set_state(before_);
  }
  KeptGenerator(const KeptGenerator&) = delete;
  KeptGenerator& operator=(const KeptGenerator&) = delete;

 private:
  at::Generator generator_;
  at::Tensor before_;
};

/// Why the recorded operators, run again, would not give what the code gave; empty when they would.
std::string why_not_rerun(const Recording& recording) {
  if (recording.random_state.defined()) return "a function that draws random numbers";
  if (recording.mutates()) return "a function that writes into its inputs";
  return "";
}

bool has_strides(const at::Tensor& tensor, at::IntArrayRef wanted) {
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != wanted[static_cast<size_t>(d)]) return false;
  }
  return true;
}

/// The gradient of an output in the form that the code takes; autograd has brought its dtype and sizes in order.
at::Tensor tangent(const at::Tensor& gradient, const Recording& recording, const Backward::Tangent& wanted) {
  if (gradient.defined() && has_strides(gradient, wanted.strides)) return gradient.resolve_conj().resolve_neg();
  const int64_t* words = recording.trace.value(recording.outputs[wanted.output]);
  const at::Tensor made = at::empty_strided({words + kSizes, static_cast<size_t>(words[kRank])}, wanted.strides,
                                            at::TensorOptions(static_cast<c10::ScalarType>(words[kDtype])));
  return gradient.defined() ? made.copy_(gradient) : made.zero_();
}

class Compiled : public torch::autograd::Function<Compiled> {
 public:
  // The list is what autograd links the outputs to.
  static variable_list forward(AutogradContext* context, const Call* call, at::TensorList) {
    const Recording& recording = *(*call->training)->recording;
    const Backward& backward = *(*call->training)->code->backward;
    std::vector<at::Tensor> outputs = (*call->compute)();
    auto kept = c10::make_intrusive<Kept>();
    kept->training = *call->training;
    kept->extras.assign(std::make_move_iterator(outputs.end() - static_cast<std::ptrdiff_t>(backward.extras)),
                        std::make_move_iterator(outputs.end()));
    outputs.resize(outputs.size() - backward.extras);

    std::vector<bool> is_saved(call->inputs.size());
    for (const Backward::Saved& one : backward.saved) {
      if (one.from == Backward::Saved::From::input) {
        kept->saved.emplace_back(call->inputs[one.index]);
        is_saved[one.index] = true;
      } else if (one.from == Backward::Saved::From::output) {
        kept->saved.emplace_back(outputs[one.index].detach());  // the output will own this node
      }
    }
    if (why_not_rerun(recording).empty()) {
      for (size_t i = 0; i < is_saved.size(); ++i) {
        if (!is_saved[i]) kept->others.emplace_back(i, Unchanged(call->inputs[i]));
      }
    }
    kept->is_spent.resize(outputs.size());
    context->saved_data[kKept] = c10::IValue::make_capsule(std::move(kept));
    context->set_materialize_grads(false);
    variable_list others;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!recording.output_grads[i]) others.push_back(outputs[i]);
    }
    context->mark_non_differentiable(others);
    return outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(context->saved_data.at(kKept).toCapsule());
    const Training& training = *kept->training;
    const Recording& recording = *training.recording;
    const std::lock_guard lock(kept->mutex);
    const bool is_last = kept->spend(gradients, torch::autograd::get_current_graph_task_keep_graph());
    std::vector<at::Tensor> by_input =
        at::GradMode::is_enabled() ? differentiate_again(*kept, gradients) : run(*kept, gradients, is_last);
    if (is_last) kept->release();
    variable_list results(1);  // for `call`
    for (size_t i = 0; i < recording.inputs.size(); ++i) {
      if (recording.inputs[i].requires_grad) results.push_back(std::move(by_input[i]));
    }
    return results;
  }

 private:
  static std::vector<at::Tensor> run(Kept& kept, const variable_list& gradients, bool is_last) {
    const Recording& recording = *kept.training->recording;
    const Backward& code = *kept.training->code->backward;
    std::vector<AtenTensorHandle> outputs(code.gradients.size());
    Handles handles;
    size_t next = 0;
    for (const Backward::Saved& one : code.saved) {
      if (one.from != Backward::Saved::From::extra) {
        handles.push_back(kept.saved[next++].get().resolve_conj().resolve_neg());
      } else if (is_last) {  // the code frees it after its last use
        handles.push_back(std::move(kept.extras[one.index]));
      } else {
        handles.push_back(kept.extras[one.index]);
      }
    }
    for (const Backward::Tangent& one : code.tangents) {
      handles.push_back(tangent(gradients[one.output], recording, one));
    }
    if (is_last) kept.release();
    handles.run(*code.library, outputs.data());
    std::vector<bool> is_reached(recording.inputs.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      for (const size_t input : recording.reached[i]) is_reached[input] = true;
    }
    std::vector<at::Tensor> by_input(recording.inputs.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
      at::Tensor gradient = take(outputs[i]);
      if (!is_reached[code.gradients[i]]) continue;  // none, and not zeros
      // Autograd makes it the gradient of a leaf as it is, if it seems to belong to nobody else.
      if (gradient.storage().use_count() > 1 || gradient.use_count() > 1) gradient = gradient.clone();
      by_input[code.gradients[i]] = std::move(gradient);
    }
    return by_input;
  }

  static std::vector<at::Tensor> differentiate_again(Kept& kept, const variable_list& gradients) {
    const Recording& recording = *kept.training->recording;
    const Backward& code = *kept.training->code->backward;
    kept.training->is_differentiated_twice.store(true, std::memory_order_relaxed);
    if (const std::string got = why_not_rerun(recording); !got.empty()) {
      throw CaptureError(message("backward with create_graph=true went through compiled code",
                                 {{"expected", "a function whose operators can run again to be differentiated twice"},
                                  {"got", got},
                                  {"fix", "call it again: from now on it runs eagerly; this graph is lost"}}));
    }
    std::vector<at::Tensor> inputs(recording.inputs.size());
    size_t next = 0;
    for (const Backward::Saved& one : code.saved) {
      if (one.from == Backward::Saved::From::extra) continue;
      const Unchanged& tensor = kept.saved[next++];
      if (one.from == Backward::Saved::From::input) inputs[one.index] = tensor.get();
    }
    for (const auto& [input, tensor] : kept.others) inputs[input] = tensor.get();
    variable_list leaves;
    std::vector<at::Tensor> values(recording.trace.value_begin.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (recording.inputs[i].requires_grad) {
        inputs[i] = inputs[i].view_as(inputs[i]);  // whose gradient runs no hooks of the program
        leaves.push_back(inputs[i]);
      }
      values[static_cast<size_t>(recording.inputs[i].value)] = inputs[i];
    }
    values = rerun(recording.trace, std::move(values));
    variable_list roots;
    variable_list tangents;
    for (const Backward::Tangent& one : code.tangents) {
      if (!gradients[one.output].defined()) continue;
      roots.push_back(values[static_cast<size_t>(recording.outputs[one.output])]);
      tangents.push_back(gradients[one.output]);
    }
    const variable_list found = torch::autograd::grad(roots, leaves, tangents, /*retain_graph=*/true,
                                                      /*create_graph=*/true, /*allow_unused=*/true);
    std::vector<at::Tensor> by_input(inputs.size());
    next = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (recording.inputs[i].requires_grad) by_input[i] = found[next++];
    }
    return by_input;
  }
};

}  // namespace

std::vector<at::Tensor> call_with_gradients(const std::shared_ptr<Training>& training, c10::ArrayRef<at::Tensor> inputs,
                                            const std::function<std::vector<at::Tensor>()>& compute) {
  std::vector<at::Tensor> differentiable;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (training->recording->inputs[i].requires_grad) differentiable.push_back(inputs[i]);
  }
  const Call call{&training, inputs, &compute};
  return Compiled::apply(&call, at::TensorList(differentiable));
}

Backward parse_backward(const std::string& json) {
  using From = Backward::Saved::From;
  const nlohmann::json content = nlohmann::json::parse(json);
  Backward made;
  for (const auto& [from, index] : content.at("saved").get<std::vector<std::pair<std::string, size_t>>>()) {
    made.saved.push_back({from == "input" ? From::input : from == "output" ? From::output : From::extra, index});
    if (made.saved.back().from == From::extra) ++made.extras;
  }
  for (const nlohmann::json& one : content.at("tangents")) {
    made.tangents.push_back({one.at("output"), one.at("strides").get<std::vector<int64_t>>()});
  }
  made.gradients = content.at("gradients").get<std::vector<size_t>>();
  return made;
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
    const bool is_output = result.source == Result::Source::output || result.source == Result::Source::view_of_output;
    if (!result.requires_grad || !is_output) continue;
    parts[result.index].add(place_of(*results[i]), outside);
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
    const KeptGenerator generator(random_state_);
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
    recording.tangents.push_back(at::randn(output.sizes(), generator, output.options()));
  }
  try {
    recording.gradients = torch::autograd::grad(outputs, inputs, recording.tangents, /*retain_graph=*/true,
                                                /*create_graph=*/false, /*allow_unused=*/true);
  } catch (const std::exception& failure) {
    refuse("autograd cannot differentiate it: " + first_line(failure.what()));
  }
}

}  // namespace torchcc::detail
