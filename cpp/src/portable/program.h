#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

namespace torchcc::portable {

struct Block;

/// One argument of an instruction, or one result of a block.
struct Operand {
  enum class Kind : uint8_t {
    value,     ///< a value of the block
    constant,  ///< one of Block::constants
    list,      ///< one of Block::lists
    number,    ///< a number of the block, as a tensor that takes part in type promotion as a number does
  };
  Kind kind = Kind::value;
  bool is_last = false;  ///< the value is not needed afterwards, and is moved
  uint32_t index = 0;
};

/// A list that is made anew for each call, because some of its elements are values.
struct List {
  enum class Kind : uint8_t { tensors, optional_tensors, integers, doubles, booleans };
  Kind kind = Kind::tensors;
  std::vector<Operand> elements;
};

/// The control flow that torch.export writes down as an operator; see "higher order operators" in PyTorch's
/// documentation.
enum class Control : uint8_t { cond, while_loop, map, scan, grad_mode, autocast, call };

struct Instruction {
  enum class Kind : uint8_t { dispatched, scalar, control };
  static constexpr int64_t kUnused = -1;

  Kind kind = Kind::dispatched;
  Control control = Control::call;
  bool gives_list = false;  ///< the result is one list of tensors; `results` are its elements
  std::string name;         ///< "aten.add.Tensor", for messages
  std::string location;     ///< where in the model's Python code, for messages; may be empty
  std::optional<c10::OperatorHandle> op;
  std::function<void(torch::jit::Stack&)> scalar;
  std::vector<Operand> arguments;
  std::vector<int64_t> results;  ///< values of the block, or kUnused
  std::vector<std::shared_ptr<const Block>> blocks;
  std::vector<size_t> groups;  ///< of control flow: how many of `arguments` belong to each of its lists of operands
};

/// A list of instructions with its own values: a graph, or a branch or body inside of one.
struct Block {
  size_t values = 0;
  std::vector<uint32_t> inputs;  ///< the values that the inputs become
  std::vector<Operand> outputs;
  std::vector<Instruction> instructions;
  std::vector<c10::IValue> constants;
  std::vector<List> lists;
  std::vector<bool> used;     ///< per input
  std::vector<bool> written;  ///< per input: some operator writes into it, or into a view of it
};

/// A graph that torch.export wrote, ready to run operator by operator. Immutable; run() is safe from many threads at
/// once as long as no weight is written to.
class Program {
 public:
  /// Inputs of the graph, in its order.
  struct Input {
    enum class Kind : uint8_t {
      argument,  ///< the caller's
      weight,    ///< a parameter, buffer or constant, by its name in Python
      fixed,     ///< a value that export has burnt in
    };
    Kind kind = Kind::argument;
    std::string name;
    c10::IValue value{};
    bool is_number = false;  ///< an argument that is no tensor
  };
  /// Outputs of the graph, in its order.
  struct Output {
    enum class Kind : uint8_t {
      result,  ///< the caller's
      write,   ///< the new content of an input of the graph
    };
    Kind kind = Kind::result;
    size_t input = 0;
  };

  /// Reads the JSON that torch.export writes. `fail` is called with what is wrong (expected, got), and throws.
  using Fail = std::function<void(const std::string& expected, const std::string& got)>;
  static std::shared_ptr<const Program> parse(const std::string& json, const Fail& fail);

  const std::vector<Input>& inputs() const { return inputs_; }
  const std::vector<Output>& outputs() const { return outputs_; }
  /// Names of the weights, in the order in which run() takes them.
  const std::vector<std::string>& weights() const { return weights_; }
  /// Whether the weight at this position is written to by the graph.
  bool writes_weight(size_t position) const { return written_[position]; }
  /// Whether the graph uses the weight at this position.
  bool uses_weight(size_t position) const { return used_[position]; }

  /// Whether two runs on the same inputs may differ.
  bool draws_random_numbers() const;
  /// Names of the caller's inputs that the graph writes into.
  std::vector<std::string> written_arguments() const;

  /// Runs the graph. `arguments` are the caller's inputs; weights() are those of `weights` at `positions`; the results
  /// are the caller's outputs: tensors, numbers, strings and None. Throws Error, with the operator and its place in the
  /// model, when an operator fails.
  std::vector<c10::IValue> run(std::vector<c10::IValue> arguments, const std::vector<at::Tensor>& weights,
                               const std::vector<size_t>& positions) const;

 private:
  friend class Parser;
  void note_written(size_t input);
  std::vector<Input> inputs_;
  std::vector<Output> outputs_;
  std::vector<std::string> weights_;
  std::vector<bool> written_;
  std::vector<bool> used_;
  std::shared_ptr<const Block> block_;
};

/// The dtype of this number in torch.export's JSON (torch/_export/serde/schema.py). Throws Error for an unknown one.
c10::ScalarType exported_dtype(int64_t number);

/// A number as a tensor that takes part in type promotion as a number does.
at::Tensor number_tensor(const c10::IValue& number);

/// The Python operator on numbers of this name ("_operator.floordiv", "torch.sym_max") for arguments of these kinds.
/// Empty when there is none.
std::function<void(torch::jit::Stack&)> scalar_operator(const std::string& name,
                                                        const std::vector<c10::TypePtr>& arguments);

}  // namespace torchcc::portable
