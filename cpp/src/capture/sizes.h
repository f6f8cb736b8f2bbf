#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>
#include <torchcc/signature.h>

#include "trace.h"

namespace torchcc::detail {

struct Recording;

// Recordings that differ in sizes alone: how the numbers in the arguments of operators follow from sizes of tensors.

/// The size of a dimension of a value of the trace.
struct SizeOf {
  ValueId value = 0;
  int64_t dim = 0;
};

/// A number that follows from sizes of tensors that are there before it is used: the sum of the terms and `plus`,
/// divided by `over` and rounded down; of that what `form` says, as a double.
struct SizeExpression {
  struct Term {
    c10::SmallVector<SizeOf, 3> product;
    int64_t times = 1;
  };
  enum class Form : uint8_t { whole, floating, inverse, root, inverse_root };

  c10::SmallVector<Term, 2> terms;
  int64_t plus = 0;
  int64_t over = 1;
  Form form = Form::whole;
  /// What C++ code says itself, in place of these: see size_node.h. The symbols of the steps are positions in `sizes`.
  std::vector<SizeStep> steps;
  std::vector<SizeOf> sizes;

  /// The word that a trace has behind Tag::integer or Tag::floating.
  int64_t word(const Trace& trace) const;
};

/// What C++ code has found to be so of sizes, and acted upon.
struct SizeCondition {
  SizeGuard::Kind kind;
  SizeExpression left;
  SizeExpression right;
  size_t step;       ///< operators that came before
  std::string text;  ///< two that say the same have the same one
};

/// Whether C++ code has found the same in two recordings.
bool same_conditions(const Recording& a, const Recording& b);

/// Name of a form in the trace's JSON.
const char* name_of(SizeExpression::Form form);

/// What is free in recordings that one code can serve.
struct Sizes {
  struct Word {
    uint32_t position;  ///< in Trace::code, of the tag
    SizeExpression expression;
  };
  struct Free {
    size_t input;
    int64_t dim;
    size_t symbol;  ///< dimensions of one symbol have the same size
  };
  std::vector<Word> words;  ///< by position
  std::vector<Free> free;
  size_t symbols = 0;
  std::vector<std::string> names;  ///< of the symbols

  /// The expression of the number at a position of the code; null when it is constant.
  const SizeExpression* at(size_t position) const;
};

/// Explains two or more recordings of different sizes, the simplest expressions first. Null, with the reason, when they
/// differ in something else, or in a number that follows from no sizes by an expression that is known here. Sizes 0
/// and 1 are never free: PyTorch's operators do other things there.
std::shared_ptr<Sizes> explain(c10::ArrayRef<const Recording*> samples, std::string& reason);

/// Whether one code may read two tensors, given as words of values: strides are the same, or follow from the sizes the
/// same way.
bool same_layout(const int64_t* a, const int64_t* b);

/// Why a recording is not what the explanation says for its sizes; empty when it is.
std::string departure(const Recording& sample, const Sizes& sizes, const Recording& now);

/// Why the sizes of a recording's inputs are none that compiled code is for; empty when they are.
std::string misfit(const Signature& signature, const Recording& now);
/// The same for any sizes, given per input.
std::string misfit(const Signature& signature, c10::ArrayRef<at::IntArrayRef> given);

}  // namespace torchcc::detail
