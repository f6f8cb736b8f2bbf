// Many threads that call one compiled function, also while it is recorded and compiled.
#include "harness.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "../together.h"

using namespace programs;
using test::require;
using test::run_together;
namespace nn = torch::nn;

namespace {

constexpr int kThreads = 8;

/// All threads call one function, until it has been replayed often in each of them.
void call_together(bool background) {
  nn::Sequential net(nn::Linear(8, 16), nn::Tanh(), nn::Linear(16, 4));
  const auto function = [net](Tensor x, double factor) mutable { return net->forward(x) * factor; };
  Options options = plain_options();
  options.background = background;
  const auto compiled = torchcc::compile(function, options);
  std::atomic<int64_t> calls{0};
  run_together(kThreads, [&](int index) {
    const torch::NoGradGuard no_grad;
    auto mine = function;
    const double factor = index % 2 == 0 ? 1 : -2;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(100);
    for (int after = 0; after < 200 && std::chrono::steady_clock::now() < end;) {
      const Tensor x = torch::randn({3, 8});
      const Tensor y = compiled(x, factor);
      ++calls;
      const std::string wrong = difference(y, mine(x, factor));
      require(wrong.empty(), wrong);
      // Two variants: one for each factor.
      after += compiled.stats().replayed > 2 ? 1 : 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // leaves the cores to the compiler
    }
  });
  compiled.wait();
  const torchcc::CompileStats stats = compiled.stats();
  BOOST_TEST(stats.calls == calls);
  BOOST_TEST(stats.recorded + stats.replayed + stats.eager == stats.calls, stats.str());
  BOOST_TEST(stats.replayed > 100, stats.str());
  BOOST_TEST(stats.variants.size() == 2);
  for (const torchcc::VariantStats& variant : stats.variants) BOOST_TEST(variant.state == "compiled", stats.str());
}

}  // namespace

BOOST_AUTO_TEST_SUITE(concurrency)

BOOST_AUTO_TEST_CASE(threads_call_a_blocking_function) { call_together(false); }

BOOST_AUTO_TEST_CASE(threads_call_a_background_function, *boost::unit_test::label("slow")) { call_together(true); }

BOOST_AUTO_TEST_CASE(background_compilation_never_blocks) {
  const torch::NoGradGuard no_grad;
  Options options = plain_options();
  options.background = true;
  options.name += std::to_string(std::chrono::system_clock::now().time_since_epoch().count());  // not in the cache
  std::mutex mutex;
  std::vector<std::string> progress;
  options.progress = [&](const std::string& line) {
    const std::lock_guard lock(mutex);
    progress.push_back(line);
  };
  {
    const auto compiled = torchcc::compile([](Tensor x) { return x.sin() * 2 + x.sum(); }, options);
    double longest = 0;
    for (int call = 0; call < 20; ++call) {
      const Tensor x = torch::randn({4});
      const auto start = std::chrono::steady_clock::now();
      const Tensor y = compiled(x);
      longest = std::max(longest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      BOOST_TEST(difference(y, x.sin() * 2 + x.sum()) == "");
    }
    BOOST_TEST(longest < 1);
    BOOST_TEST(compiled.stats().replayed == 0);
    BOOST_TEST(missing(compiled.stats().reason, "being compiled") == "");
    compiled.wait();
    compiled(torch::randn({4}));
    BOOST_TEST(compiled.stats().replayed == 1, compiled.stats().str());
  }
  const std::lock_guard lock(mutex);
  BOOST_TEST(!progress.empty());
}

BOOST_AUTO_TEST_CASE(function_destroyed_while_it_is_compiled) {
  const torch::NoGradGuard no_grad;
  Options options = plain_options();
  options.background = true;
  options.name += std::to_string(std::chrono::system_clock::now().time_since_epoch().count());
  const auto compiled = torchcc::compile([](Tensor x) { return x.cos() * 2; }, options);
  for (int call = 0; call < 3; ++call) compiled(torch::randn({4}));
}

BOOST_AUTO_TEST_CASE(functions_of_their_own_in_each_thread, *boost::unit_test::label("slow")) {
  run_together(kThreads, [](int index) {
    const torch::NoGradGuard no_grad;
    Options options;
    options.name = "functions_of_their_own_in_each_thread";
    options.freeze = false;
    const auto compiled = torchcc::compile([](Tensor x) { return x.sinh() + 1; }, options);
    for (int call = 0; call < 6; ++call) {
      const Tensor x = torch::randn({2 + index % 2, 4});
      const std::string wrong = difference(compiled(x), x.sinh() + 1);
      require(wrong.empty(), wrong);
    }
    require(compiled.stats().replayed == 4, compiled.stats().str());
  });
}

BOOST_AUTO_TEST_CASE(unknown_option_of_inductor, *boost::unit_test::label("slow")) {
  Options options = plain_options();
  options.options["no_such_option"] = true;
  const torch::NoGradGuard no_grad;
  const auto compiled = torchcc::compile([](Tensor x) { return x.sin(); }, options);
  for (int call = 0; call < 3; ++call) {
    const Tensor x = torch::randn({4});
    BOOST_TEST(difference(compiled(x), x.sin()) == "");
  }
  BOOST_TEST(compiled.stats().replayed == 0);
  BOOST_TEST(missing(compiled.stats().reason, "no_such_option") == "");
}

BOOST_AUTO_TEST_SUITE_END()
