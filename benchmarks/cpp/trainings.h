#pragma once

#include <functional>
#include <memory>
#include <string>

#include <torch/torch.h>

#include "models.h"

namespace benchmarks {

/// A network, written as users of LibTorch write it, and its optimiser.
struct Training {
  Forward forward;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
};

/// One of benchmarks/trainings.py, with initial weights from there.
Training make_training(const std::string& name, const Weights& weights);

}  // namespace benchmarks
