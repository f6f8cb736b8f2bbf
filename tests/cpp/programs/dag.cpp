#include "dag.h"

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <optional>
#include <random>
#include <sstream>

namespace programs {

namespace {

using Values = std::vector<Tensor>;
using Unary = Tensor (*)(const Tensor&);
using Along = Tensor (*)(const Tensor&, int64_t dim);
using Binary = Tensor (*)(const Tensor&, const Tensor&);

template <class F>
struct Named {
  const char* name;
  F function;
};
template <class F>
using Table = std::vector<Named<F>>;

// Added before a jump, so that sums which are whole numbers but for rounding are not at the jump.
constexpr double kOff = 0.1234567;

Table<Unary> unary_operators() {
  Table<Unary> table;
  const auto add = [&](const char* name, Unary function) { table.push_back({name, function}); };
  add("sin", [](const Tensor& x) { return x.sin(); });
  add("cos", [](const Tensor& x) { return x.cos(); });
  add("tanh", [](const Tensor& x) { return x.tanh(); });
  add("sigmoid", [](const Tensor& x) { return x.sigmoid(); });
  add("exp of clamp", [](const Tensor& x) { return x.clamp(-3, 2).exp(); });
  add("log1p of abs", [](const Tensor& x) { return x.abs().log1p(); });
  add("sqrt of abs", [](const Tensor& x) { return (x.abs() + 0.1).sqrt(); });
  add("erf", [](const Tensor& x) { return x.erf(); });
  add("relu", [](const Tensor& x) { return x.relu(); });
  add("gelu", [](const Tensor& x) { return at::gelu(x); });
  add("silu", [](const Tensor& x) { return at::silu(x); });
  add("softplus", [](const Tensor& x) { return at::softplus(x); });
  add("leaky_relu", [](const Tensor& x) { return at::leaky_relu(x, 0.1); });
  add("1 - x", [](const Tensor& x) { return 1 - x; });
  add("reciprocal", [](const Tensor& x) { return (x.abs() + 0.5).reciprocal(); });
  add("floor", [](const Tensor& x) { return (x * 1.37 + kOff).floor(); });
  add("round", [](const Tensor& x) { return (x * 1.37 + kOff).round(); });
  add("square", [](const Tensor& x) { return x.square() * 0.3; });
  add("atan", [](const Tensor& x) { return x.atan(); });
  add("hardtanh", [](const Tensor& x) { return at::hardtanh(x, -0.7, 1.1); });
  add("clone", [](const Tensor& x) { return x.clone(); });
  add("contiguous", [](const Tensor& x) { return x.contiguous(); });
  add("full_like", [](const Tensor& x) { return at::full_like(x, 0.75) + x; });
  add("rfft", [](const Tensor& x) { return x.dim() == 0 || x.numel() == 0 ? x.neg() : at::fft_rfft(x).abs() * 0.2; });
  add("masked_fill", [](const Tensor& x) { return x.masked_fill(x > kOff, -0.4); });
  add("where", [](const Tensor& x) { return at::where(x < -kOff, x.sin(), x * 0.9); });
  add("sum", [](const Tensor& x) { return x.sum() * 0.1; });
  add("amax", [](const Tensor& x) { return x.amax(); });
  add("flatten", [](const Tensor& x) { return x.flatten(); });
  add("reshape", [](const Tensor& x) { return x.reshape({1, -1}); });
  add("mT", [](const Tensor& x) { return x.dim() < 2 ? x.unsqueeze(0) : x.transpose(-1, -2); });
  add("permute", [](const Tensor& x) { return x.dim() == 3 ? x.permute({2, 0, 1}) : x.unsqueeze(-1); });
  add("tril", [](const Tensor& x) { return x.dim() < 2 ? x.neg() : x.tril(1); });
  add("diagonal", [](const Tensor& x) { return x.dim() < 2 ? x.neg() : x.diagonal(0, -2, -1); });
  add("pad", [](const Tensor& x) { return x.dim() == 0 ? x.neg() : at::constant_pad_nd(x, {1, 2}, 0.5); });
  return table;
}

Table<Along> operators_along() {
  Table<Along> table;
  const auto add = [&](const char* name, Along function) { table.push_back({name, function}); };
  add("softmax", [](const Tensor& x, int64_t d) { return x.softmax(d); });
  add("log_softmax", [](const Tensor& x, int64_t d) { return x.log_softmax(d); });
  add("cumsum", [](const Tensor& x, int64_t d) { return x.cumsum(d) * 0.3; });
  add("cumprod", [](const Tensor& x, int64_t d) { return x.tanh().cumprod(d); });
  add("logcumsumexp", [](const Tensor& x, int64_t d) { return x.logcumsumexp(d); });
  add("cummax", [](const Tensor& x, int64_t d) { return std::get<0>(x.cummax(d)); });
  add("sum", [](const Tensor& x, int64_t d) { return x.sum(d) * 0.3; });
  add("sum keepdim", [](const Tensor& x, int64_t d) { return x.sum(d, true) * 0.3; });
  add("mean", [](const Tensor& x, int64_t d) { return x.mean(d, true); });
  add("amax", [](const Tensor& x, int64_t d) { return x.amax(d); });
  add("amin keepdim", [](const Tensor& x, int64_t d) { return x.amin(d, true); });
  add("max", [](const Tensor& x, int64_t d) { return std::get<0>(x.max(d)); });
  add("var", [](const Tensor& x, int64_t d) { return x.var(at::IntArrayRef{d}, /*unbiased=*/false) * 0.5; });
  add("prod", [](const Tensor& x, int64_t d) { return x.tanh().prod(d); });
  add("logsumexp", [](const Tensor& x, int64_t d) { return x.logsumexp(d); });
  add("norm", [](const Tensor& x, int64_t d) { return x.norm(2, d) * 0.5; });
  add("sort", [](const Tensor& x, int64_t d) { return std::get<0>(x.sort(d, true)); });
  add("topk", [](const Tensor& x, int64_t d) { return std::get<0>(x.topk(1, d)); });
  add("median", [](const Tensor& x, int64_t d) { return std::get<0>(x.median(d)); });
  add("flip", [](const Tensor& x, int64_t d) { return x.flip(d); });
  add("roll", [](const Tensor& x, int64_t d) { return x.roll(1, d); });
  add("select", [](const Tensor& x, int64_t d) { return x.select(d, -1); });
  add("slice", [](const Tensor& x, int64_t d) { return x.slice(d, 0, x.size(d), 2); });
  add("narrow", [](const Tensor& x, int64_t d) { return x.narrow(d, 0, (x.size(d) + 1) / 2); });
  add("chunk", [](const Tensor& x, int64_t d) { return x.chunk(2, d).back(); });
  add("unsqueeze", [](const Tensor& x, int64_t d) { return x.unsqueeze(d); });
  add("squeeze", [](const Tensor& x, int64_t d) { return x.squeeze(d); });
  add("repeat_interleave", [](const Tensor& x, int64_t d) { return x.repeat_interleave(2, d); });
  add("cat with itself", [](const Tensor& x, int64_t d) { return at::cat({x, x.neg()}, d); });
  add("stack with itself", [](const Tensor& x, int64_t d) { return at::stack({x, x * 2}, d); });
  add("arange", [](const Tensor& x, int64_t d) { return x.movedim(d, -1) + at::arange(x.size(d), x.options()) * 0.1; });
  return table;
}

Table<Binary> binary_operators() {
  Table<Binary> table;
  const auto add = [&](const char* name, Binary function) { table.push_back({name, function}); };
  add("add", [](const Tensor& a, const Tensor& b) { return a + b; });
  add("sub", [](const Tensor& a, const Tensor& b) { return at::sub(a, b, 0.5); });
  add("mul", [](const Tensor& a, const Tensor& b) { return a * b; });
  add("div", [](const Tensor& a, const Tensor& b) { return a / (b.abs() + 1); });
  add("maximum", [](const Tensor& a, const Tensor& b) { return at::maximum(a, b); });
  add("fmin", [](const Tensor& a, const Tensor& b) { return at::fmin(a, b); });
  add("hypot", [](const Tensor& a, const Tensor& b) { return at::hypot(a, b); });
  add("where", [](const Tensor& a, const Tensor& b) { return at::where(a > b + kOff, a, b * 0.5); });
  add("lerp", [](const Tensor& a, const Tensor& b) { return at::lerp(a, b.to(a.scalar_type()), 0.3); });
  add("addcmul", [](const Tensor& a, const Tensor& b) { return at::addcmul(a, a, b.to(a.scalar_type()), 0.2); });
  add("pow", [](const Tensor& a, const Tensor& b) { return (a.abs() + 0.5).pow(b.clamp(-1, 1)); });
  add("logaddexp", [](const Tensor& a, const Tensor& b) { return at::logaddexp(a, b.to(a.scalar_type())); });
  add("greater", [](const Tensor& a, const Tensor& b) { return (a > b + kOff).to(at::kDouble) * 0.5 + b; });
  return table;
}

Table<Binary> integer_operators() {
  Table<Binary> table;
  const auto add = [&](const char* name, Binary function) { table.push_back({name, function}); };
  add("add", [](const Tensor& a, const Tensor& b) { return a + b; });
  add("mul", [](const Tensor& a, const Tensor& b) { return (a * b).remainder(101); });
  add("bitwise_xor", [](const Tensor& a, const Tensor& b) { return a.bitwise_xor(b); });
  add("floor_divide", [](const Tensor& a, const Tensor& b) { return at::floor_divide(a, b.abs() + 1); });
  add("minimum", [](const Tensor& a, const Tensor& b) { return at::minimum(a, b); });
  add("equal", [](const Tensor& a, const Tensor& b) { return (a == b).to(at::kLong) + a; });
  return table;
}

// On a value itself, or on a view of it: all values that share its memory change.
Table<Unary> in_place_operators() {
  Table<Unary> table;
  const auto add = [&](const char* name, Unary function) { table.push_back({name, function}); };
  add("add_", [](const Tensor& x) { return x.add_(0.5); });
  add("mul_", [](const Tensor& x) { return x.mul_(-0.7); });
  add("relu_", [](const Tensor& x) { return x.relu_(); });
  add("sin_", [](const Tensor& x) { return x.sin_(); });
  add("masked_fill_", [](const Tensor& x) { return x.masked_fill_(x > kOff, 0.3); });
  add("add_ on a transposed view",
      [](const Tensor& x) { return x.transpose(0, -1).add_(at::arange(x.size(0), x.options())); });
  add("zero_ on a row", [](const Tensor& x) { return x.select(0, 0).zero_(); });
  add("copy_ on a slice", [](const Tensor& x) { return x.slice(0, 0, 1).copy_(x.slice(0, -1).clone()); });
  add("mul_ on every other", [](const Tensor& x) { return x.slice(-1, 0, x.size(-1), 2).mul_(0.5); });
  add("index_put_",
      [](const Tensor& x) { return Tensor(x).index_put_({at::zeros({1}, at::kLong)}, x.select(-0, -1).clone()); });
  return table;
}

}  // namespace

/// Makes the operators of one program, and runs each on example values to know which others may follow.
class Growth {
 public:
  Growth(Dag& dag) : dag_(dag), engine_(dag.seed_) {}

