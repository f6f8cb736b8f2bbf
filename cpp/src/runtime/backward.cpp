// How autograd's graph calls compiled code.

#include "backward.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "device.h"
#include "handles.h"
#include "message.h"

namespace torchcc::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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
  std::shared_ptr<const Differentiable> function;
  std::mutex mutex;
  std::vector<Unchanged> saved;  ///< inputs and outputs, in the order of Backward::saved
  std::vector<at::Tensor> extras;
  std::vector<std::pair<size_t, Unchanged>> others;  ///< inputs that only create_graph needs
  std::vector<bool> needs;                           ///< per input, whether it gets a gradient
  std::vector<bool> carries;                         ///< per output, whether it carries a gradient
  std::vector<bool> is_spent;                        ///< per output, whether backward has freed what it needs
  std::shared_ptr<const Graphs::Lease> lease;        ///< of outputs and extras in memory of a CUDA graph; else null

  /// Notes that backward runs for the outputs with a gradient. Throws if it has, and freed the graph; returns whether
  /// it was the last time.
  bool spend(const variable_list& gradients, bool keeps_graph) {
    for (size_t i = 0; i < gradients.size(); ++i) {
      TORCH_CHECK(!gradients[i].defined() || !is_spent[i], torch::autograd::ERR_BACKWARD_TWICE);
    }
    if (keeps_graph) return false;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      for (const size_t covered : function->covered[i]) is_spent[covered] = true;
    }
    for (size_t i = 0; i < is_spent.size(); ++i) {
      if (carries[i] && !is_spent[i]) return false;
    }
    return true;
  }
  void release() {
    saved.clear();
    extras.clear();
    others.clear();
    lease.reset();
  }
};

constexpr const char* kKept = "torchcc";

struct Call {
  const std::shared_ptr<const Differentiable>* function;
  c10::ArrayRef<at::Tensor> inputs;
  const std::vector<bool>* needs;
  const std::function<Computed()>* compute;
};

bool has_strides(const at::Tensor& tensor, const std::optional<std::vector<int64_t>>& wanted) {
  if (!wanted) return tensor.is_contiguous();
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != (*wanted)[static_cast<size_t>(d)]) return false;
  }
  return true;
}

/// The gradient of an output in the form that the code takes; autograd has brought its dtype and sizes in order.
at::Tensor tangent(const at::Tensor& gradient, const Backward::Tangent& wanted) {
  const at::Tensor given = gradient.defined()
                               ? gradient.resolve_conj().resolve_neg()
                               : torch::autograd::get_current_node()->input_metadata(wanted.output).zeros_like();
  if (has_strides(given, wanted.strides)) return aligned(given);
  if (!wanted.strides) return given.contiguous();
  return at::empty_strided(given.sizes(), *wanted.strides, given.options()).copy_(given);
}

