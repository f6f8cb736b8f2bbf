// torchcc::compile on a GPU: functions that are replayed.
#include "compile.h"

#include <chrono>
#include <iostream>
#include <thread>

#include <dlfcn.h>

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>

using namespace test;

namespace {

/// Writes a number into a tensor's memory without an operator, on the current stream.
void write(const at::Tensor& tensor, float number) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);
  static const auto set = reinterpret_cast<int (*)(void*, unsigned, size_t, void*)>(dlsym(driver, "cuMemsetD32Async"));
  unsigned bits = 0;
  std::memcpy(&bits, &number, sizeof bits);
  const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
  BOOST_REQUIRE(set(tensor.mutable_data_ptr(), bits, static_cast<size_t>(tensor.numel()),
                    cuda.getStreamNativeHandle(cuda.getStream(tensor.device()))) == 0);
}

class CudaAutocast {
 public:
  explicit CudaAutocast(at::ScalarType dtype) {
    at::autocast::set_autocast_enabled(at::kCUDA, true);
    at::autocast::set_autocast_dtype(at::kCUDA, dtype);
  }
  ~CudaAutocast() {
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCUDA, false);
  }
};

}  // namespace

BOOST_AUTO_TEST_SUITE(compile)

BOOST_AUTO_TEST_CASE(calls_run_compiled_code) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 32});
  const at::Tensor b = random({32});
  const auto function = [&](const at::Tensor& x) { return at::gelu(at::matmul(x, w) + b) * 2; };
  const auto f = torchcc::compile(function, replayed("gelu"));
  compare(f, function, [] { return random({8, 64}); });
  BOOST_TEST(f.stats().replayed >= kLeast);
  BOOST_TEST(f.stats().variants.at(0).inputs == "float32[8, 64] on cuda");
  w.mul_(0.5);  // weights are read where they are
  compare(f, function, [] { return random({8, 64}); }, 2);
  BOOST_TEST(f.stats().replayed >= kLeast + 2);
  // The same on the CPU is another variant.
  const at::Tensor cpu = at::randn({8, 64});
  BOOST_CHECK_THROW(f(cpu), c10::Error);  // as the function does
  // Another function of the same operators finds the code.
  const auto again = torchcc::compile(function, replayed("gelu"));
  compare(again, function, [] { return random({8, 64}); }, 3);
  BOOST_TEST(again.stats().variants.at(0).from_cache);
}

BOOST_AUTO_TEST_CASE(sizes_share_code) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 32});
  const auto function = [&](const at::Tensor& x) { return at::softmax(at::matmul(x, w).view({x.size(0), 4, 8}), -1); };
  const auto f = torchcc::compile(function, replayed("sizes"));
  for (const int64_t n : {8, 16, 33, 100}) {
    compare(f, function, [n] { return random({n, 64}); }, 3);
  }
  const torchcc::VariantStats shared = f.stats().variants.at(1);  // the first size has had code of its own
  BOOST_TEST(shared.inputs.starts_with("arg0: float32[s0, 64] on cuda with 2 <= s0"));
  BOOST_TEST(shared.sizes == 3);
}

BOOST_AUTO_TEST_CASE(it_runs_on_the_current_stream_and_does_not_wait) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x) { return at::tanh(x) * 2 + 1; };
  const auto f = torchcc::compile(function, replayed("stream"));
  compare(f, function, [] { return random({512, 128}); }, 4);
  double longest = 0;
  for (int i = 0; i < 6; ++i) {
    const c10::StreamGuard guard(new_stream());
    at::Tensor x = random({512, 128});
    for (int step = 0; step < 50; ++step) x = at::tanh(at::matmul(x, x.t().narrow(1, 0, 128)));
    const at::Tensor much = random({8192, 8192});
    synchronize();
    at::Tensor busy = much;
    for (int step = 0; step < 4; ++step) busy = at::matmul(much, busy);  // 0.1 s
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor got = f(x);
    const double host = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (i > 0) longest = std::max(longest, host);
    BOOST_TEST(close(got, function(x)));
  }
  std::cout << "a call behind work of 0.1 s takes the host " << longest * 1e6 << " us\n";
  BOOST_TEST(longest < 0.01);
  BOOST_TEST(f.stats().replayed >= 1 + 6);
}