  void grow() {
    add_inputs();
    const size_t operators = 6 + below(9);
    for (int attempt = 0; dag_.steps_.size() < operators && attempt < 200; ++attempt) step();
    finish();
  }

 private:
  size_t below(size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(engine_); }

  template <class F>
  const Named<F>& any_of(const Table<F>& table) {
    return table[below(table.size())];
  }

  void add_inputs() {
    constexpr int64_t kSizes[] = {1, 2, 3, 4, 5, 8, 17};
    const auto size = [&] { return kSizes[below(std::size(kSizes))]; };
    const int64_t r = size(), c = size(), b = 2 + static_cast<int64_t>(below(2));
    const std::vector<std::vector<int64_t>> shapes = {{r, c}, {c}, {r, 1}, {b, r, c}, {r, c}, {c, r}, {}};
    const size_t inputs = 2 + below(2);
    for (size_t i = 0; i < inputs; ++i) dag_.inputs_.push_back({shapes[below(shapes.size())], at::kDouble});
    dag_.inputs_.push_back({{3}, at::kLong});
    values_ = dag_.inputs();
  }

  template <class Accept>
  std::optional<size_t> pick(const Accept& accept) {
    std::vector<size_t> fitting;
    for (size_t i = 0; i < values_.size(); ++i) {
      if (accept(values_[i])) fitting.push_back(i);
    }
    if (fitting.empty()) return std::nullopt;
    // Mostly a recent one, so that programs are deep rather than wide.
    const size_t recent = std::min<size_t>(fitting.size(), 4);
    return below(3) == 0 ? fitting[below(fitting.size())] : fitting[fitting.size() - 1 - below(recent)];
  }

