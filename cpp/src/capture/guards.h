#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torchcc/detail/core.h>
#include <torchcc/detail/leaves.h>

#include "closure.h"

namespace torchcc::detail {

/// PyTorch's settings that change what operators do: grad and inference mode, autocast, default dtype, deterministic
/// algorithms, precision of matrix products, the current GPU; in one word.
uint64_t environment();

/// What a word of environment() says, for people.
std::string environment_difference(uint64_t before, uint64_t after);

/// What a call has to be for a variant to fit.
class Guards {
 public:
  Guards(const Leaves& arguments, std::vector<int64_t> modes, uint64_t environment, std::vector<uint64_t> closure);

  /// Whether both say the same of everything but captured variables.
  bool same_call(const Guards& other) const;
  /// The same but for strides of the arguments, and for sizes of 2 and above: 0 and 1 are special to PyTorch's
  /// operators.
  bool same_but_for_sizes(const Guards& other) const;
  const std::vector<uint64_t>& closure() const { return closure_; }

  bool fit(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
           const ClosureWatch& watch) const {
    return fit_but_for_closure(arguments, modes, environment) && watch.is(closure_);
  }
  bool fit_but_for_closure(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment) const;
  /// Likewise.
  bool fit_but_for_sizes(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
                         const ClosureWatch& watch) const;
  /// Of the sizes of all tensors: calls that fit have the same one.
  uint64_t hash() const { return hash_; }
  static uint64_t hash_of(const Leaves& arguments);
  /// The first thing that does not fit, for people; empty when all does.
  std::string misfit(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
                     const ClosureWatch& watch) const;
  /// "float32[8, 784], 3, true".
  const std::string& text() const { return text_; }

 private:
  bool fit_settings(const Leaves& arguments, uint64_t environment) const;

  std::vector<int64_t> words_;  // per tensor: number of words, flags, then as Trace::values without the offset
  size_t tensors_ = 0;
  uint64_t hash_ = 0;
  std::vector<int64_t> constants_;  // of the arguments
  std::vector<int64_t> modes_;      // of the module
  uint64_t environment_ = 0;
  std::vector<uint64_t> closure_;
  std::string text_;
};

}  // namespace torchcc::detail
