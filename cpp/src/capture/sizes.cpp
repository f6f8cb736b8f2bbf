#include "sizes.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <optional>

#include <torchcc/error.h>

#include "recording.h"

namespace torchcc::detail {
namespace {

using Column = std::vector<int64_t>;  // one number for each sample
using Form = SizeExpression::Form;
using Term = SizeExpression::Term;

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0); }

double formed(Form form, int64_t whole) {
  const auto number = static_cast<double>(whole);
  switch (form) {
    case Form::inverse: return 1.0 / number;
    case Form::root: return std::sqrt(number);
    case Form::inverse_root: return 1.0 / std::sqrt(number);
    default: return number;
  }
}

const int64_t* item(const Recording& recording, size_t position) { return recording.trace.code.data() + position; }

Tag tag(const int64_t* words) { return static_cast<Tag>(words[0]); }

int64_t size_of(const Trace& trace, SizeOf of) { return trace.value(of.value)[kSizes + of.dim]; }

/// Whether autograd keeps the same, and its graph has the same form.
bool same_graph(const Recording& a, const Recording& b) {
  const auto same_input = [](const Input& one, const Input& other) { return one.is_held == other.is_held; };
  return a.trains == b.trains && a.held_outputs == b.held_outputs && a.covered == b.covered && a.reached == b.reached &&
         std::equal(a.inputs.begin(), a.inputs.end(), b.inputs.begin(), b.inputs.end(), same_input);
}

/// Positions of the code where numbers differ, if the recordings are the same but for these and for sizes.
std::optional<std::vector<uint32_t>> align(const Recording& a, const Recording& b, std::string& reason) {
  const auto fail = [&](std::string why) {
    reason = std::move(why);
    return std::nullopt;
  };
  const Trace& before = a.trace;
  const Trace& after = b.trace;
  const auto same_step = [](const Trace::Step& one, const Trace::Step& other) {
    return one.op == other.op && one.begin == other.begin && one.autocast == other.autocast && one.grad == other.grad;
  };
  if (before.code.size() != after.code.size() || before.value_begin.size() != after.value_begin.size() ||
      before.requires_grad != after.requires_grad ||
      !std::equal(before.steps.begin(), before.steps.end(), after.steps.begin(), after.steps.end(), same_step)) {
    return fail(difference(before, after));
  }
  std::vector<uint32_t> differing;
  for (size_t i = 0; i < before.code.size(); i += length(item(a, i))) {
    const int64_t* one = item(a, i);
    const int64_t* other = item(b, i);
    const size_t size = length(one);
    if (size == length(other) && std::equal(one, one + size, other)) continue;
    if (tag(one) != tag(other) || (tag(one) != Tag::integer && tag(one) != Tag::floating)) {
      return fail(difference(before, after));
    }
    differing.push_back(static_cast<uint32_t>(i));
  }
  for (size_t id = 0; id < before.value_begin.size(); ++id) {
    const int64_t* one = before.value(static_cast<ValueId>(id));
    const int64_t* other = after.value(static_cast<ValueId>(id));
    if (one[kDtype] != other[kDtype] || one[kFlags] != other[kFlags] || one[kDevice] != other[kDevice] ||
        one[kRank] != other[kRank]) {
      return fail("a value of " + value_type(before, static_cast<ValueId>(id)) + " became " +
                  value_type(after, static_cast<ValueId>(id)));
    }
  }
  if (!same_conditions(a, b)) return fail("C++ code branches on a size");
  if (std::string text = disagreement_beside_trace(a, b); !text.empty()) return fail(text);
  return differing;
}

/// Dimensions from the one with the largest stride to the one with the smallest; empty where elements overlap, or have
/// gaps between them.
std::vector<int64_t> dense_order(const int64_t* words) {
  std::vector<int64_t> order;
  for (int64_t d = 0; d < words[kRank]; ++d) order.push_back(d);
  const int64_t* strides = words + kSizes + words[kRank];
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (words[kSizes + *d] != 1 && strides[*d] != expected) return {};
    expected *= words[kSizes + *d];
  }
  return order;
}

/// Finds expressions for columns of numbers.
class Search {
 public:
  explicit Search(c10::ArrayRef<const Recording*> samples) : samples_(samples) {}

