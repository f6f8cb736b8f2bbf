// Functions that are called with tensors of many sizes, and the code that serves them.
#include <torchcc/dynamic.h>
#include <torchcc/symbolic.h>

#include <random>

#include "harness.h"

#include <torch/optim.h>

using namespace programs;
namespace nn = torch::nn;

namespace {

/// A function and its compiled form, without gradients.
template <class F>
class Sized {
 public:
  explicit Sized(F function, Options options = plain_options())
      : function_(function), compiled_(torchcc::compile(std::move(function), std::move(options))) {}

  template <class... Args>
  void operator()(const Args&... arguments) {
    const torch::NoGradGuard no_grad;
    Values got, expected;
    expected.add(function_(arguments...));
    got.add(compiled_(arguments...));
    BOOST_TEST(got.words == expected.words);
    BOOST_TEST_REQUIRE(got.tensors.size() == expected.tensors.size());
    for (size_t i = 0; i < got.tensors.size(); ++i) {
      BOOST_TEST(difference(got.tensors[i], expected.tensors[i]) == "", compiled_.stats().str());
    }
  }

  torchcc::CompileStats stats() const { return compiled_.stats(); }
  /// How many codes were compiled.
  int64_t codes() const {
    int64_t count = 0;
    for (const torchcc::VariantStats& one : stats().variants) count += one.state == "compiled" ? 1 : 0;
    return count;
  }

 private:
  F function_;
  decltype(torchcc::compile(std::declval<F>(), Options())) compiled_;
};

class Random {
 public:
  int64_t operator()(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(generator_); }

 private:
  std::mt19937_64 generator_{kSeed};
};

}  // namespace

BOOST_AUTO_TEST_SUITE(sizes, *boost::unit_test::fixture([] { torch::manual_seed(kSeed); }))

BOOST_AUTO_TEST_CASE(encoder_with_free_batch_and_sequence) {
  nn::TransformerEncoder net(
      nn::TransformerEncoderLayer(nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32).dropout(0)), 2);
  net->eval();
  Sized run([net](Tensor x) mutable { return net->forward(x); });
  Random random;
  run(torch::randn({5, 3, 16}));
  run(torch::randn({7, 4, 16}));
  for (int call = 0; call < 20; ++call) run(torch::randn({random(2, 40), random(2, 9), 16}));
  const torchcc::CompileStats stats = run.stats();
  BOOST_TEST(run.codes() <= 2, stats.str());
  BOOST_TEST(stats.guard_misses >= 15);
  // The second call of a size runs the code in place of the function.
  run(torch::randn({5, 3, 16}));
  BOOST_TEST(run.stats().replayed == stats.replayed, run.stats().str());  // seen once, before there was code
  run(torch::randn({7, 4, 16}));
  BOOST_TEST(run.stats().replayed == stats.replayed + 1, run.stats().str());
}

BOOST_AUTO_TEST_CASE(cnn_with_free_batch_height_and_width) {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(3, 8, 3).stride(2).padding(1)), nn::BatchNorm2d(8), nn::ReLU(),
                     nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1)), nn::ReLU(),
                     nn::AdaptiveAvgPool2d(1), nn::Flatten(), nn::Linear(8, 10));
  net->eval();
  Sized run([net](Tensor x) mutable { return net->forward(x); });
  Random random;
  run(torch::randn({2, 3, 17, 24}));
  run(torch::randn({3, 3, 22, 31}));
  for (int call = 0; call < 20; ++call) run(torch::randn({random(2, 6), 3, random(12, 40), random(12, 40)}));
  BOOST_TEST(run.codes() <= 2, run.stats().str());
  BOOST_TEST(run.stats().eager == 0, run.stats().str());
}

