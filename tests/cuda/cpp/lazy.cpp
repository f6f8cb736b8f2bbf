// torchcc::compile on a GPU: lazy mode, and whole steps of training.
#include "compile.h"

#include <thread>

#include <ATen/autocast_mode.h>
#include <torch/torch.h>
#include <torchcc/scope.h>

using namespace test;
namespace nn = torch::nn;

namespace {

/// A layer of a GPT between an embedding and a head.
struct GptImpl : nn::Module {
  static constexpr int64_t kTokens = 100, kWidth = 64, kHeads = 2;
  nn::Embedding words = register_module("words", nn::Embedding(kTokens, kWidth));
  nn::LayerNorm norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
  nn::Linear qkv = register_module("qkv", nn::Linear(kWidth, 3 * kWidth));
  nn::Linear out = register_module("out", nn::Linear(kWidth, kWidth));
  nn::Linear up = register_module("up", nn::Linear(kWidth, 4 * kWidth));
  nn::Linear down = register_module("down", nn::Linear(4 * kWidth, kWidth));
  nn::Linear head = register_module("head", nn::Linear(kWidth, kTokens));

  at::Tensor forward(const at::Tensor& tokens) {
    at::Tensor x = words(tokens);
    const auto parts =
        qkv(norm(x)).view({x.size(0), x.size(1), 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4}).unbind();
    const at::Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0, true);
    x = x + out(mixed.transpose(1, 2).reshape(x.sizes()));
    x = x + down(torch::gelu(up(x)));
    return head(x).flatten(0, 1);
  }
};
TORCH_MODULE(Gpt);

struct MlpImpl : nn::Module {
  nn::Linear first = register_module("first", nn::Linear(16, 64));
  nn::Linear second = register_module("second", nn::Linear(64, 16));
  at::Tensor forward(const at::Tensor& x) { return second(torch::relu(first(x))); }
};
TORCH_MODULE(Mlp);

/// Trains two networks that begin alike, one of them compiled; compares losses and weights.
template <class Net, class Optimizer, class Options, class Batch, class Loss>
torchcc::CompileStats train(const Options& options, const Batch& batch, const Loss& loss_of, double tolerance,
                            at::ScalarType dtype = at::kFloat) {
  constexpr int kSteps = 12;
  torch::manual_seed(1);
  Net compiled;
  torch::manual_seed(1);
  Net eager;
  compiled->to(at::kCUDA, dtype);
  eager->to(at::kCUDA, dtype);
  Optimizer optimizer(compiled->parameters(), options);
  Optimizer other(eager->parameters(), options);
  const auto make_step = [&](Net& net, Optimizer& one) {
    return [&](const at::Tensor& x, const at::Tensor& y) {
      one.zero_grad();
      const at::Tensor loss = loss_of(net, x, y);
      loss.backward();
      one.step();
      return loss;
    };
  };
  const auto step = torchcc::compile(make_step(compiled, optimizer), lazily("step"));
  const auto plain = make_step(eager, other);
  for (int i = 0; i < kSteps; ++i) {
    const auto [x, y] = batch();
    const double got = step(x, y).template item<double>();
    const double wanted = plain(x, y).template item<double>();
    BOOST_TEST(std::abs(got - wanted) <= tolerance, "step " << i << ": " << got << ", eager " << wanted);
  }
  const auto weights = eager->parameters();
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor difference = (compiled->parameters()[i] - weights[i]).abs().max();
    BOOST_TEST(difference.template item<double>() <= tolerance);
  }
  return step.stats();
}

std::pair<at::Tensor, at::Tensor> text() {
  const at::Tensor tokens =
      at::randint(GptImpl::kTokens, {4, 33}, at::TensorOptions().device(at::kCUDA).dtype(at::kLong));
  return {tokens.narrow(1, 0, 32).contiguous(), tokens.narrow(1, 1, 32).flatten()};
}

