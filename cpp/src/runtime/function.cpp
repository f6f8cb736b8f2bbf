// What a Function and a Package do in both runtimes, with LibTorch and without; see call.h for the rest.
#include <torchcc/function.h>

#include <algorithm>

#include <torchcc/error.h>
#include <torchcc/package.h>

#include "access.h"
#include "call.h"
#include "message.h"
#include "refusal.h"

namespace torchcc {
namespace detail {
namespace {

void check_output_count(const FunctionState& state, size_t count) {
  const Signature& signature = signature_of(state);
  if (count != signature.outputs.size()) [[unlikely]] {
    refuse_count(signature, signature.outputs, count);
  }
}

}  // namespace

const FunctionState& require(const std::shared_ptr<const FunctionState>& state) {
  if (state == nullptr) throw ArgumentError("an empty torchcc::Function is called: assign one from a package first");
  return *state;
}

}  // namespace detail

const Signature& Function::signature() const { return detail::signature_of(detail::require(state_)); }

Outputs Function::operator()(std::span<const NamedArgument> arguments) const {
  const Signature& own = signature();
  const std::vector<Value>& inputs = own.inputs;
  std::vector<const Argument*> found(inputs.size());
  for (const NamedArgument& argument : arguments) {
    const auto input =
        std::find_if(inputs.begin(), inputs.end(), [&](const Value& one) { return one.name == argument.name; });
    if (input == inputs.end()) detail::refuse_name(own, argument.name);
    const Argument*& entry = found[static_cast<size_t>(input - inputs.begin())];
    if (entry != nullptr) detail::refuse_twice(own, argument.name);
    entry = &argument.value;
  }
  std::vector<Argument> ordered;
  ordered.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (found[i] == nullptr) detail::refuse_missing(own, i);
    ordered.push_back(*found[i]);
  }
  std::vector<Tensor> results = call(ordered);
  std::vector<NamedTensor> outputs;
  outputs.reserve(results.size());
  for (size_t i = 0; i < results.size(); ++i) {
    outputs.emplace_back(own.outputs[i].name, std::move(results[i]));
  }
  return Outputs(std::move(outputs));
}

Outputs Function::operator()(std::initializer_list<NamedArgument> arguments) const {
  return (*this)(std::span<const NamedArgument>(arguments.begin(), arguments.size()));
}

const Tensor& Outputs::operator[](std::string_view name) const {
  std::string names;
  for (const auto& [known, tensor] : values_) {
    if (known == name) return tensor;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw ArgumentError(detail::message("no output '" + std::string(name) + "'",
                                      {{"expected", "one of: " + names}, {"got", std::string(name)}}));
}

const Tensor& Outputs::operator[](size_t position) const {
  if (position < values_.size()) return values_[position].second;
  throw ArgumentError(detail::message("no output " + std::to_string(position),
                                      {{"expected", "a position below " + std::to_string(values_.size())},
                                       {"got", std::to_string(position)},
                                       {"fix", "correct the position, or use the output's name"}}));
}

void Function::set_weight(std::string_view name, const Tensor& tensor) const {
  const NamedTensor one(std::string(name), tensor);
  set_weights({&one, 1});
}

std::vector<Tensor> Function::call(std::span<const Argument> arguments) const {
  std::vector<Tensor> outputs(signature().outputs.size());
  detail::call(*state_, outputs, arguments);
  return outputs;
}

std::vector<Tensor> Function::call(std::initializer_list<Argument> arguments) const {
  return call(std::span<const Argument>(arguments.begin(), arguments.size()));
}

void Function::call_into(std::span<Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call(*state_, outputs, arguments);
}

void Function::call_out(std::span<Tensor> outputs, std::span<const Argument> arguments) const {
  detail::check_output_count(detail::require(state_), outputs.size());
  detail::call_out(*state_, outputs, arguments);
}

const Function& Package::operator[](std::string_view name) const {
  if (state_ == nullptr) throw PackageError("no package is loaded: assign the result of torchcc::load() first");
  std::string names;
  for (const auto& [known, function] : state_->functions) {
    if (known == name) return function;
    names += (names.empty() ? "" : ", ") + known;
  }
  throw PackageError(detail::message(state_->origin + ": no function '" + std::string(name) + "'",
                                     {{"expected", "one of: " + names}, {"got", std::string(name)}}));
}

std::vector<std::string> Package::names() const {
  std::vector<std::string> names;
  if (state_ != nullptr) {
    for (const auto& [name, function] : state_->functions) names.push_back(name);
  }
  return names;
}

}  // namespace torchcc
