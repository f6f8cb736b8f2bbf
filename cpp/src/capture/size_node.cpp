#include "size_node.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include <c10/util/Exception.h>

namespace torchcc::detail {
namespace {

using Form = SizeExpression::Form;
using Kind = SizeStep::Kind;
using Relation = SizeGuard::Kind;

const char* text_of(Kind kind) {
  switch (kind) {
    case Kind::add: return " + ";
    case Kind::mul: return "*";
    case Kind::floordiv: return "//";
    case Kind::mod: return " % ";
    case Kind::pow: return "**";
    case Kind::max: return " max ";
    case Kind::min: return " min ";
    default: return "";
  }
}

/// "(size(%0, 0) + 1)//2".
std::string text_of(const SizeExpression& expression) {
  std::vector<std::string> stack;
  for (const SizeStep& step : expression.steps) {
    if (step.kind == Kind::number) {
      stack.push_back(std::to_string(step.value));
    } else if (step.kind == Kind::symbol) {
      const SizeOf of = expression.sizes[static_cast<size_t>(step.value)];
      stack.push_back("size(%" + std::to_string(of.value) + ", " + std::to_string(of.dim) + ")");
    } else {
      const std::string right = std::move(stack.back());
      stack.pop_back();
      stack.back() = "(" + stack.back() + text_of(step.kind) + right + ")";
    }
  }
  return stack.back();
}

const char* text_of(Relation relation) {
  switch (relation) {
    case Relation::equal: return " == ";
    case Relation::not_equal: return " != ";
    case Relation::less: return " < ";
    case Relation::less_equal: return " <= ";
  }
  return "";
}

bool holds(Relation relation, int64_t a, int64_t b) {
  switch (relation) {
    case Relation::equal: return a == b;
    case Relation::not_equal: return a != b;
    case Relation::less: return a < b;
    case Relation::less_equal: return a <= b;
  }
  return false;
}

SizeExpression constant(int64_t number) {
  SizeExpression expression;
  expression.steps.push_back({Kind::number, number});
  return expression;
}

/// Adds the steps of one expression to another.
void append(SizeExpression& to, const SizeExpression& from) {
  for (SizeStep step : from.steps) {
    if (step.kind == Kind::symbol) {
      to.sizes.push_back(from.sizes[static_cast<size_t>(step.value)]);
      step.value = static_cast<int64_t>(to.sizes.size()) - 1;
    }
    to.steps.push_back(step);
  }
}

SizeCondition condition(Relation relation, SizeExpression left, SizeExpression right) {
  SizeCondition made{relation, std::move(left), std::move(right), 0, ""};
  made.text = text_of(made.left) + text_of(relation) + text_of(made.right);
  return made;
}

/// What is so where a relation is not.
SizeCondition opposite(Relation relation, SizeExpression left, SizeExpression right) {
  switch (relation) {
    case Relation::equal: return condition(Relation::not_equal, std::move(left), std::move(right));
    case Relation::not_equal: return condition(Relation::equal, std::move(left), std::move(right));
    case Relation::less: return condition(Relation::less_equal, std::move(right), std::move(left));
    case Relation::less_equal: break;
  }
  return condition(Relation::less, std::move(right), std::move(left));
}

using Pointer = c10::intrusive_ptr<SizeNode>;

/// PyTorch makes nodes of its own of some constants.
Pointer own(const c10::SymNode& node, const std::shared_ptr<SizeLog>& log) {
  if (auto* known = dynamic_cast<SizeNode*>(node.get())) return Pointer::reclaim_copy(known);
  if (node->is_int()) return c10::make_intrusive<SizeNode>(node->guard_int(__FILE__, __LINE__), log);
  if (node->is_bool()) return c10::make_intrusive<SizeNode>(node->guard_bool(__FILE__, __LINE__), log);
  return c10::make_intrusive<SizeNode>(node->guard_float(__FILE__, __LINE__), log);
}

}  // namespace

void SizeLog::add(SizeCondition condition) {
  const auto is_same = [&](const SizeCondition& known) { return known.text == condition.text; };
  if (std::any_of(conditions.begin(), conditions.end(), is_same)) return;
  condition.step = step;
  conditions.push_back(std::move(condition));
}

c10::SymInt SizeNode::size(SizeOf of, int64_t value, std::shared_ptr<SizeLog> log) {
  auto node = c10::make_intrusive<SizeNode>(value, std::move(log));
  node->expression_ = std::make_unique<SizeExpression>();
  node->expression_->steps.push_back({Kind::symbol, 0});
  node->expression_->sizes.push_back(of);
  return c10::SymInt(c10::SymNode(std::move(node)));
}

const SizeExpression* SizeNode::expression(const c10::SymNodeImpl* node, const SizeLog& log) {
  const auto* own = dynamic_cast<const SizeNode*>(node);
  return own != nullptr && own->log_.get() == &log ? own->expression_.get() : nullptr;
}

c10::IValue SizeNode::value_of(const c10::SymNodeImpl& node) {
  return std::visit([](auto value) { return c10::IValue(value); }, dynamic_cast<const SizeNode&>(node).value_);
}

c10::SymNode SizeNode::made(Number value) const { return c10::make_intrusive<SizeNode>(value, log_); }

int64_t SizeNode::whole() const { return std::get<int64_t>(value_); }

SizeExpression SizeNode::steps() const { return expression_ != nullptr ? *expression_ : constant(whole()); }

double SizeNode::as_double() const { return is_whole() ? static_cast<double>(whole()) : std::get<double>(value_); }

/// Logs that the number is what it is.
void SizeNode::fix() const {
  if (expression_ == nullptr) return;
  SizeExpression inside = *expression_;
  inside.form = Form::whole;
  log_->add(condition(Relation::equal, std::move(inside), constant(inside_)));
}

c10::SymNode SizeNode::joined(const SizeNode& other, Kind kind, int64_t value) const {
  auto node = c10::make_intrusive<SizeNode>(value, log_);
  if (expression_ == nullptr && other.expression_ == nullptr) return node;
  node->expression_ = std::make_unique<SizeExpression>();
  append(*node->expression_, steps());
  append(*node->expression_, other.steps());
  node->expression_->steps.push_back({kind, 0});
  return node;
}

/// A number that does not follow from this one and another by an expression: it is constant, and so are they.
c10::SymNode SizeNode::constant_of(const SizeNode& other, Number value) const {
  fix();
  other.fix();
  return made(value);
}

/// Of two numbers: what a function of both gives, an expression where they are whole.
template <class Function>
c10::SymNode SizeNode::combined(const SizeNode& other, Kind kind, const Function& function) const {
  if (is_whole() && other.is_whole()) return joined(other, kind, function(whole(), other.whole()));
  return constant_of(other, function(as_double(), other.as_double()));
}

/// A float that follows from the whole number inside this one.
c10::SymNode SizeNode::shaped(Form form, double value) const {
  auto node = c10::make_intrusive<SizeNode>(value, log_);
  node->inside_ = inside_;
  node->expression_ = std::make_unique<SizeExpression>(*expression_);
  node->expression_->form = form;
  return node;
}

c10::SymNode SizeNode::add(const c10::SymNode& other) { return combined(*own(other, log_), Kind::add, std::plus<>()); }

c10::SymNode SizeNode::sub(const c10::SymNode& other) { return add(own(other, log_)->neg()); }

c10::SymNode SizeNode::mul(const c10::SymNode& other) {
  return combined(*own(other, log_), Kind::mul, std::multiplies<>());
}

c10::SymNode SizeNode::neg() {
  if (is_whole()) return joined(*own(wrap_int(-1), log_), Kind::mul, -whole());
  fix();
  return made(-as_double());
}

/// Logs that integers are divided that are not negative: C++ rounds the quotient of others to the other side.
bool SizeNode::divides(const SizeNode& other) const {
  TORCH_CHECK(other.whole() != 0, "division of a size by zero");
  if (whole() < 0 || other.whole() < 0) {
    fix();
    other.fix();
    return false;
  }
  if (expression_ != nullptr) log_->add(condition(Relation::less_equal, constant(0), steps()));
  if (other.expression_ != nullptr) log_->add(condition(Relation::less_equal, constant(1), other.steps()));
  return true;
}

c10::SymNode SizeNode::floordiv(const c10::SymNode& other) {
  const Pointer right = own(other, log_);
  if (!divides(*right)) return made(whole() / right->whole());
  return joined(*right, Kind::floordiv, whole() / right->whole());
}

c10::SymNode SizeNode::mod(const c10::SymNode& other) {
  const Pointer right = own(other, log_);
  if (!divides(*right)) return made(whole() % right->whole());
  return joined(*right, Kind::mod, whole() % right->whole());
}

c10::SymNode SizeNode::truediv(const c10::SymNode& other) {
  const Pointer right = own(other, log_);
  const double quotient = as_double() / right->as_double();
  if (expression_ == nullptr && as_double() == 1.0 && right->expression_ != nullptr) {
    const Form form = right->expression_->form;
    if (form == Form::whole || form == Form::floating) return right->shaped(Form::inverse, quotient);
    if (form == Form::root) return right->shaped(Form::inverse_root, quotient);
  }
  return constant_of(*right, quotient);
}

c10::SymNode SizeNode::pow(const c10::SymNode& other) {
  const Pointer right = own(other, log_);
  const bool is_root = right->expression_ == nullptr && right->as_double() == 0.5;
  if (is_root && expression_ != nullptr && expression_->form == Form::floating) {
    return shaped(Form::root, std::sqrt(as_double()));
  }
  return constant_of(*right, std::pow(as_double(), right->as_double()));
}

c10::SymNode SizeNode::sym_min(const c10::SymNode& other) {
  return combined(*own(other, log_), Kind::min, [](auto a, auto b) { return std::min(a, b); });
}

c10::SymNode SizeNode::sym_max(const c10::SymNode& other) {
  return combined(*own(other, log_), Kind::max, [](auto a, auto b) { return std::max(a, b); });
}

c10::SymNode SizeNode::ceil() {
  fix();
  return made(static_cast<int64_t>(std::ceil(as_double())));
}

c10::SymNode SizeNode::floor() {
  fix();
  return made(static_cast<int64_t>(std::floor(as_double())));
}

c10::SymNode SizeNode::sym_float() {
  if (!is_whole() || expression_ == nullptr) return is_whole() ? made(as_double()) : clone();
  return shaped(Form::floating, as_double());
}

c10::SymNode SizeNode::compared(const SizeNode& left, const SizeNode& right, Relation relation) const {
  if (!left.is_whole() || !right.is_whole()) {
    left.fix();
    right.fix();
    const double a = left.as_double(), b = right.as_double();
    const bool is_equal = a == b;
    switch (relation) {
      case Relation::equal: return made(is_equal);
      case Relation::not_equal: return made(!is_equal);
      case Relation::less: return made(a < b);
      case Relation::less_equal: return made(a <= b);
    }
  }
  const bool value = holds(relation, left.whole(), right.whole());
  auto node = c10::make_intrusive<SizeNode>(value, log_);
  if (left.expression_ == nullptr && right.expression_ == nullptr) return node;
  node->condition_ = std::make_unique<SizeCondition>(value ? condition(relation, left.steps(), right.steps())
                                                           : opposite(relation, left.steps(), right.steps()));
  return node;
}

c10::SymNode SizeNode::eq(const c10::SymNode& other) { return compared(*this, *own(other, log_), Relation::equal); }
c10::SymNode SizeNode::ne(const c10::SymNode& other) { return compared(*this, *own(other, log_), Relation::not_equal); }
c10::SymNode SizeNode::lt(const c10::SymNode& other) { return compared(*this, *own(other, log_), Relation::less); }
c10::SymNode SizeNode::le(const c10::SymNode& other) {
  return compared(*this, *own(other, log_), Relation::less_equal);
}
c10::SymNode SizeNode::gt(const c10::SymNode& other) { return compared(*own(other, log_), *this, Relation::less); }
c10::SymNode SizeNode::ge(const c10::SymNode& other) {
  return compared(*own(other, log_), *this, Relation::less_equal);
}

c10::SymNode SizeNode::sym_and(const c10::SymNode& other) {
  const bool left = guard_bool(__FILE__, __LINE__);
  return made(own(other, log_)->guard_bool(__FILE__, __LINE__) && left);
}

c10::SymNode SizeNode::sym_or(const c10::SymNode& other) {
  const bool left = guard_bool(__FILE__, __LINE__);
  return made(own(other, log_)->guard_bool(__FILE__, __LINE__) || left);
}

c10::SymNode SizeNode::sym_not() { return made(!guard_bool(__FILE__, __LINE__)); }

c10::SymNode SizeNode::wrap_int(int64_t number) { return made(number); }
c10::SymNode SizeNode::wrap_float(double number) { return made(number); }
c10::SymNode SizeNode::wrap_bool(bool number) { return made(number); }

c10::SymNode SizeNode::clone() {
  auto node = c10::make_intrusive<SizeNode>(value_, log_);
  node->inside_ = inside_;
  if (expression_ != nullptr) node->expression_ = std::make_unique<SizeExpression>(*expression_);
  if (condition_ != nullptr) node->condition_ = std::make_unique<SizeCondition>(*condition_);
  return node;
}

int64_t SizeNode::guard_int(const char*, int64_t) {
  fix();
  return whole();
}

double SizeNode::guard_float(const char*, int64_t) {
  fix();
  return as_double();
}

bool SizeNode::guard_bool(const char*, int64_t) {
  if (condition_ != nullptr) log_->add(*condition_);
  return std::get<bool>(value_);
}

std::string SizeNode::str() {
  if (condition_ != nullptr) return condition_->text;
  if (expression_ != nullptr && expression_->form == Form::whole) return text_of(*expression_);
  return is_bool() ? (std::get<bool>(value_) ? "true" : "false") : std::to_string(as_double());
}

}  // namespace torchcc::detail
