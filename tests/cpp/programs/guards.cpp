// What changes around a function after it was compiled: other arguments, other modes, other captured values,
// exceptions.
#include <array>

#include "autocast.h"
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;

namespace {

/// A function and its compiled form, which share all that they capture, so the function must not write to it.
template <class F>
class Twin {
 public:
  explicit Twin(F function, const Options& options = plain_options())
      : function_(function), compiled_(torchcc::compile(std::move(function), options)) {}

  /// Calls both, compares the results, and says how the compiled form ran: "recorded", "replayed" or "eager".
  template <class... Args>
  std::string operator()(Args... arguments) {
    const torchcc::CompileStats before = stats();
    Values got, expected;
    expected.add(function_(arguments...));
    got.add(compiled_(arguments...));
    const torchcc::CompileStats after = stats();
    BOOST_TEST(after.calls == before.calls + 1);
    BOOST_TEST(got.words == expected.words);
    BOOST_TEST_REQUIRE(got.tensors.size() == expected.tensors.size());
    for (size_t i = 0; i < got.tensors.size(); ++i) {
      BOOST_TEST(difference(got.tensors[i], expected.tensors[i]) == "");
    }
    if (after.recorded != before.recorded) return "recorded";
    return after.replayed != before.replayed ? "replayed" : "eager";
  }

  /// Three calls, after which the arguments are replayed.
  template <class... Args>
  void warm(const Args&... arguments) {
    for (int call = 0; call < 2; ++call) (*this)(arguments...);
    compiled_.wait();
    BOOST_TEST_REQUIRE((*this)(arguments...) == "replayed", stats().str());
  }

  torchcc::CompileStats stats() const { return compiled_.stats(); }

 private:
  F function_;
  decltype(torchcc::compile(std::declval<F>(), Options())) compiled_;
};

Options many_variants() {
  Options options = plain_options();
  options.max_variants = 64;
  return options;
}

enum class Mode { add, multiply };

// Data that has everything of an object with virtual functions but the type information: a table of the program, and in
// front of it a zero and an address of the program's data, behind which no name is.
const std::array<uintptr_t, 2> kNoType{reinterpret_cast<uintptr_t>(&kNoType), 16};
const std::array<const void*, 3> kTable{nullptr, &kNoType, nullptr};
const void* const kLookalike = &kTable[2];

}  // namespace

BOOST_AUTO_TEST_SUITE(guards, *boost::unit_test::fixture([] { torch::manual_seed(kSeed); }))

BOOST_AUTO_TEST_CASE(other_tensors_as_arguments) {
  const torch::NoGradGuard no_grad;
  Twin twin([](Tensor x, Tensor y) { return std::pair(x * 2 + y, x.mean(-1)); }, many_variants());
  const auto random = [](std::vector<int64_t> sizes) { return torch::randn(sizes); };
  const auto base = [&] { return twin(random({3, 4}), random({3, 4})); };
  twin.warm(random({3, 4}), random({3, 4}));

  BOOST_TEST(twin(random({5, 4}), random({5, 4})) == "recorded");
  BOOST_TEST(twin(random({3, 4}), random({4})) == "recorded");
  BOOST_TEST(twin(random({3, 4}), random({1, 4})) == "recorded");
  BOOST_TEST(twin(random({2, 3, 4}), random({3, 4})) == "recorded");
  BOOST_TEST(twin(random({0, 4}), random({0, 4})) == "recorded");
  BOOST_TEST(twin(torch::randn({3, 4}, torch::kDouble), random({3, 4})) == "recorded");
  BOOST_TEST(twin(random({3, 4}).to(torch::kBFloat16), random({3, 4})) == "recorded");
  BOOST_TEST(twin(random({4, 3}).t(), random({3, 4})) == "recorded");
  BOOST_TEST(twin(random({3, 8}).slice(1, 0, 8, 2), random({3, 4})) == "recorded");
  BOOST_TEST(twin(random({1, 4}).expand({3, 4}), random({3, 4})) == "recorded");
  BOOST_TEST(base() == "replayed");

  // The same layout at another place in its storage, not aligned: vectorised code must not rely on that.
  for (int64_t offset = 0; offset < 8; ++offset) {
    const Tensor whole = random({24});
    twin(whole.slice(0, offset, offset + 12).view({3, 4}), random({3, 4}));
  }
  const Tensor same_tensor = random({3, 4});
  twin(same_tensor, same_tensor);
  const torchcc::CompileStats stats = twin.stats();
  BOOST_TEST(stats.guard_misses >= 11, stats.str());
  BOOST_TEST(base() == "replayed");
}

BOOST_AUTO_TEST_CASE(unaligned_arguments_are_replayed, *boost::unit_test::label("slow")) {
  const torch::NoGradGuard no_grad;
  Twin twin([](Tensor x, Tensor w) { return torch::relu(x.mm(w)) + x.sum(0); });
  twin.warm(torch::randn({32, 32}), torch::randn({32, 32}));
  std::vector<float> memory(32 * 32 + 16, 0.5F);
  for (size_t offset = 0; offset < 16; ++offset) {
    const Tensor x = torch::from_blob(memory.data() + offset, {32, 32});
    x.normal_();
    twin(x, torch::randn({32, 32}));
  }
  BOOST_TEST(twin.stats().replayed >= 2, twin.stats().str());
}

