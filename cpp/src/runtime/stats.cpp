// What a Function knows beside its calls, with LibTorch.
#include <torchcc/function.h>

#include "call.h"
#include "refusal.h"
#include "state.h"

namespace torchcc {

const Signature& detail::signature_of(const FunctionState& state) { return state.signature; }

Stats Function::stats() const {
  const detail::FunctionState& state = detail::require(state_);
  Stats stats = state.stats;
  stats.portable_calls = state.portable_calls;
  stats.portable_reason = state.portable_reason;
  stats.training_calls = state.training_calls;
  const auto add = [&](const detail::Graphs* graphs) {
    if (graphs == nullptr) return;
    stats.graph_captures += graphs->captures();
    stats.graph_calls += graphs->replays();
    stats.graph_backwards += graphs->backward_replays();
    if (stats.graph_reason.empty()) stats.graph_reason = graphs->reason();
  };
  add(state.graphs.get());
  for (const auto& code : state.training) add(code->graphs.get());
  return stats;
}

std::vector<NamedTensor> Function::weights() const {
  const detail::FunctionState& state = detail::require(state_);
  std::vector<NamedTensor> named;
  if (state.weights == nullptr) return named;
  const auto set = state.weights->current();
  for (size_t i = 0; i < set->tensors.size(); ++i) named.emplace_back(state.weights->names()[i], set->tensors[i]);
  return named;
}

void Function::set_weights(std::span<const NamedTensor> weights) const {
  const detail::FunctionState& state = detail::require(state_);
  if (state.weights == nullptr) detail::refuse_weights(state.signature);
  state.weights->replace(state.signature.name, weights);
}

}  // namespace torchcc
