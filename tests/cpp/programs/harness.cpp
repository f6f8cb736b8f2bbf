#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <sstream>

#include <ATen/CPUGeneratorImpl.h>

namespace programs {
namespace {

double tolerance_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
    case at::kComplexDouble: return 1e-9;
    case at::kHalf: return 4e-3;
    case at::kBFloat16: return 3e-2;
    default: return 1e-4;
  }
}

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}

std::string describe(const Tensor& tensor) {
  return text(tensor.scalar_type()) + text(tensor.sizes()) + " strides " + text(tensor.strides());
}

/// The stride of a dimension of size 1 says nothing.
bool have_same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.numel() > 0 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

std::string first_difference(const Tensor& got, const Tensor& expected) {
  const Tensor distance = (got - expected).abs();
  const Tensor where = (~at::isclose(got, expected, 0, 0, /*equal_nan=*/true)).flatten().nonzero().flatten();
  if (where.numel() == 0) return "none";
  const Tensor at = where[0];
  return text(where.numel()) + " of " + text(got.numel()) + " elements differ, the first at " +
         text(at.item<int64_t>()) + ": got " + text(got.flatten()[at].item()) + ", expected " +
         text(expected.flatten()[at].item()) + "; largest difference " + text(distance.max().item());
}

/// Pairs of tensors that share a storage, with their distance in it, as text.
std::string aliases(const std::vector<Tensor>& tensors) {
  std::string found;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (!tensors[i].defined() || !tensors[j].defined() || !tensors[i].is_alias_of(tensors[j])) continue;
      if (tensors[i].numel() == 0 || tensors[j].numel() == 0) continue;
      found +=
          text(j) + "-" + text(i) + " at " + text(tensors[i].storage_offset() - tensors[j].storage_offset()) + "; ";
    }
  }
  return found;
}

std::vector<Tensor> all_tensors(const Outcome& outcome) {
  std::vector<Tensor> all = outcome.results.tensors;
  for (const Values* values : {&outcome.arguments, &outcome.state}) {
    all.insert(all.end(), values->tensors.begin(), values->tensors.end());
  }
  return all;
}

void compare(const char* what, const Values& got, const Values& expected, const Expect& expect, int call) {
  BOOST_TEST(got.words == expected.words,
             "call " << call << ", " << what << "s: got " << got.words << ", expected " << expected.words);
  BOOST_TEST_REQUIRE(got.tensors.size() == expected.tensors.size());
  for (size_t i = 0; i < got.tensors.size(); ++i) {
    const double tolerance = expect.values ? expect.tolerance : std::numeric_limits<double>::infinity();
    const std::string wrong = difference(got.tensors[i], expected.tensors[i], tolerance);
    BOOST_TEST(wrong.empty(), "call " << call << ", " << what << " " << i << ": " << wrong);
  }
}

}  // namespace

Options plain_options() {
  Options options = freezing_options();
  options.freeze = false;
  return options;
}

Options freezing_options() {
  Options options;
  options.allow_slower = true;
  options.name = boost::unit_test::framework::current_test_case().p_name.get();
  return options;
}

std::string difference(const Tensor& got, const Tensor& expected, double tolerance) {
  if (!got.defined() || !expected.defined()) {
    return got.defined() == expected.defined() ? "" : "one of them is undefined";
  }
  if (got.scalar_type() != expected.scalar_type() || got.sizes() != expected.sizes() ||
      !have_same_strides(got, expected) || got.device() != expected.device() || got.layout() != expected.layout()) {
    return "got " + describe(got) + ", expected " + describe(expected);
  }
  if (got.requires_grad() != expected.requires_grad()) {
    return std::string("requires_grad: got ") + (got.requires_grad() ? "true" : "false");
  }
  if (std::isinf(tolerance)) return "";
  const at::NoGradGuard no_grad;
  const auto wide = got.is_complex() ? at::kComplexDouble : got.is_floating_point() ? at::kDouble : at::kLong;
  const Tensor a = got.to(wide), b = expected.to(wide);
  const double limit = tolerance * tolerance_of(got.scalar_type());
  const bool equal = wide == at::kLong ? at::equal(a, b) : at::allclose(a, b, limit, limit, /*equal_nan=*/true);
  return equal ? "" : first_difference(a, b);
}

std::string missing(std::string_view text, std::string_view words) {
  std::string lacking;
  while (!words.empty()) {
    const std::string_view word = words.substr(0, words.find('&'));
    words.remove_prefix(std::min(words.size(), word.size() + 1));
    if (text.find(word) != std::string_view::npos) continue;
    lacking += (lacking.empty() ? "does not say \"" : "\", \"") + std::string(word);
  }
  return lacking.empty() ? "" : lacking + "\": " + std::string(text);
}

void compare(const Outcome& got, const Outcome& expected, const Expect& expect, int call) {
  compare("result", got.results, expected.results, expect, call);
  compare("argument", got.arguments, expected.arguments, expect, call);
  compare("kept tensor", got.state, expected.state, expect, call);
  const std::string shared = aliases(all_tensors(got));
  const std::string wanted = aliases(all_tensors(expected));
  BOOST_TEST(shared == wanted, "call " << call << ": share memory: " << shared << ", expected " << wanted
                                       << " (results, then arguments, then kept tensors)");
}

