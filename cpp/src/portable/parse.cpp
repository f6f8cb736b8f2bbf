// Reads torch.export's JSON; see torch/_export/serde/schema.py. Not with the classes that libtorch has for it: they
// take a field that they do not know for None.

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <string_view>
#include <unordered_map>

#include <ATen/core/jit_type.h>
#include <torch/version.h>
#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "program.h"

namespace torchcc::portable {
namespace {

using nlohmann::json;

// Of PyTorch's schema version: what is written by a later one of the same major version can be read if it uses no new
// kinds of arguments.
constexpr int64_t kSchemaMajor = 8;
constexpr int kDepth = 400;

/// What is wrong with the graph: what was expected, and what came.
struct Bad {
  std::string expected;
  std::string got;
};

[[noreturn]] void bad(std::string expected, std::string got) { throw Bad{std::move(expected), std::move(got)}; }

// PyTorch's numbers for these, in schema.py.
c10::Layout layout_of(int64_t number) {
  using L = c10::Layout;
  static const std::map<int64_t, L> table{{1, L::Sparse},    {2, L::SparseCsr}, {3, L::SparseCsc}, {4, L::SparseBsr},
                                          {5, L::SparseBsc}, {6, L::Mkldnn},    {7, L::Strided}};
  const auto known = table.find(number);
  if (known == table.end()) bad("a layout that this version knows", "number " + std::to_string(number));
  return known->second;
}

c10::MemoryFormat memory_format_of(int64_t number) {
  using M = c10::MemoryFormat;
  static const std::map<int64_t, M> table{
      {1, M::Contiguous}, {2, M::ChannelsLast}, {3, M::ChannelsLast3d}, {4, M::Preserve}};
  const auto known = table.find(number);
  if (known == table.end()) bad("a memory format that this version knows", "number " + std::to_string(number));
  return known->second;
}

c10::Device device_of(const json& node) {
  std::string text = node.at("type").get<std::string>();
  if (!node.at("index").is_null()) text.append(":").append(std::to_string(node.at("index").get<int64_t>()));
  return c10::Device(text);
}

double number_of(const json& node) {
  if (!node.is_string()) return node.get<double>();
  const auto text = node.get<std::string>();
  if (text == "Infinity") return std::numeric_limits<double>::infinity();
  if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
  if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
  bad("a number", text);
}

/// PyTorch writes a union as an object with one member.
std::pair<std::string, const json&> member(const json& node) {
  if (!node.is_object() || node.size() != 1) bad("an object with one member", node.dump().substr(0, 200));
  const auto only = node.items().begin();
  return {only.key(), only.value()};
}

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

/// "model.py:12" of the innermost line of a Python stack trace.
std::string location_of(const json& metadata) {
  const auto trace = metadata.find("stack_trace");
  if (trace == metadata.end() || !trace->is_string()) return "";
  const std::string text = trace->get<std::string>();
  const size_t file = text.rfind("File \"");
  const size_t line = text.find("\", line ", file);
  if (file == std::string::npos || line == std::string::npos) return "";
  const std::string path = text.substr(file + 6, line - file - 6);
  const size_t number = line + 8;
  return path.substr(path.rfind('/') + 1) + ":" + text.substr(number, text.find_first_of(",\n", number) - number);
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
      const auto position = static_cast<uint32_t>(block_.inputs.size());
      const std::string name = name_in(tag, node);
      // An input that is burnt in has no name; nothing refers to it.
      const uint32_t value = add(name.empty() ? std::string("#").append(std::to_string(position)) : name);
      block_.inputs.push_back(value);
      roots_[value] = {position};
    }
    block_.written.resize(block_.inputs.size());
    for (const json& node : graph_.at("nodes")) {
      try {
        add_instruction(node);
      } catch (Bad& error) {
        error.got += " (" + node.value("name", std::string()) + " = " + node.at("target").get<std::string>() + ")";
        throw;
      }
    }
    for (const json& output : graph_.at("outputs")) block_.outputs.push_back(result(output));
    mark_last_uses();
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
      note_control(instruction);
    } else if (target.starts_with("torch.ops.higher_order.")) {
      bad("control flow that can be run: cond, while_loop, map, scan, autocast and grad mode regions", target);
    } else if (target.starts_with("torch.ops.")) {
      add_dispatched(instruction, inputs);
      add_results(instruction, node.at("outputs"));
      note_aliases(instruction);
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

  // --- which inputs are written to
  // -------------------------------------------------------------------------------------

  template <class Visit>
  void visit(const Operand& operand, Visit visit_value) const {
    if (operand.kind == Operand::Kind::value) visit_value(operand.index);
    if (operand.kind == Operand::Kind::list) {
      for (const Operand& element : block_.lists[operand.index].elements) visit(element, visit_value);
    }
  }

  std::set<uint32_t> roots_of(const Operand& operand) const {
    std::set<uint32_t> roots;
    visit(operand, [&](uint32_t value) {
      if (const auto known = roots_.find(value); known != roots_.end()) {
        roots.insert(known->second.begin(), known->second.end());
      }
    });
    return roots;
  }

  void write(const Operand& operand) {
    for (const uint32_t root : roots_of(operand)) block_.written[root] = true;
  }

  void share(const std::vector<int64_t>& results, const std::set<uint32_t>& roots) {
    if (roots.empty()) return;
    for (const int64_t result : results) {
      if (result != Instruction::kUnused) roots_[static_cast<uint32_t>(result)].insert(roots.begin(), roots.end());
    }
  }

  void note_aliases(const Instruction& instruction) {
    const c10::FunctionSchema& schema = instruction.op->schema();
    std::set<uint32_t> shared;
    for (size_t i = 0; i < instruction.arguments.size(); ++i) {
      const c10::AliasInfo* alias = schema.arguments()[i].alias_info();
      // Without the annotation, an operator may still give its input back (dropout in evaluation).
      if (alias == nullptr && i != 0) continue;
      const std::set<uint32_t> roots = roots_of(instruction.arguments[i]);
      shared.insert(roots.begin(), roots.end());
      if (alias == nullptr) continue;
      const bool writes =
          alias->isWrite() || std::any_of(alias->containedTypes().begin(), alias->containedTypes().end(),
                                          [](const c10::AliasInfo& inner) { return inner.isWrite(); });
      if (writes) write(instruction.arguments[i]);
    }
    share(instruction.results, shared);
  }

  void note_control(const Instruction& instruction) {
    std::set<uint32_t> shared;
    for (const Operand& argument : instruction.arguments) {
      const std::set<uint32_t> roots = roots_of(argument);
      shared.insert(roots.begin(), roots.end());
    }
    for (const auto& block : instruction.blocks) {
      const bool writes = std::find(block->written.begin(), block->written.end(), true) != block->written.end();
      if (!writes) continue;
      for (const Operand& argument : instruction.arguments) write(argument);
    }
    share(instruction.results, shared);
  }

  // --- when values are needed for the last time
  // ------------------------------------------------------------------------

  void mark(Operand& operand, std::vector<bool>& seen) {
    if (operand.kind == Operand::Kind::list) {
      std::vector<Operand>& elements = block_.lists[operand.index].elements;
      for (auto element = elements.rbegin(); element != elements.rend(); ++element) mark(*element, seen);
    } else if (operand.kind != Operand::Kind::constant && !seen[operand.index]) {
      seen[operand.index] = true;
      operand.is_last = true;
    }
  }

  void mark_last_uses() {
    std::vector<bool> seen(block_.values);
    for (auto output = block_.outputs.rbegin(); output != block_.outputs.rend(); ++output) mark(*output, seen);
    for (auto one = block_.instructions.rbegin(); one != block_.instructions.rend(); ++one) {
      for (int64_t& result : one->results) {
        if (result != Instruction::kUnused && !seen[static_cast<size_t>(result)]) result = Instruction::kUnused;
      }
      for (auto operand = one->arguments.rbegin(); operand != one->arguments.rend(); ++operand) mark(*operand, seen);
    }
    for (const uint32_t input : block_.inputs) block_.used.push_back(seen[input]);
  }

  const json& graph_;
  Block block_;
  std::unordered_map<std::string, uint32_t> values_;
  std::map<uint32_t, std::set<uint32_t>> roots_;  ///< inputs of the block that a value may be a view of
};

}  // namespace

