// Reads torch.export's JSON: what surrounds the graph itself, which is block.cpp's.
#include <algorithm>
#include <cctype>
#include <map>

#include <torch/version.h>
#include <torchcc/error.h>

#include "block.h"

namespace torchcc::portable {
namespace {

// Of PyTorch's schema version: what is written by a later one of the same major version can be read if it uses no new
// kinds of arguments.
constexpr int64_t kSchemaMajor = 8;
constexpr int kDepth = 400;

}  // namespace

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
    program->block_ = parse_block(module.at("graph"));
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
