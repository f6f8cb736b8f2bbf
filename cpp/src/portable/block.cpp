// Reads the nodes of a graph.
#include "block.h"

#include <map>
#include <unordered_map>

#include <ATen/core/jit_type.h>

namespace torchcc::portable {
namespace {

c10::TypePtr without_optional(c10::TypePtr type) {
  while (type->kind() == c10::TypeKind::OptionalType) type = type->containedType(0);
  return type;
}

/// A number of the graph where the operator takes something else: a tensor, or a number of another type.
c10::IValue adapted(const c10::IValue& number, const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType: return number_tensor(number);
    case c10::TypeKind::FloatType: return number.toScalar().toDouble();
    case c10::TypeKind::BoolType: return number.isBool() ? number : c10::IValue(number.toInt() != 0);
    default: return number;
  }
}

/// The elements of a list of a fixed type, for the tags that PyTorch has for them.
template <class T, class Read>
c10::List<T> list_of(const json& node, Read read) {
  c10::List<T> list;
  for (const json& one : node) list.push_back(read(one));
  return list;
}

const std::map<std::string, Control>& control_operators() {
  static const std::map<std::string, Control> table{
      {"torch.ops.higher_order.cond", Control::cond},
      {"torch.ops.higher_order.while_loop", Control::while_loop},
      {"torch.ops.higher_order.map_impl", Control::map},
      {"torch.ops.higher_order.scan", Control::scan},
      {"torch.ops.higher_order.wrap_with_set_grad_enabled", Control::grad_mode},
      {"torch.ops.higher_order.wrap_with_autocast", Control::autocast},
      {"torch.ops.higher_order.strict_mode", Control::call},
      {"torch.ops.higher_order.invoke_subgraph", Control::call}};
  return table;
}

class BlockParser {
 public:
  explicit BlockParser(const json& graph) : graph_(graph) {}

  std::shared_ptr<const Block> parse() {
    for (const json& input : graph_.at("inputs")) {
      const auto& [tag, node] = member(input);
      const std::string name = name_in(tag, node);
      // An input that is burnt in has no name; nothing refers to it.
      block_.inputs.push_back(add(name.empty() ? std::string("#").append(std::to_string(block_.inputs.size())) : name));
    }
    for (const json& node : graph_.at("nodes")) {
      try {
        add_instruction(node);
      } catch (Bad& error) {
        error.got += " (" + node.value("name", std::string()) + " = " + node.at("target").get<std::string>() + ")";
        throw;
      }
    }
    for (const json& output : graph_.at("outputs")) block_.outputs.push_back(result(output));
    note_usage(block_);
    return std::make_shared<const Block>(std::move(block_));
  }

 private:
  using Operands = std::vector<Operand>;

  uint32_t add(const std::string& name) {
    const auto value = static_cast<uint32_t>(block_.values++);
    if (!values_.emplace(name, value).second) bad("one value of each name", "two named " + name);
    return value;
  }

  uint32_t find(const std::string& name) const {
    const auto known = values_.find(name);
    if (known == values_.end()) bad("a value that was computed before", "the unknown name " + name);
    return known->second;
  }

  /// The name of a value in an argument; empty when it is no value.
  static std::string name_in(const std::string& tag, const json& node) {
    if (tag == "as_tensor") return node.at("name").get<std::string>();
    if (tag == "as_sym_int" || tag == "as_sym_float" || tag == "as_sym_bool") {
      const auto& [kind, name] = member(node);
      return kind == "as_name" ? name.get<std::string>() : "";
    }
    if (tag == "as_optional_tensor") {
      const auto& [kind, inner] = member(node);
      return kind == "as_tensor" ? inner.at("name").get<std::string>() : "";
    }
    return "";
  }

  Operand value(const std::string& name) const { return {Operand::Kind::value, false, find(name)}; }

  Operand constant(c10::IValue value) {
    block_.constants.push_back(std::move(value));
    return {Operand::Kind::constant, false, static_cast<uint32_t>(block_.constants.size() - 1)};
  }

  Operand list(List list) {
    block_.lists.push_back(std::move(list));
    return {Operand::Kind::list, false, static_cast<uint32_t>(block_.lists.size() - 1)};
  }

  /// A symbolic number: a value, or the number itself.
  Operand symbolic(const json& node, const c10::TypePtr& type) {
    const auto& [kind, inner] = member(node);
    if (kind == "as_name") {
      Operand operand = value(inner.get<std::string>());
      if (type->kind() == c10::TypeKind::TensorType) operand.kind = Operand::Kind::number;
      return operand;
    }
    if (kind == "as_int") return constant(adapted(inner.get<int64_t>(), type));
    if (kind == "as_float") return constant(adapted(number_of(inner), type));
    if (kind == "as_bool") return constant(adapted(inner.get<bool>(), type));
    bad("a symbolic number", kind);
  }

