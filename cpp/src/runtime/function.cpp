#include <torchcc/function.h>

#include <algorithm>

#include <torchcc/error.h>

#include "call.h"
#include "message.h"
#include "refusal.h"
#include "state.h"

namespace torchcc {
namespace detail {
namespace {

const FunctionState& require(const std::shared_ptr<const FunctionState>& state) {
  if (state == nullptr) throw ArgumentError("an empty torchcc::Function is called: assign one from a package first");
  return *state;
}

void check_output_count(const FunctionState& state, size_t count) {
  if (count != state.signature.outputs.size()) [[unlikely]] {
    refuse_count(state.signature, state.signature.outputs, count);
  }
}

}  // namespace
}  // namespace detail

const Signature& Function::signature() const { return detail::require(state_).signature; }

Stats Function::stats() const {
  const detail::FunctionState& state = detail::require(state_);
  Stats stats = state.stats;
  stats.portable_calls = state.portable_calls;
  stats.portable_reason = state.portable_reason;
  stats.training_calls = state.training_calls;
  if (state.graphs != nullptr) {
    stats.graph_captures = state.graphs->captures();
    stats.graph_calls = state.graphs->replays();
    stats.graph_reason = state.graphs->reason();
  }
  return stats;
}

Outputs Function::operator()(std::span<const NamedArgument> arguments) const {
  const detail::FunctionState& state = detail::require(state_);
  const std::vector<Value>& inputs = state.signature.inputs;
  std::vector<const Argument*> found(inputs.size());
  for (const NamedArgument& argument : arguments) {
    const auto input =
        std::find_if(inputs.begin(), inputs.end(), [&](const Value& one) { return one.name == argument.name; });
    if (input == inputs.end()) detail::refuse_name(state.signature, argument.name);
    const Argument*& entry = found[static_cast<size_t>(input - inputs.begin())];
    if (entry != nullptr) detail::refuse_twice(state.signature, argument.name);
    entry = &argument.value;
  }
  std::vector<Argument> ordered;
  ordered.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (found[i] == nullptr) detail::refuse_missing(state.signature, i);
    ordered.push_back(*found[i]);
  }
  std::vector<at::Tensor> results = call(ordered);
  std::vector<NamedTensor> outputs;
  outputs.reserve(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    outputs.emplace_back(state.signature.outputs[i].name, std::move(results[i]));
  }
  return Outputs(std::move(outputs));
}

Outputs Function::operator()(std::initializer_list<NamedArgument> arguments) const {
  return (*this)(std::span<const NamedArgument>(arguments.begin(), arguments.size()));
}

const at::Tensor& Outputs::operator[](std::string_view name) const {
  std::string names;
  for (const auto& [known, tensor] : values_) {
    if (known == name) return tensor;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw ArgumentError(detail::message("no output '" + std::string(name) + "'",
                                      {{"expected", "one of: " + names}, {"got", std::string(name)}}));
}

const at::Tensor& Outputs::operator[](size_t position) const {
  if (position < values_.size()) return values_[position].second;
  throw ArgumentError(detail::message("no output " + std::to_string(position),
                                      {{"expected", "a position below " + std::to_string(values_.size())},
                                       {"got", std::to_string(position)},
                                       {"fix", "correct the position, or use the output's name"}}));
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

void Function::set_weight(std::string_view name, const at::Tensor& tensor) const {
  const NamedTensor one(std::string(name), tensor);
  set_weights({&one, 1});
}

std::vector<at::Tensor> Function::call(std::span<const Argument> arguments) const {
  std::vector<at::Tensor> outputs(signature().outputs.size());
  detail::call(*state_, outputs, arguments);
  return outputs;
}

std::vector<at::Tensor> Function::call(std::initializer_list<Argument> arguments) const {
  return call(std::span<const Argument>(arguments.begin(), arguments.size()));
}

void Function::call_into(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call(*state_, outputs, arguments);
}

void Function::call_out(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call_out(*state_, outputs, arguments);
}

}  // namespace torchcc