at::Tensor root_of(const at::Tensor& x) {
  at::Tensor guess = x.clone();
  while ((guess * guess - x).abs().max().item<float>() > 1e-4F) guess = 0.5 * (guess + x / guess);
  return guess;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(lazy)

BOOST_AUTO_TEST_CASE(values_end_segments) {
  const at::NoGradGuard no_grad;
  const auto f = torchcc::compile(root_of, lazily("root"));
  for (int i = 0; i < 8; ++i) {
    const at::Tensor x = random({32}).abs() + 0.5;
    BOOST_TEST(close(f(x), x.sqrt()));
  }
  BOOST_TEST(f.stats().compiled_ops > f.stats().eager_ops, f.stats().str());
}

BOOST_AUTO_TEST_CASE(copies_to_the_cpu_end_segments) {
  const at::NoGradGuard no_grad;
  const auto function = [](const at::Tensor& x) {
    const at::Tensor scaled = at::sigmoid(x * 2 + 1);
    const at::Tensor on_cpu = scaled.cpu();
    const float first = on_cpu.accessor<float, 1>()[0];
    return at::relu(x * first - 0.1);
  };
  const auto f = torchcc::compile(function, lazily("cpu"));
  compare(f, function, [] { return random({100}); }, 8);
  const torchcc::CompileStats stats = f.stats();
  BOOST_TEST(stats.compiled_ops > stats.eager_ops, stats.str());
  BOOST_TEST(std::any_of(stats.segments.begin(), stats.segments.end(), [](const auto& one) {
    return one.end.starts_with("aten::to") || one.end == "aten::_to_copy";
  }));
}

BOOST_AUTO_TEST_CASE(whole_steps_of_training) {
  const auto batch = [] { return std::pair{random({8, 16}, at::kDouble), random({8, 16}, at::kDouble)}; };
  const auto loss = [](auto& net, const at::Tensor& x, const at::Tensor& y) {
    return torch::mse_loss(net->forward(x), y);
  };
  const auto stats = train<Mlp, torch::optim::Adam>(torch::optim::AdamOptions(1e-2), batch, loss, 1e-6, at::kDouble);
  BOOST_TEST(stats.compiled_ops > stats.eager_ops, stats.str());
  const auto options = torch::optim::SGDOptions(0.1).momentum(0.9);
  const auto sgd = train<Mlp, torch::optim::SGD>(options, batch, loss, 1e-6, at::kDouble);
  BOOST_TEST(sgd.compiled_ops > sgd.eager_ops, sgd.str());
}

BOOST_AUTO_TEST_CASE(a_gpt_in_float32) {
  const auto loss = [](auto& net, const at::Tensor& x, const at::Tensor& y) {
    return torch::cross_entropy_loss(net->forward(x), y);
  };
  const auto stats = train<Gpt, torch::optim::AdamW>(torch::optim::AdamWOptions(1e-3), text, loss, 1e-3);
  BOOST_TEST(stats.compiled_ops > stats.eager_ops, stats.str());
}

BOOST_AUTO_TEST_CASE(a_gpt_in_bfloat16) {
  const auto loss = [](auto& net, const at::Tensor& x, const at::Tensor& y) {
    at::autocast::set_autocast_enabled(at::kCUDA, true);
    at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
    const at::Tensor one = torch::cross_entropy_loss(net->forward(x), y);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCUDA, false);
    return one;
  };
  const auto stats = train<Gpt, torch::optim::SGD>(torch::optim::SGDOptions(0.1), text, loss, 0.05);
  BOOST_TEST(stats.compiled_ops > stats.eager_ops, stats.str());
}

BOOST_AUTO_TEST_CASE(a_change_of_the_stream_behind_a_segment_that_was_left) {
  const at::NoGradGuard no_grad;
  const c10::Stream side = new_stream();
  enum class Way { first, second, both } way = Way::first;
  const auto f = torchcc::compile(
      [&](const at::Tensor& x, const at::Tensor& z) {
        if (way == Way::first) return std::vector{at::exp(at::sin(x))};
        if (way == Way::second) return std::vector{at::tanh(x), at::mul(z, 2)};
        const at::Tensor one = at::sin(x);
        const at::Tensor other = at::tanh(x);  // leaves the first segment, and begins the second
        const c10::StreamGuard guard(side);
        return std::vector{other, at::mul(z, 2), one};
      },
      lazily("left"));
  const at::Tensor z = random({2000});
  const at::Tensor much = random({8192, 8192});
  synchronize();
  for (const Way next : {Way::first, Way::second, Way::both}) {
    way = next;
    for (int i = 0; i < 5; ++i) {
      const at::Tensor wanted = random({2000});
      const at::Tensor x = at::zeros_like(wanted);
      synchronize();
      at::Tensor busy = much;
      for (int step = 0; step < 4; ++step) busy = at::matmul(much, busy);  // 0.1 s, for which `side` does not wait
      x.copy_(wanted);
      const std::vector<at::Tensor> got = f(x, z);
      synchronize();
      BOOST_TEST(close(got[0], way == Way::first ? at::exp(at::sin(wanted)) : at::tanh(wanted)), "call " << i);
      if (way != Way::first) BOOST_TEST(close(got[1], z * 2));
      if (way == Way::both) BOOST_TEST(close(got[2], at::sin(wanted)));
    }
  }
  BOOST_TEST(f.stats().compiled_ops > 0, f.stats().str());
}

BOOST_AUTO_TEST_CASE(threads_with_streams_of_their_own) {
  const auto f = torchcc::compile(root_of, lazily("root"));
  {
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 4; ++i) f(random({32}).abs() + 0.5);
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      const at::NoGradGuard no_grad;
      const c10::StreamGuard guard(new_stream());
      for (int call = 0; call < 50; ++call) {
        const at::Tensor x = random({32}).abs() + 0.5;
        if (!at::allclose(f(x), x.sqrt(), 1e-3, 1e-3)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BOOST_TEST(wrong == 0);
}

BOOST_AUTO_TEST_CASE(memory_is_constant) {
  const at::NoGradGuard no_grad;
  const auto f = torchcc::compile(
      [](const at::Tensor& x) {
        const at::Tensor y = at::gelu(x * 2) + 1;
        return y.sum().item<float>();
      },
      lazily("memory"));
  const at::Tensor x = random({1000});
  for (int i = 0; i < 100; ++i) f(x);
  const auto before = gpu_memory();
  for (int i = 0; i < 10000; ++i) f(x);
  BOOST_TEST((gpu_memory() == before));
  BOOST_TEST(f.stats().compiled_ops > 3 * f.stats().eager_ops, f.stats().str());
}

BOOST_AUTO_TEST_SUITE_END()
