#pragma once

// What the code that Inductor generates calls, without libtorch: names, types and meaning are those of PyTorch's own
// torch/csrc/inductor/aoti_runtime and aoti_torch/c/shim.h. They are C++ functions in a namespace of ours, so that a
// process that has libtorch too keeps its own. For generated sources only; nothing here is for people to call.

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <torchcc/standalone/model.h>
#include <torchcc/tensor.h>

#define AOTI_NOINLINE [[gnu::noinline]]
// The functions below throw where something is wrong, and else return 0.
#define AOTI_TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)
#define CACHE_TORCH_DTYPE(name) \
  [[maybe_unused]] static constexpr int32_t cached_torch_dtype_##name = aoti_torch_dtype_##name()
#define CACHE_TORCH_DEVICE(name) \
  [[maybe_unused]] static constexpr int32_t cached_torch_device_type_##name = aoti_torch_device_type_##name()
#define CACHE_TORCH_LAYOUT(name) \
  [[maybe_unused]] static constexpr int32_t cached_torch_layout_##name = aoti_torch_layout_##name()
#define CACHE_TORCH_MEMORY_FORMAT(name) \
  [[maybe_unused]] static constexpr int32_t cached_torch_memory_format_##name = aoti_torch_memory_format_##name()

namespace torchcc::generated {

using AtenTensorHandle = Tensor*;
using AOTITorchError = int32_t;
using DeviceStreamType = void*;
using AOTIProxyExecutorHandle = void*;

constexpr int32_t aoti_torch_device_type_cpu() { return 0; }
constexpr int32_t aoti_torch_layout_strided() { return 0; }
constexpr int32_t aoti_torch_memory_format_contiguous_format() { return 0; }
constexpr int32_t aoti_torch_memory_format_preserve_format() { return 1; }

#define TORCHCC_DTYPE(name, scalar) \
  constexpr int32_t aoti_torch_dtype_##name() { return static_cast<int32_t>(ScalarType::scalar); }
TORCHCC_DTYPE(uint8, Byte)
TORCHCC_DTYPE(int8, Char)
TORCHCC_DTYPE(int16, Short)
TORCHCC_DTYPE(int32, Int)
TORCHCC_DTYPE(int64, Long)
TORCHCC_DTYPE(uint16, UInt16)
TORCHCC_DTYPE(uint32, UInt32)
TORCHCC_DTYPE(uint64, UInt64)
TORCHCC_DTYPE(float16, Half)
TORCHCC_DTYPE(bfloat16, BFloat16)
TORCHCC_DTYPE(float32, Float)
TORCHCC_DTYPE(float64, Double)
TORCHCC_DTYPE(bool, Bool)
#undef TORCHCC_DTYPE

AOTITorchError aoti_torch_empty_strided(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t device_type, int32_t device_index, AtenTensorHandle* made);
AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle self, int64_t rank, const int64_t* sizes,
                                              const int64_t* strides, int64_t offset, AtenTensorHandle* made);
AOTITorchError aoti_torch__alloc_from_pool(AtenTensorHandle self, int64_t offset_bytes, int32_t dtype, int64_t rank,
                                           const int64_t* sizes, const int64_t* strides, AtenTensorHandle* made);
AOTITorchError aoti_torch_as_strided(AtenTensorHandle self, const int64_t* sizes, const int64_t* strides,
                                     AtenTensorHandle* made);
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle self, AtenTensorHandle* made);
AOTITorchError aoti_torch_new_uninitialized_tensor(AtenTensorHandle* made);
AOTITorchError aoti_torch_assign_tensors(AtenTensorHandle source, AtenTensorHandle target);
AOTITorchError aoti_torch_assign_tensors_out(AtenTensorHandle source, AtenTensorHandle* made);
AOTITorchError aoti_torch_clone(AtenTensorHandle self, AtenTensorHandle* made);
AOTITorchError aoti_torch_clone_preserve_strides(AtenTensorHandle self, AtenTensorHandle* made);
AOTITorchError aoti_torch_copy_(AtenTensorHandle self, AtenTensorHandle source, int32_t non_blocking);
AOTITorchError aoti_torch_zero_(AtenTensorHandle self);
inline AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle self) {
  delete_handle(self);
  return 0;
}

