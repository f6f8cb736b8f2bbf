// GPUs, seen through the interfaces that every LibTorch has: one source for builds with CUDA and without.
#include "device.h"

#include <dlfcn.h>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torchcc/error.h>

#include "message.h"

namespace torchcc::detail {

std::string why_no_cuda() {
  if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA)) return "this program's LibTorch was built or linked without CUDA";
  if (c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() == 0) return "no GPU was found";
  return "";
}

bool has_gpu() {
  if (!c10::impl::hasDeviceGuardImpl(c10::kCUDA)) return false;
  static const bool found = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() != 0;
  return found;
}

c10::Device current_gpu() { return c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice(); }

c10::Device cuda_device(int index) {
  const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
  const int count = cuda.deviceCount();
  if (index < -1 || index >= count) {
    throw ArgumentError(message("LoadOptions::device is no GPU of this machine",
                                {{"expected", "-1 for the current one, or 0 to " + std::to_string(count - 1)},
                                 {"got", std::to_string(index)},
                                 {"fix", "correct the number; CUDA_VISIBLE_DEVICES hides GPUs"}}));
  }
  return index == -1 ? cuda.getDevice() : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

namespace {

// The driver's own interface, which is stable and needs no header: CUDA's headers may be missing where LibTorch with
// CUDA is not.
template <class Call>
Call driver_call(const char* name) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);
  return driver == nullptr ? nullptr : reinterpret_cast<Call>(dlsym(driver, name));
}

}  // namespace

std::string cuda_architecture(c10::Device device) {
  constexpr int kMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  constexpr int kMinor = 76;
  constexpr const char* kUnknown = "unknown";
  const auto init = driver_call<int (*)(unsigned)>("cuInit");
  const auto get = driver_call<int (*)(int*, int)>("cuDeviceGet");
  const auto ask = driver_call<int (*)(int*, int, int)>("cuDeviceGetAttribute");
  int handle = 0;
  int major = 0;
  int minor = 0;
  const bool known = init != nullptr && get != nullptr && ask != nullptr && init(0) == 0 &&
                     get(&handle, device.index()) == 0 && ask(&major, kMajor, handle) == 0 &&
                     ask(&minor, kMinor, handle) == 0;
  return known ? "sm" + std::to_string(major) + std::to_string(minor) : kUnknown;
}

void* current_stream(c10::Device device) {
  const c10::impl::VirtualGuardImpl cuda(device.type());
  return cuda.getStreamNativeHandle(cuda.getStream(device));
}

bool is_capturing(c10::Device device) {
  static const auto ask = driver_call<int (*)(void*, int*)>("cuStreamIsCapturing");
  int status = 0;
  // An error means that another stream is being recorded in a way that forbids to use this one.
  return ask != nullptr && (ask(current_stream(device), &status) != 0 || status != 0);
}

void* make_stream(c10::Device device) {
  constexpr unsigned kNonBlocking = 1;  // CU_STREAM_NON_BLOCKING
  const c10::DeviceGuard guard(device);
  const auto create = driver_call<int (*)(void**, unsigned)>("cuStreamCreate");
  void* stream = nullptr;
  if (create == nullptr || create(&stream, kNonBlocking) != 0) throw Error("CUDA gives no new stream");
  return stream;
}

int64_t current_stream_id(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).id();
}

bool is_aligned(const at::Tensor& tensor) {
  constexpr uintptr_t kAlignment = 16;
  return !tensor.is_cuda() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0;
}

at::Tensor aligned(const at::Tensor& tensor) {
  if (is_aligned(tensor) || tensor.numel() == 0) return tensor;
  int64_t length = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) length += (tensor.size(d) - 1) * tensor.stride(d);
  const at::Tensor memory = tensor.detach().as_strided({length}, {1}, tensor.storage_offset()).clone();
  return memory.as_strided(tensor.sizes(), tensor.strides(), 0);
}

}  // namespace torchcc::detail