BOOST_AUTO_TEST_CASE(cache_that_grows) {
  constexpr int64_t kWidth = 16, kHeads = 2, kSteps = 200;
  nn::Linear query(kWidth, kWidth), key(kWidth, kWidth), value(kWidth, kWidth), out(kWidth, kWidth);
  const auto heads = [](const Tensor& x) {
    return x.view({x.size(0), x.size(1), kHeads, kWidth / kHeads}).transpose(1, 2);
  };
  const auto step = [=](Tensor x, Tensor keys, Tensor values) mutable {
    keys = torch::cat({keys, heads(key(x))}, 2);
    values = torch::cat({values, heads(value(x))}, 2);
    const Tensor seen = at::scaled_dot_product_attention(heads(query(x)), keys, values);
    return std::tuple(out(seen.transpose(1, 2).reshape({x.size(0), x.size(1), kWidth})), keys, values);
  };
  auto compiled = torchcc::compile(step, plain_options());
  const torch::NoGradGuard no_grad;
  Tensor keys = torch::randn({1, kHeads, 2, kWidth / kHeads}), values = torch::randn_like(keys);
  auto plain = step;
  for (int64_t i = 0; i < kSteps; ++i) {
    const Tensor x = torch::randn({1, 1, kWidth});
    const auto [expected, all_keys, all_values] = plain(x, keys, values);
    const auto [got, own_keys, own_values] = compiled(x, keys, values);
    BOOST_TEST_REQUIRE(difference(got, expected) == "");
    BOOST_TEST_REQUIRE(difference(own_keys, all_keys) == "");
    BOOST_TEST_REQUIRE(difference(own_values, all_values) == "");
    keys = own_keys;
    values = own_values;
  }
  int64_t codes = 0;
  for (const torchcc::VariantStats& one : compiled.stats().variants) codes += one.state == "compiled" ? 1 : 0;
  BOOST_TEST(codes <= 3, compiled.stats().str());
  BOOST_TEST(compiled.stats().eager == 0, compiled.stats().str());
}

BOOST_AUTO_TEST_CASE(gradients_with_a_last_short_batch) {
  const auto make = [] {
    torch::manual_seed(kSeed);
    return nn::Sequential(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::ReLU(), nn::Linear(8, 3));
  };
  nn::Sequential net = make(), twin = make();
  const auto loss_of = [](nn::Sequential of) {
    return [of](Tensor x, Tensor y) mutable { return torch::cross_entropy_loss(of->forward(x), y); };
  };
  auto plain = loss_of(twin);
  auto compiled = torchcc::compile(loss_of(net), plain_options());
  torch::optim::SGD optimizer(net->parameters(), 0.1), other(twin->parameters(), 0.1);
  Random random;
  const auto step = [&](int64_t batch) {
    const Tensor x = torch::randn({batch, 6}), y = torch::randint(3, {batch});
    optimizer.zero_grad();
    other.zero_grad();
    const Tensor got = compiled(x, y), expected = plain(x, y);
    BOOST_TEST_REQUIRE(difference(got, expected) == "", compiled.stats().str());
    got.backward();
    expected.backward();
    for (size_t i = 0; i < net->parameters().size(); ++i) {
      BOOST_TEST_REQUIRE(difference(net->parameters()[i].grad(), twin->parameters()[i].grad()) == "",
                         "batch " << batch << ": " << compiled.stats().str());
    }
    for (size_t i = 0; i < net->buffers().size(); ++i) {
      BOOST_TEST_REQUIRE(difference(net->buffers()[i], twin->buffers()[i]) == "");
    }
    optimizer.step();
    other.step();
  };
  for (int epoch = 0; epoch < 3; ++epoch) {
    for (const int64_t batch : {8, 8, 8, 5}) step(batch);
  }
  for (int i = 0; i < 20; ++i) step(random(2, 30));
  int64_t codes = 0;
  const torchcc::CompileStats stats = compiled.stats();
  for (const torchcc::VariantStats& one : stats.variants) codes += one.state == "compiled" ? 1 : 0;
  BOOST_TEST(codes <= 2, stats.str());
  BOOST_TEST(stats.eager == 0, stats.str());
  BOOST_TEST(stats.replayed >= 9, stats.str());
}

