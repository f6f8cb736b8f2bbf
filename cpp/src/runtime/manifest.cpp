#include "manifest.h"

#include <array>
#include <utility>

#include <torchcc/error.h>
#include <nlohmann/json.hpp>

#include "archive.h"

namespace torchcc::detail {
namespace {

using nlohmann::json;

constexpr const char* kManifestRecord = "extra/torchcc.json";
constexpr const char* kChecksumRecord = "extra/torchcc.json.crc32";
constexpr uint64_t kManifestLimit = 64 << 20;

[[noreturn]] void bad(const std::string& what) { throw Error(what); }

constexpr std::array<std::pair<const char*, c10::ScalarType>, 16> kDtypes{{
    {"uint8", c10::ScalarType::Byte},
    {"int8", c10::ScalarType::Char},
    {"int16", c10::ScalarType::Short},
    {"int32", c10::ScalarType::Int},
    {"int64", c10::ScalarType::Long},
    {"uint16", c10::ScalarType::UInt16},
    {"uint32", c10::ScalarType::UInt32},
    {"uint64", c10::ScalarType::UInt64},
    {"float16", c10::ScalarType::Half},
    {"bfloat16", c10::ScalarType::BFloat16},
    {"float32", c10::ScalarType::Float},
    {"float64", c10::ScalarType::Double},
    {"bool", c10::ScalarType::Bool},
    {"complex32", c10::ScalarType::ComplexHalf},
    {"complex64", c10::ScalarType::ComplexFloat},
    {"complex128", c10::ScalarType::ComplexDouble},
}};

c10::ScalarType parse_dtype(const std::string& name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) return dtype;
  }
  bad("unknown dtype " + name);
}

constexpr std::array<std::pair<const char*, SizeStep::Kind>, 7> kOperators{{
    {"+", SizeStep::Kind::add},
    {"*", SizeStep::Kind::mul},
    {"//", SizeStep::Kind::floordiv},
    {"%", SizeStep::Kind::mod},
    {"max", SizeStep::Kind::max},
    {"min", SizeStep::Kind::min},
    {"**", SizeStep::Kind::pow},
}};

// A size is a number, a symbol's name, or [operator, operand, operand, ...].
void parse_steps(const json& node, const std::vector<Symbol>& symbols, int depth, std::vector<SizeStep>& steps) {
  if (depth > 64) bad("a size expression is nested too deeply");
  if (node.is_number_integer()) {
    steps.push_back({SizeStep::Kind::number, node.get<int64_t>()});
    return;
  }
  if (node.is_string()) {
    for (size_t i = 0; i < symbols.size(); ++i) {
      if (symbols[i].name == node.get<std::string>()) {
        steps.push_back({SizeStep::Kind::symbol, static_cast<int64_t>(i)});
        return;
      }
    }
    bad("unknown symbol " + node.get<std::string>());
  }
  if (!node.is_array() || node.size() < 3) bad("malformed size expression " + node.dump());
  const auto name = node.at(0).get<std::string>();
  for (const auto& [known, kind] : kOperators) {
    if (name != known) continue;
    parse_steps(node.at(1), symbols, depth + 1, steps);
    for (size_t i = 2; i < node.size(); ++i) {
      parse_steps(node.at(i), symbols, depth + 1, steps);
      steps.push_back({kind, 0});
    }
    return;
  }
  bad("unknown operator " + name);
}

Size parse_size(const json& node, const std::vector<Symbol>& symbols) {
  Size size;
  size.text = node.at("text").get<std::string>();
  if (!node.at("value").is_null()) parse_steps(node.at("value"), symbols, 0, size.steps);
  return size;
}