  static bool is_real(const Tensor& x) { return x.is_floating_point() && x.numel() > 0; }
  static bool is_integer(const Tensor& x) { return x.scalar_type() == at::kLong && x.numel() > 0; }

  using Run = std::function<Tensor(const Values&)>;

  void add(const std::string& name, const std::vector<size_t>& operands, const Run& run) {
    std::ostringstream text;
    text << 'v' << values_.size() << " = " << name;
    for (size_t i = 0; i < operands.size(); ++i) text << (i == 0 ? " of v" : ", v") << operands[i];
    const Tensor value = run(values_);
    if (value.numel() > 4096) return;
    values_.push_back(value);
    text << ": " << value.scalar_type() << value.sizes();
    if (value.scalar_type() == at::kFloat) dag_.is_coarse_ = true;
    dag_.steps_.push_back({text.str(), run});
    used_.insert(used_.end(), operands.begin(), operands.end());
    if (value.is_floating_point() && value.abs().max().item<double>() > 20) {
      const size_t large = values_.size() - 1;
      add("tanh", {large}, [large](const Values& v) { return v[large].tanh(); });
    }
  }

  void unary(const Named<Unary>& op) {
    const auto a = pick(is_real);
    if (a) add(op.name, {*a}, [f = op.function, a = *a](const Values& v) { return f(v[a]); });
  }