class Compiled : public torch::autograd::Function<Compiled> {
 public:
  // The list is what autograd links the outputs to.
  static variable_list forward(AutogradContext* context, const Call* call, at::TensorList) {
    const Differentiable& function = **call->function;
    const Backward& backward = *function.backward;
    Computed computed = (*call->compute)();
    std::vector<at::Tensor>& outputs = computed.results;
    auto kept = c10::make_intrusive<Kept>();
    kept->lease = std::move(computed.lease);
    kept->function = *call->function;
    kept->needs = *call->needs;
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
    if (function.why_not_rerun().empty()) {
      for (size_t i = 0; i < is_saved.size(); ++i) {
        if (!is_saved[i]) kept->others.emplace_back(i, Unchanged(call->inputs[i]));
      }
    }
    kept->is_spent.resize(outputs.size());
    variable_list others;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const std::vector<size_t>& reached = function.reached[i];
      const auto needs = [&](size_t input) { return kept->needs[input]; };
      kept->carries.push_back(function.output_grads[i] && std::any_of(reached.begin(), reached.end(), needs));
      if (!kept->carries[i]) others.push_back(outputs[i]);
    }
    context->saved_data[kKept] = c10::IValue::make_capsule(std::move(kept));
    context->set_materialize_grads(false);
    context->mark_non_differentiable(others);
    return outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(context->saved_data.at(kKept).toCapsule());
    const std::lock_guard lock(kept->mutex);
    const bool is_last = kept->spend(gradients, torch::autograd::get_current_graph_task_keep_graph());
    std::vector<at::Tensor> by_input =
        at::GradMode::is_enabled() ? differentiate_again(*kept, gradients) : run(*kept, gradients, is_last);
    if (is_last) kept->release();
    variable_list results(1);  // for `call`
    for (size_t i = 0; i < kept->needs.size(); ++i) {
      if (kept->needs[i]) results.push_back(std::move(by_input[i]));
    }
    return results;
  }

 private:
  static std::vector<at::Tensor> run(Kept& kept, const variable_list& gradients, bool is_last) {
    const Differentiable& function = *kept.function;
    const Backward& code = *function.backward;
    std::vector<at::Tensor> tangents;
    for (const Backward::Tangent& one : code.tangents) tangents.push_back(tangent(gradients[one.output], one));
    std::vector<at::Tensor> results(code.gradients.size());
    const bool is_by_graph = kept.lease != nullptr && run_by_graph(kept, tangents, results);
    if (!is_by_graph) run_code(kept, std::move(tangents), is_last, results);
    std::vector<bool> is_reached(kept.needs.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      for (const size_t input : function.reached[i]) is_reached[input] = true;
    }
    const size_t owners = is_by_graph ? 2 : 1;  // the graph is one
    std::vector<at::Tensor> by_input(kept.needs.size());
    for (size_t i = 0; i < results.size(); ++i) {
      at::Tensor gradient = std::move(results[i]);
      const size_t input = code.gradients[i];
      if (!is_reached[input] || !kept.needs[input]) continue;  // none, and not zeros
      // Autograd makes it the gradient of a leaf as it is, if it seems to belong to nobody else.
      if (gradient.storage().use_count() > owners || gradient.use_count() > 1) gradient = gradient.clone();
      by_input[input] = std::move(gradient);
    }
    return by_input;
  }

  static void run_code(Kept& kept, std::vector<at::Tensor> tangents, bool is_last, std::vector<at::Tensor>& results) {
    const Backward& code = *kept.function->backward;
    Handles handles;
    size_t next = 0;
    for (const Backward::Saved& one : code.saved) {
      if (one.from != Backward::Saved::From::extra) {
        handles.push_back(aligned(kept.saved[next++].get().resolve_conj().resolve_neg()));
      } else if (is_last) {  // the code frees it after its last use
        handles.push_back(std::move(kept.extras[one.index]));
      } else {
        handles.push_back(kept.extras[one.index]);
      }
    }
    for (at::Tensor& one : tangents) handles.push_back(std::move(one));
    // The memory of a graph stays as it is until the code has been launched.
    const std::shared_ptr<const Graphs::Lease> lease = kept.lease;
    if (is_last) kept.release();
    std::vector<AtenTensorHandle> outputs(results.size());
    handles.run(*code.library, outputs.data());
    for (size_t i = 0; i < outputs.size(); ++i) results[i] = take(outputs[i]);
  }

  /// False where there is no graph yet, or none can be used.
  static bool run_by_graph(const Kept& kept, const std::vector<at::Tensor>& tangents,
                           std::vector<at::Tensor>& results) {
    const Backward& code = *kept.function->backward;
    std::vector<at::Tensor> tensors;
    tensors.reserve(code.saved.size() + tangents.size());
    std::vector<Graphs::Input> inputs;
    const auto add = [&](at::Tensor tensor, bool is_kept) {
      tensors.push_back(std::move(tensor));
      inputs.push_back({&tensors.back(), is_aligned(tensors.back()), /*is_mutated=*/false, /*is_weight=*/false,
                        /*has_own_strides=*/true, is_kept});
      return is_kept || tensors.back().is_non_overlapping_and_dense();
    };
    bool can_be_copied = true;
    size_t next = 0;
    for (const Backward::Saved& one : code.saved) {
      const bool is_input = one.from == Backward::Saved::From::input;
      const at::Tensor& tensor =
          one.from == Backward::Saved::From::extra ? kept.extras[one.index] : kept.saved[next++].get();
      can_be_copied = add(tensor.resolve_conj().resolve_neg(), !is_input) && can_be_copied;
    }
    for (const at::Tensor& one : tangents) can_be_copied = add(one, false) && can_be_copied;
    return can_be_copied && kept.lease->run(*code.library, inputs, results);
  }

  static std::vector<at::Tensor> differentiate_again(Kept& kept, const variable_list& gradients) {
    const Differentiable& function = *kept.function;
    const Backward& code = *function.backward;
    function.is_differentiated_twice.store(true, std::memory_order_relaxed);
    if (const std::string got = function.why_not_rerun(); !got.empty()) {
      throw CaptureError(message("backward with create_graph=true went through compiled code",
                                 {{"expected", "a function whose operators can run again to be differentiated twice"},
                                  {"got", got},
                                  {"fix", "call it again: from now on it runs eagerly; this graph is lost"}}));
    }
    std::vector<at::Tensor> inputs(kept.needs.size());
    size_t next = 0;
    for (const Backward::Saved& one : code.saved) {
      if (one.from == Backward::Saved::From::extra) continue;
      const Unchanged& tensor = kept.saved[next++];
      if (one.from == Backward::Saved::From::input) inputs[one.index] = tensor.get();
    }
    for (const auto& [input, tensor] : kept.others) inputs[input] = tensor.get();
    variable_list leaves;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!kept.needs[i]) continue;
      inputs[i] = inputs[i].view_as(inputs[i]);  // whose gradient runs no hooks of the program
      leaves.push_back(inputs[i]);
    }
    const std::vector<at::Tensor> outputs = function.rerun(std::move(inputs));
    variable_list roots;
    variable_list tangents;
    for (const Backward::Tangent& one : code.tangents) {
      if (!gradients[one.output].defined()) continue;
      roots.push_back(outputs[one.output]);
      tangents.push_back(gradients[one.output]);
    }
    const variable_list found = torch::autograd::grad(roots, leaves, tangents, /*retain_graph=*/true,
                                                      /*create_graph=*/true, /*allow_unused=*/true);
    std::vector<at::Tensor> by_input(kept.needs.size());
    next = 0;
    for (size_t i = 0; i < by_input.size(); ++i) {
      if (kept.needs[i]) by_input[i] = found[next++];
    }
    return by_input;
  }
};

}  // namespace

