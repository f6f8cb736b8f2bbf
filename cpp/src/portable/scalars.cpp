// Operators on numbers: those of TorchScript, which follow Python's rules.

#include <map>

#include <ATen/core/jit_type.h>
#include <torch/csrc/jit/runtime/operator.h>

#include "program.h"

namespace torchcc::portable {
namespace {

const std::map<std::string, std::string>& names() {
  static const std::map<std::string, std::string> table{{"_operator.eq", "aten::eq"},
                                                        {"_operator.ne", "aten::ne"},
                                                        {"_operator.le", "aten::le"},
                                                        {"_operator.ge", "aten::ge"},
                                                        {"_operator.lt", "aten::lt"},
                                                        {"_operator.gt", "aten::gt"},
                                                        {"_operator.neg", "aten::neg"},
                                                        {"_operator.mul", "aten::mul"},
                                                        {"_operator.add", "aten::add"},
                                                        {"_operator.sub", "aten::sub"},
                                                        {"_operator.floordiv", "aten::floordiv"},
                                                        {"_operator.mod", "aten::remainder"},
                                                        {"_operator.pow", "aten::pow"},
                                                        {"_operator.truediv", "aten::div"},
                                                        {"_operator.and_", "aten::__and__"},
                                                        {"_operator.or_", "aten::__or__"},
                                                        {"_operator.lshift", "aten::__lshift__"},
                                                        {"_operator.rshift", "aten::__rshift__"},
                                                        {"math.trunc", "aten::Int"},
                                                        {"torch.sym_not", "aten::__not__"},
                                                        {"torch.sym_int", "aten::Int"},
                                                        {"torch.sym_float", "aten::Float"},
                                                        {"torch.sym_max", "prim::max"},
                                                        {"torch.sym_min", "prim::min"},
                                                        {"torch.sym_sqrt", "aten::sqrt"},
                                                        {"torch._sym_sqrt", "aten::sqrt"}};
  return table;
}

/// How well a number of one type goes where another is wanted: 0 as it is, 1 converted, -1 not at all.
int distance(const c10::TypePtr& given, const c10::TypePtr& wanted) {
  if (given->kind() == wanted->kind()) return 0;
  if (wanted->kind() == c10::TypeKind::NumberType) return 2;
  const bool widens = wanted->kind() == c10::TypeKind::FloatType && given->kind() == c10::TypeKind::IntType;
  const bool counts = wanted->kind() == c10::TypeKind::IntType && given->kind() == c10::TypeKind::BoolType;
  return widens || counts ? 1 : -1;
}

void convert(c10::IValue& value, const c10::TypePtr& wanted) {
  if (wanted->kind() == c10::TypeKind::FloatType && value.isInt()) value = static_cast<double>(value.toInt());
  if (wanted->kind() == c10::TypeKind::IntType && value.isBool()) value = static_cast<int64_t>(value.toBool());
}

}  // namespace

std::function<void(torch::jit::Stack&)> scalar_operator(const std::string& name,
                                                        const std::vector<c10::TypePtr>& arguments) {
  if (name == "_operator.pos") return [](torch::jit::Stack&) {};
  if (name == "torch.sym_ite") {
    return [](torch::jit::Stack& stack) {
      c10::IValue other = torch::jit::pop(stack);
      c10::IValue value = torch::jit::pop(stack);
      const bool condition = torch::jit::pop(stack).toBool();
      stack.push_back(condition ? std::move(value) : std::move(other));
    };
  }
  const auto known = names().find(name);
  if (known == names().end()) return {};
  std::shared_ptr<torch::jit::Operator> best;
  int best_distance = INT32_MAX;
  for (const auto& candidate : torch::jit::getAllOperatorsFor(c10::Symbol::fromQualString(known->second))) {
    const std::vector<c10::Argument>& wanted = candidate->schema().arguments();
    if (wanted.size() != arguments.size()) continue;
    int sum = 0;
    for (size_t i = 0; i < wanted.size() && sum >= 0; ++i) {
      const int one = distance(arguments[i], wanted[i].type());
      sum = one < 0 ? -1 : sum + one;
    }
    if (sum >= 0 && sum < best_distance) {
      best = candidate;
      best_distance = sum;
    }
  }
  if (best == nullptr) return {};
  std::vector<c10::TypePtr> types;
  for (const c10::Argument& argument : best->schema().arguments()) types.push_back(argument.type());
  return [operation = best->getOperation(), types](torch::jit::Stack& stack) mutable {
    for (size_t i = 0; i < types.size(); ++i) convert(stack[stack.size() - types.size() + i], types[i]);
    operation(stack);
  };
}

}  // namespace torchcc::portable