BOOST_AUTO_TEST_CASE(other_numbers_as_arguments) {
  const torch::NoGradGuard no_grad;
  Twin twin(
      [](Tensor x, int64_t axis, double factor, bool flip, std::string name, Mode mode, std::optional<Tensor> bias,
         std::vector<Tensor> more) {
        Tensor y = x.cumsum(axis) * factor;
        if (flip) y = -y;
        if (name == "tanh") y = y.tanh();
        y = mode == Mode::add ? y + 3 : y * 3;
        if (bias) y = y + *bias;
        for (const Tensor& other : more) y = y + other;
        return y;
      },
      many_variants());
  const Tensor x = torch::randn({3, 3}), b = torch::randn({3});
  const std::vector<Tensor> none, some = {b}, two = {b, x};
  const std::optional<Tensor> no_bias;
  twin.warm(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::add, no_bias, none);
  BOOST_TEST(twin(x, int64_t{1}, 0.5, true, std::string("tanh"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.25, true, std::string("tanh"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, false, std::string("tanh"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("relu"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanhtanhtanh"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::multiply, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::add, std::optional(b), none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::add, no_bias, some) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::add, no_bias, two) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, -0.0, true, std::string("tanh"), Mode::add, no_bias, none) == "recorded");
  BOOST_TEST(twin(x, int64_t{0}, 0.5, true, std::string("tanh"), Mode::add, no_bias, none) == "replayed");
}

BOOST_AUTO_TEST_CASE(other_modes_of_pytorch) {
  nn::Linear net(4, 4);
  Twin twin([net](Tensor x) mutable { return net->forward(x).softmax(-1) + torch::ones({4}); }, many_variants());
  const Tensor x = torch::randn({3, 4});
  const auto base = [&] {
    const torch::NoGradGuard no_grad;
    return twin(x);
  };
  {
    const torch::NoGradGuard no_grad;
    twin.warm(x);
  }
  BOOST_TEST(twin(x) == "recorded");  // weights that require grad
  BOOST_TEST(base() == "replayed");
  {
    const c10::InferenceMode inference;
    BOOST_TEST(twin(x) == "recorded");
    BOOST_TEST(twin(torch::randn({3, 4})) == "recorded");  // an inference tensor
  }
  BOOST_TEST(base() == "replayed");
  {
    const torch::NoGradGuard no_grad;
    torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
    BOOST_TEST(twin(x) == "recorded");
    torch::set_default_dtype(caffe2::TypeMeta::Make<float>());
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      const Autocast autocast(true, dtype);
      BOOST_TEST(twin(x) == "recorded");
    }
    at::globalContext().setDeterministicAlgorithms(true, false);
    BOOST_TEST(twin(x) == "recorded");
    at::globalContext().setDeterministicAlgorithms(false, false);
  }
  BOOST_TEST(base() == "replayed");
}

BOOST_AUTO_TEST_CASE(gradients_switched_on_and_off, *boost::unit_test::label("slow")) {
  Twin twin([](Tensor x, Tensor w) { return (x * w).sum(); });
  const Tensor x = torch::randn({4}), w = torch::randn({4});
  twin.warm(x, w);  // grad mode is on, but nothing requires grad
  w.requires_grad_(true);
  BOOST_TEST(twin(x, w) == "recorded");
  {
    const torch::NoGradGuard no_grad;
    BOOST_TEST(twin(x, w) == "recorded");
  }
  w.requires_grad_(false);
  BOOST_TEST(twin(x, w) == "replayed");
}

BOOST_AUTO_TEST_CASE(more_variants_than_allowed) {
  struct Warnings : c10::WarningHandler {
    void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
    std::vector<std::string> texts;
  } warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  const torch::NoGradGuard no_grad;
  Options options = plain_options();
  options.max_variants = 2;
  options.automatic_dynamic_shapes = false;
  Twin twin([](Tensor x) { return x.sin(); }, options);
  BOOST_TEST(twin(torch::randn({1})) == "recorded");
  BOOST_TEST(twin(torch::randn({2})) == "recorded");
  for (int64_t size = 3; size < 9; ++size) {
    BOOST_TEST(twin(torch::randn({size})) == "eager");
    BOOST_TEST(missing(twin.stats().reason, "max_variants&float32[" + std::to_string(size) + "]") == "");
  }
  BOOST_TEST(twin.stats().variants.size() == 2);
  BOOST_TEST_REQUIRE(warnings.texts.size() == 1);
  BOOST_TEST(missing(warnings.texts[0], "more_variants_than_allowed&what keeps changing&float32[3]") == "");
  twin.warm(torch::randn({1}));
}

BOOST_AUTO_TEST_CASE(captured_data_that_looks_like_an_object) {
  const torch::NoGradGuard no_grad;
  const void* const* captured = &kLookalike;
  Twin twin([captured](Tensor x) { return *captured == nullptr ? x : x.sin(); });
  twin.warm(torch::randn({1}));
}

BOOST_AUTO_TEST_CASE(results_of_a_moved_copy, *boost::unit_test::label("slow")) {
  const torch::NoGradGuard no_grad;
  auto compiled = torchcc::compile([](Tensor x) { return x.sin(); }, plain_options());
  auto copy = compiled;
  for (int call = 0; call < 2; ++call) compiled(torch::randn({3}));
  const auto moved = std::move(copy);
  BOOST_TEST(moved(torch::ones({3})).allclose(torch::ones({3}).sin()));
  BOOST_TEST(compiled.stats().replayed == 1);
}

BOOST_AUTO_TEST_SUITE_END()
