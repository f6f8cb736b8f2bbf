#include "manifest.h"

#include <algorithm>
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

constexpr int kManifestDepth = 100;

[[noreturn]] void bad(const std::string& what) { throw Error(what); }

// json::get would quietly turn true, 1.5 and 2^64-1 into some number.
int64_t integer(const json& node) {
  if (!node.is_number_integer() || (node.is_number_unsigned() && node.get<uint64_t>() > INT64_MAX)) {
    bad("a number that is not a 64-bit integer");
  }
  return node.get<int64_t>();
}

int64_t natural(const json& node) {
  const int64_t number = integer(node);
  if (number < 0) bad("a negative size: " + std::to_string(number));
  return number;
}

json parse_json(const std::string& text) {
  return json::parse(text, [](int depth, json::parse_event_t, const json&) {
    if (depth > kManifestDepth) bad("it is nested too deeply");
    return true;
  });
}

constexpr std::array<std::pair<const char*, c10::ScalarType>, 20> kDtypes{{
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
    {"float8_e4m3fn", c10::ScalarType::Float8_e4m3fn},
    {"float8_e4m3fnuz", c10::ScalarType::Float8_e4m3fnuz},
    {"float8_e5m2", c10::ScalarType::Float8_e5m2},
    {"float8_e5m2fnuz", c10::ScalarType::Float8_e5m2fnuz},
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
  if (node.is_number()) {
    steps.push_back({SizeStep::Kind::number, integer(node)});
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
  if (!node.is_array() || node.size() < 3) bad("malformed size expression");
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
  if (size.is_number() && size.steps[0].value < 0) bad("a negative size: " + size.text);
  return size;
}

Value parse_value(const json& node, const std::vector<Symbol>& symbols) {
  Value value;
  value.name = node.at("name").get<std::string>();
  value.dtype = parse_dtype(node.at("dtype").get<std::string>());
  const auto device = node.at("device").get<std::string>();
  if (device != "cpu" && device != "cuda") bad("unknown device type " + device);
  if (device == "cuda") value.device = c10::DeviceType::CUDA;
  for (const json& size : node.at("sizes")) value.sizes.push_back(parse_size(size, symbols));
  value.is_number = node.at("number").get<bool>();
  if (value.is_number && value.dtype != c10::ScalarType::Double && value.dtype != c10::ScalarType::Long &&
      value.dtype != c10::ScalarType::Bool) {
    bad("a number of dtype " + dtype_name(value.dtype));
  }
  if (value.is_number && !value.sizes.empty()) bad("a number with sizes");
  if (!node.at("min").is_null()) value.min = integer(node.at("min"));
  if (!node.at("max").is_null()) value.max = integer(node.at("max"));
  value.mutated = node.at("mutated").get<bool>();
  return value;
}

bool has_unknown_sizes(const std::vector<Value>& values) {
  return std::any_of(values.begin(), values.end(), [](const Value& value) {
    return std::any_of(value.sizes.begin(), value.sizes.end(), [](const Size& size) { return !size.is_known(); });
  });
}

constexpr std::array<std::pair<const char*, SizeGuard::Kind>, 4> kRelations{{
    {"==", SizeGuard::Kind::equal},
    {"!=", SizeGuard::Kind::not_equal},
    {"<", SizeGuard::Kind::less},
    {"<=", SizeGuard::Kind::less_equal},
}};

SizeGuard parse_guard(const json& node, const std::vector<Symbol>& symbols) {
  SizeGuard guard;
  guard.text = node.at("text").get<std::string>();
  const auto relation = node.at("relation").get<std::string>();
  const auto* known =
      std::find_if(kRelations.begin(), kRelations.end(), [&](const auto& entry) { return relation == entry.first; });
  if (known == kRelations.end()) bad("unknown relation " + relation);
  guard.kind = known->second;
  parse_steps(node.at("left"), symbols, 0, guard.left.steps);
  parse_steps(node.at("right"), symbols, 0, guard.right.steps);
  guard.left.text = guard.right.text = guard.text;
  return guard;
}

bool has_gpu_values(const Signature& signature) {
  const auto is_on_gpu = [](const Value& value) { return value.device == c10::DeviceType::CUDA; };
  return std::any_of(signature.inputs.begin(), signature.inputs.end(), is_on_gpu) ||
         std::any_of(signature.outputs.begin(), signature.outputs.end(), is_on_gpu);
}

Signature parse_signature(const json& node) {
  Signature signature;
  signature.name = node.at("name").get<std::string>();
  for (const json& entry : node.at("symbols")) {
    Symbol symbol;
    symbol.name = entry.at("name").get<std::string>();
    symbol.min = natural(entry.at("min"));
    if (!entry.at("max").is_null()) symbol.max = natural(entry.at("max"));
    signature.symbols.push_back(symbol);
  }
  for (const json& value : node.at("inputs")) signature.inputs.push_back(parse_value(value, signature.symbols));
  for (const json& value : node.at("outputs")) signature.outputs.push_back(parse_value(value, signature.symbols));
  for (const json& guard : node.value("guards", json::array())) {
    signature.guards.push_back(parse_guard(guard, signature.symbols));
  }
  if (has_unknown_sizes(signature.inputs)) bad("an input of " + signature.name + " has an unknown size");
  return signature;
}

VariantEntry parse_variant(const json& node, const Signature& signature, const std::map<std::string, Record>& records) {
  VariantEntry variant;
  variant.target = node.at("target").get<std::string>();
  variant.torch = node.at("torch").get<std::string>();
  variant.cpu_features = node.at("cpu_features").get<std::vector<std::string>>();
  variant.library = node.at("library").get<std::string>();
  variant.library_out = node.at("library_out").get<std::string>();
  variant.extern_ops = node.at("extern_ops").get<std::string>();
  variant.extern_ops_out = node.at("extern_ops_out").get<std::string>();
  variant.exclusive = node.at("exclusive").get<bool>();
  variant.architecture = node.value("architecture", "");
  variant.uncapturable = node.value("uncapturable", "");
  variant.weights = node.at("weights").get<std::vector<std::string>>();
  if (variant.library.empty()) bad("a variant without a library");
  if (!variant.library_out.empty() && has_unknown_sizes(signature.outputs)) {
    bad("a variant of " + signature.name + " that writes into outputs of unknown size");
  }
  for (const std::string* record :
       {&variant.library, &variant.library_out, &variant.extern_ops, &variant.extern_ops_out}) {
    if (!record->empty() && records.count(*record) == 0) bad("no entry for the record " + *record);
  }
  return variant;
}

void check_positions(const std::vector<std::vector<size_t>>& lists, size_t count, size_t limit, const char* what) {
  bool fits = lists.size() == count;
  for (const std::vector<size_t>& list : lists) {
    for (const size_t position : list) fits = fits && position < limit;
  }
  if (!fits) bad(std::string("training code with wrong positions in ") + what);
}

TrainingVariant parse_training(const json& node, const Signature& signature,
                               const std::map<std::string, Record>& records) {
  TrainingVariant training;
  training.target = node.at("target").get<std::string>();
  training.torch = node.at("torch").get<std::string>();
  training.cpu_features = node.at("cpu_features").get<std::vector<std::string>>();
  training.library = node.at("library").get<std::string>();
  training.library_backward = node.at("library_backward").get<std::string>();
  training.extern_ops = node.at("extern_ops").get<std::string>();
  training.extern_ops_backward = node.at("extern_ops_backward").get<std::string>();
  training.exclusive = node.at("exclusive").get<bool>();
  training.architecture = node.value("architecture", "");
  training.weights = node.at("weights").get<std::vector<std::string>>();
  const json& backward = node.at("backward");
  training.backward = parse_backward(backward);
  training.covered = backward.at("covered").get<std::vector<std::vector<size_t>>>();
  training.reached = backward.at("reached").get<std::vector<std::vector<size_t>>>();
  training.is_random = backward.at("random").get<bool>();
  training.uncapturable = backward.value("uncapturable", "");

  const size_t inputs = signature.inputs.size() + training.weights.size();
  const size_t outputs = signature.outputs.size();
  for (const Backward::Saved& one : training.backward.saved) {
    using From = Backward::Saved::From;
    const size_t limit = one.from == From::input    ? inputs
                         : one.from == From::output ? outputs
                                                    : training.backward.extras;
    check_positions({{one.index}}, 1, limit, "saved");
  }
  std::vector<size_t> tangents;
  for (const Backward::Tangent& one : training.backward.tangents) tangents.push_back(one.output);
  check_positions({tangents}, 1, outputs, "tangents");
  check_positions({training.backward.gradients}, 1, inputs, "gradients");
  check_positions(training.covered, outputs, outputs, "covered");
  check_positions(training.reached, outputs, inputs, "reached");
  for (const std::string* record : {&training.library, &training.library_backward}) {
    if (record->empty()) bad("training code without a library");
  }
  for (const std::string* record :
       {&training.library, &training.library_backward, &training.extern_ops, &training.extern_ops_backward}) {
    if (!record->empty() && records.count(*record) == 0) bad("no entry for the record " + *record);
  }
  return training;
}

Manifest parse_manifest(const json& root) {
  Manifest manifest;
  manifest.producer = root.at("producer").get<std::string>();
  for (const auto& [name, node] : root.at("records").get_ref<const json::object_t&>()) {
    const int64_t crc32 = natural(node.at("crc32"));
    if (crc32 > UINT32_MAX) bad("a checksum that is not a 32-bit number");
    manifest.records[name] = {static_cast<uint64_t>(natural(node.at("size"))), static_cast<uint32_t>(crc32)};
  }
  for (const json& node : root.at("functions").get_ref<const json::array_t&>()) {
    FunctionEntry entry;
    entry.signature = parse_signature(node.at("signature"));
    for (const FunctionEntry& other : manifest.functions) {
      if (other.signature.name == entry.signature.name) bad("two functions named " + entry.signature.name);
    }
    entry.graph = node.at("graph").get<std::string>();
    entry.model = node.at("model").get<std::string>();
    entry.group = node.at("group").get<std::string>();
    entry.is_on_gpu = node.value("device", "cpu") == "cuda";
    if (!entry.is_on_gpu && has_gpu_values(entry.signature)) bad("a tensor on a GPU in a function on the CPU");
    if (!entry.graph.empty() && manifest.records.count(entry.graph) == 0) bad("no entry for the record " + entry.graph);
    for (const json& variant : node.at("variants")) {
      entry.variants.push_back(parse_variant(variant, entry.signature, manifest.records));
    }
    for (const json& training : node.value("training", json::array())) {
      entry.training.push_back(parse_training(training, entry.signature, manifest.records));
    }
    manifest.functions.push_back(std::move(entry));
  }
  if (manifest.functions.empty()) bad("no function");
  return manifest;
}

}  // namespace

bool has_manifest(Archive& archive) { return archive.has(kManifestRecord) || archive.has(kChecksumRecord); }

Manifest read_manifest(Archive& archive) {
  if (!archive.has(kManifestRecord)) {
    archive.fail("a package made by torchcc, with a record " + std::string(kManifestRecord), "a .pt2 file without one",
                 "make it with `torchcc build` or `torchcc export`");
  }
  const std::string text = archive.read(kManifestRecord, kManifestLimit);
  const std::string stated = archive.read(kChecksumRecord, 64);
  if (stated != std::to_string(checksum(text))) {
    archive.fail("an undamaged manifest", "another checksum than the package states");
  }
  try {
    const json root = parse_json(text);
    const auto version = integer(root.at("format_version"));
    if (version != kFormatVersion) {
      archive.fail("format version " + std::to_string(kFormatVersion),
                   "version " + std::to_string(version) + ", written by " + root.value("producer", "an unknown tool"),
                   "build the package and this program with the same version of torchcc");
    }
    return parse_manifest(root);
  } catch (const PackageError&) {
    throw;
  } catch (const std::exception& error) {
    const std::string reason = error.what();  // the JSON library starts with "[json.exception...] "
    archive.fail("a well-formed manifest", reason.starts_with('[') ? reason.substr(reason.find(' ') + 1) : reason);
  }
}

}  // namespace torchcc::detail
