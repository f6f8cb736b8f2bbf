#pragma once

#include <mutex>
#include <vector>

#include <torchcc/standalone/model.h>

#include "checks.h"

namespace torchcc::detail {

struct FunctionState {
  Signature signature;
  Stats stats;
  std::vector<InputCheck> checks;  ///< one per input
  bool has_relations = false;      ///< see check_relations()
  bool mutates = false;            ///< some input is written to
  bool is_exclusive = false;       ///< see FunctionTable
  generated::Run run = nullptr;
  std::vector<Tensor> constants;  ///< over the file of weights
  std::vector<NamedTensor> states;
  mutable std::mutex writing;  ///< held by calls of a function with states
};

/// Whether memory is a model's weights, which stay as they are.
bool is_constant(const void* data);

/// Says that the program has one more function that must run alone.
void count_exclusive();

}  // namespace torchcc::detail
