// What the tests on a GPU share.
#pragma once

#include <cstdlib>
#include <filesystem>

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDAStream.h>

#include "compare.h"

namespace test {

inline std::filesystem::path packaged(const char* name) {
  return std::filesystem::path(std::getenv("TORCHCC_TEST_FILES")) / name;
}

inline at::Tensor random(at::IntArrayRef sizes, c10::ScalarType dtype = at::kFloat) {
  return at::randn(sizes, at::TensorOptions().device(at::kCUDA).dtype(dtype));
}

inline at::Tensor random_on(int gpu, at::IntArrayRef sizes) {
  return at::randn(sizes, at::TensorOptions().device(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(gpu))));
}

inline int current_gpu() { return c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice().index(); }

/// The function `forward` of tests/cuda/packages.py, operator by operator, with its weights.
inline at::Tensor expected(const torchcc::Function& function, const at::Tensor& x) {
  const auto weight = [&](const std::string& wanted) {
    for (const auto& [name, tensor] : function.weights()) {
      if (name == wanted) return tensor;
    }
    throw std::runtime_error("no weight " + wanted);
  };
  const at::Tensor hidden = at::relu(at::linear(x, weight("first.weight"), weight("first.bias")));
  return at::linear(hidden, weight("second.weight"), weight("second.bias"));
}

inline void synchronize() { c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(0); }

/// A stream of its own.
inline c10::Stream new_stream() { return c10::cuda::getStreamFromPool(false, 0).unwrap(); }

/// Bytes of GPU memory: those of tensors, and those that PyTorch has taken from the GPU.
inline std::pair<int64_t, int64_t> gpu_memory() {
  const auto stats = c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(0);
  return {stats.allocated_bytes[0].current, stats.reserved_bytes[0].current};
}

}  // namespace test
