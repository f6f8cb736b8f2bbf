#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torchcc/error.h>
#include <torchcc/signature.h>

namespace torchcc {

namespace detail {
struct FunctionState;
struct Access;
}  // namespace detail

/// One argument of a call: a tensor by reference, or a number. Made implicitly from either; a tensor must outlive the
/// call.
class Argument {
 public:
  enum class Kind : uint8_t { tensor, floating, integer, boolean };

  Argument(const at::Tensor& tensor) : kind_(Kind::tensor), tensor_(&tensor) {}
  template <class T>
    requires std::floating_point<T>
  Argument(T value) : kind_(Kind::floating), floating_(value) {}
  template <class T>
    requires(std::integral<T> && !std::same_as<T, bool>)
  Argument(T value) : kind_(Kind::integer), integer_(value) {}
  template <std::same_as<bool> T>
  Argument(T value) : kind_(Kind::boolean), integer_(value) {}

  Kind kind() const { return kind_; }
  const at::Tensor& tensor() const { return *tensor_; }
  double floating() const { return floating_; }
  int64_t integer() const { return integer_; }

 private:
  Kind kind_;
  union {
    const at::Tensor* tensor_;
    double floating_;
    int64_t integer_;
  };
};

/// What runs behind a function, and why.
struct Stats {
  std::string backend;               ///< "compiled"
  std::string target;                ///< what the code was compiled for, e.g. "cpu-x86_64-avx512"
  std::vector<std::string> reasons;  ///< one line per variant of the package that was passed over
};

/// A compiled function. A handle that is cheap to copy and safe to call from many threads at once; calls take no lock.
///
/// Every call checks its arguments against signature() and throws ArgumentError when one does not fit. A tensor whose
/// layout is not contiguous is copied first, so results are right for any strides. Results never carry gradients: an
/// input that requires grad while grad mode is on is refused.
class Function {
 public:
  /// An empty handle; calling it throws ArgumentError.
  Function() = default;

  const Signature& signature() const;
  Stats stats() const;
  bool defined() const { return state_ != nullptr; }

  /// Calls a function that has exactly one output. Arguments are tensors and numbers, in the signature's order.
  template <class... Args>
  at::Tensor operator()(const Args&... args) const;

  /// Calls the function; one tensor per output.
  std::vector<at::Tensor> call(std::span<const Argument> arguments) const;
  std::vector<at::Tensor> call(std::initializer_list<Argument> arguments) const;

  /// Calls the function and writes its results into `outputs`, which allocates no memory for them. Each output tensor
  /// is contiguous, has the signature's dtype and sizes, and shares no memory with an input or another output; anything
  /// else is an ArgumentError, and so is a function that was built without this variant (`out=False`).
  void call_out(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const;

  /// As call() and call_out(), without a vector: `outputs` has one slot for each output.
  void call_into(std::span<at::Tensor> outputs, std::span<const Argument> arguments) const;

 private:
  friend struct detail::Access;
  std::shared_ptr<const detail::FunctionState> state_;
};

template <class... Args>
at::Tensor Function::operator()(const Args&... args) const {
  at::Tensor output;
  const std::array<Argument, sizeof...(Args)> arguments{Argument(args)...};
  call_into(std::span<at::Tensor>(&output, 1), arguments);
  return output;
}

}  // namespace torchcc
