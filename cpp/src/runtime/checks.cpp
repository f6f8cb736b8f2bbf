#include "checks.h"

#include <algorithm>

#include <torchcc/error.h>

namespace torchcc::detail {
namespace {

void check_expressions(const Signature& signature, size_t index, const InputCheck& check, const Tensor& tensor,
                       const int64_t* symbols) {
  for (size_t d = 0; d < check.sizes.size(); ++d) {
    if (check.sizes[d].kind != SizeCheck::Kind::expression) continue;
    const int64_t expected = signature.inputs[index].sizes[d].evaluate(symbols);
    if (tensor.sizes()[d] != expected) refuse_expression(signature, index, d, tensor, expected);
  }
}

}  // namespace

std::vector<InputCheck> input_checks(const Signature& signature, const std::string& origin) {
  std::vector<InputCheck> checks;
  std::vector<bool> bound(signature.symbols.size(), false);
  for (const Value& input : signature.inputs) {
    InputCheck check{input.dtype, Device(input.device), input.is_number, false, {}};
    for (const Size& size : input.sizes) {
      if (size.is_number()) {
        check.sizes.push_back({SizeCheck::Kind::number, size.steps[0].value});
      } else if (size.is_symbol()) {
        const auto symbol = static_cast<size_t>(size.steps[0].value);
        check.sizes.push_back({bound[symbol] ? SizeCheck::Kind::same : SizeCheck::Kind::bind, size.steps[0].value});
        bound[symbol] = true;
      } else {
        check.sizes.push_back({SizeCheck::Kind::expression, 0});
        check.has_expressions = true;
      }
    }
    checks.push_back(std::move(check));
  }
  for (size_t i = 0; i < bound.size(); ++i) {
    if (!bound[i]) {
      throw PackageError(origin + ": function '" + signature.name + "': no input has the plain size " +
                         signature.symbols[i].name);
    }
  }
  return checks;
}

bool has_relations(const Signature& signature, std::span<const InputCheck> checks) {
  return !signature.guards.empty() ||
         std::any_of(checks.begin(), checks.end(), [](const InputCheck& check) { return check.has_expressions; });
}

void check_relations(const Signature& signature, std::span<const InputCheck> checks, const Tensor* const* tensors,
                     const int64_t* symbols) {
  for (size_t i = 0; i < checks.size(); ++i) {
    if (checks[i].has_expressions) check_expressions(signature, i, checks[i], *tensors[i], symbols);
  }
  for (const SizeGuard& guard : signature.guards) {
    if (!guard.holds(symbols)) refuse_guard(signature, guard, symbols);
  }
}

Number checked_number(const Signature& signature, size_t index, const Argument& argument) {
  const Value& value = signature.inputs[index];
  if (!value.is_number) refuse_kind(signature, index, "a number");
  const bool integer = argument.kind() == Argument::Kind::integer;
  if (value.dtype == ScalarType::Double) {
    if (argument.kind() == Argument::Kind::boolean) refuse_kind(signature, index, "a bool");
    return {integer ? static_cast<double>(argument.integer()) : argument.floating(), 0};
  }
  if (value.dtype == ScalarType::Bool) {
    if (argument.kind() != Argument::Kind::boolean) refuse_kind(signature, index, integer ? "an integer" : "a double");
    return {0, argument.integer() != 0 ? 1 : 0};
  }
  if (!integer) {
    refuse_kind(signature, index, argument.kind() == Argument::Kind::boolean ? "a bool" : "a double");
  }
  if (argument.integer() < value.min || argument.integer() > value.max) {
    refuse_number(signature, index, argument.integer());
  }
  return {0, argument.integer()};
}

}  // namespace torchcc::detail
