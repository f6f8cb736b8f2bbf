// What the tests of torchcc::compile on a GPU share.
#pragma once

#include <ATen/core/grad_mode.h>
#include <torchcc/compile.h>

#include "gpu.h"

namespace test {

inline torchcc::CompileOptions replayed(const char* name) {
  return {.mode = torchcc::CompileMode::replay, .name = name, .allow_slower = true};
}

inline torchcc::CompileOptions lazily(const char* name) {
  return {.mode = torchcc::CompileMode::lazy, .name = name, .allow_slower = true};
}

/// Calls that are enough for compiled code to run, and how many have to run it: two are recorded, and one more where
/// words beside captured variables have changed.
inline constexpr int kCalls = 6, kLeast = 3;

/// Compares calls of a compiled function with those of the function itself, on arguments that are made for each.
template <class Compiled, class Function, class Make>
void compare(const Compiled& compiled, const Function& function, const Make& make, int calls = kCalls) {
  for (int i = 0; i < calls; ++i) {
    const at::Tensor x = make();
    BOOST_TEST(close(compiled(x), function(x)), "call " << i);
  }
}

/// Fills the GPU's memory, but for what two of the smallest blocks take.
inline std::vector<at::Tensor> fill_memory() {
  std::vector<at::Tensor> blocks;
  synchronize();
  c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
  for (const int64_t size : {int64_t{1} << 30, int64_t{1} << 25}) {
    try {
      while (true) blocks.push_back(at::empty({size}, at::TensorOptions().device(at::kCUDA).dtype(at::kByte)));
    } catch (const c10::OutOfMemoryError&) {
    }
  }
  for (int i = 0; i < 2; ++i) blocks.pop_back();
  return blocks;
}

}  // namespace test
