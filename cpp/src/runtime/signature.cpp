#include <torchcc/signature.h>

#include <algorithm>
#include <array>
#include <vector>

#include <torchcc/error.h>

#include "message.h"

namespace torchcc {

std::string detail::one_line(const std::string& text) {
  std::string line;
  bool at_start = false;
  for (const char letter : text) {
    if (letter == '\n') {
      at_start = true;
    } else if (!at_start || letter != ' ') {
      if (at_start) line += "; ";
      at_start = false;
      line += letter;
    }
  }
  return line;
}

std::string detail::message(const std::string& subject,
                            std::initializer_list<std::pair<const char*, std::string>> lines) {
  size_t width = 0;
  for (const auto& [key, value] : lines) width = std::max(width, std::string(key).size());
  std::string text = subject;
  for (const auto& [key, value] : lines) {
    std::string label = std::string(key) + ":";
    label.resize(width + 2, ' ');
    text += "\n  " + label + value;
  }
  return text;
}

namespace {

[[noreturn]] void fail(const Size& size, const char* reason) {
  throw ArgumentError("the size " + size.text + " cannot be computed: " + reason);
}

int64_t add(const Size& size, int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) fail(size, "it overflows");
  return result;
}

int64_t multiply(const Size& size, int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) fail(size, "it overflows");
  return result;
}

int64_t floor_divide(const Size& size, int64_t a, int64_t b) {
  if (b == 0) fail(size, "it divides by zero");
  if (b == -1) return multiply(size, a, -1);
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t power(const Size& size, int64_t base, int64_t exponent) {
  if (exponent < 0) fail(size, "it has a negative exponent");
  if (base >= -1 && base <= 1 && exponent > 2) exponent = 2 - exponent % 2;
  int64_t result = 1;
  for (; exponent > 0; --exponent) result = multiply(size, result, base);
  return result;
}

int64_t apply(const Size& size, SizeStep::Kind kind, int64_t a, int64_t b) {
  switch (kind) {
    case SizeStep::Kind::add: return add(size, a, b);
    case SizeStep::Kind::mul: return multiply(size, a, b);
    case SizeStep::Kind::floordiv: return floor_divide(size, a, b);
    case SizeStep::Kind::mod: return a - multiply(size, b, floor_divide(size, a, b));
    case SizeStep::Kind::max: return std::max(a, b);
    case SizeStep::Kind::min: return std::min(a, b);
    case SizeStep::Kind::pow: return power(size, a, b);
    default: fail(size, "an operand stands where an operator belongs");
  }
}

}  // namespace

int64_t Size::evaluate(const int64_t* symbols) const {
  if (steps.empty()) fail(*this, "only the data decides it");
  // The operands that wait for their operator: at most one for each step. Few are the rule, and then nothing is
  // allocated.
  std::array<int64_t, 16> few;
  std::vector<int64_t> many(steps.size() > few.size() ? steps.size() : 0);
  int64_t* top = many.empty() ? few.data() : many.data();
  for (const SizeStep& step : steps) {
    if (step.kind == SizeStep::Kind::number) {
      *top++ = step.value;
    } else if (step.kind == SizeStep::Kind::symbol) {
      *top++ = symbols[step.value];
    } else {
      --top;
      top[-1] = apply(*this, step.kind, top[-1], *top);
    }
  }
  return top[-1];
}

bool SizeGuard::holds(const int64_t* symbols) const {
  const int64_t a = left.evaluate(symbols);
  const int64_t b = right.evaluate(symbols);
  switch (kind) {
    case Kind::equal: return a == b;
    case Kind::not_equal: return a != b;
    case Kind::less: return a < b;
    case Kind::less_equal: return a <= b;
  }
  return false;
}

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::UInt16: return "uint16";
    case ScalarType::UInt32: return "uint32";
    case ScalarType::UInt64: return "uint64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
#ifdef TORCHCC_STANDALONE
  }
  return "dtype " + std::to_string(static_cast<int>(dtype));
#else
    case c10::ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case c10::ScalarType::Float8_e4m3fnuz: return "float8_e4m3fnuz";
    case c10::ScalarType::Float8_e5m2: return "float8_e5m2";
    case c10::ScalarType::Float8_e5m2fnuz: return "float8_e5m2fnuz";
    default: return c10::toString(dtype);
  }
#endif
}

std::string Value::type() const {
  if (is_number) {
    if (dtype == ScalarType::Bool) return "bool";
    return dtype == ScalarType::Long ? "int64_t" : "double";
  }
  std::string text = dtype_name(dtype) + "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + sizes[i].text;
  text += "]";
#ifndef TORCHCC_STANDALONE
  if (device != c10::DeviceType::CPU) text += " on " + c10::DeviceTypeName(device, /*lower_case=*/true);
#endif
  return text;
}

std::string Signature::str() const {
  std::string text = name + "(";
  for (size_t i = 0; i < inputs.size(); ++i) text += (i ? ", " : "") + inputs[i].name + ": " + inputs[i].type();
  text += ") -> ";
  if (outputs.size() != 1) text += "(";
  for (size_t i = 0; i < outputs.size(); ++i) text += (i ? ", " : "") + outputs[i].type();
  if (outputs.size() != 1) text += ")";
  const char* separator = " with ";
  for (const Symbol& symbol : symbols) {
    text += separator + std::to_string(symbol.min) + " <= " + symbol.name;
    if (symbol.max != INT64_MAX) text += " <= " + std::to_string(symbol.max);
    separator = ", ";
  }
  for (const SizeGuard& guard : guards) {
    text += separator + guard.text;
    separator = ", ";
  }
  return text;
}

}  // namespace torchcc
