#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

struct DLManagedTensor;

namespace torchcc {

/// Types of elements, with PyTorch's names and numbers.
enum class ScalarType : int8_t {
  Byte = 0,
  Char = 1,
  Short = 2,
  Int = 3,
  Long = 4,
  Half = 5,
  Float = 6,
  Double = 7,
  ComplexHalf = 8,
  ComplexFloat = 9,
  ComplexDouble = 10,
  Bool = 11,
  BFloat16 = 15,
  UInt16 = 27,
  UInt32 = 28,
  UInt64 = 29,
};

inline constexpr ScalarType kByte = ScalarType::Byte;
inline constexpr ScalarType kChar = ScalarType::Char;
inline constexpr ScalarType kShort = ScalarType::Short;
inline constexpr ScalarType kInt = ScalarType::Int;
inline constexpr ScalarType kLong = ScalarType::Long;
inline constexpr ScalarType kHalf = ScalarType::Half;
inline constexpr ScalarType kFloat = ScalarType::Float;
inline constexpr ScalarType kDouble = ScalarType::Double;
inline constexpr ScalarType kBool = ScalarType::Bool;
inline constexpr ScalarType kBFloat16 = ScalarType::BFloat16;

/// Bytes of one element.
size_t element_size(ScalarType dtype);

enum class DeviceType : int8_t { CPU = 0 };

/// Where memory is: on the CPU.
struct Device {
  constexpr Device() = default;
  constexpr explicit Device(DeviceType) {}
};

/// Sizes or strides that belong to somebody else, such as a tensor or the braces of a call.
class IntArrayRef {
 public:
  constexpr IntArrayRef() = default;
  constexpr IntArrayRef(const int64_t* data, size_t size) : data_(data), size_(size) {}
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winit-list-lifetime"  // the braces of a call live as long as the call
  constexpr IntArrayRef(std::initializer_list<int64_t> values) : data_(values.begin()), size_(values.size()) {}
#pragma GCC diagnostic pop
  constexpr IntArrayRef(std::span<const int64_t> values) : data_(values.data()), size_(values.size()) {}
  IntArrayRef(const std::vector<int64_t>& values) : data_(values.data()), size_(values.size()) {}

  constexpr const int64_t* data() const { return data_; }
  constexpr size_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr const int64_t* begin() const { return data_; }
  constexpr const int64_t* end() const { return data_ + size_; }
  constexpr int64_t operator[](size_t index) const { return data_[index]; }
  constexpr bool operator==(const IntArrayRef& other) const {
    if (size_ != other.size_) return false;
    for (size_t i = 0; i < size_; ++i) {
      if (data_[i] != other.data_[i]) return false;
    }
    return true;
  }

 private:
  const int64_t* data_ = nullptr;
  size_t size_ = 0;
};

namespace detail {

struct Storage;
void retain(Storage* storage) noexcept;
void release(Storage* storage) noexcept;

template <class T>
constexpr ScalarType scalar_type() {
  if constexpr (std::same_as<T, bool>) return kBool;
  if constexpr (std::same_as<T, float>) return kFloat;
  if constexpr (std::same_as<T, double>) return kDouble;
  if constexpr (std::integral<T> && !std::same_as<T, bool>) {
    if constexpr (std::is_signed_v<T>)
      return sizeof(T) == 1 ? kChar : sizeof(T) == 2 ? kShort : sizeof(T) == 4 ? kInt : kLong;
    return sizeof(T) == 1   ? kByte
           : sizeof(T) == 2 ? ScalarType::UInt16
           : sizeof(T) == 4 ? ScalarType::UInt32
                            : ScalarType::UInt64;
  }
}

}  // namespace detail

/// A type that a tensor's elements have in C++.
template <class T>
concept Element = std::same_as<T, bool> || std::same_as<T, float> || std::same_as<T, double> || std::integral<T>;

/// A view of memory: where it is, what its elements are, sizes and strides. The memory is the caller's, or is owned
/// together with all copies of the tensor; copying a tensor copies no element. Has those members of at::Tensor that a
/// program needs around a call. Like at::Tensor, a const tensor's elements can be written. Not safe to assign to while
/// another thread reads it.
class Tensor {
 public:
  static constexpr size_t kMaxRank = 8;

