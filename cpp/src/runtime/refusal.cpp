#include "refusal.h"

#ifndef TORCHCC_STANDALONE
#include <sstream>

#include <ATen/core/grad_mode.h>
#endif

#include <torchcc/error.h>

#include "message.h"

namespace torchcc::detail {
namespace {

std::string which(const Signature& signature, const std::vector<Value>& values, size_t index) {
  const bool input = &values == &signature.inputs;
  return signature.name + ": " + (input ? "argument" : "output") + " '" + values[index].name + "' (" +
         std::to_string(index + 1) + " of " + std::to_string(values.size()) + ")";
}

[[noreturn]] void refuse(const Signature& signature, const std::string& subject, const std::string& expected,
                         const std::string& got, const std::string& fix) {
  throw ArgumentError(
      message(subject, {{"signature", signature.str()}, {"expected", expected}, {"got", got}, {"fix", fix}}));
}

std::string count_text(size_t count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

std::string list_text(IntArrayRef numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

std::string sizes_text(const Tensor& tensor) { return "sizes [" + list_text(tensor.sizes()) + "]"; }

std::string layout_text(const Tensor& tensor) {
  return sizes_text(tensor) + ", strides [" + list_text(tensor.strides()) + "]";
}

#ifdef TORCHCC_STANDALONE
constexpr const char* kNamespace = "torchcc::";

/// A dtype's name in C++, without its "k".
const char* scalar_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "Byte";
    case ScalarType::Char: return "Char";
    case ScalarType::Short: return "Short";
    case ScalarType::Int: return "Int";
    case ScalarType::Long: return "Long";
    case ScalarType::UInt16: return "UInt16";
    case ScalarType::UInt32: return "UInt32";
    case ScalarType::UInt64: return "UInt64";
    case ScalarType::Half: return "Half";
    case ScalarType::BFloat16: return "BFloat16";
    case ScalarType::Float: return "Float";
    case ScalarType::Double: return "Double";
    case ScalarType::Bool: return "Bool";
    case ScalarType::ComplexHalf: return "ComplexHalf";
    case ScalarType::ComplexFloat: return "ComplexFloat";
    case ScalarType::ComplexDouble: return "ComplexDouble";
  }
  return "Undefined";
}
#else
constexpr const char* kNamespace = "at::";

const char* scalar_name(ScalarType dtype) { return c10::toString(dtype); }
#endif

std::string scalar_text(ScalarType dtype) { return std::string(kNamespace) + "k" + scalar_name(dtype); }

#ifdef TORCHCC_STANDALONE
Device memory_of(const Tensor&) { return {}; }

std::string memory_text(const Tensor&) { return "cpu"; }
#else
Device memory_of(const Tensor& tensor) { return tensor.device(); }

std::string memory_text(const Tensor& tensor) { return tensor.device().str(); }
#endif

std::string make_text(const Value& value, IntArrayRef sizes, [[maybe_unused]] Device device) {
  std::string options = scalar_text(value.dtype);
#ifndef TORCHCC_STANDALONE
  if (!device.is_cpu()) options = "at::device(at::Device(\"" + device.str() + "\")).dtype(" + options + ")";
#endif
  return std::string("make it with ") + kNamespace + "empty({" + list_text(sizes) + "}, " + options + ")";
}

#ifndef TORCHCC_STANDALONE  // whose tensors are plain memory on the CPU, without gradients
/// What a tensor that is not plain memory is, and how to get plain memory from it.
std::pair<std::string, std::string> wrapper_text(const Tensor& tensor, const std::string& name) {
  if (tensor.is_nested()) return {"a nested tensor", "pad it: at::nested_to_padded_tensor(" + name + ", 0)"};
  if (tensor.layout() != at::kStrided) {
    std::ostringstream layout;
    layout << tensor.layout();
    return {"a tensor of layout " + layout.str(), "make it dense: " + name + ".to_dense()"};
  }
  return {"a tensor with the dispatch keys " + c10::toString(tensor.key_set()), "copy it: " + name + ".clone()"};
}
#endif

/// Says what is wrong with a tensor in device, layout, dtype or rank; returns when nothing is. `make` is how to make
/// one that fits, where that is known.
void refuse_unless_plain(const Signature& signature, const std::vector<Value>& values, size_t index,
                         const Tensor& tensor, [[maybe_unused]] Device device, const std::string& make = "") {
  const Value& value = values[index];
  const auto fail = [&](const char* wrong, const std::string& expected, const std::string& got,
                        const std::string& fix) {
    refuse(signature, which(signature, values, index) + wrong, expected, got, make.empty() ? fix : make);
  };
  if (!tensor.defined()) fail(" is undefined", value.type(), "an undefined tensor", "assign it first");
#ifndef TORCHCC_STANDALONE
  if (tensor.device().type() != device.type() || (!device.is_cpu() && tensor.device() != device)) {
    fail(
        " is on the wrong device", device.str(), tensor.device().str(),
        "move it: " + value.name + ".to(\"" + device.str() + "\")" +
            (device.type() == tensor.device().type() ? ", or load the package for that GPU: LoadOptions::device" : ""));
  }
  if (tensor.layout() != at::kStrided || tensor.key_set().has_any(kWrappers)) {
    const auto [got, fix] = wrapper_text(tensor, value.name);
    fail(" is not a plain dense tensor", "a dense (strided) tensor", got, fix);
  }
#endif
  if (tensor.scalar_type() != value.dtype) {
    fail(" has the wrong dtype", dtype_name(value.dtype), dtype_name(tensor.scalar_type()),
         "convert it: " + value.name + ".to(" + scalar_text(value.dtype) + ")");
  }
  if (tensor.sizes().size() != value.sizes.size()) {
    fail(" has the wrong rank", count_text(value.sizes.size(), "dimension") + ": " + value.type(),
         count_text(tensor.sizes().size(), "dimension") + ": " + sizes_text(tensor),
         "reshape it, e.g. with unsqueeze or flatten");
  }
}

[[noreturn]] void refuse_any_size(const Signature& signature, const std::vector<Value>& values, size_t index,
                                  size_t dimension, const Tensor& tensor, const std::string& expected,
                                  const std::string& fix) {
  refuse(signature, which(signature, values, index) + " has the wrong size in dimension " + std::to_string(dimension),
         expected, std::to_string(tensor.sizes()[dimension]) + ": " + sizes_text(tensor), fix);
}

/// Where a symbol got its value: the first input dimension that is just that symbol.
std::string origin_of(const Signature& signature, int64_t symbol) {
  for (const Value& input : signature.inputs) {
    for (size_t d = 0; d < input.sizes.size(); ++d) {
      if (input.sizes[d].is_symbol() && input.sizes[d].steps[0].value == symbol) {
        return "dimension " + std::to_string(d) + " of '" + input.name + "'";
      }
    }
  }
  return "an earlier argument";
}

}  // namespace

void refuse_count(const Signature& signature, const std::vector<Value>& values, size_t got) {
  const bool input = &values == &signature.inputs;
  const char* noun = input ? "argument" : "output";
  std::string names;
  for (const Value& value : values) names += (names.empty() ? ": " : ", ") + value.name;
  refuse(
      signature, signature.name + ": wrong number of " + noun + "s", count_text(values.size(), noun) + names,
      count_text(got, noun),
      input ? "pass one tensor or number for each" : "give one tensor for each, or use call(), which returns them all");
}

void refuse_tensor(const Signature& signature, size_t index, const Tensor& tensor, Device device) {
  const Value& value = signature.inputs[index];
  if (value.is_number && tensor.defined()) {
    refuse_kind(signature, index, "a " + dtype_name(tensor.scalar_type()) + " tensor of " + sizes_text(tensor));
  }
  refuse_unless_plain(signature, signature.inputs, index, tensor, device);
  refuse(signature, which(signature, signature.inputs, index) + " does not fit", value.type(), layout_text(tensor),
         "report it: this check and its message disagree");
}

void refuse_kind(const Signature& signature, size_t index, const std::string& got) {
  const Value& value = signature.inputs[index];
  const std::string also = value.is_number ? ", or a tensor of rank 0 and dtype " + dtype_name(value.dtype) : "";
  refuse(signature,
         which(signature, signature.inputs, index) + (value.is_number ? " takes a number" : " takes a tensor"),
         value.type() + also, got, "pass a value of type " + value.type());
}

void refuse_number(const Signature& signature, size_t index, int64_t number) {
  const Value& value = signature.inputs[index];
  const std::string low = value.min == INT64_MIN ? "" : std::to_string(value.min) + " <= ";
  const std::string high = value.max == INT64_MAX ? "" : " <= " + std::to_string(value.max);
  refuse(
      signature, which(signature, signature.inputs, index) + " is out of range", low + value.name + high,
      std::to_string(number),
      "pass a value in the range, or build the region with a wider one: ranges={\"" + value.name + "\": (min, max)}");
}

void refuse_size(const Signature& signature, size_t index, size_t dimension, const Tensor& tensor, int64_t expected) {
  const std::string size = std::to_string(expected);
  refuse_any_size(signature, signature.inputs, index, dimension, tensor, size,
                  "pass a tensor of that size, or build the region with a name in place of " + size);
}

void refuse_mismatch(const Signature& signature, size_t index, size_t dimension, const Tensor& tensor, int64_t symbol,
                     int64_t value) {
  const std::string& name = signature.symbols[static_cast<size_t>(symbol)].name;
  refuse_any_size(signature, signature.inputs, index, dimension, tensor,
                  name + " = " + std::to_string(value) + ", as " + origin_of(signature, symbol) + " has it",
                  "pass tensors that agree in " + name);
}

void refuse_range(const Signature& signature, size_t index, size_t dimension, const Tensor& tensor,
                  const Symbol& symbol) {
  const std::string high = symbol.max == INT64_MAX ? "" : " <= " + std::to_string(symbol.max);
  refuse(
      signature,
      which(signature, signature.inputs, index) + " has a size out of range in dimension " + std::to_string(dimension),
      std::to_string(symbol.min) + " <= " + symbol.name + high,
      symbol.name + " = " + std::to_string(tensor.sizes()[dimension]),
      "split the call, or build the region with a wider range: ranges={\"" + symbol.name + "\": (min, max)}");
}

void refuse_expression(const Signature& signature, size_t index, size_t dimension, const Tensor& tensor,
                       int64_t expected) {
  refuse_any_size(signature, signature.inputs, index, dimension, tensor,
                  signature.inputs[index].sizes[dimension].text + " = " + std::to_string(expected),
                  "pass tensors whose sizes agree");
}

void refuse_guard(const Signature& signature, const SizeGuard& guard, const int64_t* symbols) {
  std::string got;
  for (size_t i = 0; i < signature.symbols.size(); ++i) {
    got += (i == 0 ? "" : ", ") + signature.symbols[i].name + " = " + std::to_string(symbols[i]);
  }
  refuse(signature, signature.name + ": the code is not for these sizes", guard.text, got,
         "pass sizes for which this holds, or export the function with sizes like these");
}

void refuse_grad(const Signature& signature, size_t index) {
  refuse(signature, which(signature, signature.inputs, index) + " requires grad, and the result would carry none",
         "a tensor that does not require grad, or grad mode off", "requires_grad = true with grad mode on",
         "call under torch::NoGradGuard or c10::InferenceMode, or pass " + signature.inputs[index].name + ".detach()");
}

void refuse_name(const Signature& signature, std::string_view name) {
  std::string names;
  for (const Value& input : signature.inputs) names += (names.empty() ? "" : ", ") + input.name;
  refuse(signature, signature.name + ": there is no argument '" + std::string(name) + "'",
         names.empty() ? "no arguments" : "one of: " + names, std::string(name), "correct the name");
}

void refuse_twice(const Signature& signature, std::string_view name) {
  refuse(signature, signature.name + ": argument '" + std::string(name) + "' is given twice", "each name once",
         "two values", "remove one of them");
}

void refuse_missing(const Signature& signature, size_t index) {
  const Value& input = signature.inputs[index];
  refuse(signature, which(signature, signature.inputs, index) + " is missing", input.type(), "nothing",
         "add {\"" + input.name + "\", ...}");
}

void refuse_weights(const Signature& signature) {
  refuse(signature, signature.name + ": it has no weights that can be set",
         "a function of a package that holds torch.export's graph", "compiled code alone, with its weights in it",
         "make the package with `torchcc export`");
}

namespace {

std::string weight_subject(std::string_view function, const std::string& name) {
  return std::string(function) + ": the weight '" + name + "' cannot be set";
}

}  // namespace

void refuse_weight_name(std::string_view function, const std::string& name) {
  throw ArgumentError(message(
      weight_subject(function, name),
      {{"expected", "the name of a weight, as weights() gives them"}, {"got", name}, {"fix", "correct the name"}}));
}

void refuse_weight_form(std::string_view function, const std::string& name, const Tensor& old, const Tensor& tensor) {
  const auto form = [](const Tensor& one) {
    if (!one.defined()) return std::string("an undefined tensor");
    return dtype_name(one.scalar_type()) + "[" + list_text(one.sizes()) + "] on " + memory_text(one);
  };
  throw ArgumentError(
      message(weight_subject(function, name),
              {{"expected", form(old)}, {"got", form(tensor)}, {"fix", "convert it, or export again"}}));
}

void refuse_self_overlap(const Signature& signature, size_t index, const Tensor& tensor) {
  refuse(signature, which(signature, signature.inputs, index) + " is written to and overlaps itself",
         "a tensor with one place in memory per element", layout_text(tensor),
         "pass " + signature.inputs[index].name + ".clone()");
}

void refuse_input_overlap(const Signature& signature, size_t index, size_t other) {
  const std::string& name = signature.inputs[other].name;
  refuse(signature, which(signature, signature.inputs, index) + " is written to and shares memory with '" + name + "'",
         "arguments that do not share memory", "two views of the same memory", "pass " + name + ".clone()");
}

void refuse_output(const Signature& signature, size_t index, const Tensor& tensor, IntArrayRef sizes, Device device) {
  const Value& value = signature.outputs[index];
  const std::string make = make_text(value, sizes, device);
  refuse_unless_plain(signature, signature.outputs, index, tensor, device, make);
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (tensor.sizes()[d] == sizes[d]) continue;
    const std::string name = value.sizes[d].is_number() ? "" : value.sizes[d].text + " = ";
    refuse_any_size(signature, signature.outputs, index, d, tensor, name + std::to_string(sizes[d]), make);
  }
  const std::string who = which(signature, signature.outputs, index);
  if (!tensor.is_contiguous())
    refuse(signature, who + " is not contiguous", "a contiguous tensor", layout_text(tensor), make);
#ifdef TORCHCC_STANDALONE
  refuse(signature, who + " does not fit", value.type(), layout_text(tensor),
         "report it: this check and its message disagree");
#else
  if (tensor.is_conj() || tensor.is_neg()) {
    refuse(signature, who + " is conjugated or negated when it is read", "a tensor whose values are as in memory",
           tensor.is_conj() ? "a conjugated view" : "a negated view", make);
  }
  if (tensor.requires_grad() && at::GradMode::is_enabled()) {
    refuse(signature, who + " requires grad, and the result would carry none",
           "a tensor that does not require grad, or grad mode off", "requires_grad = true with grad mode on",
           "call under torch::NoGradGuard or c10::InferenceMode, or " + make);
  }
  refuse(signature, who + " begins at an address that the compiled code cannot write to",
         "an address that is a multiple of 16", "a view that begins in the middle of its memory", make);
#endif
}

void refuse_output_overlap(const Signature& signature, size_t index, const Tensor& tensor) {
  refuse(signature, which(signature, signature.outputs, index) + " shares memory with another tensor of the call",
         "memory of its own", "a view of an input or of another output",
         make_text(signature.outputs[index], tensor.sizes(), memory_of(tensor)));
}

void refuse_outputs(const Signature& signature) {
  refuse(signature, signature.name + ": no variant that writes into given outputs", "a region built with out=True",
         "one built with out=False", "call it without outputs, or build it with out=True");
}

}  // namespace torchcc::detail
