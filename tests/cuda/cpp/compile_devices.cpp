// torchcc::compile on the second of two GPUs, while the first is the current one.
#include "compile.h"

using namespace test;

BOOST_AUTO_TEST_SUITE(devices)

BOOST_AUTO_TEST_CASE(replay_on_both_gpus) {
  const auto function = [](const at::Tensor& x, const at::Tensor& w) { return at::gelu(at::matmul(x, w)).sum(0); };
  for (const bool graphs : {false, true}) {
    torchcc::CompileOptions options = replayed("both");
    options.cuda_graphs = graphs;
    const auto f = torchcc::compile(function, options);
    for (const int gpu : {1, 0, 1}) {
      const at::Tensor w = random_on(gpu, {64, 32}).requires_grad_();
      for (int i = 0; i < 8; ++i) {
        const at::Tensor x = random_on(gpu, {8, 64});
        w.mutable_grad() = at::Tensor();
        function(x, w).sum().backward();
        const at::Tensor wanted = w.grad();
        w.mutable_grad() = at::Tensor();
        const at::Tensor y = f(x, w);
        BOOST_TEST(y.device().index() == gpu);
        BOOST_TEST(close(y, function(x, w)));
        y.sum().backward();
        BOOST_TEST(close(w.grad(), wanted));
        BOOST_TEST(current_gpu() == 0);
      }
    }
    const torchcc::CompileStats stats = f.stats();
    BOOST_TEST(stats.variants.size() == 2U);
    for (const torchcc::VariantStats& variant : stats.variants) {
      BOOST_TEST(variant.replayed >= kLeast, stats.str());
      if (graphs) BOOST_TEST(variant.graph_calls > 0, stats.str());
    }
    BOOST_TEST(stats.variants.at(1).from_cache, stats.str());
  }
}

BOOST_AUTO_TEST_CASE(lazy_mode_on_another_gpu) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x) {
    at::Tensor y = at::sigmoid(x * 2 + 1);
    if (y.sum().item<float>() > 0) y = y.relu() * 3 - x;
    return y;
  };
  const auto f = torchcc::compile(function, lazily("other"));
  for (int i = 0; i < 8; ++i) {
    const at::Tensor x = random_on(1, {100});
    BOOST_TEST(close(f(x), function(x)));
    BOOST_TEST(current_gpu() == 0);
  }
  BOOST_TEST(f.stats().compiled_ops > 0, f.stats().str());
}

BOOST_AUTO_TEST_CASE(functions_of_two_gpus_run_as_they_are) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x, const at::Tensor& y) {
    return x.sin() * 2 + (y.cos() * 3).to(x.device());
  };
  for (const auto mode : {torchcc::CompileMode::automatic, torchcc::CompileMode::lazy}) {
    const auto f = torchcc::compile(function, {.mode = mode, .name = "two", .allow_slower = true});
    for (int i = 0; i < 6; ++i) {
      const at::Tensor x = random_on(0, {1000});
      const at::Tensor y = random_on(1, {1000});
      BOOST_TEST(close(f(x, y), function(x, y)));
    }
    BOOST_TEST(f.stats().replayed == 0);
    BOOST_TEST(f.stats().str().find("GPU") != std::string::npos, f.stats().str());
  }
}

BOOST_AUTO_TEST_SUITE_END()
