#include <torchcc/tensor.h>

#include <algorithm>
#include <cstring>
#include <string>

#include <torchcc/error.h>
#include <torchcc/signature.h>

#include "arena.h"
#include "message.h"

namespace torchcc {
namespace {

[[noreturn, gnu::cold]] void refuse(const std::string& subject, const std::string& expected, const std::string& got,
                                    const std::string& fix) {
  throw ArgumentError(detail::message(subject, {{"expected", expected}, {"got", got}, {"fix", fix}}));
}

std::string sizes_text(IntArrayRef sizes) {
  std::string text = "sizes [";
  for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + "]";
}

void check_rank(size_t rank) {
  if (rank <= Tensor::kMaxRank) return;
  refuse("a tensor has too many dimensions", "at most " + std::to_string(Tensor::kMaxRank), std::to_string(rank),
         "join some of them");
}

using Strides = std::array<int64_t, Tensor::kMaxRank>;

/// Strides of a contiguous tensor; refuses sizes that make no tensor.
Strides contiguous_strides(IntArrayRef sizes) {
  check_rank(sizes.size());
  Strides strides{};
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = step;
    if (sizes[d] < 0 || __builtin_mul_overflow(step, std::max<int64_t>(sizes[d], 1), &step)) {
      refuse("a tensor cannot have these sizes", "numbers from 0 whose product is a number of elements",
             sizes_text(sizes), "correct the sizes");
    }
  }
  return strides;
}

/// Calls `work(offset, other_offset)` for each element, with offsets in elements. The last dimension is the inner loop.
template <class Work>
void for_each_element(IntArrayRef sizes, IntArrayRef strides, IntArrayRef other_strides, const Work& work) {
  const size_t rank = sizes.size();
  for (const int64_t size : sizes) {
    if (size == 0) return;
  }
  std::array<int64_t, Tensor::kMaxRank> index{};
  int64_t offset = 0;
  int64_t other = 0;
  while (true) {
    work(offset, other);
    size_t d = rank;
    while (d-- > 0) {
      offset += strides[d];
      other += other_strides[d];
      if (++index[d] < sizes[d]) break;
      offset -= index[d] * strides[d];
      other -= index[d] * other_strides[d];
      index[d] = 0;
      if (d == 0) return;
    }
    if (rank == 0) return;
  }
}

template <class Word>
void copy_words(const Tensor& to, const Tensor& from) {
  auto* target = static_cast<Word*>(to.data_ptr());
  const auto* source = static_cast<const Word*>(from.const_data_ptr());
  for_each_element(to.sizes(), to.strides(), from.strides(),
                   [&](int64_t offset, int64_t other) { target[offset] = source[other]; });
}

struct SixteenBytes {
  uint64_t words[2];
};

/// Calls `work` with a value of the C++ type of a dtype; false for types that C++ does not have.
template <class Work>
bool with_type(ScalarType dtype, const Work& work) {
  switch (dtype) {
    case ScalarType::Byte: return work(uint8_t{}), true;
    case ScalarType::Char: return work(int8_t{}), true;
    case ScalarType::Short: return work(int16_t{}), true;
    case ScalarType::Int: return work(int32_t{}), true;
    case ScalarType::Long: return work(int64_t{}), true;
    case ScalarType::UInt16: return work(uint16_t{}), true;
    case ScalarType::UInt32: return work(uint32_t{}), true;
    case ScalarType::UInt64: return work(uint64_t{}), true;
    case ScalarType::Float: return work(float{}), true;
    case ScalarType::Double: return work(double{}), true;
    case ScalarType::Bool: return work(bool{}), true;
    default: return false;
  }
}

}  // namespace

size_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Bool: return 1;
    case ScalarType::Short:
    case ScalarType::UInt16:
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    case ScalarType::Int:
    case ScalarType::UInt32:
    case ScalarType::ComplexHalf:
    case ScalarType::Float: return 4;
    case ScalarType::Long:
    case ScalarType::UInt64:
    case ScalarType::ComplexFloat:
    case ScalarType::Double: return 8;
    case ScalarType::ComplexDouble: return 16;
  }
  return 1;
}