Backward parse_backward(const nlohmann::json& content) {
  using From = Backward::Saved::From;
  Backward made;
  for (const auto& [from, index] : content.at("saved").get<std::vector<std::pair<std::string, size_t>>>()) {
    if (from != "input" && from != "output" && from != "extra") throw Error("a saved tensor from '" + from + "'");
    made.saved.push_back({from == "input" ? From::input : from == "output" ? From::output : From::extra, index});
    if (made.saved.back().from == From::extra) ++made.extras;
  }
  for (const nlohmann::json& one : content.at("tangents")) {
    Backward::Tangent& tangent = made.tangents.emplace_back();
    tangent.output = one.at("output");
    if (!one.at("strides").is_null()) tangent.strides = one.at("strides").get<std::vector<int64_t>>();
  }
  made.gradients = content.at("gradients").get<std::vector<size_t>>();
  return made;
}

std::vector<at::Tensor> call_with_gradients(const std::shared_ptr<const Differentiable>& function,
                                            c10::ArrayRef<at::Tensor> inputs, const std::vector<bool>& needs,
                                            const std::function<Computed()>& compute) {
  std::vector<at::Tensor> differentiable;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs[i]) differentiable.push_back(inputs[i]);
  }
  const Call call{&function, inputs, &needs, &compute};
  return Compiled::apply(&call, at::TensorList(differentiable));
}

}  // namespace torchcc::detail
