// A recording's trace as JSON, for the compiler and for people.

#include "recording.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <sstream>

#include <torchcc/signature.h>
#include <nlohmann/json.hpp>

namespace torchcc::detail {
namespace {

using Json = nlohmann::ordered_json;

std::string hex(int64_t bits) {
  const auto value = std::bit_cast<double>(bits);
  if (value != value) return "nan";
  char text[64];
  std::snprintf(text, sizeof text, "%a", value);
  return text;
}

const char* memory_format_name(int64_t format) {
  switch (static_cast<c10::MemoryFormat>(format)) {
    case c10::MemoryFormat::Contiguous: return "contiguous_format";
    case c10::MemoryFormat::ChannelsLast: return "channels_last";
    case c10::MemoryFormat::ChannelsLast3d: return "channels_last_3d";
    default: return "preserve_format";
  }
}

std::string layout_name(int64_t layout) {
  std::ostringstream text;
  text << static_cast<c10::Layout>(layout);
  std::string name = text.str();
  for (char& letter : name) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return name;
}

std::string text_of(const int64_t*& word) {
  std::string text(static_cast<size_t>(*word++), '\0');
  for (size_t i = 0; i < text.size(); i += sizeof(int64_t)) {
    std::memcpy(text.data() + i, word++, std::min(sizeof(int64_t), text.size() - i));
  }
  return text;
}

Json json_of(const SizeStep& step, const std::vector<SizeOf>& sizes) {
  switch (step.kind) {
    case SizeStep::Kind::number: return step.value;
    case SizeStep::Kind::symbol: {
      const SizeOf of = sizes[static_cast<size_t>(step.value)];
      return {of.value, of.dim};
    }
    case SizeStep::Kind::add: return "+";
    case SizeStep::Kind::mul: return "*";
    case SizeStep::Kind::floordiv: return "//";
    case SizeStep::Kind::mod: return "%";
    case SizeStep::Kind::max: return "max";
    case SizeStep::Kind::min: return "min";
    case SizeStep::Kind::pow: return "**";
  }
  return nullptr;
}

Json json_of(const SizeExpression& expression) {
  if (!expression.steps.empty()) {
    Json steps = Json::array();
    for (const SizeStep& step : expression.steps) steps.push_back(json_of(step, expression.sizes));
    return {{"size", {{"steps", steps}, {"form", name_of(expression.form)}}}};
  }
  Json terms = Json::array();
  for (const SizeExpression::Term& term : expression.terms) {
    Json product = Json::array();
    for (const SizeOf& of : term.product) product.push_back({of.value, of.dim});
    terms.push_back({{"product", product}, {"times", term.times}});
  }
  return {
      {"size",
       {{"terms", terms}, {"plus", expression.plus}, {"over", expression.over}, {"form", name_of(expression.form)}}}};
}

const char* relation(SizeGuard::Kind kind) {
  switch (kind) {
    case SizeGuard::Kind::equal: return "==";
    case SizeGuard::Kind::not_equal: return "!=";
    case SizeGuard::Kind::less: return "<";
    case SizeGuard::Kind::less_equal: return "<=";
  }
  return "";
}

Json argument(const Recording& recording, const int64_t*& word) {
  if (recording.sizes != nullptr) {
    const auto position = static_cast<size_t>(word - recording.trace.code.data());
    if (const SizeExpression* expression = recording.sizes->at(position)) {
      word += length(word);
      return json_of(*expression);
    }
  }
  switch (static_cast<Tag>(*word++)) {
    case Tag::none: return nullptr;
    case Tag::tensor: return {{"tensor", *word++}};
    case Tag::integer: return *word++;
    case Tag::boolean: return *word++ != 0;
    case Tag::floating: return {{"float", hex(*word++)}};
    case Tag::number: return {{"number", *word++}};
    case Tag::dtype: return {{"dtype", dtype_name(static_cast<c10::ScalarType>(*word++))}};
    case Tag::layout: return {{"layout", layout_name(*word++)}};
    case Tag::memory_format: return {{"memory_format", memory_format_name(*word++)}};
    case Tag::text: return {{"str", text_of(word)}};
    case Tag::complex: {
      const std::string real = hex(*word++);
      return {{"complex", {real, hex(*word++)}}};
    }
    case Tag::device: {
      const auto type = static_cast<c10::DeviceType>(*word++);
      const c10::Device device(type, static_cast<c10::DeviceIndex>(*word++));
      // The same code serves any GPU; the compiler uses the one that the recording is for.
      const bool is_own = device.is_cuda() && (device == recording.device || !device.has_index());
      return {{"device", is_own ? "cuda" : device.str()}};
    }
    case Tag::list: {
      Json list = Json::array();
      for (int64_t left = *word++; left > 0; --left) list.push_back(argument(recording, word));
      return {{"list", list}};
    }
  }
  return nullptr;
}

Json output(const int64_t*& word) {
  switch (static_cast<Tag>(*word++)) {
    case Tag::tensor: return *word++;
    case Tag::integer: return {{"constant", *word++}};
    case Tag::list: {
      Json list = Json::array();
      for (int64_t left = *word++; left > 0; --left) list.push_back(output(word));
      return list;
    }
    default: return nullptr;
  }
}

Json value(const Trace& trace, size_t id) {
  const int64_t* words = trace.value(static_cast<ValueId>(id));
  const auto list = [&](int64_t from) { return std::vector<int64_t>(words + from, words + from + words[kRank]); };
  Json json{{"dtype", dtype_name(static_cast<c10::ScalarType>(words[kDtype]))},
            {"sizes", list(kSizes)},
            {"strides", list(kSizes + words[kRank])},
            {"offset", words[kOffset]},
            {"conj", (words[kFlags] & kConjugate) != 0},
            {"neg", (words[kFlags] & kNegative) != 0}};
  if (words[kDevice] != 0) json["device"] = "cuda";
  if (!trace.requires_grad.empty() && trace.requires_grad[id]) json["requires_grad"] = true;
  return json;
}

Json step(const Recording& recording, size_t index) {
  const Trace& trace = recording.trace;
  const Trace::Step& step = trace.steps[index];
  const int64_t* word = trace.code.data() + step.begin;
  Json arguments = Json::array();
  for (size_t i = 0; i < step.op->arguments.size(); ++i) arguments.push_back(argument(recording, word));
  Json outputs = Json::array();
  for (size_t i = 0; i < step.op->returns; ++i) outputs.push_back(output(word));
  Json json{{"op", step.op->name}, {"args", arguments}, {"outputs", outputs}};
  const Autocast& autocast = step.autocast;
  if (autocast.cpu >= 0) json["autocast"] = dtype_name(static_cast<c10::ScalarType>(autocast.cpu));
  if (autocast.cuda >= 0) json["autocast_cuda"] = dtype_name(static_cast<c10::ScalarType>(autocast.cuda));
  if (!step.grad && !trace.requires_grad.empty()) json["grad"] = false;
  return json;
}

const char* kind_name(Input::Kind kind) {
  switch (kind) {
    case Input::Kind::argument: return "argument";
    case Input::Kind::captured: return "captured";
    case Input::Kind::constant: return "constant";
  }
  return "";
}

}  // namespace

std::string to_json(const Recording& recording, const std::string& name) {
  const Trace& trace = recording.trace;
  Json values = Json::array();
  for (size_t id = 0; id < trace.value_begin.size(); ++id) values.push_back(value(trace, id));
  Json inputs = Json::array();
  Json mutated = Json::array();
  for (size_t i = 0; i < recording.inputs.size(); ++i) {
    const Input& input = recording.inputs[i];
    inputs.push_back({{"value", input.value}, {"kind", kind_name(input.kind)}, {"name", input.name}});
    if (recording.trains && input.requires_grad) inputs.back()["requires_grad"] = true;
    if (recording.trains && input.is_held) inputs.back()["held"] = true;
    if (input.written) mutated.push_back(i);
  }
  Json steps = Json::array();
  for (size_t i = 0; i < trace.steps.size(); ++i) steps.push_back(step(recording, i));
  Json json{{"format", "torchcc-trace"},
            {"version", 1},
            {"name", name},
            {"environment",
             {{"default_dtype", dtype_name(static_cast<c10::ScalarType>(recording.default_dtype))},
              {"deterministic", recording.deterministic},
              {"inference_mode", recording.inference_mode}}},
            {"values", values},
            {"inputs", inputs},
            {"ops", steps},
            {"outputs", recording.outputs},
            {"mutated", mutated},
            {"random", recording.random_state.defined()}};
  if (recording.matmul_precision != at::Float32MatmulPrecision::HIGHEST) {
    json["environment"]["matmul_precision"] =
        recording.matmul_precision == at::Float32MatmulPrecision::HIGH ? "high" : "medium";
  }
  if (recording.sizes != nullptr) {
    Json free = Json::array();
    for (const Sizes::Free& one : recording.sizes->free) free.push_back({one.input, one.dim, one.symbol});
    json["free"] = free;
    json["symbols"] = recording.sizes->names;
    Json conditions = Json::array();
    for (const SizeCondition& one : recording.conditions) {
      conditions.push_back({{"step", one.step},
                            {"relation", relation(one.kind)},
                            {"left", json_of(one.left)},
                            {"right", json_of(one.right)}});
    }
    if (!conditions.empty()) json["conditions"] = conditions;
  }
  if (recording.trains) {
    json["output_grads"] = recording.output_grads;
    json["held_outputs"] = recording.held_outputs;
  }
  return json.dump();
}

}  // namespace torchcc::detail
