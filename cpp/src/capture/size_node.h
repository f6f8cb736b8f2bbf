#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <ATen/core/ivalue.h>
#include <c10/core/SymInt.h>
#include <c10/core/SymNodeImpl.h>

#include "sizes.h"

namespace torchcc::detail {

/// What C++ code asks of symbolic sizes while it is recorded.
struct SizeLog {
  std::vector<SizeCondition> conditions;
  size_t step = 0;  ///< operators so far

  /// Adds one that holds. Once is enough.
  void add(SizeCondition condition);
};

/// A number of C++ code that remembers how it follows from sizes of the tensors of a recording: PyTorch's symbolic
/// numbers, without Python. What it cannot express it makes constant, and logs that as a condition.
class SizeNode final : public c10::SymNodeImpl {
 public:
  using Number = std::variant<int64_t, double, bool>;

  /// The size of a dimension.
  static c10::SymInt size(SizeOf of, int64_t value, std::shared_ptr<SizeLog> log);

  /// How a number of a log's recording follows from sizes; null where it does not.
  static const SizeExpression* expression(const c10::SymNodeImpl* node, const SizeLog& log);

  /// The value of such a node, as operators take it.
  static c10::IValue value_of(const c10::SymNodeImpl& node);

  bool is_int() override { return std::holds_alternative<int64_t>(value_); }
  bool is_float() override { return std::holds_alternative<double>(value_); }
  bool is_bool() override { return std::holds_alternative<bool>(value_); }

  c10::SymNode add(const c10::SymNode& other) override;
  c10::SymNode sub(const c10::SymNode& other) override;
  c10::SymNode mul(const c10::SymNode& other) override;
  c10::SymNode truediv(const c10::SymNode& other) override;
  c10::SymNode floordiv(const c10::SymNode& other) override;
  c10::SymNode mod(const c10::SymNode& other) override;
  c10::SymNode pow(const c10::SymNode& other) override;
  c10::SymNode sym_min(const c10::SymNode& other) override;
  c10::SymNode sym_max(const c10::SymNode& other) override;
  c10::SymNode neg() override;
  c10::SymNode ceil() override;
  c10::SymNode floor() override;
  c10::SymNode sym_float() override;

  c10::SymNode eq(const c10::SymNode& other) override;
  c10::SymNode ne(const c10::SymNode& other) override;
  c10::SymNode lt(const c10::SymNode& other) override;
  c10::SymNode le(const c10::SymNode& other) override;
  c10::SymNode gt(const c10::SymNode& other) override;
  c10::SymNode ge(const c10::SymNode& other) override;
  c10::SymNode sym_and(const c10::SymNode& other) override;
  c10::SymNode sym_or(const c10::SymNode& other) override;
  c10::SymNode sym_not() override;

  c10::SymNode wrap_int(int64_t number) override;
  c10::SymNode wrap_float(double number) override;
  c10::SymNode wrap_bool(bool number) override;
  c10::SymNode clone() override;

  int64_t guard_int(const char* file, int64_t line) override;
  double guard_float(const char* file, int64_t line) override;
  bool guard_bool(const char* file, int64_t line) override;
  int64_t int_() override { return guard_int(__FILE__, __LINE__); }
  bool bool_() override { return guard_bool(__FILE__, __LINE__); }
  bool has_hint() override { return true; }
  std::string str() override;

  /// A constant.
  SizeNode(Number value, std::shared_ptr<SizeLog> log)
      : value_(value), log_(std::move(log)), inside_(is_whole() ? whole() : 0) {}

 private:
  bool is_whole() const { return std::holds_alternative<int64_t>(value_); }
  int64_t whole() const;
  double as_double() const;
  SizeExpression steps() const;
  void fix() const;
  bool divides(const SizeNode& other) const;
  c10::SymNode made(Number value) const;
  c10::SymNode constant_of(const SizeNode& other, Number value) const;
  template <class Function>
  c10::SymNode combined(const SizeNode& other, SizeStep::Kind kind, const Function& function) const;
  c10::SymNode joined(const SizeNode& other, SizeStep::Kind kind, int64_t value) const;
  c10::SymNode compared(const SizeNode& left, const SizeNode& right, SizeGuard::Kind kind) const;
  c10::SymNode shaped(SizeExpression::Form form, double value) const;

  Number value_;
  std::shared_ptr<SizeLog> log_;
  int64_t inside_;                              ///< the whole number that a float follows from
  std::unique_ptr<SizeExpression> expression_;  ///< of a number; null where it is constant
  std::unique_ptr<SizeCondition> condition_;    ///< of a bool: what holds, be it true or false; likewise
};

}  // namespace torchcc::detail