  void along(const Named<Along>& op) {
    const auto a = pick([](const Tensor& x) { return is_real(x) && x.dim() > 0; });
    if (!a) return;
    const auto dim = static_cast<int64_t>(below(static_cast<size_t>(values_[*a].dim())));
    add(op.name + (" along " + std::to_string(dim)), {*a},
        [f = op.function, a = *a, dim](const Values& v) { return f(v[a], dim); });
  }

  void binary(const Named<Binary>& op, bool (*accept)(const Tensor&)) {
    const auto a = pick(accept);
    if (!a) return;
    const auto b = pick([&](const Tensor& x) { return accept(x) && broadcasts(values_[*a], x); });
    if (b) add(op.name, {*a, *b}, [f = op.function, a = *a, b = *b](const Values& v) { return f(v[a], v[b]); });
  }

  static bool broadcasts(const Tensor& a, const Tensor& b) {
    for (int64_t d = 1; d <= std::min(a.dim(), b.dim()); ++d) {
      if (a.size(-d) != b.size(-d) && a.size(-d) != 1 && b.size(-d) != 1) return false;
    }
    return true;
  }

  void matmul() {
    const auto a = pick([](const Tensor& x) { return is_real(x) && x.dim() >= 2; });
    if (!a) return;
    const auto b = pick([&](const Tensor& x) {
      return x.dim() == 2 && x.size(0) == values_[*a].size(-1) && x.scalar_type() == values_[*a].scalar_type();
    });
    if (b) {
      add("matmul", {*a, *b}, [a = *a, b = *b](const Values& v) { return v[a].matmul(v[b]) * 0.3; });
    } else {
      add("matmul with its transpose", {*a}, [a = *a](const Values& v) { return v[a].matmul(v[a].mT()) * 0.3; });
    }
  }

  void join() {
    const auto a = pick([](const Tensor& x) { return is_real(x) && x.dim() > 0; });
    if (!a) return;
    const auto b = pick([&](const Tensor& x) { return is_real(x) && x.sizes() == values_[*a].sizes(); });
    if (!b) return;
    if (below(2) == 0) {
      add("cat", {*a, *b}, [a = *a, b = *b](const Values& v) { return at::cat({v[a], v[b], v[a]}, -1); });
    } else {
      add("stack", {*a, *b}, [a = *a, b = *b](const Values& v) { return at::stack({v[a], v[b]}, 1); });
    }
  }

  void index() {
    const auto a = pick([](const Tensor& x) { return is_real(x) && x.dim() > 0; });
    const auto i = pick([](const Tensor& x) { return is_integer(x) && x.dim() == 1; });
    if (!a || !i) return;
    const auto position = [](const Tensor& at, const Tensor& x) { return at.remainder(x.size(0)); };
    switch (below(5)) {
      case 0:
        add("index", {*a, *i}, [=, a = *a, i = *i](const Values& v) { return v[a].index({position(v[i], v[a])}); });
        break;
      case 1:
        add("index_select", {*a, *i},
            [=, a = *a, i = *i](const Values& v) { return v[a].index_select(0, position(v[i], v[a])); });
        break;
      case 2:
        add("gather", {*a, *i},
            [=, a = *a, i = *i](const Values& v) { return v[a].flatten().gather(0, v[i].remainder(v[a].numel())); });
        break;
      case 3:
        add("scatter_add", {*a, *i}, [=, a = *a, i = *i](const Values& v) {
          return v[a].flatten().scatter_add(0, v[i].remainder(v[a].numel()), v[i].to(v[a].scalar_type()) * 0.01);
        });
        break;
      default:
        add("index_add", {*a, *i}, [=, a = *a, i = *i](const Values& v) {
          const Tensor at = position(v[i], v[a]);
          return v[a].index_add(0, at, v[a].index_select(0, at), 0.5);
        });
    }
  }

