#include <algorithm>

#include <ATen/ScalarOps.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torchcc/error.h>

#include "message.h"
#include "program.h"

namespace torchcc::portable {
namespace {

using detail::first_line;
using detail::message;

using torch::jit::Stack;
using Values = std::vector<c10::IValue>;

/// Sets CPU autocast for a scope, as Python's torch.autocast does.
class Autocast {
 public:
  Autocast(const std::string& device, const c10::IValue& dtype, bool enabled, bool caches)
      : device_(c10::Device(device).type()),
        enabled_(at::autocast::is_autocast_enabled(device_)),
        dtype_(at::autocast::get_autocast_dtype(device_)),
        caches_(at::autocast::is_autocast_cache_enabled()) {
    at::autocast::set_autocast_enabled(device_, enabled);
    if (dtype.isInt()) at::autocast::set_autocast_dtype(device_, static_cast<c10::ScalarType>(dtype.toInt()));
    at::autocast::set_autocast_cache_enabled(caches);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, dtype_);
    at::autocast::set_autocast_cache_enabled(caches_);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  c10::DeviceType device_;
  bool enabled_;
  c10::ScalarType dtype_;
  bool caches_;
};

bool is_true(const c10::IValue& value) {
  return value.isTensor() ? value.toTensor().item<bool>() : value.toScalar().to<bool>();
}

/// One run of a block. Instructions share one stack, on which each leaves nothing behind.
class Frame {
 public:
  Frame(const Block& block, Stack& stack, const Instruction*& current)
      : block_(block), stack_(stack), current_(current), values_(block.values) {}

  Values run(Values inputs) {
    for (size_t i = 0; i < inputs.size(); ++i) values_[block_.inputs[i]] = std::move(inputs[i]);
    for (const Instruction& instruction : block_.instructions) {
      current_ = &instruction;
      execute(instruction);
    }
    Values outputs;
    outputs.reserve(block_.outputs.size());
    for (const Operand& output : block_.outputs) outputs.push_back(get(output));
    return outputs;
  }

 private:
  c10::IValue get(const Operand& operand) {
    switch (operand.kind) {
      case Operand::Kind::value: return operand.is_last ? std::move(values_[operand.index]) : values_[operand.index];
      case Operand::Kind::constant: return block_.constants[operand.index];
      case Operand::Kind::number: return number_tensor(values_[operand.index]);
      case Operand::Kind::list: return make_list(block_.lists[operand.index]);
    }
    return {};
  }

  template <class T, class Read>
  c10::List<T> fill(const List& list, Read read) {
    c10::List<T> made;
    made.reserve(list.elements.size());
    for (const Operand& element : list.elements) made.push_back(read(get(element)));
    return made;
  }

  c10::IValue make_list(const List& list) {
    switch (list.kind) {
      case List::Kind::tensors:
        return fill<at::Tensor>(list, [](c10::IValue one) { return std::move(one).toTensor(); });
      case List::Kind::optional_tensors:
        return fill<std::optional<at::Tensor>>(list, [](c10::IValue one) {
          return one.isNone() ? std::optional<at::Tensor>() : std::optional<at::Tensor>(std::move(one).toTensor());
        });
      case List::Kind::integers: return fill<int64_t>(list, [](const c10::IValue& one) { return one.toInt(); });
      case List::Kind::doubles:
        return fill<double>(list, [](const c10::IValue& one) { return one.toScalar().toDouble(); });
      case List::Kind::booleans: return fill<bool>(list, [](const c10::IValue& one) { return one.toBool(); });
    }
    return {};
  }

  void execute(const Instruction& instruction) {
    if (instruction.kind == Instruction::Kind::control) {
      keep(instruction, control(instruction));
      return;
    }
    const size_t before = stack_.size();
    for (const Operand& argument : instruction.arguments) stack_.push_back(get(argument));
    if (instruction.kind == Instruction::Kind::dispatched) {
      instruction.op->callBoxed(stack_);
    } else {
      instruction.scalar(stack_);
    }
    if (instruction.gives_list) {
      const c10::IValue list = torch::jit::pop(stack_);
      const c10::ArrayRef<c10::IValue> elements = list.toListRef();
      if (elements.size() != instruction.results.size()) {
        throw Error("it gave " + std::to_string(elements.size()) + " tensors, and " +
                    std::to_string(instruction.results.size()) + " when it was exported");
      }
      for (size_t i = 0; i < elements.size(); ++i) keep(instruction.results[i], elements[i]);
      return;
    }
    for (size_t i = 0; i < instruction.results.size(); ++i) {
      keep(instruction.results[i], std::move(stack_[before + i]));
    }
    torch::jit::drop(stack_, stack_.size() - before);
  }