BOOST_AUTO_TEST_CASE(writes_reach_arguments_and_captured_tensors) {
  const at::NoGradGuard no_grad;
  const at::Tensor state = at::zeros({128}, at::kCUDA);
  const auto f = torchcc::compile(
      [&](const at::Tensor& x, at::Tensor y) {
        y.add_(x);
        state.mul_(0.5).add_(y.mean(0));
        return state + 1;
      },
      replayed("writes"));
  at::Tensor wanted = at::zeros({128}, at::kCUDA);
  for (int i = 0; i < kCalls; ++i) {
    const at::Tensor x = random({4, 128});
    const at::Tensor y = random({4, 128});
    const at::Tensor sum = x + y;
    wanted = wanted * 0.5 + sum.mean(0);
    BOOST_TEST(close(f(x, y), wanted + 1));
    BOOST_TEST(same(y, sum));
    BOOST_TEST(close(state, wanted));
  }
  BOOST_TEST(f.stats().replayed >= kLeast);
}

BOOST_AUTO_TEST_CASE(arguments_of_any_layout) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x) { return at::relu(x * 2 - 1).sum(0); };
  const auto f = torchcc::compile(function, replayed("layouts"));
  const auto misaligned = [] { return random({16 * 128 + 1}).narrow(0, 1, 16 * 128).view({16, 128}); };
  compare(f, function, [] { return random({16, 128}); });
  compare(f, function, misaligned);  // has the same guards
  BOOST_TEST(f.stats().replayed >= kCalls + kLeast);
  compare(f, function, [] { return random({128, 16}).t(); });
  compare(f, function, [] { return random({1, 128}).expand({16, 128}); });
  const auto into = torchcc::compile([](at::Tensor x) { x.mul_(2); }, replayed("into"));
  for (int i = 0; i < kCalls; ++i) {
    const at::Tensor x = i % 2 == 0 ? random({16, 128}) : misaligned();
    const at::Tensor wanted = x * 2;
    into(x);
    BOOST_TEST(same(x, wanted));
  }
}

BOOST_AUTO_TEST_CASE(tensors_on_the_cpu_beside_others) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x, const at::Tensor& shift) {
    return x + shift.to(at::kCUDA) * at::tensor({1.0F, 2.0F, 3.0F, 4.0F}, at::kCUDA);
  };
  const auto f = torchcc::compile(function, replayed("mixed"));
  for (int i = 0; i < kCalls + 2; ++i) {
    const at::Tensor x = random({8, 4});
    const at::Tensor shift = at::randn({4});
    BOOST_TEST(close(f(x, shift), function(x, shift)));
  }
  BOOST_TEST(f.stats().replayed >= kLeast, f.stats().str());
}

BOOST_AUTO_TEST_CASE(values_that_the_host_reads_are_never_replayed) {
  const at::NoGradGuard no_grad;
  const auto item = [](const at::Tensor& x) { return x * x.sum().item<float>(); };
  const auto copy = [](const at::Tensor& x) {
    const at::Tensor sum = x.sum().cpu();
    return x * *sum.const_data_ptr<float>();
  };
  const auto into = [](const at::Tensor& x) {
    const at::Tensor sum = at::empty({1});
    sum.copy_(x.sum().view({1}));
    return x * *sum.const_data_ptr<float>();
  };
  const auto check = [](const auto& function, const char* name) {
    const auto f = torchcc::compile(function, {.name = name, .allow_slower = true});
    compare(f, function, [] { return random({64}); });
    BOOST_TEST(f.stats().replayed == 0);
    BOOST_TEST(f.stats().lazy > 0);
  };
  check(item, "item");
  check(copy, "copy");
  check(into, "into");
}

BOOST_AUTO_TEST_CASE(memory_that_is_written_without_operators) {
  const at::NoGradGuard no_grad;
  float number = 0;
  const at::Tensor held = at::zeros({100}, at::kCUDA);
  const auto f = torchcc::compile(
      [&](const at::Tensor& x) {
        write(held, number);
        return x + held;
      },
      {.name = "pointer", .allow_slower = true});
  for (int i = 0; i < 8; ++i) {
    number = static_cast<float>(i);
    const at::Tensor x = random({100});
    BOOST_TEST(same(f(x), x + number));
  }
  BOOST_TEST(f.stats().replayed == 0);
}

