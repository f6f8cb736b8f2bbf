// DLPack, the exchange of tensors between libraries: https://github.com/dmlc/dlpack. The structures are those of its
// header, which is not included, since programs that use DLPack have one of their own.
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include <torchcc/error.h>
#include <torchcc/signature.h>
#include <torchcc/tensor.h>

#include "arena.h"
#include "message.h"

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};
struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

namespace torchcc {
namespace {

constexpr int32_t kCpu = 1;

enum Code : uint8_t { kSigned = 0, kUnsigned = 1, kFloating = 2, kBrain = 4, kComplex = 5, kBoolean = 6 };

struct Kind {
  ScalarType dtype;
  Code code;
  uint8_t bits;
};

constexpr std::array kKinds{
    Kind{ScalarType::Byte, kUnsigned, 8},
    Kind{ScalarType::Char, kSigned, 8},
    Kind{ScalarType::Short, kSigned, 16},
    Kind{ScalarType::Int, kSigned, 32},
    Kind{ScalarType::Long, kSigned, 64},
    Kind{ScalarType::UInt16, kUnsigned, 16},
    Kind{ScalarType::UInt32, kUnsigned, 32},
    Kind{ScalarType::UInt64, kUnsigned, 64},
    Kind{ScalarType::Half, kFloating, 16},
    Kind{ScalarType::Float, kFloating, 32},
    Kind{ScalarType::Double, kFloating, 64},
    Kind{ScalarType::BFloat16, kBrain, 16},
    Kind{ScalarType::ComplexHalf, kComplex, 32},
    Kind{ScalarType::ComplexFloat, kComplex, 64},
    Kind{ScalarType::ComplexDouble, kComplex, 128},
    Kind{ScalarType::Bool, kBoolean, 8},
};

/// What the caller of to_dlpack() holds: the tensor, and room for what DLPack points to.
struct Shared {
  DLManagedTensor managed{};
  Tensor tensor;
  std::array<int64_t, Tensor::kMaxRank> sizes{};
  std::array<int64_t, Tensor::kMaxRank> strides{};
};

[[noreturn]] void refuse(const std::string& expected, const std::string& got) {
  throw ArgumentError(
      detail::message("a DLPack tensor cannot be taken over",
                      {{"expected", expected}, {"got", got}, {"fix", "convert it in the library that it comes from"}}));
}

}  // namespace

DLManagedTensor* to_dlpack(const Tensor& tensor) {
  if (!tensor.defined()) {
    throw ArgumentError(
        detail::message("an undefined tensor cannot be shared",
                        {{"expected", "a defined tensor"}, {"got", "an undefined one"}, {"fix", "assign it first"}}));
  }
  const auto kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& one) { return one.dtype == tensor.scalar_type(); });
  auto shared = std::make_unique<Shared>();
  shared->tensor = tensor;
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), shared->sizes.begin());
  std::copy(tensor.strides().begin(), tensor.strides().end(), shared->strides.begin());
  DLManagedTensor& managed = shared->managed;
  managed.dl_tensor.data = tensor.data_ptr();
  managed.dl_tensor.device = {kCpu, 0};
  managed.dl_tensor.ndim = static_cast<int32_t>(tensor.dim());
  managed.dl_tensor.dtype = {kind->code, kind->bits, 1};
  managed.dl_tensor.shape = shared->sizes.data();
  managed.dl_tensor.strides = shared->strides.data();
  managed.manager_ctx = shared.get();
  managed.deleter = [](DLManagedTensor* self) { delete static_cast<Shared*>(self->manager_ctx); };
  return &shared.release()->managed;
}

Tensor from_dlpack(DLManagedTensor* managed) {
  const DLTensor& given = managed->dl_tensor;
  if (given.device.device_type != kCpu) {
    refuse("a tensor on the CPU (device type 1)", "device type " + std::to_string(given.device.device_type));
  }
  const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& one) {
    return one.code == given.dtype.code && one.bits == given.dtype.bits && given.dtype.lanes == 1;
  });
  if (kind == kKinds.end()) {
    refuse("a type that PyTorch has", "type code " + std::to_string(given.dtype.code) + " with " +
                                          std::to_string(given.dtype.bits) + " bits and " +
                                          std::to_string(given.dtype.lanes) + " lanes");
  }
  const auto rank = static_cast<size_t>(given.ndim);
  if (rank > Tensor::kMaxRank) {
    refuse("at most " + std::to_string(Tensor::kMaxRank) + " dimensions", std::to_string(rank));
  }
  void* data = static_cast<std::byte*>(given.data) + given.byte_offset;
  Tensor tensor = given.strides == nullptr ? from_memory(data, {given.shape, rank}, kind->dtype)
                                           : from_memory(data, {given.shape, rank}, {given.strides, rank}, kind->dtype);
  auto* storage = new detail::Storage;
  storage->data = given.data;
  storage->owner = managed;
  storage->give_back = [](void* owner) {
    auto* self = static_cast<DLManagedTensor*>(owner);
    if (self->deleter != nullptr) self->deleter(self);
  };
  Tensor owned;
  TensorAccess::set(owned, storage, data, tensor.sizes(), tensor.strides(), kind->dtype);
  return owned;
}

}  // namespace torchcc