  void keep(int64_t result, c10::IValue value) {
    if (result != Instruction::kUnused) values_[static_cast<size_t>(result)] = std::move(value);
  }

  void keep(const Instruction& instruction, Values results) {
    if (results.size() < instruction.results.size()) throw Error("it gave too few results");
    for (size_t i = 0; i < instruction.results.size(); ++i) keep(instruction.results[i], std::move(results[i]));
  }

  Values run_block(const Instruction& instruction, size_t position, Values inputs) {
    const Block& block = *instruction.blocks[position];
    if (inputs.size() != block.inputs.size()) throw Error("its graph takes another number of operands");
    Values outputs = Frame(block, stack_, current_).run(std::move(inputs));
    current_ = &instruction;
    return outputs;
  }

  Values control(const Instruction& instruction) {
    Values operands;
    operands.reserve(instruction.arguments.size());
    for (const Operand& argument : instruction.arguments) operands.push_back(get(argument));
    switch (instruction.control) {
      case Control::cond: {
        const size_t branch = is_true(operands.front()) ? 0 : 1;
        operands.erase(operands.begin());
        return run_block(instruction, branch, std::move(operands));
      }
      case Control::while_loop: return while_loop(instruction, std::move(operands));
      case Control::map: return map(instruction, operands);
      case Control::scan: return scan(instruction, std::move(operands));
      case Control::grad_mode: {
        const c10::AutoGradMode mode(operands.front().toBool());
        operands.erase(operands.begin());
        return run_block(instruction, 0, std::move(operands));
      }
      case Control::autocast: {
        const Autocast autocast(operands[0].toStringRef(), operands[1], operands[2].toBool(),
                                operands[3].isNone() || operands[3].toBool());
        operands.erase(operands.begin(), operands.begin() + 4);
        return run_block(instruction, 0, std::move(operands));
      }
      case Control::call: break;
    }
    return run_block(instruction, 0, std::move(operands));
  }

  Values while_loop(const Instruction& instruction, Values operands) {
    const size_t carried = instruction.groups[0];
    while (is_true(run_block(instruction, 0, operands).at(0))) {
      Values next = run_block(instruction, 1, operands);
      std::move(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(carried), operands.begin());
    }
    operands.resize(carried);
    return operands;
  }

  /// Element `i` of the first dimension of some operands.
  static void append_elements(Values& to, const Values& operands, size_t begin, size_t count, int64_t i) {
    for (size_t j = begin; j < begin + count; ++j) to.emplace_back(operands[j].toTensor().select(0, i));
  }

  static Values stacked(std::vector<std::vector<at::Tensor>> columns) {
    Values results;
    for (const std::vector<at::Tensor>& column : columns) {
      if (column.empty()) throw Error("it runs over a dimension of size 0, which tells nothing about the result");
      results.emplace_back(at::stack(column));
    }
    return results;
  }

  Values map(const Instruction& instruction, const Values& operands) {
    const size_t mapped = instruction.groups[0];
    std::vector<std::vector<at::Tensor>> columns(instruction.results.size());
    const int64_t count = operands.at(0).toTensor().size(0);
    for (int64_t i = 0; i < count; ++i) {
      Values inputs;
      append_elements(inputs, operands, 0, mapped, i);
      inputs.insert(inputs.end(), operands.begin() + static_cast<std::ptrdiff_t>(mapped), operands.end());
      Values outputs = run_block(instruction, 0, std::move(inputs));
      for (size_t j = 0; j < columns.size(); ++j) columns[j].push_back(std::move(outputs.at(j)).toTensor());
    }
    return stacked(std::move(columns));
  }

  Values scan(const Instruction& instruction, Values operands) {
    const size_t carried = instruction.groups[0];
    const size_t scanned = instruction.groups[1];
    const auto carried_end = static_cast<std::ptrdiff_t>(carried);
    Values state(operands.begin(), operands.begin() + carried_end);
    std::vector<std::vector<at::Tensor>> columns(instruction.results.size() - carried);
    const int64_t count = operands.at(carried).toTensor().size(0);
    for (int64_t i = 0; i < count; ++i) {
      Values inputs = state;
      append_elements(inputs, operands, carried, scanned, i);
      inputs.insert(inputs.end(), operands.begin() + static_cast<std::ptrdiff_t>(carried + scanned), operands.end());
      Values outputs = run_block(instruction, 0, std::move(inputs));
      for (size_t j = 0; j < columns.size(); ++j) columns[j].push_back(outputs.at(carried + j).toTensor());
      std::move(outputs.begin(), outputs.begin() + carried_end, state.begin());
    }
    Values results = std::move(state);
    for (c10::IValue& column : stacked(std::move(columns))) results.push_back(std::move(column));
    return results;
  }