inline AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle self, void** found) {
  *found = self->data_ptr();
  return 0;
}
inline AOTITorchError aoti_torch_get_dim(AtenTensorHandle self, int64_t* found) {
  *found = self->dim();
  return 0;
}
inline AOTITorchError aoti_torch_get_numel(AtenTensorHandle self, int64_t* found) {
  *found = self->numel();
  return 0;
}
inline AOTITorchError aoti_torch_get_size(AtenTensorHandle self, int64_t dimension, int64_t* found) {
  *found = self->size(dimension);
  return 0;
}
inline AOTITorchError aoti_torch_get_stride(AtenTensorHandle self, int64_t dimension, int64_t* found) {
  *found = self->stride(dimension);
  return 0;
}
inline AOTITorchError aoti_torch_get_sizes(AtenTensorHandle self, int64_t** found) {
  *found = const_cast<int64_t*>(self->sizes().data());
  return 0;
}
inline AOTITorchError aoti_torch_get_strides(AtenTensorHandle self, int64_t** found) {
  *found = const_cast<int64_t*>(self->strides().data());
  return 0;
}
inline AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle, int64_t* found) {
  *found = 0;  // a view here begins where its data does
  return 0;
}
inline AOTITorchError aoti_torch_get_dtype(AtenTensorHandle self, int32_t* found) {
  *found = static_cast<int32_t>(self->scalar_type());
  return 0;
}
inline AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* found) {
  *found = aoti_torch_device_type_cpu();
  return 0;
}
inline AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* found) {
  *found = 0;
  return 0;
}

#define TORCHCC_ITEM(name, type)                                                                 \
  inline AOTITorchError aoti_torch_item_##name(AtenTensorHandle self, type* found) {             \
    *found = self->item<type>();                                                                 \
    return 0;                                                                                    \
  }                                                                                              \
  inline AOTITorchError aoti_torch_scalar_to_tensor_##name(type value, AtenTensorHandle* made) { \
    aoti_torch_empty_strided(0, nullptr, nullptr, aoti_torch_dtype_##name(), 0, 0, made);        \
    *(*made)->data_ptr<type>() = value;                                                          \
    return 0;                                                                                    \
  }
TORCHCC_ITEM(float32, float)
TORCHCC_ITEM(float64, double)
TORCHCC_ITEM(uint8, uint8_t)
TORCHCC_ITEM(uint16, uint16_t)
TORCHCC_ITEM(uint32, uint32_t)
TORCHCC_ITEM(uint64, uint64_t)
TORCHCC_ITEM(int8, int8_t)
TORCHCC_ITEM(int16, int16_t)
TORCHCC_ITEM(int32, int32_t)
TORCHCC_ITEM(int64, int64_t)
TORCHCC_ITEM(bool, bool)
#undef TORCHCC_ITEM