BOOST_AUTO_TEST_CASE(steps_with_a_last_short_batch) {
  const auto make = [] {
    torch::manual_seed(kSeed);
    return nn::Sequential(nn::Linear(6, 8), nn::ReLU(), nn::Linear(8, 3));
  };
  nn::Sequential net = make(), twin = make();
  const auto step_of = [](nn::Sequential of) {
    auto optimizer = std::make_shared<torch::optim::SGD>(of->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    return [of, optimizer](Tensor x, Tensor y) mutable {
      optimizer->zero_grad();
      const Tensor loss = torch::cross_entropy_loss(of->forward(x), y);
      loss.backward();
      optimizer->step();
      return loss.detach();
    };
  };
  Options options = plain_options();
  options.mode = torchcc::CompileMode::lazy;
  auto plain = step_of(twin);
  auto compiled = torchcc::compile(step_of(net), options);
  const auto step = [&](int64_t batch) {
    const Tensor x = torch::randn({batch, 6}), y = torch::randint(3, {batch});
    const Tensor got = compiled(x, y), expected = plain(x, y);
    BOOST_TEST_REQUIRE(difference(got, expected) == "", "batch " << batch << ": " << compiled.stats().str());
    for (size_t i = 0; i < net->parameters().size(); ++i) {
      BOOST_TEST_REQUIRE(difference(net->parameters()[i], twin->parameters()[i]) == "");
    }
  };
  for (const int64_t batch : {8, 8, 8, 8, 5, 8, 5}) step(batch);  // the first step makes the momentum
  const int64_t eager = compiled.stats().eager_ops;
  for (const int64_t batch : {8, 5, 8}) step(batch);
  BOOST_TEST(compiled.stats().eager_ops < eager + 3 * 10, compiled.stats().str());  // what is made out of nothing
  Random random;
  for (int i = 0; i < 20; ++i) step(random(2, 20));
  const torchcc::CompileStats stats = compiled.stats();
  const auto codes = std::count_if(stats.segments.begin(), stats.segments.end(),
                                   [](const torchcc::SegmentStats& one) { return one.state == "compiled"; });
  BOOST_TEST(codes <= 2, stats.str());
  BOOST_TEST(std::any_of(stats.segments.begin(), stats.segments.end(),
                         [](const torchcc::SegmentStats& one) { return one.sizes > 5; }),
             stats.str());
}

// Sizes of which the code says itself what follows from them: with a branch, there is code for either side.
BOOST_AUTO_TEST_CASE(sizes_by_hand) {
  Options options = plain_options();
  options.dynamic = {{0, 0, "n", 2, 100}};
  Sized run(
      [](Tensor x) {
        const c10::SymInt n = torchcc::sym_size(x, 0), d = torchcc::sym_size(x, -1);
        Tensor y = x.view_symint({n * d / 2, c10::SymInt(2)}).cumsum(0);
        y = y.narrow_symint(0, n - 2, torchcc::sym_size(y, 0) - n) + torch::zeros_symint({c10::SymInt(2)});
        return n > 20 ? y.exp() : y * 3 + torch::ones_symint({n, c10::SymInt(1)}).sum();
      },
      options);
  const auto call = [&](int64_t n) { run(torch::randn({n, 6})); };
  for (const int64_t n : {5, 7, 6, 2, 20}) call(n);
  BOOST_TEST(run.stats().replayed == 3, run.stats().str());
  for (const int64_t n : {21, 40, 100, 50, 9, 22}) call(n);
  BOOST_TEST(run.stats().replayed == 7, run.stats().str());
  BOOST_TEST(run.codes() == 2, run.stats().str());
}

BOOST_AUTO_TEST_CASE(arithmetic_by_hand) {
  const auto compiled = torchcc::compile(
      [](Tensor x, Tensor other) {
        const c10::SymInt n = torchcc::sym_size(x, 0), m = torchcc::sym_numel(x), k = torchcc::sym_size(other, 0);
        const int64_t a = x.size(0), b = x.numel(), c = other.size(0);
        BOOST_TEST((n.is_symbolic() && m.is_symbolic() && k.is_symbolic()));
        const auto same = [](const c10::SymInt& got, int64_t expected) {
          BOOST_TEST(got.guard_int(__FILE__, __LINE__) == expected);
        };
        same(n + m * 2 - k, a + b * 2 - c);
        same((m - n) / 3 % k, (b - a) / 3 % c);
        same((n - m) / 3, (a - b) / 3);  // rounds to zero, as C++ does
        same((n - m) % k, (a - b) % c);
        same(n.min(k) + n.max(k), std::min(a, c) + std::max(a, c));
        same(5 - n, 5 - a);
        BOOST_TEST(((n < m) == (a < b) && (n >= k) == (a >= c) && (n == 5) == (a == 5) && (m != 10) == (b != 10)));
        const c10::SymFloat scale = c10::SymFloat(1.0) / c10::SymFloat(n).sqrt();
        BOOST_TEST(scale.guard_float(__FILE__, __LINE__) == 1.0 / std::sqrt(static_cast<double>(a)));
        BOOST_CHECK_THROW(torchcc::sym_size(x, 2), c10::Error);
        return x.sum() + other.sum();
      },
      plain_options());
  compiled(torch::randn({5, 2}), torch::randn({3}));
  BOOST_TEST(!torchcc::sym_size(torch::randn({5}), 0).is_symbolic());
}

BOOST_AUTO_TEST_CASE(numbers_that_follow_from_sizes) {
  Sized run([](Tensor x, Tensor w) {
    const int64_t n = x.size(0), d = x.size(1);
    Tensor y = x.reshape({n * d}).view({d, n}) * (1.0 / std::sqrt(static_cast<double>(d)));
    y = y + torch::arange(n, torch::kFloat) / n + torch::ones({d, 1}) * d;
    const Tensor first = y.narrow(1, 0, n / 2), last = y.slice(1, n - 2);
    return std::tuple(y.t().mm(w.narrow(0, 0, d)), torch::cat({first, last}, 1), y.repeat({2, 1}),
                      y.split_with_sizes({n - 1, 1}, 1)[0].sum(1), y.unsqueeze(0).expand({3, d, n}).mean(0));
  });
  Random random;
  const auto call = [&](int64_t n, int64_t d) { run(torch::randn({n, d}), torch::randn({64, 4})); };
  call(6, 9);
  call(11, 4);
  for (int i = 0; i < 20; ++i) call(random(4, 50), random(2, 60));
  BOOST_TEST(run.codes() <= 2, run.stats().str());
  BOOST_TEST(run.stats().eager == 0, run.stats().str());
}

// Sizes that say little, or nothing: equal only by chance, 0, 1, and sizes that the function treats otherwise.
BOOST_AUTO_TEST_CASE(sizes_that_mislead) {
  Options options = plain_options();
  options.max_variants = 6;
  Sized run(
      [](Tensor x, Tensor y) {
        const int64_t n = x.size(0), d = x.size(1);
        Tensor z = torch::relu(x) + y.sum(0);
        if (n > 20) z = z * 2;                             // a branch on a size
        if (n % 4 == 0) z = z.view({n / 4, 4, d}).sum(1);  // one that only some sizes allow
        return std::tuple(z, torch::full({n}, 3.0) + n, y.mean());
      },
      options);
  const auto call = [&](int64_t n, int64_t d, int64_t m) { run(torch::randn({n, d}), torch::randn({m, d})); };
  call(5, 5, 5);  // all the same
  call(6, 6, 6);
  call(7, 3, 2);
  call(9, 3, 9);
  for (const int64_t n : {1, 0, 2, 3, 4, 8, 12, 21, 22, 23, 40}) {
    call(n, 3, 2);
    call(n, 3, n);
    call(n, n, n);
  }
  call(6, 1, 1);
  call(6, 2, 0);
  for (const int64_t n : {5, 8, 21, 1, 0}) call(n, 3, 2);
  BOOST_TEST(run.stats().replayed > 0, run.stats().str());
}

// 2,000 calls in random order over a small set of functions; code may come and go, the numbers have to be right.
BOOST_AUTO_TEST_CASE(random_sizes) {
  constexpr int kCalls = 2000;
  Options options = plain_options();
  options.max_variants = 2;
  nn::Linear linear(8, 6);
  Sized dense([linear](Tensor x) mutable { return torch::softmax(linear(x).flatten(0, -2), -1); }, options);
  Sized outer(
      [](Tensor a, Tensor b) {
        return std::pair(torch::outer(a, b).mean(), torch::cat({a, b}) - 1.0 / static_cast<double>(b.numel()));
      },
      options);
  Random random;
  for (int call = 0; call < kCalls; ++call) {
    const int64_t n = random(0, 9) == 0 ? random(0, 1) : random(2, 24);
    const int64_t m = random(0, 9) == 0 ? n : random(1, 24);
    if (random(0, 1) == 0) {
      dense(torch::randn({n, m, 8}));
    } else {
      outer(torch::randn({n}, torch::kDouble), torch::randn({m}, torch::kDouble));
    }
  }
  for (const auto& stats : {dense.stats(), outer.stats()}) {
    BOOST_TEST(stats.replayed > stats.calls / 4, stats.str());
  }
}

BOOST_AUTO_TEST_CASE(loop_over_steps_is_compiled_for_each_number_of_steps) {
  nn::LSTMCell cell(3, 4);
  Options options = plain_options();
  options.max_variants = 3;
  Sized run(
      [cell](Tensor x) mutable {
        Tensor h = torch::zeros({2, 4}), c = torch::zeros({2, 4});
        for (const Tensor& step : x.unbind(0)) std::tie(h, c) = cell(step, std::tuple(h, c));
        return h;
      },
      options);
  for (int64_t steps = 2; steps < 9; ++steps) run(torch::randn({steps, 2, 3}));
  const torchcc::CompileStats stats = run.stats();
  BOOST_TEST(stats.eager > 0, stats.str());
  BOOST_TEST(missing(stats.reason, "max_variants&tensor 0 of the arguments&one code cannot serve its sizes&unbind") ==
             "");
}

BOOST_AUTO_TEST_CASE(promised_sizes_run_at_once) {
  Options options = plain_options();
  options.dynamic = {{0, 0, "batch", 2, 64}};
  nn::Linear net(8, 4);
  Sized run([net](Tensor x, Tensor bias) mutable { return torch::relu(net(x)) * (1.0 / x.size(0)) + bias; }, options);
  const auto call = [&](int64_t batch) { run(torch::randn({batch, 8}), torch::randn({4})); };
  call(3);
  call(5);
  for (int64_t batch = 6; batch < 26; ++batch) call(batch);
  BOOST_TEST(run.stats().replayed == 20, run.stats().str());
  call(3);
  BOOST_TEST(run.stats().replayed == 21, run.stats().str());
  for (const int64_t batch : {65, 1, 0}) call(batch);  // outside of the promise
  BOOST_TEST(run.stats().replayed == 21, run.stats().str());
  run(torch::randn({8, 30}).t(), torch::randn({4}));  // other strides
  BOOST_TEST(run.stats().replayed == 21, run.stats().str());
  BOOST_TEST(run.codes() == 1);
  BOOST_TEST(missing(run.stats().variants[1].inputs, "arg0: float32[batch, 8]&2 <= batch") == "");
}

BOOST_AUTO_TEST_CASE(marked_sizes) {
  Sized run([](Tensor x) { return torch::softmax(x, -1).cumsum(0); });
  const auto call = [&](int64_t rows, int64_t columns) {
    const Tensor x = torch::randn({rows, columns});
    run(torchcc::dynamic(torchcc::dynamic(x, 0, "rows", {2, 50}), -1, "columns"));
  };
  call(3, 4);
  call(6, 9);
  for (int64_t i = 2; i < 12; ++i) call(i, 31 - i);
  BOOST_TEST(run.stats().replayed == 10, run.stats().str());
  BOOST_CHECK_EXCEPTION(
      torchcc::dynamic(torch::randn({2}), 1, "rows"), torchcc::ArgumentError,
      [](const torchcc::Error& error) { return missing(error.what(), "dimension 1 of a tensor of rank 1&fix") == ""; });
}

BOOST_AUTO_TEST_CASE(broken_promise) {
  Options options = plain_options();
  options.dynamic = {{0, 0, "batch"}};
  const auto compiled =
      torchcc::compile([](Tensor x) { return x.size(0) > 4 ? x.sum(0) * 7 : x.sum(0).clamp(0, 1); }, options);
  compiled(torch::randn({3, 2}));
  BOOST_CHECK_EXCEPTION(compiled(torch::randn({6, 2})), torchcc::CaptureError, [](const torchcc::Error& error) {
    return missing(error.what(), "broken_promise&operator 1 (aten::clamp): it was aten::mul.&in the next call&fix") ==
           "";
  });
  options.dynamic = {{0, 0, ""}};
  BOOST_CHECK_EXCEPTION(torchcc::compile([](Tensor x) { return x; }, options), torchcc::ArgumentError,
                        [](const torchcc::Error& error) {
                          return missing(error.what(), "CompileOptions::dynamic&argument 0, dimension 0") == "";
                        });
}

BOOST_AUTO_TEST_SUITE_END()
