#include "rerun.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <string>

#include <ATen/ScalarOps.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "mode.h"

namespace torchcc::detail {
namespace {

using Values = std::vector<at::Tensor>;

/// Reads the arguments of a step, as boxed calls take them.
class Reader {
 public:
  Reader(const int64_t* word, const Values& values) : word_(word), values_(values) {}

  c10::IValue read(const c10::TypePtr& type) {
    switch (static_cast<Tag>(*word_++)) {
      case Tag::none: return {};
      case Tag::tensor: return values_[static_cast<size_t>(*word_++)];
      case Tag::boolean: return *word_++ != 0;
      case Tag::floating: return std::bit_cast<double>(*word_++);
      case Tag::number: return *values_[static_cast<size_t>(*word_++)].const_data_ptr<double>();
      case Tag::integer:
      case Tag::dtype:
      case Tag::layout:
      case Tag::memory_format: return *word_++;
      case Tag::complex: {
        const auto real = std::bit_cast<double>(*word_++);
        return c10::complex<double>(real, std::bit_cast<double>(*word_++));
      }
      case Tag::text: return text();
      case Tag::device: {
        const auto kind = static_cast<c10::DeviceType>(*word_++);
        return c10::Device(kind, static_cast<c10::DeviceIndex>(*word_++));
      }
      case Tag::list: return list(type);
    }
    return {};
  }

  /// Takes what an operator returned.
  void give(const c10::IValue& value, Values& values) {
    switch (static_cast<Tag>(*word_++)) {
      case Tag::tensor: values[static_cast<size_t>(*word_++)] = value.toTensor(); break;
      case Tag::list:
        ++word_;
        for (const c10::IValue& element : value.toListRef()) give(element, values);
        break;
      case Tag::integer: ++word_; break;
      default: break;
    }
  }

 private:
  std::string text() {
    std::string text(static_cast<size_t>(*word_++), '\0');
    for (size_t i = 0; i < text.size(); i += sizeof(int64_t)) {
      std::memcpy(text.data() + i, word_++, std::min(sizeof(int64_t), text.size() - i));
    }
    return text;
  }

  c10::IValue list(c10::TypePtr type) {
    if (type->kind() == c10::TypeKind::OptionalType) type = type->containedType(0);
    const c10::TypePtr element = type->kind() == c10::TypeKind::ListType ? type->containedType(0) : c10::AnyType::get();
    c10::impl::GenericList made(element->kind() == c10::TypeKind::SymIntType ? c10::IntType::get() : element);
    for (int64_t left = *word_++; left > 0; --left) {
      c10::IValue one = read(element);
      // An undefined tensor reads as None, and a number may stand for a double.
      if (one.isNone() && element->kind() == c10::TypeKind::TensorType) one = at::Tensor();
      if (one.isInt() && element->kind() == c10::TypeKind::FloatType) one = static_cast<double>(one.toInt());
      made.push_back(std::move(one));
    }
    return made;
  }

  const int64_t* word_;
  const Values& values_;
};

/// An argument as its type wants it: numbers stand for tensors of rank 0.
c10::IValue adapted(c10::IValue value, c10::TypePtr type) {
  if (type->kind() == c10::TypeKind::OptionalType) type = type->containedType(0);
  if (type->kind() == c10::TypeKind::TensorType && value.isScalar()) {
    return at::native::wrapped_scalar_tensor(value.toScalar());
  }
  return value;
}

/// Autocast of a device as it was in a step.
class AutocastScope {
 public:
  AutocastScope(c10::DeviceType device, int8_t dtype)
      : device_(device),
        was_enabled_(at::autocast::is_autocast_enabled(device)),
        before_(at::autocast::get_autocast_dtype(device)) {
    at::autocast::set_autocast_enabled(device_, dtype >= 0);
    if (dtype >= 0) at::autocast::set_autocast_dtype(device_, static_cast<c10::ScalarType>(dtype));
  }
  ~AutocastScope() {
    at::autocast::set_autocast_enabled(device_, was_enabled_);
    at::autocast::set_autocast_dtype(device_, before_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  c10::DeviceType device_;
  bool was_enabled_;
  c10::ScalarType before_;
};

}  // namespace

std::vector<at::Tensor> rerun(const Trace& trace, std::vector<at::Tensor> values, size_t begin, size_t end) {
  const Unrecorded unrecorded;
  torch::jit::Stack stack;
  for (size_t i = begin; i < std::min(end, trace.steps.size()); ++i) {
    const Trace::Step& step = trace.steps[i];
    const size_t dot = step.op->name.find('.');
    const c10::OperatorHandle handle = c10::Dispatcher::singleton().findSchemaOrThrow(
        step.op->name.substr(0, dot).c_str(), dot == std::string::npos ? "" : step.op->name.substr(dot + 1).c_str());
    const c10::AutoGradMode grad(step.grad);
    const AutocastScope on_cpu(at::kCPU, step.autocast.cpu);
    const AutocastScope on_gpu(at::kCUDA, step.autocast.cuda);
    Reader reader(trace.code.data() + step.begin, values);
    stack.clear();
    for (const c10::Argument& argument : handle.schema().arguments()) {
      stack.push_back(adapted(reader.read(argument.real_type()), argument.type()));
    }
    handle.callBoxed(stack);
    for (const c10::IValue& value : stack) reader.give(value, values);
  }
  return values;
}

}  // namespace torchcc::detail
