#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
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

void compare_results(const Outcome& got, const Outcome& expected, const Expect& expect, int call) {
  compare("(seen after all calls) result", got.results, expected.results, expect, call);
}

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

namespace {

bool is_mode(std::string_view wanted) {
  const char* mode = std::getenv("TORCHCC_PROGRAMS");
  return mode != nullptr && mode == wanted;
}

}  // namespace

bool trains() { return is_mode("training"); }

bool is_lazy() { return is_mode("lazy"); }

void require_gradients(const Values& values) {
  for (const Tensor& tensor : values.tensors) {
    if (!tensor.defined() || !tensor.is_leaf() || !(tensor.is_floating_point() || tensor.is_complex())) continue;
    if (!tensor.is_inference()) tensor.set_requires_grad(true);
  }
}

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
      gradients.add(tensor.grad().defined() ? tensor.grad().contiguous() : Tensor());
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

namespace {

/// Prints at the end of the process how many programs were compiled with gradients.
struct TrainingSummary {
  int64_t programs = 0, replayed = 0;
  std::string reasons;
  ~TrainingSummary() {
    if (programs > 0) std::cout << reasons << "trained: " << replayed << " of " << programs << " compiled\n";
  }
};

struct LazySummary {
  int64_t programs = 0, compiled = 0, eager = 0;
  std::string reasons;
  ~LazySummary() {
    if (programs == 0) return;
    std::cout << reasons << "lazy: " << programs << " programs, " << compiled << " operators compiled, " << eager
              << " eager\n";
  }
};

}  // namespace

void note_training(const torchcc::CompileStats& stats) {
  static TrainingSummary summary;
  ++summary.programs;
  if (stats.replayed > 0) {
    ++summary.replayed;
  } else {
    summary.reasons += "trained eagerly: " + boost::unit_test::framework::current_test_case().p_name.get() + ": " +
                       stats.reason + "\n";
  }
}

void note_lazy(const torchcc::CompileStats& stats) {
  static LazySummary summary;
  ++summary.programs;
  summary.compiled += stats.compiled_ops;
  summary.eager += stats.eager_ops;
  if (stats.compiled_ops == 0) {
    summary.reasons +=
        "none compiled: " + boost::unit_test::framework::current_test_case().p_name.get() + "\n" + stats.str();
  }
}

}  // namespace programs
