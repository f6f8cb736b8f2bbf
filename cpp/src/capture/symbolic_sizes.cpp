#include "symbolic_sizes.h"

#include <utility>

namespace torchcc::detail {

c10::SymInt SymbolicSizes::size(SizeOf of, int64_t number, size_t steps) {
  if (log_ == nullptr) log_ = std::make_shared<SizeLog>();
  log_->step = steps;
  return SizeNode::size(of, number, log_);
}

void SymbolicSizes::take_all(const Operator& op, c10::IValue* arguments) {
  symbols_.clear();
  const auto plain = [&](const c10::IValue& value, size_t argument, size_t element, bool is_element) -> c10::IValue {
    const auto take = [&](const c10::SymNodeImpl* node) {
      const SizeExpression* expression = SizeNode::expression(node, *log_);
      if (expression != nullptr) symbols_.push_back({argument, element, is_element, *expression});
      return expression != nullptr;
    };
    if (value.isSymInt()) {
      const c10::SymNode node = value.toSymInt().toSymNode();
      return take(node.get()) ? SizeNode::value_of(*node) : c10::IValue(node->guard_int(__FILE__, __LINE__));
    }
    if (value.isSymFloat()) {
      const c10::SymNode node = value.toSymFloat().toSymNodeImpl();
      return take(node.get()) ? SizeNode::value_of(*node) : c10::IValue(node->guard_float(__FILE__, __LINE__));
    }
    if (value.isSymBool()) return value.toSymBool().guard_bool(__FILE__, __LINE__);
    return value;
  };
  for (size_t i = 0; i < op.arguments.size(); ++i) {
    c10::IValue& value = arguments[i];
    if (!value.isSymIntList()) {
      value = plain(value, i, 0, false);
      continue;
    }
    c10::List<int64_t> list;
    const c10::ArrayRef<c10::IValue> elements = value.toListRef();
    for (size_t k = 0; k < elements.size(); ++k) list.push_back(plain(elements[k], i, k, true).toInt());
    value = std::move(list);
  }
}

void SymbolicSizes::note_position(size_t argument, size_t begin) {
  for (Symbol& symbol : symbols_) {
    if (symbol.argument != argument) continue;
    const size_t position = begin + (symbol.is_element ? 2 + 2 * symbol.element : 0);  // see Tag::list
    words_.push_back({static_cast<uint32_t>(position), std::move(symbol.expression)});
  }
}

void SymbolicSizes::end_step(size_t steps) {
  symbols_.clear();
  if (log_ != nullptr) log_->step = steps;
}

std::vector<SizeCondition> SymbolicSizes::conditions() const {
  return log_ != nullptr ? log_->conditions : std::vector<SizeCondition>();
}

}  // namespace torchcc::detail