  Operand symbolic_list(const json& node, List::Kind kind, const c10::TypePtr& element) {
    List made{kind, {}};
    for (const json& one : node) made.elements.push_back(symbolic(one, element));
    return list(std::move(made));
  }

  Operand tensors(const json& node, bool optional) {
    List made{optional ? List::Kind::optional_tensors : List::Kind::tensors, {}};
    for (const json& one : node) made.elements.push_back(value(one.at("name").get<std::string>()));
    return list(std::move(made));
  }

  Operand optional_tensors(const json& node) {
    List made{List::Kind::optional_tensors, {}};
    for (const json& one : node) {
      const auto& [kind, inner] = member(one);
      made.elements.push_back(kind == "as_tensor" ? value(inner.at("name").get<std::string>())
                                                  : constant(c10::IValue()));
    }
    return list(std::move(made));
  }

  /// A number where the operator takes a list of a known length (a stride of 2 for both dimensions).
  Operand repeated(const c10::IValue& number, const c10::TypePtr& element, int32_t count) {
    if (element->kind() == c10::TypeKind::FloatType) {
      return constant(std::vector<double>(static_cast<size_t>(count), number.toScalar().toDouble()));
    }
    return constant(std::vector<int64_t>(static_cast<size_t>(count), number.toInt()));
  }

  Operand number(const c10::IValue& held, const c10::Argument& argument, const c10::TypePtr& type) {
    if (type->kind() != c10::TypeKind::ListType) return constant(adapted(held, type));
    return repeated(held, type->containedType(0), argument.N().value_or(1));
  }

  Operand empty_list(const c10::TypePtr& type) {
    if (type->kind() != c10::TypeKind::ListType) bad("an argument of type " + type->str(), "an empty list");
    const c10::TypePtr element = type->containedType(0);
    switch (element->kind()) {
      case c10::TypeKind::TensorType: return list({List::Kind::tensors, {}});
      case c10::TypeKind::OptionalType: return list({List::Kind::optional_tensors, {}});
      case c10::TypeKind::FloatType: return constant(std::vector<double>());
      case c10::TypeKind::BoolType: return constant(c10::List<bool>());
      case c10::TypeKind::StringType: return constant(c10::List<std::string>());
      default: return constant(std::vector<int64_t>());
    }
  }

  Operand operand(const json& node, const c10::Argument& argument) {
    const auto& [tag, held] = member(node);
    const c10::TypePtr type = without_optional(argument.real_type());
    const bool is_list = type->kind() == c10::TypeKind::ListType;
    const c10::TypePtr element = is_list ? type->containedType(0) : type;
    if (is_list && held.is_array() && held.empty()) return empty_list(type);
    if (tag == "as_none") return constant(c10::IValue());
    if (tag == "as_tensor") return value(held.at("name").get<std::string>());
    if (tag == "as_optional_tensor") {
      const std::string name = name_in(tag, held);
      return name.empty() ? constant(c10::IValue()) : value(name);
    }
    if (tag == "as_tensors") return tensors(held, element->kind() == c10::TypeKind::OptionalType);
    if (tag == "as_optional_tensors") return optional_tensors(held);
    if (tag == "as_int") return number(held.get<int64_t>(), argument, type);
    if (tag == "as_float") return number(number_of(held), argument, type);
    if (tag == "as_bool") return number(held.get<bool>(), argument, type);
    if (tag == "as_complex") {
      return number(c10::complex<double>(number_of(held.at("real")), number_of(held.at("imag"))), argument, type);
    }
    if (tag == "as_string") return constant(held.get<std::string>());
    if (tag == "as_strings") return constant(list_of<std::string>(held, [](const json& one) { return one; }));
    if (tag == "as_ints" && element->kind() == c10::TypeKind::FloatType)
      return constant(held.get<std::vector<double>>());
    if (tag == "as_ints") return constant(held.get<std::vector<int64_t>>());
    if (tag == "as_floats") {
      std::vector<double> numbers;
      for (const json& one : held) numbers.push_back(number_of(one));
      return constant(std::move(numbers));
    }
    if (tag == "as_bools") return constant(list_of<bool>(held, [](const json& one) { return one.get<bool>(); }));
    if (tag == "as_sym_int" || tag == "as_sym_float" || tag == "as_sym_bool") {
      if (!is_list) return symbolic(held, type);
      List made{element->kind() == c10::TypeKind::FloatType ? List::Kind::doubles : List::Kind::integers, {}};
      made.elements.assign(static_cast<size_t>(argument.N().value_or(1)), symbolic(held, element));
      return list(std::move(made));
    }
    if (tag == "as_sym_ints" && element->kind() == c10::TypeKind::FloatType) {
      return symbolic_list(held, List::Kind::doubles, element);
    }
    if (tag == "as_sym_ints") return symbolic_list(held, List::Kind::integers, element);
    if (tag == "as_sym_floats") return symbolic_list(held, List::Kind::doubles, element);
    if (tag == "as_sym_bools") return symbolic_list(held, List::Kind::booleans, element);
    if (tag == "as_scalar_type") return constant(static_cast<int64_t>(exported_dtype(held.get<int64_t>())));
    if (tag == "as_layout") return constant(static_cast<int64_t>(layout_of(held.get<int64_t>())));
    if (tag == "as_memory_format") return constant(static_cast<int64_t>(memory_format_of(held.get<int64_t>())));
    if (tag == "as_device") return constant(device_of(held));
    bad("an argument of a kind that can be run", "'" + argument.name() + "', which is " + tag);
  }

