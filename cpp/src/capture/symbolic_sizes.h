#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/ivalue.h>
#include <c10/core/SymInt.h>

#include "size_node.h"
#include "sizes.h"
#include "trace.h"

namespace torchcc::detail {

/// The symbolic sizes of one recording: what C++ code computes of them, and where that is among the arguments of
/// operators.
class SymbolicSizes {
 public:
  /// The size of a dimension, for C++ code that has called `steps` operators so far.
  c10::SymInt size(SizeOf of, int64_t number, size_t steps);

  /// Makes plain numbers, which all kernels take, of the symbolic ones among the arguments of an operator.
  void take(const Operator& op, c10::IValue* arguments) {
    if (log_ != nullptr) take_all(op, arguments);
  }
  /// Notes where the trace has an argument of that operator.
  void note_position(size_t argument, size_t begin);
  /// The operator is written down, as the last of so many.
  void end_step(size_t steps);

  /// The numbers of the trace that C++ code has computed of sizes.
  const std::vector<Sizes::Word>& words() const { return words_; }
  /// What the code has found to be so of sizes.
  std::vector<SizeCondition> conditions() const;

 private:
  void take_all(const Operator& op, c10::IValue* arguments);

  /// One of the current operator's arguments, or of the elements of a list there.
  struct Symbol {
    size_t argument;
    size_t element;
    bool is_element;
    SizeExpression expression;
  };
  std::shared_ptr<SizeLog> log_;  ///< once the function has asked for a symbolic size
  std::vector<Symbol> symbols_;
  std::vector<Sizes::Word> words_;
};

}  // namespace torchcc::detail