/// Owns a tensor object.
class RAIIAtenTensorHandle {
 public:
  RAIIAtenTensorHandle() = default;
  RAIIAtenTensorHandle(AtenTensorHandle handle) : handle_(handle) {}
  RAIIAtenTensorHandle(RAIIAtenTensorHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  RAIIAtenTensorHandle& operator=(RAIIAtenTensorHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~RAIIAtenTensorHandle() { reset(); }

  operator AtenTensorHandle() const { return handle_; }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  void reset() {
    if (handle_ != nullptr) delete_handle(std::exchange(handle_, nullptr));
  }
  void* data_ptr() const { return handle_->data_ptr(); }
  int64_t size(int64_t dimension) const { return handle_->size(dimension); }
  int64_t stride(int64_t dimension) const { return handle_->stride(dimension); }
  int64_t storage_offset() const { return 0; }
  const int64_t* sizes() const { return handle_->sizes().data(); }
  const int64_t* strides() const { return handle_->strides().data(); }

 private:
  AtenTensorHandle handle_ = nullptr;
};

/// A weight, which belongs to the function.
class ConstantHandle {
 public:
  explicit ConstantHandle(const Tensor& tensor) : handle_(const_cast<Tensor*>(&tensor)) {}
  operator AtenTensorHandle() const { return handle_; }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle tensor() const { return handle_; }
  void* data_ptr() const { return handle_->data_ptr(); }
  const int64_t* sizes() const { return handle_->sizes().data(); }
  const int64_t* strides() const { return handle_->strides().data(); }

 private:
  AtenTensorHandle handle_;
};

/// The weights of a function, by position.
class Constants {
 public:
  explicit Constants(const Tensor* tensors) : tensors_(tensors) {}
  ConstantHandle at(size_t position) const { return ConstantHandle(tensors_[position]); }

 private:
  const Tensor* tensors_;
};

/// The inputs of a call: what the code does not take is given back when the call is over, also by an exception.
class Inputs {
 public:
  Inputs(AtenTensorHandle* handles, size_t count) : handles_(handles), count_(count) {}
  Inputs(Inputs&& other) noexcept : handles_(other.handles_), count_(std::exchange(other.count_, 0)) {}
  ~Inputs() { clear(); }
  RAIIAtenTensorHandle operator[](size_t position) { return {std::exchange(handles_[position], nullptr)}; }
  void clear() {
    for (size_t i = 0; i < count_; ++i) delete_handle(std::exchange(handles_[i], nullptr));
    count_ = 0;
  }

 private:
  AtenTensorHandle* handles_;
  size_t count_;
};

inline Inputs steal_from_raw_handles_to_raii_handles(AtenTensorHandle* handles, size_t count) {
  return {handles, count};
}

inline AtenTensorHandle reinterpret_tensor_wrapper(AtenTensorHandle self, int64_t rank, const int64_t* sizes,
                                                   const int64_t* strides, int64_t offset) {
  AtenTensorHandle made = nullptr;
  aoti_torch__reinterpret_tensor(self, rank, sizes, strides, offset, &made);
  return made;
}

inline void* get_data_ptr_wrapper(AtenTensorHandle tensor) { return tensor->data_ptr(); }
inline void* get_data_ptr_wrapper(const ConstantHandle& constant) { return constant.data_ptr(); }
inline AtenTensorHandle unwrap_raii_handle_if_needed(const RAIIAtenTensorHandle& handle) { return handle.get(); }
inline const ConstantHandle& unwrap_raii_handle_if_needed(const ConstantHandle& handle) { return handle; }
inline RAIIAtenTensorHandle wrap_with_raii_handle_if_needed(AtenTensorHandle handle) { return {handle}; }
inline RAIIAtenTensorHandle wrap_with_raii_handle_if_needed(RAIIAtenTensorHandle&& handle) { return std::move(handle); }

/// Zeroed memory from the thread's store, for a kernel.
void* allocate_scratch(size_t bytes);
void free_scratch(void* scratch) noexcept;

struct ScratchDeleter {
  void operator()(void* scratch) const noexcept { free_scratch(scratch); }
};

/// A buffer of a kernel's own, in place of std::unique_ptr<T[]>.
template <class T>
using Scratch = std::unique_ptr<T[], ScratchDeleter>;

template <class T>
  requires std::is_trivially_destructible_v<T>
Scratch<T> make_scratch(size_t count) {
  return Scratch<T>(static_cast<T*>(allocate_scratch(count * sizeof(T))));
}

template <class T>
T& temporary_reference(T&& value) {
  return value;
}

/// Throws std::runtime_error when what a library gave is laid out in another way than the code goes on with.
void assert_size_stride(AtenTensorHandle tensor, std::initializer_list<int64_t> sizes,
                        std::initializer_list<int64_t> strides, const char* name = nullptr);

[[maybe_unused]] constexpr int64_t align(int64_t bytes) { return (bytes + 63) & -64; }

template <class T>
RAIIAtenTensorHandle scalar_to_tensor_handle(T value) {
  AtenTensorHandle made = nullptr;
  aoti_torch_empty_strided(0, nullptr, nullptr, static_cast<int32_t>(detail::scalar_type<T>()), 0, 0, &made);
  *made->template data_ptr<T>() = value;
  return {made};
}

}  // namespace torchcc::generated