  void cast() {
    const auto a = pick([](const Tensor& x) { return x.numel() > 0; });
    if (!a) return;
    if (is_integer(values_[*a])) {
      add("to double", {*a}, [a = *a](const Values& v) { return v[a].to(at::kDouble) * 0.01; });
    } else if (values_[*a].scalar_type() == at::kDouble && below(3) == 0) {
      add("to float", {*a}, [a = *a](const Values& v) { return v[a].to(at::kFloat); });
    } else {
      add("to long", {*a}, [a = *a](const Values& v) { return (v[a] * 3.1 + kOff).floor().to(at::kLong); });
    }
  }

  void in_place(const Named<Unary>& op) {
    const auto a = pick(
        [](const Tensor& x) { return is_real(x) && x.dim() > 0 && at::has_internal_overlap(x) == at::MemOverlap::No; });
    if (a) add(op.name, {*a}, [f = op.function, a = *a](const Values& v) { return f(v[a]); });
  }

  void step() {
    switch (below(12)) {
      case 0:
      case 1:
      case 2: return unary(any_of(unary_));
      case 3:
      case 4: return along(any_of(along_));
      case 5:
      case 6: return binary(any_of(binary_), is_real);
      case 7: return matmul();
      case 8: return join();
      case 9: return index();
      case 10: return below(2) == 0 ? cast() : binary(any_of(integers_), is_integer);
      default: return in_place(any_of(in_place_));
    }
  }

  void finish() {
    // Rounding in low precision comes last: what follows would make its errors large.
    if (below(4) == 0) {
      const auto dtype = below(2) == 0 ? at::kBFloat16 : at::kHalf;
      if (const auto a = pick(is_real)) {
        add("low precision", {*a}, [a = *a, dtype](const Values& v) { return v[a].to(dtype); });
      }
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      const bool is_used = std::find(used_.begin(), used_.end(), i) != used_.end();
      if (i >= dag_.inputs_.size() && (!is_used || below(6) == 0)) dag_.results_.push_back(i);
    }
  }

  const Table<Unary> unary_ = unary_operators(), in_place_ = in_place_operators();
  const Table<Along> along_ = operators_along();
  const Table<Binary> binary_ = binary_operators(), integers_ = integer_operators();
  Dag& dag_;
  std::mt19937_64 engine_;
  Values values_;
  std::vector<size_t> used_;
};

Dag::Dag(uint64_t seed) : seed_(seed) {
  torch::manual_seed(seed);
  Growth(*this).grow();
}

std::vector<Tensor> Dag::inputs() const {
  std::vector<Tensor> made;
  for (const Input& input : inputs_) {
    made.push_back(input.dtype == at::kLong ? at::randint(1000, input.sizes) : at::randn(input.sizes, input.dtype));
  }
  return made;
}

std::vector<Tensor> Dag::run(std::vector<Tensor> values) const {
  return run(std::move(values), [](Tensor&) {});
}

std::vector<Tensor> Dag::run(std::vector<Tensor> values, const std::function<void(Tensor&)>& after) const {
  for (const Step& step : steps_) {
    values.push_back(step.run(values));
    after(values.back());
  }
  return results_of(values);
}

std::vector<Tensor> Dag::run_partly_without_grad(std::vector<Tensor> values) const {
  std::mt19937_64 random(seed_);
  bool is_on = true;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (i % 2 == 0) is_on = random() % 4 != 0;
    const at::AutoGradMode mode(is_on && at::GradMode::is_enabled());
    values.push_back(steps_[i].run(values));
  }
  return results_of(values);
}

std::vector<Tensor> Dag::results_of(const std::vector<Tensor>& values) const {
  std::vector<Tensor> results;
  for (const size_t result : results_) results.push_back(values[result]);
  return results;
}

std::string Dag::text() const {
  std::ostringstream all;
  all << "program " << seed_ << " (run it alone: TORCHCC_RANDOM_SEED=" << seed_ << " TORCHCC_RANDOM_PROGRAMS=1)\n";
  for (size_t i = 0; i < inputs_.size(); ++i) {
    all << "  v" << i << " = input: " << inputs_[i].dtype << at::IntArrayRef(inputs_[i].sizes) << '\n';
  }
  for (const Step& step : steps_) all << "  " << step.text << '\n';
  all << "  results:";
  for (const size_t result : results_) all << " v" << result;
  return all.str();
}

}  // namespace programs
