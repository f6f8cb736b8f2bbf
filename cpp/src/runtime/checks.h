#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <torchcc/function.h>

#include "refusal.h"

namespace torchcc::detail {

// The checks of a call that are the same with LibTorch and without.

/// A size of an input as a call checks it, decided once when the function is bound.
struct SizeCheck {
  enum class Kind : uint8_t { number, bind, same, expression };
  Kind kind = Kind::number;
  int64_t value = 0;  ///< the number, or the position of the symbol
};

struct InputCheck {
  ScalarType dtype = ScalarType::Float;
  Device device = Device(DeviceType::CPU);
  bool is_number = false;
  bool has_expressions = false;  ///< some size is an expression of symbols
  std::vector<SizeCheck> sizes;
};

/// One for each input. Throws PackageError, which names `origin`, when a symbol cannot be bound.
std::vector<InputCheck> input_checks(const Signature& signature, const std::string& origin);

/// Checks sizes and binds symbols; the rank is right. Expressions come after all symbols: check_relations().
inline void check_sizes(const Signature& signature, size_t index, const InputCheck& check, const Tensor& tensor,
                        int64_t* symbols) {
  const IntArrayRef sizes = tensor.sizes();
  for (size_t d = 0; d < sizes.size(); ++d) {
    const SizeCheck& size = check.sizes[d];
    switch (size.kind) {
      case SizeCheck::Kind::number:
        if (sizes[d] != size.value) [[unlikely]] {
          refuse_size(signature, index, d, tensor, size.value);
        }
        break;
      case SizeCheck::Kind::bind: {
        const Symbol& symbol = signature.symbols[static_cast<size_t>(size.value)];
        if (sizes[d] < symbol.min || sizes[d] > symbol.max) [[unlikely]] {
          refuse_range(signature, index, d, tensor, symbol);
        }
        symbols[size.value] = sizes[d];
        break;
      }
      case SizeCheck::Kind::same:
        if (sizes[d] != symbols[size.value]) [[unlikely]] {
          refuse_mismatch(signature, index, d, tensor, size.value, symbols[size.value]);
        }
        break;
      case SizeCheck::Kind::expression: break;
    }
  }
}

/// Whether check_relations() has anything to check in a call of this function.
bool has_relations(const Signature& signature, std::span<const InputCheck> checks);

/// Checks what a call can only check once all symbols are bound: sizes that are expressions, and the signature's
/// guards.
void check_relations(const Signature& signature, std::span<const InputCheck> checks, const Tensor* const* tensors,
                     const int64_t* symbols);

/// A number of the caller's, as the compiled code takes it: the first where the input's dtype is Double, else the
/// second. Throws ArgumentError when the input takes no such number.
struct Number {
  double floating = 0;
  int64_t integer = 0;
};
Number checked_number(const Signature& signature, size_t index, const Argument& argument);

/// The value of a size in a call.
inline int64_t evaluate(const Size& size, const int64_t* symbols) {
  if (size.is_number()) return size.steps[0].value;
  return size.is_symbol() ? symbols[static_cast<size_t>(size.steps[0].value)] : size.evaluate(symbols);
}

/// The bytes between a tensor's first and last element. Compared by address, since two tensors may be views of the
/// same memory of the caller's.
struct Extent {
  explicit Extent(const Tensor& tensor) {
    if (tensor.numel() == 0) return;
    int64_t last = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
    begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    end = begin + static_cast<uintptr_t>(last + 1) * tensor.element_size();
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }

  uintptr_t begin = 0;
  uintptr_t end = 0;
};

}  // namespace torchcc::detail
