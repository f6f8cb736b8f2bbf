// Random operators: new numbers on each call, which follow torch::manual_seed and have the right distribution.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;

namespace {

constexpr int64_t kCount = 20000;

std::vector<Tensor> draw(const Tensor& x) {
  nn::functional::DropoutFuncOptions dropout;
  return {torch::rand({kCount}),
          torch::randn_like(x),
          torch::bernoulli(torch::full_like(x, 0.3)),
          nn::functional::dropout(x, dropout.p(0.25).training(true)),
          torch::randint(2, 7, {kCount}).to(torch::kFloat),
          torch::empty_like(x).uniform_(-1, 3),
          torch::empty_like(x).normal_(2, 0.5),
          torch::normal(0.0, 2.0, {kCount})};
}

double mean_of(const Tensor& x) { return x.to(torch::kDouble).mean().item<double>(); }
double deviation_of(const Tensor& x) { return x.to(torch::kDouble).std().item<double>(); }

}  // namespace

BOOST_AUTO_TEST_SUITE(random_numbers)

BOOST_AUTO_TEST_CASE(distributions_and_seeds) {
  const torch::NoGradGuard no_grad;
  const Tensor x = torch::ones({kCount});
  auto compiled = torchcc::compile(&draw, plain_options());
  torch::manual_seed(1);
  std::vector<std::vector<Tensor>> calls;
  for (int call = 0; call < 4; ++call) calls.push_back(compiled(x));
  BOOST_TEST_REQUIRE(compiled.stats().replayed == 2, compiled.stats().str());
  const std::vector<Tensor> expected = draw(x);
  for (size_t i = 0; i < expected.size(); ++i) {
    const Tensor& got = calls[3][i];
    BOOST_TEST(got.dtype() == expected[i].dtype());
    BOOST_TEST(got.sizes() == expected[i].sizes());
    // Standard errors are below 0.02 for 20000 numbers with a deviation of at most 2.
    BOOST_TEST(std::abs(mean_of(got) - mean_of(expected[i])) < 0.1, "mean of result " << i);
    BOOST_TEST(std::abs(deviation_of(got) - deviation_of(expected[i])) < 0.1, "deviation of result " << i);
    BOOST_TEST(std::abs(got.min().item<float>() - expected[i].min().item<float>()) < 2, "minimum of result " << i);
    for (size_t call = 0; call < 3; ++call) {
      BOOST_TEST(!torch::equal(calls[call][i], got), "result " << i << " of call " << call << " came again");
    }
  }
  BOOST_TEST(calls[3][4].min().item<float>() == 2);
  BOOST_TEST(calls[3][4].max().item<float>() == 6);

  const auto seeded = [&](uint64_t seed) {
    torch::manual_seed(seed);
    const std::vector<Tensor> first = compiled(x);
    return std::pair(first, compiled(x));
  };
  const auto a = seeded(7), again = seeded(7), other = seeded(8);
  for (size_t i = 0; i < a.first.size(); ++i) {
    BOOST_TEST(torch::equal(a.first[i], again.first[i]), "result " << i << " does not follow the seed");
    BOOST_TEST(torch::equal(a.second[i], again.second[i]), "result " << i << " does not follow the seed");
    BOOST_TEST(!torch::equal(a.first[i], other.first[i]));
    BOOST_TEST(!torch::equal(a.first[i], a.second[i]));
  }
  BOOST_TEST(compiled.stats().replayed == 8);
}

BOOST_AUTO_TEST_CASE(dropout_in_training) {
  check(
      [] {
        nn::Sequential net(nn::Linear(4, 8), nn::Dropout(0.5), nn::ReLU(), nn::Linear(8, 2));
        return program(net, [](int) { return std::tuple(torch::randn({3, 4})); }, tensors_of(net));
      },
      {.values = false});
}

// Compiled code draws from where the generator is.
BOOST_AUTO_TEST_CASE(seeded_inside) {
  const auto before = [](Tensor x) {
    torch::manual_seed(5);
    return x + torch::rand_like(x);
  };
  const auto behind = [](Tensor x) {
    const Tensor y = x + torch::rand_like(x);
    torch::manual_seed(5);
    return y;
  };
  const auto alone = [](Tensor x) {
    torch::manual_seed(5);
    return x.sin();
  };
  for (const std::function<Tensor(Tensor)>& function : {std::function<Tensor(Tensor)>(before), {behind}, {alone}}) {
    Options options = plain_options();
    options.options["fallback_random"] = true;
    const auto compiled = torchcc::compile(function, options);
    const Tensor x = torch::randn({4});
    std::vector<Tensor> got, expected;
    torch::manual_seed(3);
    for (int call = 0; call < 5; ++call) got.insert(got.end(), {compiled(x), torch::rand({2})});
    torch::manual_seed(3);
    for (int call = 0; call < 5; ++call) expected.insert(expected.end(), {function(x), torch::rand({2})});
    for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(difference(got[i], expected[i]) == "");
    BOOST_TEST(missing(compiled.stats().str(), "seeds PyTorch's generator") == "");
  }
}

// With Inductor's fallback_random the numbers are those of eager.
BOOST_AUTO_TEST_CASE(same_numbers_as_eager) {
  Options options = plain_options();
  options.options["fallback_random"] = true;
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor noise = torch::randn_like(x);
              return std::tuple(noise, torch::dropout(x, 0.5, true) * torch::rand({3}), torch::randint(9, {4}),
                                torch::bernoulli(torch::full_like(x, 0.4)), torch::randperm(5), x + noise);
            },
            [](int) { return std::tuple(torch::randn({2, 3})); });
      },
      {}, options);
}

// What eager code draws after a compiled call must not repeat what the compiled call drew.
BOOST_AUTO_TEST_CASE(stream_goes_on_after_a_call, *boost::unit_test::label("slow")) {
  const torch::NoGradGuard no_grad;
  auto compiled = torchcc::compile([] { return torch::rand({64}); }, plain_options());
  for (int call = 0; call < 6; ++call) {
    const Tensor before = torch::rand({64}), inside = compiled(), after = torch::rand({64});
    BOOST_TEST(!torch::equal(before, after));
    BOOST_TEST(!torch::equal(before, inside));
    BOOST_TEST(!torch::equal(inside, after));
  }
  BOOST_TEST(compiled.stats().replayed == 4, compiled.stats().str());
}

BOOST_AUTO_TEST_SUITE_END()