  /// From now on, expressions may use the sizes of a value.
  void add(ValueId value) {
    for (int64_t d = 0; d < samples_[0]->trace.value(value)[kRank]; ++d) {
      Column column;
      for (const Recording* sample : samples_) column.push_back(size_of(sample->trace, {value, d}));
      if (is_constant(column) || std::find(column.begin(), column.end(), 0) != column.end()) continue;
      if (known_.emplace(column, SizeOf{value, d}).second) leaves_.push_back({std::move(column), {value, d}});
    }
  }

  std::optional<SizeExpression> whole(const Column& numbers) const {
    for (const auto attempt : {&Search::one, &Search::two, &Search::linear}) {
      if (auto found = (this->*attempt)(numbers)) return found;
    }
    return std::nullopt;
  }

  /// `bits`: of doubles.
  std::optional<SizeExpression> floating(const Column& bits) const {
    for (const Form form : {Form::floating, Form::inverse, Form::root, Form::inverse_root}) {
      for (size_t i = 0; i < leaves_.size(); ++i) {
        const auto fits = [&](const auto& number_of) {
          for (size_t k = 0; k < bits.size(); ++k) {
            if (std::bit_cast<int64_t>(formed(form, number_of(k))) != bits[k]) return false;
          }
          return true;
        };
        if (fits([&](size_t k) { return leaves_[i].column[k]; })) return made({{leaves_[i].of}}, form);
        for (size_t j = 0; j <= i; ++j) {
          if (fits([&](size_t k) { return leaves_[i].column[k] * leaves_[j].column[k]; })) {
            return made({{leaves_[j].of, leaves_[i].of}}, form);
          }
        }
      }
    }
    return std::nullopt;
  }

 private:
  struct Leaf {
    Column column;
    SizeOf of;
  };
  static bool is_constant(const Column& column) {
    return std::all_of(column.begin(), column.end(), [&](int64_t number) { return number == column[0]; });
  }
  static SizeExpression made(c10::ArrayRef<std::vector<SizeOf>> products, Form form = Form::whole) {
    SizeExpression expression;
    for (const auto& product : products) expression.terms.push_back({{product.begin(), product.end()}, 1});
    expression.form = form;
    return expression;
  }
  /// The quotient, where all numbers are the same multiple of the leaf's; else 0.
  static int64_t quotient(const Column& numbers, const Column& column) {
    const int64_t times = numbers[0] / column[0];
    for (size_t k = 0; k < numbers.size(); ++k) {
      if (numbers[k] != times * column[k]) return 0;
    }
    return times;
  }

  // n, 2*n, n + 1, n//2
  std::optional<SizeExpression> one(const Column& numbers) const {
    if (const auto same = known_.find(numbers); same != known_.end()) return made({{same->second}});
    for (const Leaf& leaf : leaves_) {
      if (const int64_t times = quotient(numbers, leaf.column); times != 0) {
        SizeExpression expression = made({{leaf.of}});
        expression.terms[0].times = times;
        return expression;
      }
    }
    for (const Leaf& leaf : leaves_) {
      Column apart = numbers;
      for (size_t k = 0; k < apart.size(); ++k) apart[k] -= leaf.column[k];
      if (is_constant(apart)) {
        SizeExpression expression = made({{leaf.of}});
        expression.plus = apart[0];
        return expression;
      }
    }
    for (const Leaf& leaf : leaves_) {
      if (numbers[0] < 1) break;
      for (int64_t over = std::max<int64_t>(2, leaf.column[0] / (numbers[0] + 1)); over <= leaf.column[0] / numbers[0];
           ++over) {
        bool fits = true;
        for (size_t k = 0; k < numbers.size(); ++k) fits = fits && leaf.column[k] / over == numbers[k];
        if (!fits) continue;
        SizeExpression expression = made({{leaf.of}});
        expression.over = over;
        return expression;
      }
    }
    return std::nullopt;
  }

