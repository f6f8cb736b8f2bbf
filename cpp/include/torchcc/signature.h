#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torchcc/tensor.h>

namespace torchcc {

/// A named size that is known only when a function is called, e.g. a batch. `min` and `max` are both allowed values.
struct Symbol {
  std::string name;
  int64_t min = 0;
  int64_t max = INT64_MAX;
};

/// One step of a size expression in postfix order (operands first); see Size::steps.
struct SizeStep {
  enum class Kind : uint8_t { number, symbol, add, mul, floordiv, mod, max, min, pow };
  Kind kind = Kind::number;
  int64_t value = 0;  ///< the number, or the position in Signature::symbols
};

/// The size of one dimension: a number, a symbol, or an expression of symbols.
struct Size {
  std::string text;             ///< as a person writes it: "768", "n", "2*n"; "?" when only the data decides it
  std::vector<SizeStep> steps;  ///< empty when only the data decides the size

  bool is_number() const { return steps.size() == 1 && steps[0].kind == SizeStep::Kind::number; }
  bool is_symbol() const { return steps.size() == 1 && steps[0].kind == SizeStep::Kind::symbol; }
  bool is_known() const { return !steps.empty(); }

  /// The value, given one value per symbol. Throws ArgumentError when it divides by zero, overflows, or is not known.
  int64_t evaluate(const int64_t* symbols) const;
};

/// What compiled code relies on beside ranges, e.g. "n % 4 == 0".
struct SizeGuard {
  enum class Kind : uint8_t { equal, not_equal, less, less_equal };
  std::string text;  ///< as a person writes it
  Kind kind = Kind::equal;
  Size left;
  Size right;

  /// Whether it is so, given one value per symbol. Throws as Size::evaluate.
  bool holds(const int64_t* symbols) const;
};

/// One input or output.
struct Value {
  std::string name;
  ScalarType dtype = ScalarType::Float;
  DeviceType device = DeviceType::CPU;
  std::vector<Size> sizes;
  bool is_number = false;   ///< a C++ double, int64_t or bool; the compiled code gets it as a tensor of rank 0
  int64_t min = INT64_MIN;  ///< allowed range of a number of dtype int64
  int64_t max = INT64_MAX;
  bool mutated = false;  ///< the function writes into this input

  /// "float32[n, 768]", or "double", "int64_t", "bool" for a number.
  std::string type() const;
};

/// What a function takes and gives. A plain value; it does not change after loading.
struct Signature {
  std::string name;
  std::vector<Value> inputs;
  std::vector<Value> outputs;
  std::vector<Symbol> symbols;
  std::vector<SizeGuard> guards;  ///< checked in each call

  /// "bias_gelu(x: float32[n, 768], bias: float32[768]) -> float32[n, 768] with 1 <= n <= 4096".
  std::string str() const;
};

/// PyTorch's own name of a dtype as Python prints it: "float32", "int64", "bool".
std::string dtype_name(ScalarType dtype);

}  // namespace torchcc
