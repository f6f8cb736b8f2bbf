#pragma once

#include <mutex>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

namespace torchcc::detail {

/// Gives the CPU's generator a state for a scope, if there is one, and its own back afterwards.
class KeptGenerator {
 public:
  explicit KeptGenerator(const at::Tensor& state) : generator_(at::detail::getDefaultCPUGenerator()) {
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