c10::ScalarType exported_dtype(int64_t number) {
  using T = c10::ScalarType;
  static const std::map<int64_t, T> table{{1, T::Byte},
                                          {2, T::Char},
                                          {3, T::Short},
                                          {4, T::Int},
                                          {5, T::Long},
                                          {6, T::Half},
                                          {7, T::Float},
                                          {8, T::Double},
                                          {9, T::ComplexHalf},
                                          {10, T::ComplexFloat},
                                          {11, T::ComplexDouble},
                                          {12, T::Bool},
                                          {13, T::BFloat16},
                                          {28, T::UInt16},
                                          {29, T::Float8_e4m3fn},
                                          {30, T::Float8_e5m2},
                                          {31, T::Float8_e4m3fnuz},
                                          {32, T::Float8_e5m2fnuz},
                                          {33, T::Float8_e8m0fnu},
                                          {34, T::UInt32},
                                          {35, T::UInt64}};
  const auto known = table.find(number);
  if (known == table.end()) throw Error("number " + std::to_string(number) + " is no dtype that this version knows");
  return known->second;
}

class Parser {
 public:
  static std::shared_ptr<const Program> parse(const json& root) {
    const int64_t major = root.at("schema_version").at("major").get<int64_t>();
    if (major != kSchemaMajor) {
      bad("a graph of PyTorch's schema version " + std::to_string(kSchemaMajor), "version " + std::to_string(major));
    }
    const auto torch = root.value("torch_version", std::string());
    const std::string own = std::to_string(TORCH_VERSION_MAJOR);
    if (!torch.empty() && std::isdigit(static_cast<unsigned char>(torch[0])) != 0 && !torch.starts_with(own + ".")) {
      bad("a graph of torch " + own, "one of torch " + torch);
    }
    auto program = std::make_shared<Program>();
    const json& module = root.at("graph_module");
    const json& signature = module.at("signature");
    program->block_ = BlockParser(module.at("graph")).parse();
    std::map<std::string, size_t> inputs_by_name;
    std::map<std::string, size_t> inputs_by_weight;
    for (const json& spec : signature.at("input_specs")) {
      const size_t position = program->inputs_.size();
      program->inputs_.push_back(input(spec, inputs_by_name, position));
      const Program::Input& made = program->inputs_.back();
      if (made.kind != Program::Input::Kind::weight) continue;
      inputs_by_weight[made.name] = position;
      program->weights_.push_back(made.name);
      program->written_.push_back(program->block_->written.at(position));
      program->used_.push_back(program->block_->used.at(position));
    }
    for (const json& spec : signature.at("output_specs")) {
      const auto& [tag, node] = member(spec);
      Program::Output output;
      if (tag != "user_output") {
        output.kind = Program::Output::Kind::write;
        output.input = written_input(tag, node, inputs_by_name, inputs_by_weight);
        program->note_written(output.input);
      }
      program->outputs_.push_back(output);
    }
    if (program->inputs_.size() != program->block_->inputs.size() ||
        program->outputs_.size() != program->block_->outputs.size()) {
      bad("a signature of as many inputs and outputs as the graph has", "another number");
    }
    return program;
  }

