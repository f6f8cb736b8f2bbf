#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/function.h>
#include <torchcc/package.h>

#include "library.h"

namespace torchcc::detail {

/// A size of an input as a call checks it, decided once when the function is bound.
struct SizeCheck {
  enum class Kind : uint8_t { number, bind, same, expression };
  Kind kind = Kind::number;
  int64_t value = 0;  ///< the number, or the position of the symbol
};

struct InputCheck {
  c10::ScalarType dtype = c10::ScalarType::Float;
  c10::DeviceType device = c10::DeviceType::CPU;
  bool is_number = false;
  std::vector<SizeCheck> sizes;
};

struct FunctionState {
  Signature signature;
  Stats stats;
  std::vector<InputCheck> checks;  ///< one per input
  bool has_expressions = false;    ///< some input size is an expression of symbols
  bool mutates = false;            ///< some input is written to
  std::shared_ptr<const Library> library;
  std::shared_ptr<const Library> library_out;  ///< null when the package has none

  /// Fills the derived fields from the signature. Throws PackageError when a symbol cannot be bound.
  void prepare(const std::string& origin);
};

struct PackageState {
  std::string origin;
  std::vector<std::pair<std::string, Function>> functions;
};

struct Access {
  static Function function(std::shared_ptr<const FunctionState> state) {
    Function function;
    function.state_ = std::move(state);
    return function;
  }
  static const std::shared_ptr<const Library>& library(const Function& function) { return function.state_->library; }
  static Package package(std::shared_ptr<const PackageState> state) {
    Package package;
    package.state_ = std::move(state);
    return package;
  }
};

}  // namespace torchcc::detail