  const Block& block_;
  Stack& stack_;
  const Instruction*& current_;
  Values values_;
};

bool requires_grad(const Values& inputs) {
  return std::any_of(inputs.begin(), inputs.end(),
                     [](const c10::IValue& one) { return one.isTensor() && one.toTensor().requires_grad(); });
}

bool shares_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() && a.has_storage() && b.has_storage() && !a.is_same(b) &&
         a.storage().is_alias_of(b.storage());
}

/// Views of the caller's tensors that were made where PyTorch does not note what they are views of, made again.
void renew_views(Values& results, const Values& arguments, const std::vector<at::Tensor>& weights,
                 const std::vector<size_t>& positions) {
  for (c10::IValue& result : results) {
    if (!result.isTensor()) continue;
    const at::Tensor& made = result.toTensor();
    const auto renew = [&](const at::Tensor& base) {
      if (!shares_memory(made, base) || made.scalar_type() != base.scalar_type() || made.is_conj() != base.is_conj() ||
          made.is_neg() != base.is_neg()) {
        return false;
      }
      result = base.as_strided(made.sizes(), made.strides(), made.storage_offset());
      return true;
    };
    bool done = false;
    for (const c10::IValue& argument : arguments) done = done || (argument.isTensor() && renew(argument.toTensor()));
    for (const size_t position : positions) done = done || renew(weights[position]);
  }
}

[[noreturn]] void fail(const Instruction* instruction, const std::string& reason) {
  if (instruction == nullptr) throw Error(message("a graph failed", {{"reason", reason}}));
  throw Error(message("the operator " + instruction->name + " failed",
                      {{"reason", reason},
                       {"place", instruction->location.empty() ? "unknown" : instruction->location + " of the model"},
                       {"fix", "check the sizes and the values of the arguments"}}));
}

}  // namespace

at::Tensor number_tensor(const c10::IValue& number) {
  at::Tensor tensor = c10::scalar_to_tensor(number.toScalar());
  tensor.unsafeGetTensorImpl()->set_wrapped_number(true);
  return tensor;
}

Values Program::run(Values arguments, const std::vector<at::Tensor>& weights,
                    const std::vector<size_t>& positions) const {
  Values inputs;
  inputs.reserve(inputs_.size());
  size_t argument = 0;
  size_t weight = 0;
  for (const Input& input : inputs_) {
    switch (input.kind) {
      case Input::Kind::argument: inputs.push_back(arguments.at(argument++)); break;
      case Input::Kind::weight: inputs.emplace_back(weights.at(positions.at(weight++))); break;
      case Input::Kind::fixed: inputs.push_back(input.value); break;
    }
  }
  const bool writes = std::find(block_->written.begin(), block_->written.end(), true) != block_->written.end();
  const bool below_autograd = !at::GradMode::is_enabled() || !requires_grad(inputs);
  const Instruction* current = nullptr;
  Stack stack;
  stack.reserve(32);
  Values outputs;
  Values written;  // inputs that get a new content at the end
  for (const Output& output : outputs_) {
    if (output.kind == Output::Kind::write) written.push_back(inputs[output.input]);
  }
  try {
    std::optional<c10::impl::ExcludeDispatchKeyGuard> below;
    if (below_autograd) {
      below.emplace(writes ? c10::autograd_dispatch_keyset : c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    }
    outputs = Frame(*block_, stack, current).run(std::move(inputs));
  } catch (const c10::OutOfMemoryError&) {
    throw;  // nothing is wrong with the operator, and programs tell it by its type
  } catch (const c10::Error& error) {
    fail(current, first_line(error.what_without_backtrace()));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(current, first_line(error.what()));
  }
  Values results;
  size_t next = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs_[i].kind == Output::Kind::result) {
      results.push_back(std::move(outputs[i]));
    } else {
      const c10::AutoGradMode no_grad(false);
      written[next++].toTensor().copy_(outputs[i].toTensor());
    }
  }
  if (below_autograd && !writes) renew_views(results, arguments, weights, positions);
  return results;
}

}  // namespace torchcc::portable