  /// An output of the graph: a value, or a constant of Python's.
  Operand result(const json& node) {
    const auto& [tag, held] = member(node);
    if (const std::string name = name_in(tag, held); !name.empty()) return value(name);
    if (tag == "as_none" || tag == "as_optional_tensor") return constant(c10::IValue());
    if (tag == "as_int") return constant(held.get<int64_t>());
    if (tag == "as_float") return constant(number_of(held));
    if (tag == "as_bool") return constant(held.get<bool>());
    if (tag == "as_string") return constant(held.get<std::string>());
    if (tag == "as_sym_int" || tag == "as_sym_float" || tag == "as_sym_bool")
      return symbolic(held, c10::AnyType::get());
    bad("an output that is a tensor or a number", tag);
  }

  void add_results(Instruction& instruction, const json& outputs) {
    for (const json& output : outputs) {
      const auto& [tag, held] = member(output);
      if (tag == "as_none") {
        instruction.results.push_back(Instruction::kUnused);
      } else if (tag == "as_tensors") {
        if (outputs.size() != 1) bad("one list of tensors as the only result", "a list beside other results");
        instruction.gives_list = true;
        for (const json& one : held) instruction.results.push_back(add(one.at("name").get<std::string>()));
      } else if (tag == "as_optional_tensors") {
        if (outputs.size() != 1) bad("one list of tensors as the only result", "a list beside other results");
        instruction.gives_list = true;
        for (const json& one : held) {
          const auto& [kind, inner] = member(one);
          instruction.results.push_back(kind == "as_tensor"
                                            ? static_cast<int64_t>(add(inner.at("name").get<std::string>()))
                                            : Instruction::kUnused);
        }
      } else if (const std::string name = name_in(tag, held); !name.empty()) {
        instruction.results.push_back(add(name));
      } else if (tag == "as_optional_tensor") {
        instruction.results.push_back(Instruction::kUnused);
      } else {
        bad("a result that is a tensor or a number", tag);
      }
    }
  }

  void add_instruction(const json& node) {
    Instruction instruction;
    const auto target = node.at("target").get<std::string>();
    instruction.name = target.starts_with("torch.ops.") ? target.substr(10) : target;
    instruction.location = location_of(node.value("metadata", json::object()));
    const json& inputs = node.at("inputs");
    if (const auto control = control_operators().find(target); control != control_operators().end()) {
      instruction.kind = Instruction::Kind::control;
      instruction.control = control->second;
      add_control(instruction, inputs);
      add_results(instruction, node.at("outputs"));
    } else if (target.starts_with("torch.ops.higher_order.")) {
      bad("control flow that can be run: cond, while_loop, map, scan, autocast and grad mode regions", target);
    } else if (target.starts_with("torch.ops.")) {
      add_dispatched(instruction, inputs);
      add_results(instruction, node.at("outputs"));
    } else {
      add_scalar(instruction, inputs);
      add_results(instruction, node.at("outputs"));
    }
    block_.instructions.push_back(std::move(instruction));
  }

