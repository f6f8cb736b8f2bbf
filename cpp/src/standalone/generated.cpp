// The memory functions that generated code calls. Operators are not among them: what has no kernel in the generated
// code is refused when it is generated.
#include <torchcc/standalone/generated.h>

#include <array>
#include <cstring>
#include <stdexcept>

#include <torchcc/error.h>

#include "arena.h"

namespace torchcc::generated {

[[noreturn]] void fail_check(const char* condition, const char* message, ...);  // for kernels, see compat/

namespace {

IntArrayRef view(const int64_t* values, int64_t rank) { return {values, static_cast<size_t>(rank)}; }

/// Bytes that a tensor of these sizes and strides reaches over.
size_t reach(IntArrayRef sizes, IntArrayRef strides, size_t element) {
  int64_t last = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return 0;
    last += (sizes[d] - 1) * strides[d];
  }
  return static_cast<size_t>(last + 1) * element;
}

void make(Tensor& tensor, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype) {
  if (sizes.size() > Tensor::kMaxRank) {
    throw std::runtime_error("a tensor of " + std::to_string(sizes.size()) + " dimensions, where " +
                             std::to_string(Tensor::kMaxRank) + " are the most");
  }
  detail::Storage* storage = detail::allocate(reach(sizes, strides, element_size(dtype)));
  TensorAccess::set(tensor, storage, storage->data, sizes, strides, dtype);
}

/// A tensor object that is given back when making its tensor throws.
template <class Fill>
AtenTensorHandle made_by(const Fill& fill) {
  RAIIAtenTensorHandle handle(detail::new_handle());
  fill(*handle.get());
  return handle.release();
}

}  // namespace

void delete_handle(Tensor* handle) noexcept { detail::delete_handle(handle); }

// The store's block is found again through a pointer in front of the memory, which stays aligned.
constexpr size_t kFront = 64;

void* allocate_scratch(size_t bytes) {
  detail::Storage* storage = detail::allocate(bytes + kFront);
  std::memcpy(storage->data, &storage, sizeof(storage));
  void* scratch = static_cast<std::byte*>(storage->data) + kFront;
  std::memset(scratch, 0, bytes);
  return scratch;
}

void free_scratch(void* scratch) noexcept {
  detail::Storage* storage = nullptr;
  std::memcpy(&storage, static_cast<std::byte*>(scratch) - kFront, sizeof(storage));
  detail::release(storage);
}

void fail_check(const char* condition, const char* message, ...) {
  throw std::runtime_error(message != nullptr ? std::string(message) : "check failed: " + std::string(condition));
}

void assert_size_stride(AtenTensorHandle tensor, std::initializer_list<int64_t> sizes,
                        std::initializer_list<int64_t> strides, const char* name) {
  const IntArrayRef expected(strides.begin(), strides.size());
  bool fits = tensor->sizes() == IntArrayRef(sizes.begin(), sizes.size());
  for (size_t d = 0; fits && d < expected.size(); ++d) {
    fits = tensor->sizes()[d] <= 1 || tensor->strides()[d] == expected[d];
  }
  if (!fits) throw std::runtime_error(std::string(name == nullptr ? "an operator" : name) + " gave another layout");
}

AOTITorchError aoti_torch_empty_strided(int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* made) {
  *made = made_by(
      [&](Tensor& tensor) { make(tensor, view(sizes, rank), view(strides, rank), static_cast<ScalarType>(dtype)); });
  return 0;
}

AOTITorchError aoti_torch__reinterpret_tensor(AtenTensorHandle self, int64_t rank, const int64_t* sizes,
                                              const int64_t* strides, int64_t offset, AtenTensorHandle* made) {
  *made = made_by([&](Tensor& tensor) {
    const auto bytes = offset * static_cast<int64_t>(self->element_size());
    TensorAccess::set_view(tensor, *self, bytes, view(sizes, rank), view(strides, rank), self->scalar_type());
  });
  return 0;
}

AOTITorchError aoti_torch__alloc_from_pool(AtenTensorHandle self, int64_t offset_bytes, int32_t dtype, int64_t rank,
                                           const int64_t* sizes, const int64_t* strides, AtenTensorHandle* made) {
  *made = made_by([&](Tensor& tensor) {
    TensorAccess::set_view(tensor, *self, offset_bytes, view(sizes, rank), view(strides, rank),
                           static_cast<ScalarType>(dtype));
  });
  return 0;
}

AOTITorchError aoti_torch_as_strided(AtenTensorHandle self, const int64_t* sizes, const int64_t* strides,
                                     AtenTensorHandle* made) {
  return aoti_torch__reinterpret_tensor(self, self->dim(), sizes, strides, 0, made);
}

AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle self, AtenTensorHandle* made) {
  *made = made_by([&](Tensor& tensor) { tensor = *self; });
  return 0;
}

AOTITorchError aoti_torch_new_uninitialized_tensor(AtenTensorHandle* made) {
  *made = made_by([](Tensor&) {});
  return 0;
}

AOTITorchError aoti_torch_assign_tensors(AtenTensorHandle source, AtenTensorHandle target) {
  *target = *source;
  return 0;
}

AOTITorchError aoti_torch_assign_tensors_out(AtenTensorHandle source, AtenTensorHandle* made) {
  return aoti_torch_new_tensor_handle(source, made);
}

AOTITorchError aoti_torch_clone(AtenTensorHandle self, AtenTensorHandle* made) {
  *made = made_by([&](Tensor& tensor) { tensor = self->clone(); });
  return 0;
}

AOTITorchError aoti_torch_clone_preserve_strides(AtenTensorHandle self, AtenTensorHandle* made) {
  *made = made_by([&](Tensor& tensor) {
    make(tensor, self->sizes(), self->strides(), self->scalar_type());
    tensor.copy_(*self);
  });
  return 0;
}

AOTITorchError aoti_torch_copy_(AtenTensorHandle self, AtenTensorHandle source, int32_t) {
  self->copy_(*source);
  return 0;
}

AOTITorchError aoti_torch_zero_(AtenTensorHandle self) {
  const size_t bytes = static_cast<size_t>(self->numel()) * self->element_size();
  if (bytes == 0) return 0;
  if (self->is_contiguous()) {
    std::memset(self->data_ptr(), 0, bytes);
  } else {
    const Tensor zeros = empty(self->sizes(), self->scalar_type());
    std::memset(zeros.data_ptr(), 0, bytes);
    self->copy_(zeros);
  }
  return 0;
}

}  // namespace torchcc::generated