  // n*m, 3*n*m, n*m*k, n + m, n - m
  std::optional<SizeExpression> two(const Column& numbers) const {
    constexpr size_t kMost = 24;  // leaves; a product of three is among few
    const size_t count = std::min(leaves_.size(), kMost);
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j <= i; ++j) {
        Column product = multiplied(leaves_[i].column, leaves_[j].column);
        if (const int64_t times = quotient(numbers, product); times != 0) {
          SizeExpression expression = made({{leaves_[j].of, leaves_[i].of}});
          expression.terms[0].times = times;
          return expression;
        }
        for (size_t k = 0; k <= j; ++k) {
          if (quotient(numbers, multiplied(product, leaves_[k].column)) == 1) {
            return made({{leaves_[k].of, leaves_[j].of, leaves_[i].of}});
          }
        }
      }
    }
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j < count; ++j) {
        for (const int64_t sign : {1, -1}) {
          bool fits = i != j;
          for (size_t k = 0; k < numbers.size(); ++k) {
            fits = fits && leaves_[i].column[k] + sign * leaves_[j].column[k] == numbers[k];
          }
          if (!fits) continue;
          SizeExpression expression = made({{leaves_[i].of}, {leaves_[j].of}});
          expression.terms[1].times = sign;
          return expression;
        }
      }
    }
    return std::nullopt;
  }

  // 2*n + 3, (n + 3)//2
  std::optional<SizeExpression> linear(const Column& numbers) const {
    constexpr int64_t kMostOver = 16;
    for (const Leaf& leaf : leaves_) {
      const auto other = std::find_if(leaf.column.begin(), leaf.column.end(),
                                      [&](int64_t number) { return number != leaf.column[0]; });
      const auto k = static_cast<size_t>(other - leaf.column.begin());
      const int64_t rise = numbers[k] - numbers[0], run = leaf.column[k] - leaf.column[0];
      SizeExpression expression = made({{leaf.of}});
      if (rise % run == 0) {
        expression.terms[0].times = rise / run;
        expression.plus = numbers[0] - expression.terms[0].times * leaf.column[0];
        if (expression.terms[0].times != 0 && fits(expression, numbers)) return expression;
      }
      expression.terms[0].times = 1;
      for (expression.over = 2; expression.over <= kMostOver; ++expression.over) {
        for (expression.plus = -2 * expression.over; expression.plus <= 2 * expression.over; ++expression.plus) {
          if (fits(expression, numbers)) return expression;
        }
      }
    }
    return std::nullopt;
  }

  bool fits(const SizeExpression& expression, const Column& numbers) const {
    for (size_t k = 0; k < numbers.size(); ++k) {
      if (expression.word(samples_[k]->trace) != numbers[k]) return false;
    }
    return true;
  }
  static Column multiplied(const Column& a, const Column& b) {
    Column product = a;
    for (size_t k = 0; k < a.size(); ++k) product[k] *= b[k];
    return product;
  }

  c10::ArrayRef<const Recording*> samples_;
  std::map<Column, SizeOf> known_;
  std::vector<Leaf> leaves_;
};

const SizeExpression* find(const std::vector<Sizes::Word>& words, size_t position) {
  const auto found = std::lower_bound(words.begin(), words.end(), position,
                                      [](const Sizes::Word& word, size_t wanted) { return word.position < wanted; });
  return found != words.end() && found->position == position ? &found->expression : nullptr;
}

/// What C++ code has said itself of the number at a position, if it is so in all recordings.
const SizeExpression* said_by_hand(c10::ArrayRef<const Recording*> samples, uint32_t position) {
  const SizeExpression* said = find(samples.back()->by_hand, position);
  const bool is_so = said != nullptr && std::all_of(samples.begin(), samples.end(), [&](const Recording* sample) {
                       return said->word(sample->trace) == item(*sample, position)[1];
                     });
  return is_so ? said : nullptr;
}

std::string place(const Recording& recording, uint32_t position) {
  const auto& steps = recording.trace.steps;
  const auto after = std::upper_bound(steps.begin(), steps.end(), position,
                                      [](uint32_t at, const Trace::Step& step) { return at < step.begin; });
  const auto index = static_cast<size_t>(after - steps.begin()) - 1;
  return "operator " + std::to_string(index) + " (" + steps[index].op->name + ")";
}

std::string number_text(const int64_t* words) {
  return tag(words) == Tag::integer ? std::to_string(words[1]) : std::to_string(std::bit_cast<double>(words[1]));
}