  void add_dispatched(Instruction& instruction, const json& inputs) {
    const std::string& name = instruction.name;  // "aten.add.Tensor"
    const size_t first = name.find('.');
    const size_t last = name.rfind('.');
    if (first == std::string::npos || first == last) bad("an operator with an overload", name);
    const std::string full = name.substr(0, first) + "::" + name.substr(first + 1, last - first - 1);
    const std::string overload = name.substr(last + 1);
    instruction.op = c10::Dispatcher::singleton().findSchema({full, overload == "default" ? "" : overload});
    if (!instruction.op) {
      bad("an operator that this program has: link the library that registers it, or load it with "
          "torchcc::load_operators() first",
          full + (overload == "default" ? "" : "." + overload));
    }
    std::map<std::string, const json*> given;
    for (const json& input : inputs) given[input.at("name").get<std::string>()] = &input.at("arg");
    const std::vector<c10::Argument>& wanted = instruction.op->schema().arguments();
    for (const c10::Argument& argument : wanted) {
      const auto found = given.find(argument.name());
      if (found != given.end()) {
        instruction.arguments.push_back(operand(*found->second, argument));
        given.erase(found);
      } else if (argument.default_value()) {
        instruction.arguments.push_back(constant(*argument.default_value()));
      } else {
        bad("a value for the argument " + argument.name(), "none");
      }
    }
    if (!given.empty()) bad("the arguments of " + full, "one more, named " + given.begin()->first);
  }

  void add_scalar(Instruction& instruction, const json& inputs) {
    instruction.kind = Instruction::Kind::scalar;
    std::vector<c10::TypePtr> types;
    for (const json& input : inputs) {
      const auto& [tag, held] = member(input.at("arg"));
      const bool is_integer = tag == "as_int" || tag == "as_sym_int";
      const bool is_boolean = tag == "as_bool" || tag == "as_sym_bool";
      types.push_back(is_integer   ? c10::TypePtr(c10::IntType::get())
                      : is_boolean ? c10::TypePtr(c10::BoolType::get())
                                   : c10::TypePtr(c10::FloatType::get()));
      instruction.arguments.push_back(result(input.at("arg")));
    }
    instruction.scalar = scalar_operator(instruction.name, types);
    if (!instruction.scalar) bad("an operator on numbers that can be run", instruction.name);
  }

  void add_control(Instruction& instruction, const json& inputs) {
    for (const json& input : inputs) {
      const auto& [tag, held] = member(input.at("arg"));
      if (tag == "as_graph") {
        instruction.blocks.push_back(BlockParser(held.at("graph")).parse());
      } else if (tag == "as_tensors") {
        for (const json& one : held) instruction.arguments.push_back(value(one.at("name").get<std::string>()));
        instruction.groups.push_back(held.size());
      } else if (tag == "as_sym_ints") {
        for (const json& one : held) instruction.arguments.push_back(symbolic(one, c10::AnyType::get()));
        instruction.groups.push_back(held.size());
      } else if (tag == "as_ints" || tag == "as_floats") {
        for (const json& one : held) {
          instruction.arguments.push_back(tag == "as_ints" ? constant(one.get<int64_t>()) : constant(number_of(one)));
        }
        instruction.groups.push_back(held.size());
      } else if (tag == "as_scalar_type") {
        instruction.arguments.push_back(constant(static_cast<int64_t>(exported_dtype(held.get<int64_t>()))));
        instruction.groups.push_back(1);
      } else if (tag == "as_string" || tag == "as_bool" || tag == "as_none" || !name_in(tag, held).empty() ||
                 tag == "as_int" || tag == "as_float") {
        instruction.arguments.push_back(result(input.at("arg")));
        instruction.groups.push_back(1);
      } else {
        bad("operands that are tensors and numbers", tag);
      }
    }
    check_control(instruction);
  }

  static void check_control(const Instruction& instruction) {
    static const std::map<Control, std::pair<size_t, size_t>> wanted{
        // blocks, and least groups of operands
        {Control::cond, {2, 1}},      {Control::while_loop, {2, 1}}, {Control::map, {1, 1}}, {Control::scan, {1, 2}},
        {Control::grad_mode, {1, 1}}, {Control::autocast, {1, 4}},   {Control::call, {1, 0}}};
    const auto& [blocks, groups] = wanted.at(instruction.control);
    if (instruction.blocks.size() != blocks || instruction.groups.size() < groups) {
      bad(std::to_string(blocks) + " graphs and " + std::to_string(groups) + " groups of operands or more",
          std::to_string(instruction.blocks.size()) + " and " + std::to_string(instruction.groups.size()));
    }
  }

  const json& graph_;
  Block block_;
  std::unordered_map<std::string, uint32_t> values_;
};

}  // namespace

std::shared_ptr<const Block> parse_block(const json& graph) { return BlockParser(graph).parse(); }

}  // namespace torchcc::portable
