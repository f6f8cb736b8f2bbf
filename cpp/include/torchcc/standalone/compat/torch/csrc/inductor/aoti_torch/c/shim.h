#pragma once

// Stands in for PyTorch's header of this name, which declares all of libtorch's C functions, where generated kernels
// are compiled without libtorch. Kernels need its types and its check of values.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Float8_e4m3fnuz.h>
#include <torch/headeronly/util/Float8_e5m2.h>
#include <torch/headeronly/util/Float8_e5m2fnuz.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/complex.h>

namespace torchcc::generated {

/// Throws std::runtime_error with the message of a kernel's check, or else its condition.
[[noreturn]] void fail_check(const char* condition, const char* message = nullptr, ...);

}  // namespace torchcc::generated

#ifndef AOTI_TORCH_CHECK
#define AOTI_TORCH_CHECK(condition, ...) \
  if (!(condition)) ::torchcc::generated::fail_check(#condition __VA_OPT__(, ) __VA_ARGS__)
#endif