/// Notes which sizes of inputs are free. False, with the reason, when one of them must not be, or for other strides.
bool find_free(c10::ArrayRef<const Recording*> samples, Sizes& sizes, std::string& reason) {
  std::map<Column, size_t> symbols;
  const std::vector<Input>& inputs = samples[0]->inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int64_t* first = samples[0]->trace.value(inputs[i].value);
    for (int64_t d = 0; d < first[kRank]; ++d) {
      Column column;
      for (const Recording* sample : samples) column.push_back(size_of(sample->trace, {inputs[i].value, d}));
      const auto [least, most] = std::minmax_element(column.begin(), column.end());
      if (*least == *most) continue;
      if (*least < 2) {
        reason = "sizes of 0 and 1 have code of their own";
        return false;
      }
      const size_t symbol = symbols.emplace(std::move(column), symbols.size()).first->second;
      sizes.free.push_back({i, d, symbol});
    }
    for (const Recording* sample : samples) {
      if (same_layout(first, sample->trace.value(inputs[i].value))) continue;
      reason = "the strides of " + inputs[i].name + " (" + value_type(sample->trace, inputs[i].value) + ") differ";
      return false;
    }
  }
  sizes.symbols = symbols.size();
  for (size_t symbol = 0; symbol < symbols.size(); ++symbol) sizes.names.push_back("s" + std::to_string(symbol));
  if (sizes.free.empty()) reason = "no size of an input differs";
  return !sizes.free.empty();
}

}  // namespace

bool same_layout(const int64_t* a, const int64_t* b) {
  const int64_t rank = a[kRank];
  if (std::equal(a + kSizes + rank, a + kSizes + 2 * rank, b + kSizes + rank)) return true;
  const std::vector<int64_t> order = dense_order(a);
  return !order.empty() && order == dense_order(b);
}

const char* name_of(Form form) {
  switch (form) {
    case Form::whole: return "whole";
    case Form::floating: return "floating";
    case Form::inverse: return "inverse";
    case Form::root: return "root";
    case Form::inverse_root: return "inverse_root";
  }
  return "";
}

int64_t SizeExpression::word(const Trace& trace) const {
  if (!steps.empty()) {
    c10::SmallVector<int64_t, 8> values;
    for (const SizeOf& of : sizes) values.push_back(size_of(trace, of));
    try {
      const int64_t whole = Size{"", steps}.evaluate(values.data());
      return form == Form::whole ? whole : std::bit_cast<int64_t>(formed(form, whole));
    } catch (const Error&) {
      return INT64_MIN;  // no number of these sizes is so
    }
  }
  int64_t sum = plus;
  for (const Term& term : terms) {
    int64_t product = term.times;
    for (const SizeOf& of : term.product) product *= size_of(trace, of);
    sum += product;
  }
  sum = floor_divide(sum, over);
  return form == Form::whole ? sum : std::bit_cast<int64_t>(formed(form, sum));
}

const SizeExpression* Sizes::at(size_t position) const { return find(words, position); }

bool same_conditions(const Recording& a, const Recording& b) {
  const auto is_same = [](const SizeCondition& one, const SizeCondition& other) { return one.text == other.text; };
  return std::equal(a.conditions.begin(), a.conditions.end(), b.conditions.begin(), b.conditions.end(), is_same);
}

std::shared_ptr<Sizes> explain(c10::ArrayRef<const Recording*> samples, std::string& reason) {
  const Recording& first = *samples[0];
  std::vector<uint32_t> positions;
  for (const Recording* sample : samples.slice(1)) {
    const auto differing = align(first, *sample, reason);
    if (!differing.has_value()) return nullptr;
    positions.insert(positions.end(), differing->begin(), differing->end());
  }
  for (const Sizes::Word& word : samples.back()->by_hand) positions.push_back(word.position);
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  auto sizes = std::make_shared<Sizes>();
  if (!find_free(samples, *sizes, reason)) return nullptr;

  Search search(samples);
  for (const Input& input : first.inputs) search.add(input.value);
  size_t next = 0;
  for (size_t step = 0; step < first.trace.steps.size(); ++step) {
    const size_t end = first.trace.end_of(step);
    for (; next < positions.size() && positions[next] < end; ++next) {
      if (const SizeExpression* said = said_by_hand(samples, positions[next])) {
        sizes->words.push_back({positions[next], *said});
        continue;
      }
      Column numbers;
      for (const Recording* sample : samples) numbers.push_back(item(*sample, positions[next])[1]);
      if (std::all_of(numbers.begin(), numbers.end(), [&](int64_t one) { return one == numbers[0]; })) continue;
      const bool is_whole = tag(item(first, positions[next])) == Tag::integer;
      auto found = is_whole ? search.whole(numbers) : search.floating(numbers);
      if (!found.has_value()) {
        reason = place(first, positions[next]) + ": " + number_text(item(first, positions[next])) + " became " +
                 number_text(item(*samples.back(), positions[next])) + ", which does not follow from sizes";
        return nullptr;
      }
      sizes->words.push_back({positions[next], std::move(*found)});
    }
    // What the step used, and what it gave.
    for (size_t i = first.trace.steps[step].begin; i < end; i += length(item(first, i))) {
      if (tag(item(first, i)) == Tag::tensor) search.add(item(first, i)[1]);
    }
  }
  return sizes;
}

