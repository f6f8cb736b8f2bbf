#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include "backward.h"
#include "graphs.h"
#include "library.h"
#include "program.h"

namespace torchcc::detail {

/// Compiled code of a package for calls whose results carry gradients. Its inputs are those of the signature, then
/// weights; what it writes into are weights.
struct TrainingCode final : Differentiable {
  std::string why_not_rerun() const override;
  std::vector<at::Tensor> rerun(std::vector<at::Tensor> inputs) const override;

  /// Whether the code gives the gradients of all inputs that require grad.
  bool gives_gradients_of(c10::ArrayRef<at::Tensor> inputs) const;
  /// Runs the code, and makes its outputs part of autograd's graph. Inputs are in the layout that the code reads.
  static std::vector<at::Tensor> call(const std::shared_ptr<const TrainingCode>& code,
                                      c10::ArrayRef<at::Tensor> inputs);

  std::shared_ptr<const Library> library;
  std::string target;
  std::vector<size_t> weights;     ///< positions in FunctionState::weights, behind the inputs of the signature
  std::vector<bool> has_gradient;  ///< per input, whether the code gives its gradient
  std::vector<size_t> written;     ///< inputs that the code writes into
  bool is_random = false;          ///< the function draws random numbers
  std::shared_ptr<const portable::Program> program;
  std::vector<size_t> program_weights;  ///< positions in FunctionState::weights
  std::unique_ptr<Graphs> graphs;       ///< null without LoadOptions::cuda_graphs

 private:
  bool compute_by_graph(c10::ArrayRef<at::Tensor> inputs, Computed& computed) const;
  Computed compute(c10::ArrayRef<at::Tensor> inputs) const;
};

}  // namespace torchcc::detail