  /// An undefined tensor.
  Tensor() = default;
  Tensor(const Tensor& other) noexcept;
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(const Tensor& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor() {
    if (storage_ != nullptr) detail::release(storage_);
  }

  bool defined() const { return is_defined_; }
  int64_t dim() const { return rank_; }
  IntArrayRef sizes() const { return {sizes_.data(), rank_}; }
  IntArrayRef strides() const { return {strides_.data(), rank_}; }
  /// The size or stride of a dimension; negative ones count from the last.
  int64_t size(int64_t dimension) const { return sizes_[position(dimension)]; }
  int64_t stride(int64_t dimension) const { return strides_[position(dimension)]; }
  int64_t numel() const {
    int64_t count = 1;
    for (size_t d = 0; d < rank_; ++d) count *= sizes_[d];
    return count;
  }
  ScalarType scalar_type() const { return dtype_; }
  size_t element_size() const { return torchcc::element_size(dtype_); }
  bool is_contiguous() const;

  void* data_ptr() const { return data_; }
  const void* const_data_ptr() const { return data_; }
  /// The first element. Throws ArgumentError when the elements are of another type.
  template <Element T>
  T* data_ptr() const {
    check_dtype(detail::scalar_type<T>());
    return static_cast<T*>(data_);
  }
  template <Element T>
  const T* const_data_ptr() const {
    return data_ptr<T>();
  }
  /// The only element. Throws ArgumentError when there are others, or it is of another type.
  template <Element T>
  T item() const {
    check_single();
    return *data_ptr<T>();
  }

  /// A contiguous copy.
  Tensor clone() const;
  /// The tensor itself when it is contiguous, else a copy that is.
  Tensor contiguous() const;
  /// The elements as another type, converted as C++ converts them; the tensor itself when it has that type. Throws
  /// ArgumentError for types that C++ does not have.
  Tensor to(ScalarType dtype) const;
  /// Another view of the same memory. The offset counts in elements from the start of this view.
  Tensor as_strided(IntArrayRef sizes, IntArrayRef strides, int64_t offset = 0) const;
  /// Copies the elements of a tensor of the same sizes and dtype into this one. Throws ArgumentError for another.
  const Tensor& copy_(const Tensor& source) const;

 private:
  friend struct TensorAccess;
  size_t position(int64_t dimension) const;
  void check_dtype(ScalarType wanted) const;
  void check_single() const;

  detail::Storage* storage_ = nullptr;  ///< null: the memory is not ours
  void* data_ = nullptr;
  ScalarType dtype_ = kFloat;
  bool is_defined_ = false;
  uint8_t rank_ = 0;
  std::array<int64_t, kMaxRank> sizes_;
  std::array<int64_t, kMaxRank> strides_;
};

/// A contiguous tensor whose content is not set. Memory comes from a store of the thread's own, into which tensors give
/// it back: a loop that makes the same tensors again allocates nothing.
Tensor empty(IntArrayRef sizes, ScalarType dtype = kFloat);

/// A tensor over memory of the caller's, which has to outlive it; contiguous where no strides are given (in elements).
Tensor from_memory(void* data, IntArrayRef sizes, ScalarType dtype);
Tensor from_memory(void* data, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype);
template <class T>
  requires Element<std::remove_const_t<T>>
Tensor from_memory(T* data, IntArrayRef sizes) {
  using Plain = std::remove_const_t<T>;
  return from_memory(const_cast<Plain*>(data), sizes, detail::scalar_type<Plain>());
}

/// Shares the memory of a tensor through DLPack. The caller calls the result's deleter once.
DLManagedTensor* to_dlpack(const Tensor& tensor);

/// Takes over a tensor of DLPack, and its deleter. Throws ArgumentError, and takes nothing, for one that is not on the
/// CPU, or whose type or rank tensors cannot have.
Tensor from_dlpack(DLManagedTensor* managed);

}  // namespace torchcc