 private:
  static Program::Input input(const json& spec, std::map<std::string, size_t>& by_name, size_t position) {
    using Kind = Program::Input::Kind;
    const auto& [tag, node] = member(spec);
    if (tag == "parameter") return {Kind::weight, node.at("parameter_name").get<std::string>()};
    if (tag == "buffer") return {Kind::weight, node.at("buffer_name").get<std::string>()};
    if (tag == "tensor_constant") return {Kind::weight, node.at("tensor_constant_name").get<std::string>()};
    if (tag == "constant_input") {
      const auto& [kind, value] = member(node.at("value"));
      Program::Input made{Kind::fixed, node.at("name").get<std::string>()};
      if (kind == "as_int") made.value = value.get<int64_t>();
      if (kind == "as_float") made.value = number_of(value);
      if (kind == "as_bool") made.value = value.get<bool>();
      if (kind == "as_string") made.value = value.get<std::string>();
      return made;
    }
    if (tag == "user_input") {
      const auto& [kind, argument] = member(node.at("arg"));
      std::string name;
      if (kind == "as_tensor") name = argument.at("name").get<std::string>();
      if (kind.starts_with("as_sym_")) name = argument.value("as_name", std::string());
      if (name.empty()) return {Kind::fixed, "", fixed(kind, argument)};
      by_name[name] = position;
      return {Kind::argument, name, {}, kind != "as_tensor"};
    }
    bad("inputs that are tensors and numbers", tag);
  }

