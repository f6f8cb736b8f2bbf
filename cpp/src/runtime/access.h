#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/function.h>
#include <torchcc/package.h>

namespace torchcc::detail {

struct PackageState {
  std::string origin;
  std::vector<std::pair<std::string, Function>> functions;
};

/// The insides of the handles.
struct Access {
  static Function function(std::shared_ptr<const FunctionState> state) {
    Function function;
    function.state_ = std::move(state);
    return function;
  }
  static const std::shared_ptr<const FunctionState>& state(const Function& function) { return function.state_; }
  static Package package(std::shared_ptr<const PackageState> state) {
    Package package;
    package.state_ = std::move(state);
    return package;
  }
};

}  // namespace torchcc::detail