Value parse_value(const json& node, const std::vector<Symbol>& symbols) {
  Value value;
  value.name = node.at("name").get<std::string>();
  value.dtype = parse_dtype(node.at("dtype").get<std::string>());
  if (const auto device = node.at("device").get<std::string>(); device != "cpu") bad("unknown device type " + device);
  for (const json& size : node.at("sizes")) value.sizes.push_back(parse_size(size, symbols));
  value.is_number = node.at("number").get<bool>();
  if (value.is_number && value.dtype != c10::ScalarType::Double && value.dtype != c10::ScalarType::Long &&
      value.dtype != c10::ScalarType::Bool) {
    bad("a number of dtype " + dtype_name(value.dtype));
  }
  if (!node.at("min").is_null()) value.min = node.at("min").get<int64_t>();
  if (!node.at("max").is_null()) value.max = node.at("max").get<int64_t>();
  value.mutated = node.at("mutated").get<bool>();
  return value;
}

Signature parse_signature(const json& node) {
  Signature signature;
  signature.name = node.at("name").get<std::string>();
  for (const json& entry : node.at("symbols")) {
    Symbol symbol;
    symbol.name = entry.at("name").get<std::string>();
    symbol.min = entry.at("min").get<int64_t>();
    if (!entry.at("max").is_null()) symbol.max = entry.at("max").get<int64_t>();
    signature.symbols.push_back(symbol);
  }
  for (const json& value : node.at("inputs")) signature.inputs.push_back(parse_value(value, signature.symbols));
  for (const json& value : node.at("outputs")) signature.outputs.push_back(parse_value(value, signature.symbols));
  for (const Value& input : signature.inputs) {
    for (const Size& size : input.sizes) {
      if (!size.is_known()) bad("input " + input.name + " has an unknown size");
    }
  }
  return signature;
}

Variant parse_variant(const json& node, const std::map<std::string, Record>& records) {
  Variant variant;
  variant.target = node.at("target").get<std::string>();
  variant.torch = node.at("torch").get<std::string>();
  variant.cpu_features = node.at("cpu_features").get<std::vector<std::string>>();
  variant.library = node.at("library").get<std::string>();
  variant.library_out = node.at("library_out").get<std::string>();
  variant.extern_ops = node.at("extern_ops").get<std::string>();
  variant.extern_ops_out = node.at("extern_ops_out").get<std::string>();
  variant.exclusive = node.at("exclusive").get<bool>();
  if (variant.library.empty()) bad("a variant without a library");
  for (const std::string* record :
       {&variant.library, &variant.library_out, &variant.extern_ops, &variant.extern_ops_out}) {
    if (!record->empty() && records.count(*record) == 0) bad("no entry for the record " + *record);
  }
  return variant;
}

Manifest parse_manifest(const json& root) {
  Manifest manifest;
  manifest.producer = root.at("producer").get<std::string>();
  for (const auto& [name, node] : root.at("records").items()) {
    manifest.records[name] = {node.at("size").get<uint64_t>(), node.at("crc32").get<uint32_t>()};
  }
  for (const json& node : root.at("functions")) {
    FunctionEntry entry;
    entry.signature = parse_signature(node.at("signature"));
    for (const json& variant : node.at("variants")) {
      entry.variants.push_back(parse_variant(variant, manifest.records));
    }
    manifest.functions.push_back(std::move(entry));
  }
  return manifest;
}

}  // namespace

Manifest read_manifest(Archive& archive) {
  if (!archive.has(kManifestRecord)) {
    archive.fail("a package made by torchcc, with a record " + std::string(kManifestRecord), "a .pt2 file without one");
  }
  const std::string text = archive.read(kManifestRecord, kManifestLimit);
  const std::string stated = archive.read(kChecksumRecord, 64);
  if (stated != std::to_string(checksum(text))) {
    archive.fail("an undamaged manifest", "another checksum than the package states");
  }
  try {
    const json root = json::parse(text);
    const auto version = root.at("format_version").get<int64_t>();
    if (version != kFormatVersion) {
      archive.fail("format version " + std::to_string(kFormatVersion),
                   "version " + std::to_string(version) + ", written by " + root.value("producer", "an unknown tool"));
    }
    return parse_manifest(root);
  } catch (const PackageError&) {
    throw;
  } catch (const std::exception& error) {
    archive.fail("a well-formed manifest", error.what());
  }
}

}  // namespace torchcc::detail
