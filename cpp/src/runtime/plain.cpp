#include "plain.h"

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>

#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "archive.h"
#include "message.h"
#include "program.h"

namespace torchcc::detail {
namespace {

using nlohmann::json;

constexpr uint64_t kGraphLimit = uint64_t{4} << 30;
constexpr int kDepth = 400;
constexpr int kExpressionDepth = 64;
constexpr std::string_view kFolder = "models/";

/// Reads a size as sympy's srepr() writes it: "Add(Symbol('s0', integer=True), Integer(1))".
class ExpressionReader {
 public:
  ExpressionReader(std::string_view text, std::vector<Symbol>& symbols) : text_(text), symbols_(symbols) {}

  /// A size without steps when there is something in it that a Size cannot say.
  Size read() {
    Size size;
    const bool known = expression(size.steps, size.text, 0);
    return known && position_ == text_.size() ? size : Size{"?", {}};
  }

 private:
  bool take(char letter) {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
    if (position_ == text_.size() || text_[position_] != letter) return false;
    ++position_;
    return true;
  }

  std::string_view word() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
    const size_t begin = position_;
    while (position_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[position_])) != 0 ||
                                        text_[position_] == '_' || text_[position_] == '-')) {
      ++position_;
    }
    return text_.substr(begin, position_ - begin);
  }

  bool skip_assumptions() {
    while (take(',')) {
      if (word().empty() || !take('=') || word().empty()) return false;
    }
    return take(')');
  }

  bool symbol(std::vector<SizeStep>& steps, std::string& text) {
    if (!take('\'')) return false;
    text = word();
    if (!take('\'') || !skip_assumptions()) return false;
    auto known = std::find_if(symbols_.begin(), symbols_.end(), [&](const Symbol& one) { return one.name == text; });
    if (known == symbols_.end()) {
      symbols_.push_back({text});
      known = symbols_.end() - 1;
    }
    steps.push_back({SizeStep::Kind::symbol, known - symbols_.begin()});
    return true;
  }

  bool number(std::vector<SizeStep>& steps, std::string& text) {
    text = word();
    if (text.empty() || text.size() > 18 || text.find_first_not_of("-0123456789") != std::string::npos) return false;
    steps.push_back({SizeStep::Kind::number, std::stoll(text)});
    return take(')');
  }

  bool expression(std::vector<SizeStep>& steps, std::string& text, int depth) {
    static constexpr std::pair<std::string_view, std::pair<SizeStep::Kind, const char*>> kOperators[] = {
        {"Add", {SizeStep::Kind::add, "+"}},
        {"Mul", {SizeStep::Kind::mul, "*"}},
        {"FloorDiv", {SizeStep::Kind::floordiv, "//"}},
        {"CleanDiv", {SizeStep::Kind::floordiv, "//"}},
        {"Mod", {SizeStep::Kind::mod, "%"}},
        {"PythonMod", {SizeStep::Kind::mod, "%"}},
        {"Max", {SizeStep::Kind::max, ", "}},
        {"Min", {SizeStep::Kind::min, ", "}},
        {"PowByNatural", {SizeStep::Kind::pow, "**"}}};
    const std::string_view name = word();
    if (depth > kExpressionDepth || !take('(')) return false;
    if (name == "Symbol") return symbol(steps, text);
    if (name == "Integer") return number(steps, text);
    const auto* found =
        std::find_if(std::begin(kOperators), std::end(kOperators), [&](const auto& one) { return one.first == name; });
    if (found == std::end(kOperators)) return false;
    const auto [kind, sign] = found->second;
    const bool is_call = kind == SizeStep::Kind::max || kind == SizeStep::Kind::min;
    size_t count = 0;
    do {
      std::string operand;
      if (!expression(steps, operand, depth + 1)) return false;
      text += (count == 0 ? "" : sign) + operand;
      if (count++ > 0) steps.push_back({kind, 0});
    } while (take(','));
    text = is_call      ? (kind == SizeStep::Kind::max ? "max(" : "min(") + text + ")"
           : depth == 0 ? text
                        : "(" + text + ")";
    return count > 1 && take(')');
  }

  std::string_view text_;
  std::vector<Symbol>& symbols_;
  size_t position_ = 0;
};

Size read_size(const json& node, std::vector<Symbol>& symbols) {
  if (node.contains("as_int")) {
    const auto number = node.at("as_int").get<int64_t>();
    return {std::to_string(number), {{SizeStep::Kind::number, number}}};
  }
  const auto text = node.at("as_expr").at("expr_str").get<std::string>();
  return ExpressionReader(text, symbols).read();
}

Value read_tensor(const std::string& name, const json& graph, std::vector<Symbol>& symbols) {
  const json& meta = graph.at("tensor_values").at(name);
  Value value;
  value.name = name;
  value.dtype = portable::exported_dtype(meta.at("dtype").get<int64_t>());
  const auto device = meta.at("device").at("type").get<std::string>();
  if (device != "cpu" && device != "cuda") throw Error("'" + name + "' is on " + device);
  if (device == "cuda") value.device = c10::DeviceType::CUDA;
  for (const json& size : meta.at("sizes")) value.sizes.push_back(read_size(size, symbols));
  return value;
}