  static c10::IValue fixed(const std::string& kind, const json& node) {
    if (kind == "as_none") return {};
    if (kind == "as_int") return node.get<int64_t>();
    if (kind == "as_float") return number_of(node);
    if (kind == "as_bool") return node.get<bool>();
    if (kind == "as_string") return node.get<std::string>();
    bad("inputs that are tensors and numbers", kind);
  }

  static size_t written_input(const std::string& tag, const json& node, const std::map<std::string, size_t>& by_name,
                              const std::map<std::string, size_t>& by_weight) {
    const auto look = [](const std::map<std::string, size_t>& table, const std::string& name) {
      const auto known = table.find(name);
      if (known == table.end()) bad("an input to write to", "the unknown name " + name);
      return known->second;
    };
    if (tag == "buffer_mutation") return look(by_weight, node.at("buffer_name").get<std::string>());
    if (tag == "parameter_mutation") return look(by_weight, node.at("parameter_name").get<std::string>());
    if (tag == "user_input_mutation") return look(by_name, node.at("user_input_name").get<std::string>());
    bad("a graph for inference, whose outputs are results and new contents of inputs", tag);
  }
};

void Program::note_written(size_t input) {
  size_t position = 0;
  for (size_t i = 0; i < input; ++i) position += inputs_[i].kind == Input::Kind::weight ? 1 : 0;
  if (inputs_[input].kind == Input::Kind::weight) written_[position] = true;
}

std::vector<std::string> Program::written_arguments() const {
  std::vector<std::string> names;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const bool at_the_end = std::any_of(outputs_.begin(), outputs_.end(), [&](const Output& output) {
      return output.kind == Output::Kind::write && output.input == i;
    });
    if (inputs_[i].kind == Input::Kind::argument && (at_the_end || block_->written[i]))
      names.push_back(inputs_[i].name);
  }
  return names;
}

std::shared_ptr<const Program> Program::parse(const std::string& text, const Fail& fail) {
  try {
    return Parser::parse(json::parse(text, [](int depth, json::parse_event_t, const json&) {
      if (depth > kDepth) bad("a graph", "JSON that is nested too deeply");
      return true;
    }));
  } catch (const Bad& error) {
    fail(error.expected, error.got);
  } catch (const json::exception& error) {
    const std::string reason = error.what();  // it starts with "[json.exception...] "
    fail("a graph that torch.export wrote", reason.substr(reason.find(' ') + 1));
  } catch (const c10::Error& error) {
    fail("a graph that torch.export wrote", error.what_without_backtrace());
  } catch (const Error& error) {
    fail("a graph that torch.export wrote", error.what());
  }
  throw Error("a graph could not be read");  // fail() throws
}

}  // namespace torchcc::portable
