// Packages on the second of two GPUs, while the first is the current one.
#include <atomic>
#include <thread>

#include <ATen/core/grad_mode.h>

#include "gpu.h"

namespace {

using test::close;
using test::expected;
using test::packaged;
using test::random_on;

}  // namespace

BOOST_AUTO_TEST_SUITE(devices)

BOOST_AUTO_TEST_CASE(a_package_on_another_gpu) {
  const at::NoGradGuard no_grad;
  for (const bool graphs : {false, true}) {
    const torchcc::Package package = torchcc::load(packaged("functions.pt2"), {.cuda_graphs = graphs, .device = 1});
    const torchcc::Function f = package["forward"];
    for (int i = 0; i < 6; ++i) {
      const at::Tensor x = random_on(1, {8, 128});
      const at::Tensor y = f(x);
      BOOST_TEST(y.device().index() == 1);
      BOOST_TEST(close(y, expected(f, x)));
    }
    BOOST_TEST(test::current_gpu() == 0);
    BOOST_TEST(f.stats().graph_calls == (graphs ? 4 : 0), f.stats().graph_reason);
    BOOST_CHECK_THROW(f(random_on(0, {8, 128})), torchcc::ArgumentError);
    const torchcc::Function remember = package["remember"];
    at::Tensor state = at::zeros({128}, at::Device(at::kCUDA, 1));
    for (int i = 0; i < 4; ++i) {
      const at::Tensor x = random_on(1, {8, 128});
      state = state * 0.5 + x.mean(0);
      BOOST_TEST(close(remember(x), state + 1));
    }
  }
  const torchcc::Function portable =
      torchcc::load(packaged("functions.pt2"), {.compiled = false, .device = 1})["forward"];
  const at::Tensor x = random_on(1, {8, 128});
  BOOST_TEST(close(portable(x), expected(portable, x)));
  const torchcc::Function converting =
      torchcc::load(packaged("functions.pt2"), {.convert = true, .device = 1})["forward"];
  const at::Tensor elsewhere = random_on(0, {8, 128});
  BOOST_TEST(close(converting(elsewhere), expected(converting, elsewhere.to(at::Device(at::kCUDA, 1)))));
}

BOOST_AUTO_TEST_CASE(gradients_on_another_gpu) {
  const torchcc::Function f = torchcc::load(packaged("training.pt2"), {.cuda_graphs = true, .device = 1})["forward"];
  const at::Tensor x = random_on(1, {4, 128}).requires_grad_();
  for (int i = 0; i < 8; ++i) {
    const at::Tensor tangent = random_on(1, {4, 64});
    x.mutable_grad() = at::Tensor();
    expected(f, x).backward(tangent);
    const at::Tensor wanted = x.grad();
    x.mutable_grad() = at::Tensor();
    f(x).backward(tangent);
    BOOST_TEST(close(x.grad(), wanted));
  }
  BOOST_TEST(f.stats().graph_backwards > 0, f.stats().graph_reason);
  BOOST_TEST(test::current_gpu() == 0);
}

BOOST_AUTO_TEST_CASE(two_threads_on_two_gpus) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int gpu = 0; gpu < 2; ++gpu) {
    threads.emplace_back([gpu, &wrong] {
      const at::NoGradGuard no_grad;
      const torchcc::Function f =
          torchcc::load(packaged("functions.pt2"), {.cuda_graphs = true, .device = gpu})["forward"];
      for (int call = 0; call < 100; ++call) {
        const at::Tensor x = random_on(gpu, {2 + call % 3, 128});
        if (!at::allclose(f(x), expected(f, x), 1e-4, 1e-4)) ++wrong;
      }
      if (f.stats().graph_calls < 50) ++wrong;
    });
  }
  for (std::thread& thread : threads) thread.join();
  BOOST_TEST(wrong == 0);
}

BOOST_AUTO_TEST_SUITE_END()