namespace {

// Calls in lazy mode, of which the first two or three are recorded.
constexpr int kLazyCalls = 8;

using Hook = std::function<void(const Values&)>;

const std::string& test_name() { return boost::unit_test::framework::current_test_case().p_name.get(); }

void check_stats(const torchcc::CompileStats& stats, const Expect& expect) {
  BOOST_TEST(stats.calls == expect.calls);
  BOOST_TEST(stats.recorded + stats.replayed + stats.eager + stats.lazy == stats.calls, stats.str());
  if (expect.eager.empty()) {
    BOOST_TEST(stats.replayed == expect.calls - 2, "not replayed from the third call on:\n" << stats.str());
  } else {
    BOOST_TEST(stats.replayed == 0, "was replayed:\n" << stats.str());
    BOOST_TEST(missing(stats.reason, expect.eager) == "");
  }
}

bool is_mode(std::string_view wanted) {
  const char* mode = std::getenv("TORCHCC_PROGRAMS");
  return mode != nullptr && mode == wanted;
}

/// Prints at the end of the process what became of the programs.
struct Summary {
  const char* title;
  const char* unit;
  int64_t programs = 0, good = 0, all = 0;
  std::string reasons{};
  ~Summary() {
    if (programs == 0) return;
    std::cout << reasons << title << ": " << good << " of " << all << " " << unit << " (" << programs << " programs)\n";
  }
  void note(int64_t of_these, int64_t of_all, const std::string& reason) {
    ++programs;
    good += of_these;
    all += of_all;
    if (of_these == 0) reasons += std::string(title) + ": not " + test_name() + ": " + reason + "\n";
  }
};

Outcome call_plainly(Runner& runner, int call) {
  Growth none;
  return runner.run(call, none, [](const Values&) {});
}

/// Programs that are never replayed run lazily, and compile pieces. Suite lazy is about these; here they cost time
/// only.
struct NoCompiler {
  explicit NoCompiler(bool is_on) : is_on(is_on) {
    if (is_on) setenv("TORCHCC_COMPILER", "off", 1);
  }
  ~NoCompiler() {
    if (is_on) unsetenv("TORCHCC_COMPILER");
  }
  bool is_on;
};

void check_values(const MakeRunner& make, const Expect& expect) {
  const NoCompiler no_compiler(!expect.eager.empty() && !expect.needs_compiler && !is_lazy());
  const at::AutoGradMode grad_mode(expect.gradients);
  Runner plain = make(false);
  Runner compiled = make(true);
  std::vector<std::pair<Outcome, Outcome>> outcomes;
  const int calls = is_lazy() ? kLazyCalls : expect.calls;
  for (int call = 1; call <= calls; ++call) {
    Outcome expected = call_plainly(plain, call);
    Outcome got = call_plainly(compiled, call);
    compare(got, expected, expect, call);
    outcomes.emplace_back(std::move(got), std::move(expected));
  }
  // A later call must not have written into the results of an earlier one, unless eager does so too.
  for (int call = 1; call <= calls; ++call) {
    const auto& [got, expected] = outcomes[static_cast<size_t>(call - 1)];
    compare("(seen after all calls) result", got.results, expected.results, expect, call);
  }
  const torchcc::CompileStats stats = compiled.stats();
  if (!is_lazy()) return check_stats(stats, expect);
  static Summary summary{"lazy", "operators compiled"};
  summary.note(stats.compiled_ops, stats.compiled_ops + stats.eager_ops, stats.str());
}

/// Lets gradients flow into floating-point tensors that are leaves.
void require_gradients(const Values& values) {
  for (const Tensor& tensor : values.tensors) {
    if (!tensor.defined() || !tensor.is_leaf() || !(tensor.is_floating_point() || tensor.is_complex())) continue;
    if (!tensor.is_inference()) tensor.set_requires_grad(true);
  }
}

/// Differentiates the results of a call, with random gradients of them, and gives the gradients of arguments and state.
/// The results stay, without autograd's graph.
Values differentiate(Outcome& outcome, int call) {
  std::vector<Tensor> results;
  std::vector<Tensor> tangents;
  const at::Generator generator = at::detail::createCPUGenerator(kSeed + static_cast<uint64_t>(call));
  for (const Tensor& tensor : outcome.results.tensors) {
    if (!tensor.defined() || !tensor.requires_grad()) continue;
    results.push_back(tensor);
    tangents.push_back(at::randn(tensor.sizes(), generator, tensor.options().requires_grad(false)));
  }
  if (!results.empty()) torch::autograd::backward(results, tangents);
  Values gradients;
  for (const Values* values : {&outcome.arguments, &outcome.state}) {
    for (const Tensor& tensor : values->tensors) {
      if (!tensor.defined() || !tensor.is_leaf() || !tensor.requires_grad()) continue;
      // Copies: which gradients share memory is nobody's promise.
      gradients.add(tensor.grad().defined() ? tensor.grad().clone(at::MemoryFormat::Contiguous) : Tensor());
      tensor.mutable_grad().reset();
    }
  }
  for (Values* values : {&outcome.results, &outcome.arguments, &outcome.state}) {
    for (Tensor& tensor : values->tensors) {
      if (tensor.defined() && tensor.requires_grad()) {
        values->say("requires grad");
        tensor = tensor.detach();
      }
    }
  }
  return gradients;
}

/// What comes out of calling a program once, with gradients of everything, or only of its own tensors.
Outcome train(Runner& runner, bool into_arguments, int call, Values& gradients) {
  Growth none;
  Outcome outcome = runner.run(call, none, into_arguments ? Hook(require_gradients) : Hook([](const Values&) {}));
  gradients = differentiate(outcome, call);
  return outcome;
}

/// Whether a program runs, and gives gradients, while its arguments, or only its own tensors, require grad.
bool is_differentiable(const MakeRunner& make, const Expect& expect, bool into_arguments) {
  try {
    Runner runner = make(false);
    Values gradients;
    for (int call = 1; call <= expect.calls; ++call) train(runner, into_arguments, call, gradients);
    return !gradients.tensors.empty();
  } catch (const c10::Error&) {  // it writes into leaves, differentiates what an earlier call has, ...
    return false;
  }
}

torchcc::CompileStats compare_gradients(const MakeRunner& make, const Expect& expect, bool into_arguments) {
  const at::AutoGradMode grad_mode(true);
  Runner plain = make(false);
  Runner compiled = make(true);
  for (int call = 1; call <= expect.calls; ++call) {
    Values expected_gradients, got_gradients;
    const Outcome expected = train(plain, into_arguments, call, expected_gradients);
    const Outcome got = train(compiled, into_arguments, call, got_gradients);
    compare(got, expected, expect, call);
    Expect of_gradients = expect;
    of_gradients.tolerance = expect.gradient_tolerance;
    compare({got_gradients, {}, {}}, {expected_gradients, {}, {}}, of_gradients, call);
    BOOST_TEST(!expected_gradients.tensors.empty());
  }
  return compiled.stats();
}

void check_gradients(const MakeRunner& make, const Expect& expect) {
  const bool into_arguments = is_differentiable(make, expect, true);
  if (!into_arguments && !is_differentiable(make, expect, false)) return;
  const torchcc::CompileStats stats = compare_gradients(make, expect, into_arguments);
  static Summary summary{"training", "compiled"};
  summary.note(stats.replayed > 0 ? 1 : 0, 1, stats.reason);
}

/// Two sizes, then 20 others; 0 and 1 are none of them.
std::vector<int64_t> many_sizes(int64_t from) {
  constexpr int kMore = 20;
  std::vector<int64_t> sizes{std::max<int64_t>(from, 2), 2 * from + 3};
  std::mt19937_64 random(kSeed + static_cast<uint64_t>(from));
  for (int i = 0; i < kMore; ++i) {
    sizes.push_back(std::uniform_int_distribution<int64_t>(from + 2, 3 * from + 9)(random));
  }
  return sizes;
}

/// Not more than two codes may be compiled, unless no code can serve several sizes.
void check_sizes(const MakeRunner& make, const Expect& expect) {
  const at::AutoGradMode grad_mode(expect.gradients);
  for (int64_t axis = 0; axis < 2; ++axis) {
    Growth found{.axis = axis};
    {
      Runner first = make(false);
      first.run(1, found, [](const Values&) {});
    }
    Runner plain = make(false);
    Runner compiled = make(true);
    int call = 0;
    for (const int64_t size : many_sizes(found.from)) {
      Growth growth{axis, found.from, size};
      Outcome expected;
      try {
        expected = plain.run(++call, growth, [](const Values&) {});
      } catch (const c10::Error&) {
        break;  // it does not take other sizes
      }
      compare(compiled.run(call, growth, [](const Values&) {}), expected, expect, call);
    }
    if (call < 3 || !expect.eager.empty()) continue;
    const torchcc::CompileStats stats = compiled.stats();
    const auto codes = std::count_if(stats.variants.begin(), stats.variants.end(),
                                     [](const torchcc::VariantStats& one) { return one.state == "compiled"; });
    const bool is_served = std::any_of(stats.variants.begin(), stats.variants.end(),
                                       [](const torchcc::VariantStats& one) { return one.sizes > 1; });
    BOOST_TEST((!is_served || codes <= 2), stats.str());
    static Summary summary{"sizes", "dimensions served by one code"};
    summary.note(is_served ? 1 : 0, 1, "dimension " + text(axis) + ": " + stats.reason);
  }
}

}  // namespace

bool is_lazy() { return is_mode("lazy"); }

void check(const MakeRunner& make, const Expect& expect) {
  if (is_mode("training")) return check_gradients(make, expect);
  if (is_mode("sizes")) return check_sizes(make, expect);
  check_values(make, expect);
}

void check_trained(const MakeRunner& make, const Expect& expect) {
  check_stats(compare_gradients(make, expect, true), expect);
}

}  // namespace programs
