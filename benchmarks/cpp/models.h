#pragma once

#include <functional>
#include <map>
#include <string>

#include <torch/torch.h>
#include <torchcc/compile_options.h>

namespace benchmarks {

using Weights = std::map<std::string, at::Tensor>;
using Forward = std::function<at::Tensor(const at::Tensor&)>;

/// A model, written as users of LibTorch write it, twice: run as it is, and through torchcc::compile. Both share their
/// weights.
struct Model {
  Forward eager;
  Forward compiled;
  std::function<torchcc::CompileStats()> stats;  ///< what the compiled one ran
  std::function<void()> wait;                    ///< until nothing is being compiled
};

/// Copies the values of parameters by their names.
void load(torch::nn::Module& module, const Weights& weights);

/// One of benchmarks/models.py, with weights from there.
Model make_model(const std::string& name, const Weights& weights);

}  // namespace benchmarks
