#pragma once

#include <mutex>
#include <utility>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace torchcc::detail {

/// Gives a generator a state for a scope, if there is one, and its own back afterwards.
class KeptGenerator {
 public:
  KeptGenerator(at::Generator generator, const at::Tensor& state) : generator_(std::move(generator)) {
    if (!state.defined()) return;
    const std::lock_guard lock(generator_.mutex());
    before_ = generator_.get_state();
    generator_.set_state(state);
  }
  ~KeptGenerator() {
    if (!before_.defined()) return;
    const std::lock_guard lock(generator_.mutex());
    generator_.set_state(before_);
  }
  KeptGenerator(const KeptGenerator&) = delete;
  KeptGenerator& operator=(const KeptGenerator&) = delete;

 private:
  at::Generator generator_;
  at::Tensor before_;
};

}  // namespace torchcc::detail
