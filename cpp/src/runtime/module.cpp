#include <torchcc/module.h>

#include <ostream>
#include <utility>

#include <torchcc/error.h>

#include "message.h"
#include "state.h"

namespace torchcc {
namespace {

/// The submodule that holds a weight, made if it is missing: a name may not have dots in it.
torch::nn::Module& owner_of(torch::nn::Module& root, std::string_view& name) {
  torch::nn::Module* owner = &root;
  for (size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.')) {
    const std::string child(name.substr(0, dot));
    const auto children = owner->named_children();
    owner = children.contains(child) ? children[child].get()
                                     : owner->register_module(child, std::make_shared<torch::nn::Module>(child)).get();
    name.remove_prefix(dot + 1);
  }
  return *owner;
}

}  // namespace

Module::Module(Function function) : torch::nn::Module("torchcc::Module"), function_(std::move(function)) {
  const Signature& signature = function_.signature();
  if (signature.outputs.size() != 1) {
    throw ArgumentError(
        detail::message(signature.name + ": it cannot be a torchcc::Module",
                        {{"signature", signature.str()},
                         {"expected", "one output"},
                         {"got", std::to_string(signature.outputs.size()) + " outputs"},
                         {"fix", "call the function itself, or export a module that returns one tensor"}}));
  }
  const detail::Weights* weights = detail::Access::state(function_)->weights.get();
  if (weights == nullptr) return;
  const auto set = weights->current();
  for (size_t i = 0; i < set->tensors.size(); ++i) {
    std::string_view name = weights->names()[i];
    torch::nn::Module& owner = owner_of(*this, name);
    const at::Tensor& tensor = set->tensors[i];
    if (weights->is_parameter(i)) {
      const bool trains = tensor.is_floating_point() || tensor.is_complex();
      owner.register_parameter(std::string(name), tensor, trains);
    } else {
      owner.register_buffer(std::string(name), tensor);
    }
  }
}

at::Tensor Module::forward(const at::Tensor& input) { return function_(input); }

void Module::pretty_print(std::ostream& stream) const {
  stream << "torchcc::Module(" << function_.signature().str() << ")";
}

}  // namespace torchcc