Value read_number(const std::string& name, const std::string& tag) {
  Value value;
  value.name = name;
  value.is_number = true;
  value.dtype = tag == "as_sym_int"     ? c10::ScalarType::Long
                : tag == "as_sym_float" ? c10::ScalarType::Double
                                        : c10::ScalarType::Bool;
  return value;
}

void read_inputs(Signature& signature, const json& module, const std::vector<std::string>& written) {
  for (const json& spec : module.at("signature").at("input_specs")) {
    if (!spec.contains("user_input")) continue;
    const json& argument = spec.at("user_input").at("arg");
    const auto entry = argument.begin();
    const std::string tag = entry.key();
    const json& held = *entry;
    if (tag == "as_tensor") {
      signature.inputs.push_back(
          read_tensor(held.at("name").get<std::string>(), module.at("graph"), signature.symbols));
      Value& value = signature.inputs.back();
      value.mutated = std::find(written.begin(), written.end(), value.name) != written.end();
    } else if (tag.starts_with("as_sym_") && held.contains("as_name")) {
      signature.inputs.push_back(read_number(held.at("as_name").get<std::string>(), tag));
    }
  }
}

void read_outputs(Signature& signature, const json& module) {
  for (const json& spec : module.at("signature").at("output_specs")) {
    if (!spec.contains("user_output")) continue;
    const json& argument = spec.at("user_output").at("arg");
    const std::string tag = argument.items().begin().key();
    if (tag == "as_none" || tag == "as_string") continue;
    Value value;
    if (tag == "as_tensor") {
      value = read_tensor(argument.at(tag).at("name").get<std::string>(), module.at("graph"), signature.symbols);
    } else {
      const bool is_float = tag == "as_float" || tag == "as_sym_float";
      const bool is_bool = tag == "as_bool" || tag == "as_sym_bool";
      value.dtype = is_float ? c10::ScalarType::Double : is_bool ? c10::ScalarType::Bool : c10::ScalarType::Long;
    }
    signature.outputs.push_back(std::move(value));
  }
  for (size_t i = 0; i < signature.outputs.size(); ++i) {
    signature.outputs[i].name = signature.outputs.size() == 1 ? "out" : "out" + std::to_string(i);
  }
}

Signature read_signature(const std::string& name, const json& root, const std::vector<std::string>& written) {
  Signature signature;
  signature.name = name;
  read_inputs(signature, root.at("graph_module"), written);
  const size_t bound = signature.symbols.size();
  read_outputs(signature, root.at("graph_module"));
  for (Value& value : signature.outputs) {
    for (Size& size : value.sizes) {
      const bool is_free = std::any_of(size.steps.begin(), size.steps.end(), [&](const SizeStep& step) {
        return step.kind == SizeStep::Kind::symbol && static_cast<size_t>(step.value) >= bound;
      });
      if (is_free) size = {"?", {}};  // a size that only the data decides
    }
  }
  signature.symbols.resize(bound);
  for (Symbol& symbol : signature.symbols) {
    const auto range = root.at("range_constraints").find(symbol.name);
    if (range == root.at("range_constraints").end()) continue;
    if (!range->at("min_val").is_null()) symbol.min = std::max<int64_t>(0, range->at("min_val").get<int64_t>());
    if (!range->at("max_val").is_null()) symbol.max = range->at("max_val").get<int64_t>();
  }
  for (const Value& input : signature.inputs) {
    for (const Size& size : input.sizes) {
      if (!size.is_known()) throw Error("the size of the input '" + input.name + "' cannot be computed");
    }
  }
  return signature;
}

bool is_on_gpu(const json& root) {
  const json& tensors = root.at("graph_module").at("graph").at("tensor_values");
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const json& meta) { return meta.at("device").at("type").get<std::string>() == "cuda"; });
}

}  // namespace

Manifest read_plain(Archive& archive) {
  Manifest manifest;
  manifest.producer = "torch.export";
  for (const std::string& record : archive.records()) {
    if (!record.starts_with(kFolder) || !record.ends_with(".json")) continue;
    FunctionEntry entry;
    entry.graph = record;
    entry.model = record.substr(kFolder.size(), record.size() - kFolder.size() - 5);
    entry.group = entry.model;
    const auto fail = [&](const std::string& expected, const std::string& got) {
      archive.fail(expected, got, "export it again with this version of torch, or use `torchcc export`");
    };
    const std::string text = archive.read(record, kGraphLimit);
    try {
      entry.program = portable::Program::parse(text, fail);
      const json root = json::parse(text, [](int depth, json::parse_event_t, const json&) {
        if (depth > kDepth) throw Error("it is nested too deeply");
        return true;
      });
      entry.signature = read_signature(entry.model, root, entry.program->written_arguments());
      entry.is_on_gpu = is_on_gpu(root);
    } catch (const PackageError&) {
      throw;
    } catch (const std::exception& error) {
      fail("a graph that torch.export wrote, whose inputs are tensors and numbers", first_line(error.what()));
    }
    manifest.functions.push_back(std::move(entry));
  }
  return manifest;
}

}  // namespace torchcc::detail