BOOST_AUTO_TEST_CASE(autocast) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 64});
  const auto function = [&](const at::Tensor& x) { return at::matmul(x, w).relu(); };
  const auto f = torchcc::compile(function, replayed("autocast"));
  for (int round = 0; round < 2; ++round) {
    compare(f, function, [] { return random({8, 64}); }, 4);
    const CudaAutocast on(at::kBFloat16);
    for (int i = 0; i < 4; ++i) {
      const at::Tensor x = random({8, 64});
      const at::Tensor got = f(x);
      BOOST_TEST((got.scalar_type() == at::kBFloat16));
      BOOST_TEST(at::allclose(got, function(x), 0.02, 0.02));
    }
  }
  BOOST_TEST(f.stats().variants.size() == 2U);
  BOOST_TEST(f.stats().replayed >= 10);
}

BOOST_AUTO_TEST_CASE(random_numbers) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x) { return x + at::rand_like(x); };
  const auto f = torchcc::compile(function, replayed("random"));
  const at::Tensor x = at::zeros({1000}, at::kCUDA);
  for (int i = 0; i < 4; ++i) f(x);
  at::manual_seed(7);
  const at::Tensor first = f(x);
  const at::Tensor second = f(x);
  at::manual_seed(7);
  BOOST_TEST(same(f(x), first));
  BOOST_TEST(!at::equal(first, second));
  torchcc::CompileOptions bitwise = replayed("random");
  bitwise.options = {{"fallback_random", true}};
  const auto g = torchcc::compile(function, bitwise);
  for (int i = 0; i < kCalls; ++i) {
    at::manual_seed(static_cast<uint64_t>(i));
    const at::Tensor got = g(x);
    at::manual_seed(static_cast<uint64_t>(i));
    BOOST_TEST(same(got, function(x)));
  }
  BOOST_TEST(g.stats().replayed >= kLeast);
}

BOOST_AUTO_TEST_CASE(gradients) {
  const at::Tensor w = random({64, 32}).requires_grad_();
  const at::Tensor b = random({32}).requires_grad_();
  const auto function = [&](const at::Tensor& x) {
    return at::gelu(at::layer_norm(at::matmul(x, w) + b, {32})).pow(2).mean();
  };
  const auto f = torchcc::compile(function, replayed("gradients"));
  for (int i = 0; i < kCalls; ++i) {
    const at::Tensor x = random({8, 64}).requires_grad_();
    const auto gradients = [&](const auto& one) {
      for (at::Tensor tensor : {x, w, b}) tensor.mutable_grad() = at::Tensor();
      one(x).backward();
      return std::vector<at::Tensor>{x.grad(), w.grad(), b.grad()};
    };
    const std::vector<at::Tensor> got = gradients(f);
    const std::vector<at::Tensor> wanted = gradients(function);
    for (size_t k = 0; k < got.size(); ++k) BOOST_TEST(close(got[k], wanted[k]));
  }
  BOOST_TEST(f.stats().replayed >= kLeast);
}

BOOST_AUTO_TEST_CASE(functions_that_change_the_stream) {
  const at::NoGradGuard no_grad;
  const c10::Stream side = new_stream();
  const auto function = [&](const at::Tensor& x) {
    c10::Event ready(c10::kCUDA);
    c10::Event done(c10::kCUDA);
    ready.record(c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(x.device()));
    at::Tensor y;
    {
      const c10::StreamGuard guard(side);
      ready.block(side);
      y = at::matmul(x, x).tanh();
      done.record(side);
    }
    done.block(c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(x.device()));
    return y + x;
  };
  for (const auto mode : {torchcc::CompileMode::automatic, torchcc::CompileMode::lazy}) {
    const auto f = torchcc::compile(function, {.mode = mode, .name = "two streams", .allow_slower = true});
    compare(f, function, [] { return random({512, 512}) / 20; }, 10);
    BOOST_TEST(f.stats().replayed == 0);
    BOOST_TEST(f.stats().compiled_ops > 0, f.stats().str());
  }
}

