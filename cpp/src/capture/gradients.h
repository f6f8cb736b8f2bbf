#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "artifact.h"
#include "backward.h"
#include "recording.h"

namespace torchcc::detail {

/// A recording that needs gradients, with code for both directions.
struct Training final : Differentiable {
  Training(std::shared_ptr<const Recording> of, const Artifact& code);

  std::string why_not_rerun() const override;
  std::vector<at::Tensor> rerun(std::vector<at::Tensor> inputs) const override;

  std::shared_ptr<const Recording> recording;
  std::vector<bool> needs;  ///< per input, whether it requires grad
};

}  // namespace torchcc::detail
