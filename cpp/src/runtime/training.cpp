#include "training.h"

#include <algorithm>
#include <utility>

#include <ATen/core/ivalue.h>

#include "handles.h"

namespace torchcc::detail {

std::string TrainingCode::why_not_rerun() const {
  if (is_random) return "a function that draws random numbers";
  if (!written.empty()) return "a function that writes into its buffers";
  return "";
}

std::vector<at::Tensor> TrainingCode::rerun(std::vector<at::Tensor> inputs) const {
  const size_t arguments = inputs.size() - weights.size();
  size_t count = 0;
  for (const size_t position : program_weights) count = std::max(count, position + 1);
  std::vector<at::Tensor> by_position(count);  // those that the graph does not use stay undefined
  for (size_t i = 0; i < weights.size(); ++i) by_position[weights[i]] = inputs[arguments + i];
  std::vector<c10::IValue> given;
  for (size_t i = 0; i < arguments; ++i) given.emplace_back(std::move(inputs[i]));
  std::vector<at::Tensor> outputs;
  for (const c10::IValue& result : program->run(std::move(given), by_position, program_weights)) {
    if (result.isNone() || result.isString()) continue;  // none of the signature's outputs
    outputs.push_back(result.isTensor() ? result.toTensor() : at::Tensor());
  }
  return outputs;
}

bool TrainingCode::gives_gradients_of(c10::ArrayRef<at::Tensor> inputs) const {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].requires_grad() && !has_gradient[i]) return false;
  }
  return true;
}

/// False where there is no graph yet, or none can be made.
bool TrainingCode::compute_by_graph(c10::ArrayRef<at::Tensor> inputs, Computed& computed) const {
  if (graphs == nullptr || graphs->is_refused()) return false;
  const size_t arguments = inputs.size() - weights.size();
  std::vector<Graphs::Input> given;
  given.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const bool is_written = std::find(written.begin(), written.end(), i) != written.end();
    given.push_back({&inputs[i], /*is_ready=*/true, is_written, /*is_weight=*/i >= arguments});
  }
  computed.results.resize(library->outputs());
  if (graphs->run(*library, given, computed.results, &computed.lease)) return true;
  computed.results.clear();
  return false;
}

Computed TrainingCode::compute(c10::ArrayRef<at::Tensor> inputs) const {
  Computed computed;
  if (!compute_by_graph(inputs, computed)) {
    Handles handles;
    for (const at::Tensor& input : inputs) handles.push_back(input);
    std::vector<AtenTensorHandle> results(library->outputs());
    handles.run(*library, results.data());
    std::vector<at::Tensor>& outputs = computed.results;
    outputs.reserve(results.size());
    for (size_t i = 0; i < results.size(); ++i) {
      // Code that gives one tensor twice gives one handle twice.
      const auto same = std::find(results.begin(), results.begin() + static_cast<std::ptrdiff_t>(i), results[i]);
      const auto first = static_cast<size_t>(same - results.begin());
      outputs.push_back(first == i ? take(results[i]) : outputs[first].clone());
    }
  }
  for (const size_t input : written) {
    if (!inputs[input].is_inference()) inputs[input].unsafeGetTensorImpl()->bump_version();
  }
  return computed;
}

std::vector<at::Tensor> TrainingCode::call(const std::shared_ptr<const TrainingCode>& code,
                                           c10::ArrayRef<at::Tensor> inputs) {
  std::vector<bool> needs;
  needs.reserve(inputs.size());
  for (const at::Tensor& input : inputs) needs.push_back(input.requires_grad());
  return call_with_gradients(code, inputs, needs, [&] { return code->compute(inputs); });
}

}  // namespace torchcc::detail