std::string departure(const Recording& sample, const Sizes& sizes, const Recording& now) {
  std::string reason;
  const auto differing = align(sample, now, reason);
  if (!differing.has_value()) return reason;
  if (!same_graph(sample, now)) return "autograd keeps other tensors, or its graph has another form";
  for (const uint32_t position : *differing) {
    if (sizes.at(position) != nullptr) continue;
    return place(now, position) + ": " + number_text(item(sample, position)) + " became " +
           number_text(item(now, position));
  }
  for (const Sizes::Word& word : sizes.words) {
    if (word.expression.word(now.trace) != item(now, word.position)[1]) {
      return place(now, word.position) + ": " + number_text(item(now, word.position)) +
             " is not what its sizes gave in other calls";
    }
  }
  std::vector<int64_t> symbols(sizes.symbols, -1);
  auto free = sizes.free.begin();
  for (size_t i = 0; i < now.inputs.size(); ++i) {
    const int64_t* before = sample.trace.value(sample.inputs[i].value);
    const int64_t* words = now.trace.value(now.inputs[i].value);
    for (int64_t d = 0; d < words[kRank]; ++d) {
      const int64_t size = words[kSizes + d];
      if (free == sizes.free.end() || free->input != i || free->dim != d) {
        if (size != before[kSizes + d]) return "another size of " + now.inputs[i].name + " differs";
        continue;
      }
      if (size < 2) return "sizes of 0 and 1 have code of their own";
      int64_t& symbol = symbols[free->symbol];
      if (symbol >= 0 && symbol != size) return "sizes that were the same in all calls differ";
      symbol = size;
      ++free;
    }
    if (!same_layout(before, words)) return "the strides of " + now.inputs[i].name + " differ";
  }
  return "";
}

std::string misfit(const Signature& signature, const Recording& now) {
  c10::SmallVector<at::IntArrayRef, 16> given;
  for (const Input& input : now.inputs) {
    const int64_t* words = now.trace.value(input.value);
    given.emplace_back(words + kSizes, static_cast<size_t>(words[kRank]));
  }
  return misfit(signature, given);
}

std::string misfit(const Signature& signature, c10::ArrayRef<at::IntArrayRef> given) {
  std::vector<int64_t> symbols(signature.symbols.size(), -1);
  const auto each = [&](const auto& visit) {
    for (size_t i = 0; i < signature.inputs.size(); ++i) {
      for (size_t d = 0; d < signature.inputs[i].sizes.size(); ++d) visit(signature.inputs[i].sizes[d], given[i][d]);
    }
  };
  std::string reason;
  each([&](const Size& size, int64_t given) {
    if (!size.is_symbol()) return;
    const Symbol& symbol = signature.symbols[static_cast<size_t>(size.steps[0].value)];
    symbols[static_cast<size_t>(size.steps[0].value)] = given;
    if (given < symbol.min || given > symbol.max) {
      reason = "the code is for " + std::to_string(symbol.min) + " <= " + symbol.name +
               (symbol.max == INT64_MAX ? "" : " <= " + std::to_string(symbol.max));
    }
  });
  if (!reason.empty()) return reason;
  each([&](const Size& size, int64_t given) {
    if (size.evaluate(symbols.data()) != given) reason = "the code is for sizes of " + size.text;
  });
  for (const SizeGuard& guard : signature.guards) {
    if (reason.empty() && !guard.holds(symbols.data())) reason = "the code is for " + guard.text;
  }
  return reason;
}

}  // namespace torchcc::detail
