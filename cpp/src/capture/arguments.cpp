#include "arguments.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>

#include "callers.h"
#include "device.h"

namespace torchcc::detail {
namespace {

bool is_default_generator(const at::Generator& generator) {
  if (generator.device().is_cuda()) {
    return generator.unsafeGetGeneratorImpl() ==
           at::globalContext().defaultGenerator(generator.device()).unsafeGetGeneratorImpl();
  }
  return generator.unsafeGetGeneratorImpl() == at::detail::getDefaultCPUGenerator().unsafeGetGeneratorImpl();
}

bool has_mask(const c10::IValue& indices) {
  for (const c10::IValue& index : indices.toListRef()) {
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    const c10::ScalarType dtype = index.toTensor().scalar_type();
    if (dtype == at::kBool || dtype == at::kByte) return true;
  }
  return false;
}

bool has_given_size(const Operator& op, const c10::IValue* arguments) {
  return op.given_size >= 0 && arguments[op.given_size].isInt() && arguments[op.given_size].toInt() >= 0;
}

void write_text(Words& code, std::string_view text) {
  write(code, Tag::text, static_cast<int64_t>(text.size()));
  for (size_t i = 0; i < text.size(); i += sizeof(int64_t)) {
    int64_t word = 0;
    std::memcpy(&word, text.data() + i, std::min(sizeof word, text.size() - i));
    code.push_back(word);
  }
}

void write_complex(Words& code, c10::complex<double> number) {
  write(code, Tag::complex, std::bit_cast<int64_t>(number.real()));
  code.push_back(std::bit_cast<int64_t>(number.imag()));
}

}  // namespace

bool draws(const Operator& op, const c10::IValue* arguments) {
  const auto is = [&](int position, const auto& test) { return position >= 0 && test(arguments[position]); };
  return op.is_random && !is(op.training, [](const c10::IValue& value) { return value.isBool() && !value.toBool(); }) &&
         !is(op.probability, [](const c10::IValue& value) { return value.isDouble() && value.toDouble() == 0; });
}

std::string dependence(const Operator& op, const c10::IValue* arguments) {
  if (op.reads_host) return "the function reads a value on the host (" + op.name + ")";
  if (op.is_equal && !decided(arguments[0], arguments[1])) {
    return "the function reads a value on the host (" + op.name + ")";
  }
  if (op.has_dynamic_shape && !(op.is_index && !has_mask(arguments[1])) && !has_given_size(op, arguments)) {
    return "the sizes of a result depend on data (" + op.name + ")";
  }
  if (op.changes_storage) return "the function changes the storage of a tensor (" + op.name + ")";
  if (op.may_move && moves_to(op, arguments) == c10::kCPU) {
    return "the function copies a tensor to the CPU (" + op.name + "), where the host may read it";
  }
  return "";
}

std::optional<c10::DeviceType> moves_to(const Operator& op, const c10::IValue* arguments) {
  if (!op.may_move || !has_gpu()) return std::nullopt;
  std::optional<c10::DeviceType> from;
  std::optional<c10::DeviceType> to;
  const auto take = [](std::optional<c10::DeviceType>& which, const c10::IValue& value) {
    if (value.isTensor() && value.toTensor().defined()) which = value.toTensor().device().type();
  };
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    const c10::IValue& value = arguments[i];
    if (value.isDevice()) {
      to = value.toDevice().type();
    } else if (value.isTensor()) {
      // Conversions take what they convert, and may take another tensor whose device they convert to; copies, what they
      // write, or what they would write, and then the source.
      take(op.is_conversion == (i == 0) ? from : to, value);
    } else if (value.isTensorList()) {
      for (const c10::IValue& element : value.toListRef()) take(i == 0 ? to : from, element);
    }
  }
  return from && to && *from != *to ? to : std::nullopt;
}

Autocast autocast_now() {
  const auto dtype = [](c10::DeviceType device) {
    return at::autocast::is_autocast_enabled(device) ? static_cast<int8_t>(at::autocast::get_autocast_dtype(device))
                                                     : int8_t{-1};
  };
  return {dtype(at::kCPU), has_gpu() ? dtype(at::kCUDA) : int8_t{-1}};
}

std::optional<bool> decided(const c10::IValue& a, const c10::IValue& b) {
  if (!a.isTensor() || !b.isTensor()) return std::nullopt;
  const at::Tensor& tensor = a.toTensor();
  if (tensor.sizes() != b.toTensor().sizes()) return false;
  if (!tensor.is_same(b.toTensor())) return std::nullopt;
  const bool has_nan = at::isFloatingType(tensor.scalar_type()) || at::isComplexType(tensor.scalar_type());
  return !has_nan || is_equal_of_libtorch() ? std::optional<bool>(true) : std::nullopt;
}

bool may_print(const Operator& op, const c10::IValue* arguments) {
  return op.is_to_device && arguments[2].isInt() && is_printed(arguments[2].toInt()) && arguments[1].isDevice() &&
         arguments[1].toDevice().is_cpu() && !arguments[4].toBool();
}

bool prints(const Operator& op, const c10::IValue* arguments) {
  return may_print(op, arguments) && arguments[0].isTensor() &&
         arguments[2].toInt() == static_cast<int64_t>(arguments[0].toTensor().scalar_type());
}

c10::Scalar number_of(const at::Tensor& tensor) {
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case at::kDouble: return *static_cast<const double*>(data);
    case at::kLong: return *static_cast<const int64_t*>(data);
    case at::kBool: return *static_cast<const bool*>(data);
    case at::kComplexDouble: return *static_cast<const c10::complex<double>*>(data);
    default: return *static_cast<const float*>(data);
  }
}

void write_number(Words& code, const c10::Scalar& number) {
  if (number.isComplex()) {
    write_complex(code, number.toComplexDouble());
  } else if (number.isFloatingPoint()) {
    write(code, Tag::floating, std::bit_cast<int64_t>(number.toDouble()));
  } else if (number.isBoolean()) {
    write(code, Tag::boolean, number.toBool() ? 1 : 0);
  } else {
    write(code, Tag::integer, number.toLong());
  }
}

bool write_constant(Words& code, const c10::IValue& value, Tag number) {
  if (value.isInt()) {
    write(code, number, value.toInt());
  } else if (value.isNone()) {
    code.push_back(static_cast<int64_t>(Tag::none));
  } else if (value.isBool()) {
    write(code, Tag::boolean, value.toBool() ? 1 : 0);
  } else if (value.isDouble()) {
    write(code, Tag::floating, std::bit_cast<int64_t>(value.toDouble()));
  } else if (value.isComplexDouble()) {
    write_complex(code, value.toComplexDouble());
  } else if (value.isString()) {
    write_text(code, value.toStringView());
  } else if (value.isDevice()) {
    write(code, Tag::device, static_cast<int64_t>(value.toDevice().type()));
    code.push_back(value.toDevice().index());
  } else if (value.isGenerator() && is_default_generator(value.toGenerator())) {
    code.push_back(static_cast<int64_t>(Tag::none));
  } else if (value.isSymInt() && !value.toSymInt().is_heap_allocated()) {
    write(code, Tag::integer, value.toSymInt().expect_int());
  } else {
    return false;
  }
  return true;
}

}  // namespace torchcc::detail