BOOST_AUTO_TEST_CASE(threads_with_streams_of_their_own) {
  const at::Tensor w = random({64, 64}) / 8;
  const auto function = [&](const at::Tensor& x) { return at::gelu(at::matmul(x, w)) + x; };
  for (const bool graphs : {false, true}) {
    torchcc::CompileOptions options = replayed("threads");
    options.cuda_graphs = graphs;
    const auto f = torchcc::compile(function, options);
    {
      const at::NoGradGuard no_grad;
      compare(f, function, [] { return random({32, 64}); }, 4);
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        const at::NoGradGuard no_grad;
        const c10::StreamGuard guard(new_stream());
        for (int call = 0; call < 200; ++call) {
          const at::Tensor x = random({32, 64});
          if (!at::allclose(f(x), function(x), 1e-4, 1e-4)) ++wrong;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    BOOST_TEST(wrong == 0);
    BOOST_TEST(f.stats().replayed >= 400);
    if (graphs) BOOST_TEST(f.stats().variants.at(0).graph_calls > 380);
  }
}

BOOST_AUTO_TEST_CASE(cuda_graphs) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 64}) / 8;
  const at::Tensor state = at::zeros({64}, at::kCUDA);
  const auto function = [&](const at::Tensor& x) {
    state.add_(1);
    return at::softmax(at::matmul(x, w), -1) + state;
  };
  torchcc::CompileOptions options = replayed("graph");
  options.cuda_graphs = true;
  const auto f = torchcc::compile(function, options);
  const at::Tensor steady = random({8, 64});
  int64_t calls = 0;
  const auto check = [&](const at::Tensor& x) {
    const at::Tensor got = f(x).clone();
    ++calls;
    BOOST_TEST(same(state, at::full({64}, calls, state.options())));
    BOOST_TEST(close(got, at::softmax(at::matmul(x, w), -1) + state));
  };
  for (int i = 0; i < 8; ++i) {
    steady.copy_(random({8, 64}));
    check(steady);
  }
  torchcc::VariantStats stats = f.stats().variants.at(0);
  BOOST_TEST(stats.graph_captures == 1);
  BOOST_TEST(stats.graph_calls >= 3);  // two or three are recorded, two warm up
  BOOST_TEST(stats.graph_reason == "");
  w.mul_(2);
  for (int i = 0; i < 4; ++i) check(random({8, 64}));  // it moves: recorded anew, once
  stats = f.stats().variants.at(0);
  BOOST_TEST(stats.graph_captures == 2);
  BOOST_TEST(stats.graph_calls >= 6);
  const auto on_cpu = torchcc::compile([](const at::Tensor& x) { return x.sin() + 1; }, options);
  for (int i = 0; i < 4; ++i) on_cpu(at::randn({10}));
  BOOST_TEST(on_cpu.stats().variants.at(0).graph_reason == "the function computes nothing on a GPU");
}

BOOST_AUTO_TEST_CASE(memory_is_constant) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 64}) / 8;
  const auto function = [&](const at::Tensor& x) { return at::gelu(at::matmul(x, w)) + x; };
  for (const bool graphs : {false, true}) {
    torchcc::CompileOptions options = replayed("memory");
    options.cuda_graphs = graphs;
    const auto f = torchcc::compile(function, options);
    for (int i = 0; i < 100; ++i) f(random({32, 64}));
    const auto before = gpu_memory();
    for (int i = 0; i < 10000; ++i) f(random({32, 64}));
    BOOST_TEST((gpu_memory() == before));
    BOOST_TEST(f.stats().replayed >= 10097);
  }
}

BOOST_AUTO_TEST_CASE(a_lack_of_memory) {
  const at::NoGradGuard no_grad;
  const auto f = torchcc::compile(
      [](const at::Tensor& x) { return std::get<0>(at::sort(x)) + std::get<0>(at::sort(-x)); }, replayed("large"));
  const at::Tensor x = random({1 << 25});
  at::Tensor wanted;
  for (int i = 0; i < 4; ++i) wanted = f(x);
  const at::Tensor large = random({1 << 26});
  const auto scaled = torchcc::compile([](at::Tensor y) { y.mul_(2); }, {.name = "in place", .allow_slower = true});
  {
    const std::vector<at::Tensor> filling = fill_memory();
    const auto before = gpu_memory();
    for (int i = 0; i < 3; ++i) BOOST_CHECK_THROW(f(x), c10::OutOfMemoryError);  // as the function does
    // Recording needs memory; the function does not.
    const at::Tensor twice = large.narrow(0, 0, 10).clone() * 4;
    scaled(large);
    scaled(large);
    BOOST_TEST(same(large.narrow(0, 0, 10).clone(), twice));
    BOOST_TEST(scaled.stats().reason.find("too little memory") != std::string::npos, scaled.stats().reason);
    BOOST_TEST(gpu_memory().first <= before.first + 4096);
  }
  BOOST_TEST(same(f(x), wanted));
  BOOST_TEST(f.stats().variants.at(0).state == "compiled");
}

BOOST_AUTO_TEST_SUITE_END()
