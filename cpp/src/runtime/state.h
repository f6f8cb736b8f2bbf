#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/function.h>
#include <torchcc/package.h>

#include "access.h"
#include "checks.h"
#include "graphs.h"
#include "library.h"
#include "program.h"
#include "training.h"
#include "weights.h"

namespace torchcc::detail {

/// Compiled code that takes some weights as inputs, behind those of the signature.
struct Code {
  std::shared_ptr<const Library> library;
  std::string target;
  std::vector<size_t> weights;  ///< positions in FunctionState::weights
};

struct FunctionState {
  Signature signature;
  Stats stats;
  c10::Device device = c10::Device(c10::kCPU);  ///< where its tensors are, but for those that are on the CPU always
  std::vector<InputCheck> checks;               ///< one per input
  bool has_relations = false;                   ///< see check_relations()
  bool mutates = false;                         ///< some input is written to
  bool converts = false;                        ///< LoadOptions::convert
  bool is_plain = false;                        ///< `library` runs all calls, and takes nothing but the arguments
  std::shared_ptr<const Library> library;       ///< code with weights burnt in; null when there is none
  std::shared_ptr<const Library> library_out;   ///< null when the package has none
  std::vector<size_t> burnt_in;                 ///< weights that are burnt into `library`
  std::vector<size_t> library_weights;          ///< weights that `library` takes, since it writes into them
  Code updatable;                               ///< code that takes all weights; its library is null when there is none
  std::shared_ptr<const portable::Program> program;  ///< the graph; null when the package has none
  std::vector<size_t> program_weights;               ///< the weights that `program` takes
  std::shared_ptr<Weights> weights;                  ///< null without a graph
  bool writes_weights = false;
  /// Code that carries gradients. The first that gives all that a call wants is run: of weights alone is less work.
  std::vector<std::shared_ptr<const TrainingCode>> training;
  mutable std::atomic<int64_t> portable_calls{0};
  mutable std::atomic<const char*> portable_reason{""};
  mutable std::atomic<int64_t> training_calls{0};

  std::unique_ptr<Graphs> graphs;  ///< null without LoadOptions::cuda_graphs

  /// The device of an input or output.
  c10::Device device_of(const Value& value) const {
    return value.device == c10::DeviceType::CPU ? c10::Device(c10::kCPU) : device;
  }
  /// Fills the derived fields from the signature. Throws PackageError when a symbol cannot be bound.
  void prepare(const std::string& origin);
};

/// The compiled code of a package's functions, without their graphs. Throws PackageError.
struct LoadedCode {
  std::shared_ptr<const Library> library;
  Signature signature;
  std::string uncapturable;  ///< why no CUDA graph can be made of it; empty when one can
};
/// `device`: the CPU, or the GPU that functions for GPUs are to run on.
std::vector<LoadedCode> load_code(Archive& archive, c10::Device device);

}  // namespace torchcc::detail
