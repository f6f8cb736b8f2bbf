#pragma once

#include <cstring>
#include <mutex>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
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

/// Tells whether PyTorch's generator of the CPU, which torch::manual_seed seeds beside all others, has been seeded
/// since this was made. Numbers that are drawn, in other threads too, make no difference. Not seen where it was as
/// after that very seed before.
class SeedWatch {
 public:
  bool was_seeded() const {
    const Seeded now;
    return now.seed != before_.seed || (now.is_new && !before_.is_new);
  }

 private:
  struct Seeded {
    Seeded() {
      at::Generator generator = at::detail::getDefaultCPUGenerator();
      at::Tensor state;
      {
        const std::lock_guard lock(generator.mutex());
        seed = generator.current_seed();
        state = generator.get_state();
      }
      const at::Tensor other = at::detail::createCPUGenerator(seed).get_state();
      is_new = state.nbytes() == other.nbytes() &&
               std::memcmp(state.const_data_ptr(), other.const_data_ptr(), state.nbytes()) == 0;
    }
    uint64_t seed;
    bool is_new;  ///< nothing has been drawn since
  };

  Seeded before_;
};

}  // namespace torchcc::detail
