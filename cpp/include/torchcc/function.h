#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <torchcc/error.h>
#include <torchcc/signature.h>
#include <torchcc/tensor.h>

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

  Argument(const Tensor& tensor) : kind_(Kind::tensor), tensor_(&tensor) {}
  template <class T>
    requires std::floating_point<T>
  Argument(T value) : kind_(Kind::floating), floating_(value) {}
  template <class T>
    requires(std::integral<T> && !std::same_as<T, bool>)
  Argument(T value) : kind_(Kind::integer), integer_(value) {}
  template <std::same_as<bool> T>
  Argument(T value) : kind_(Kind::boolean), integer_(value) {}

  Kind kind() const { return kind_; }
  const Tensor& tensor() const { return *tensor_; }
  double floating() const { return floating_; }
  int64_t integer() const { return integer_; }

 private:
  Kind kind_;
  union {
    const Tensor* tensor_;
    double floating_;
    int64_t integer_;
  };
};

/// An argument by name, for Function's call operator; a tensor must outlive the call.
struct NamedArgument {
  std::string_view name;
  Argument value;
};

/// A tensor by name: a weight, or one of the results of a call.
using NamedTensor = std::pair<std::string, Tensor>;

/// What a call by name gives: the results in the signature's order, which can also be asked for by name. Plain data.
class Outputs {
 public:
  explicit Outputs(std::vector<NamedTensor> values) : values_(std::move(values)) {}

  /// The result of this name, or at this position. Throws ArgumentError, with the names that exist, when there is none.
  const Tensor& operator[](std::string_view name) const;
  const Tensor& operator[](size_t position) const;
  size_t size() const { return values_.size(); }
  auto begin() const { return values_.begin(); }
  auto end() const { return values_.end(); }

 private:
  std::vector<NamedTensor> values_;
};

/// What runs behind a function, and why.
struct Stats {
  std::string backend;               ///< "compiled", or "portable": torch.export's graph, operator by operator
  std::string target;                ///< what the code was compiled for, e.g. "cpu-x86_64-avx512"; empty for portable
  std::vector<std::string> reasons;  ///< one line per variant of the package that was passed over
  int64_t portable_calls = 0;        ///< calls that ran the portable graph
  std::string portable_reason;       ///< why the latest of these did; empty when there is nothing else
  std::string training_target;  ///< the target of the code that runs where gradients are wanted; empty: the graph runs
  int64_t training_calls = 0;   ///< calls that ran that code
  int64_t graph_captures = 0;   ///< CUDA graphs that were recorded, see LoadOptions::cuda_graphs
  int64_t graph_calls = 0;      ///< calls that were one launch of such a graph
  int64_t graph_backwards = 0;  ///< backward passes that were
  std::string graph_reason;     ///< why others were not, where CUDA graphs were asked for; empty: nothing is in the way
};

/// A function of a package. A handle that is cheap to copy and safe to call from many threads at once; calls take no
/// lock, except those of a function that writes into its own buffers (a cache), which run one after the other.
///
/// Every call checks its arguments against signature() and throws ArgumentError when one does not fit. Results are
/// right for any strides: compiled code gets contiguous copies where it needs them. Where an argument or a weight
/// requires grad and grad mode is on, the results carry gradients: by compiled code for both directions where the
/// package has it (`train=True`, `grad=True`), else the portable graph runs, operator by operator; a function without
/// one refuses the call. Compiled code cannot be differentiated twice: backward with create_graph runs the graph, or
/// throws CaptureError where that would not give the same (random numbers, buffers that were written into).
class Function {
 public:
  /// An empty handle; calling it throws ArgumentError.
  Function() = default;

  const Signature& signature() const;
  Stats stats() const;
  bool defined() const { return state_ != nullptr; }

  /// Calls a function that has exactly one output. Arguments are tensors and numbers, in the signature's order.
  template <class... Args>
  Tensor operator()(const Args&... args) const;

  /// Calls the function by the names of its inputs, in any order: `encoder({{"ids", ids}, {"mask", mask}})`. Nested
  /// inputs have names with dots: "state.0". Throws ArgumentError for a name that is missing, unknown, or given twice.
  Outputs operator()(std::initializer_list<NamedArgument> arguments) const;
  Outputs operator()(std::span<const NamedArgument> arguments) const;

  /// Calls the function; one tensor per output.
  std::vector<Tensor> call(std::span<const Argument> arguments) const;
  std::vector<Tensor> call(std::initializer_list<Argument> arguments) const;

  /// Calls the function and writes its results into `outputs`, which allocates no memory for them. Each output tensor
  /// is contiguous, has the signature's dtype and sizes, and shares no memory with an input or another output; anything
  /// else is an ArgumentError, and so is a function that was built without this variant (`out=False`).
  void call_out(std::span<Tensor> outputs, std::span<const Argument> arguments) const;

  /// As call() and call_out(), without a vector: `outputs` has one slot for each output.
  void call_into(std::span<Tensor> outputs, std::span<const Argument> arguments) const;

  /// Parameters, buffers and constants by their names in Python, as the next call uses them. The tensors are the
  /// function's own: a change in place is seen. All functions that came from one model share them. Empty for a region,
  /// and for a package of compiled code alone.
  std::vector<NamedTensor> weights() const;

  /// Replaces a weight for all functions of the same model; set_weights() several at once. Calls that run meanwhile see
  /// either all old weights or all new ones. The tensor is kept, not copied, where it has the strides of the one that
  /// it replaces and the function does not write into it. Compiled code in which weights are burnt in is not used from
  /// then on: code that takes them as inputs runs in its place, or else the portable graph, and stats() says so. Throws
  /// ArgumentError for an unknown name and for another dtype or other sizes; then nothing is changed.
  void set_weight(std::string_view name, const Tensor& tensor) const;
  void set_weights(std::span<const NamedTensor> weights) const;

 private:
  friend struct detail::Access;
  std::shared_ptr<const detail::FunctionState> state_;
};

template <class... Args>
Tensor Function::operator()(const Args&... args) const {
  Tensor output;
  const std::array<Argument, sizeof...(Args)> arguments{Argument(args)...};
  call_into(std::span<Tensor>(&output, 1), arguments);
  return output;
}

}  // namespace torchcc