// Only the sizes and strides that there are, and not all that there is room for.
Tensor::Tensor(const Tensor& other) noexcept
    : storage_(other.storage_),
      data_(other.data_),
      dtype_(other.dtype_),
      is_defined_(other.is_defined_),
      rank_(other.rank_) {
  if (storage_ != nullptr) detail::retain(storage_);
  std::copy_n(other.sizes_.begin(), rank_, sizes_.begin());
  std::copy_n(other.strides_.begin(), rank_, strides_.begin());
}

Tensor::Tensor(Tensor&& other) noexcept
    : storage_(std::exchange(other.storage_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      dtype_(other.dtype_),
      is_defined_(std::exchange(other.is_defined_, false)),
      rank_(std::exchange(other.rank_, uint8_t{0})) {
  std::copy_n(other.sizes_.begin(), rank_, sizes_.begin());
  std::copy_n(other.strides_.begin(), rank_, strides_.begin());
}

Tensor& Tensor::operator=(const Tensor& other) noexcept {
  if (this != &other) *this = Tensor(other);
  return *this;
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  if (this == &other) return *this;
  detail::Storage* old = std::exchange(storage_, std::exchange(other.storage_, nullptr));
  data_ = std::exchange(other.data_, nullptr);
  dtype_ = other.dtype_;
  is_defined_ = std::exchange(other.is_defined_, false);
  rank_ = std::exchange(other.rank_, uint8_t{0});
  std::copy_n(other.sizes_.begin(), rank_, sizes_.begin());
  std::copy_n(other.strides_.begin(), rank_, strides_.begin());
  if (old != nullptr) detail::release(old);
  return *this;
}

size_t Tensor::position(int64_t dimension) const {
  const int64_t found = dimension < 0 ? dimension + rank_ : dimension;
  if (found < 0 || found >= rank_) {
    refuse("a tensor has no dimension " + std::to_string(dimension), std::to_string(rank_) + " dimensions",
           std::to_string(dimension), "correct the number");
  }
  return static_cast<size_t>(found);
}

void Tensor::check_dtype(ScalarType wanted) const {
  if (is_defined_ && dtype_ == wanted) return;
  refuse("a tensor's elements are read as another type", is_defined_ ? dtype_name(dtype_) : "a defined tensor",
         is_defined_ ? dtype_name(wanted) : "an undefined one", "name the type that the tensor has");
}

void Tensor::check_single() const {
  if (is_defined_ && numel() == 1) return;
  refuse("a tensor has no single value", "one element", sizes_text(sizes()), "take one of its elements");
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  bool contiguous = true;
  for (size_t d = rank_; d-- > 0;) {
    if (sizes_[d] == 0) return true;
    if (sizes_[d] != 1 && strides_[d] != step) contiguous = false;
    step *= sizes_[d];
  }
  return contiguous;
}

Tensor Tensor::clone() const {
  if (!is_defined_) return Tensor();
  Tensor copy = torchcc::empty(sizes(), dtype_);
  copy.copy_(*this);
  return copy;
}

Tensor Tensor::contiguous() const { return !is_defined_ || is_contiguous() ? *this : clone(); }

Tensor Tensor::to(ScalarType dtype) const {
  if (!is_defined_ || dtype_ == dtype) return *this;
  Tensor result = torchcc::empty(sizes(), dtype);
  const bool known = with_type(dtype_, [&]<class From>(From) {
    const auto* source = static_cast<const From*>(data_);
    if (!with_type(dtype, [&]<class To>(To) {
          auto* target = static_cast<To*>(result.data_ptr());
          for_each_element(sizes(), result.strides(), strides(),
                           [&](int64_t offset, int64_t other) { target[offset] = static_cast<To>(source[other]); });
        })) {
      result = Tensor();
    }
  });
  if (!known || !result.defined()) {
    refuse("a tensor cannot be converted", "bool, whole numbers, float32 or float64",
           dtype_name(dtype_) + " to " + dtype_name(dtype), "convert the elements yourself");
  }
  return result;
}

Tensor Tensor::as_strided(IntArrayRef sizes, IntArrayRef strides, int64_t offset) const {
  if (!is_defined_ || sizes.size() != strides.size()) {
    refuse("a view needs a tensor, and a stride for each size", std::to_string(sizes.size()) + " strides",
           is_defined_ ? std::to_string(strides.size()) : "an undefined tensor", "correct the arguments");
  }
  Tensor view;
  TensorAccess::set_view(view, *this, offset * static_cast<int64_t>(element_size()), sizes, strides, dtype_);
  return view;
}

const Tensor& Tensor::copy_(const Tensor& source) const {
  if (!is_defined_ || !source.is_defined_ || dtype_ != source.dtype_ || !(sizes() == source.sizes())) {
    const auto text = [](const Tensor& tensor) {
      return tensor.defined() ? dtype_name(tensor.scalar_type()) + " of " + sizes_text(tensor.sizes())
                              : std::string("an undefined tensor");
    };
    refuse("a tensor cannot be copied into another", text(*this), text(source), "make them alike in dtype and sizes");
  }
  if (is_contiguous() && source.is_contiguous()) {
    const size_t bytes = static_cast<size_t>(numel()) * element_size();
    if (bytes != 0) std::memmove(data_, source.data_, bytes);
    return *this;
  }
  switch (element_size()) {
    case 1: copy_words<uint8_t>(*this, source); break;
    case 2: copy_words<uint16_t>(*this, source); break;
    case 4: copy_words<uint32_t>(*this, source); break;
    case 8: copy_words<uint64_t>(*this, source); break;
    default: copy_words<SixteenBytes>(*this, source);
  }
  return *this;
}

void TensorAccess::set(Tensor& tensor, detail::Storage* storage, void* data, IntArrayRef sizes, IntArrayRef strides,
                       ScalarType dtype) {
  detail::Storage* old = std::exchange(tensor.storage_, storage);
  tensor.data_ = data;
  tensor.dtype_ = dtype;
  tensor.is_defined_ = true;
  tensor.rank_ = static_cast<uint8_t>(sizes.size());
  std::copy_n(sizes.begin(), sizes.size(), tensor.sizes_.begin());
  std::copy_n(strides.begin(), strides.size(), tensor.strides_.begin());
  if (old != nullptr) detail::release(old);
}

void TensorAccess::set_view(Tensor& tensor, const Tensor& base, int64_t offset, IntArrayRef sizes, IntArrayRef strides,
                            ScalarType dtype) {
  check_rank(sizes.size());
  if (base.storage_ != nullptr) detail::retain(base.storage_);
  set(tensor, base.storage_, static_cast<std::byte*>(base.data_) + offset, sizes, strides, dtype);
}

Tensor empty(IntArrayRef sizes, ScalarType dtype) {
  const Strides strides = contiguous_strides(sizes);
  size_t bytes = element_size(dtype);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  detail::Storage* storage = detail::allocate(bytes);
  Tensor tensor;
  TensorAccess::set(tensor, storage, storage->data, sizes, {strides.data(), sizes.size()}, dtype);
  return tensor;
}

Tensor from_memory(void* data, IntArrayRef sizes, ScalarType dtype) {
  const Strides strides = contiguous_strides(sizes);
  return from_memory(data, sizes, {strides.data(), sizes.size()}, dtype);
}

Tensor from_memory(void* data, IntArrayRef sizes, IntArrayRef strides, ScalarType dtype) {
  contiguous_strides(sizes);  // refuses what are no sizes
  if (sizes.size() != strides.size()) {
    refuse("a tensor needs a stride for each size", std::to_string(sizes.size()) + " strides",
           std::to_string(strides.size()), "correct the strides");
  }
  Tensor tensor;
  TensorAccess::set(tensor, nullptr, data, sizes, strides, dtype);
  return tensor;
}

}  // namespace torchcc
