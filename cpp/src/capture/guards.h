#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torchcc/detail/core.h>
#include <torchcc/detail/leaves.h>

namespace torchcc::detail {

/// PyTorch's settings that change what operators do: grad and inference mode, autocast, default dtype, deterministic
/// algorithms, precision of matrix products; in one word.
uint64_t environment();

/// What a word of environment() says, for people.
std::string environment_difference(uint64_t before, uint64_t after);

/// The C++ variables that a lambda captures, as far as they can be seen without knowing its type: the words of the
/// closure, and for each that is an address of memory that stays mapped (the stacks, the program's data, the heap), the
/// word there. So a captured int, bool, tensor handle or pointer is seen to change, whether it is captured by value or
/// by reference; what lies behind further pointers is not seen.
class ClosureWatch {
 public:
  ClosureWatch() = default;
  explicit ClosureWatch(ClosureBytes closure);

  /// The watched words as they are now.
  std::vector<uint64_t> read() const;
  /// Whether they are what read() gave earlier. Reads nothing but these words.
  bool is(const std::vector<uint64_t>& earlier) const;

 private:
  struct Place {
    const std::byte* address;
    uint32_t size;
  };
  std::vector<Place> places_;
};

/// What a call has to be for a variant to fit.
class Guards {
 public:
  Guards(const Leaves& arguments, std::vector<int64_t> modes, uint64_t environment, std::vector<uint64_t> closure);

  /// Whether the same calls fit both.
  bool operator==(const Guards& other) const;

  bool fit(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
           const ClosureWatch& watch) const;
  /// The first thing that does not fit, for people; empty when all does.
  std::string misfit(const Leaves& arguments, c10::ArrayRef<int64_t> modes, uint64_t environment,
                     const ClosureWatch& watch) const;
  /// "float32[8, 784], 3, true".
  const std::string& text() const { return text_; }

 private:
  std::vector<int64_t> words_;  // per tensor: number of words, flags, then as Trace::values without the offset
  size_t tensors_ = 0;
  std::vector<int64_t> constants_;  // of the arguments
  std::vector<int64_t> modes_;      // of the module
  uint64_t environment_ = 0;
  std::vector<uint64_t> closure_;
  std::string text_;
};

}  // namespace torchcc::detail
