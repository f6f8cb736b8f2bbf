// torchcc::compile on a GPU: calls with gradients and lazy mode by CUDA graphs, and what cannot be in one.
#include "compile.h"

#include <cmath>

#include <c10/core/Event.h>
#include <torch/torch.h>
#include <torchcc/export.h>
#include <torchcc/package.h>

using namespace test;
namespace nn = torch::nn;

namespace {

/// What a training gave: the loss of each step, and the weights in the end.
struct Trained {
  at::Tensor losses;
  std::vector<at::Tensor> weights;
};

/// Trains a small network, each step being one call; the learning rate may be another in each step. With `stats`, by
/// compiled code, and by CUDA graphs where these can be.
template <class Optimizer, class Options>
Trained train(Options options, c10::ScalarType dtype, bool has_schedule, torchcc::CompileStats* stats = nullptr) {
  constexpr int kSteps = 50;
  torch::manual_seed(5);
  nn::Sequential net(nn::Linear(16, 64), nn::Tanh(), nn::Linear(64, 16));
  net->to(at::kCUDA, dtype);
  Optimizer optimizer(net->parameters(), options);
  const auto step = [&](const at::Tensor& x, const at::Tensor& y) {
    optimizer.zero_grad();
    const at::Tensor loss = torch::mse_loss(net->forward(x), y);
    loss.backward();
    optimizer.step();
    return loss;
  };
  torchcc::CompileOptions lazy = {.mode = torchcc::CompileMode::lazy, .name = "whole step", .allow_slower = true};
  lazy.cuda_graphs = true;
  const auto f = torchcc::compile(step, lazy);
  torch::manual_seed(6);
  std::vector<at::Tensor> losses;  // which stay as they are
  for (int i = 0; i < kSteps; ++i) {
    if (has_schedule) optimizer.param_groups()[0].options().set_lr(options.lr() * (1 + std::cos(0.05 * i)) / 2);
    const at::Tensor x = random({8, 16}, dtype);
    losses.push_back(stats != nullptr ? f(x, x.sin()) : step(x, x.sin()));
  }
  if (stats != nullptr) *stats = f.stats();
  Trained trained{at::stack(losses).detach(), {}};
  for (const at::Tensor& weight : net->parameters()) trained.weights.push_back(weight.detach().clone());
  return trained;
}

/// Compares a training by CUDA graphs with an eager one.
template <class Optimizer, class Options>
void compare_training(const Options& options, c10::ScalarType dtype, bool has_schedule) {
  torchcc::CompileStats stats;
  const Trained wanted = train<Optimizer>(options, dtype, has_schedule);
  const Trained got = train<Optimizer>(options, dtype, has_schedule, &stats);
  BOOST_TEST(close(got.losses, wanted.losses));
  for (size_t i = 0; i < wanted.weights.size(); ++i) BOOST_TEST(close(got.weights[i], wanted.weights[i]));
  int64_t by_graph = 0;
  for (const torchcc::SegmentStats& segment : stats.segments) by_graph += segment.graph_calls;
  BOOST_TEST(by_graph > 25, stats.str());
}

torchcc::CompileOptions with_graphs(torchcc::CompileOptions options) {
  options.cuda_graphs = true;
  return options;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(compiled_graphs)

BOOST_AUTO_TEST_CASE(gradients) {
  const at::Tensor w = random({64, 32}).requires_grad_();
  const at::Tensor b = random({32}).requires_grad_();
  const auto function = [&](const at::Tensor& x) {
    return at::gelu(at::layer_norm(at::matmul(x, w) + b, {32})).pow(2).mean();
  };
  const auto f = torchcc::compile(function, with_graphs(replayed("gradients")));
  const auto gradients = [&](const auto& one, const at::Tensor& x) {
    for (at::Tensor tensor : {x, w, b}) tensor.mutable_grad() = at::Tensor();
    const at::Tensor loss = one(x);
    loss.backward();
    return std::vector<at::Tensor>{loss.detach().clone(), x.grad(), w.grad(), b.grad()};
  };
  for (int i = 0; i < 16; ++i) {
    const at::Tensor x = random({8, 64}).requires_grad_();
    const std::vector<at::Tensor> wanted = gradients(function, x);
    const std::vector<at::Tensor> got = gradients(f, x);
    for (size_t k = 0; k < got.size(); ++k) BOOST_TEST(close(got[k], wanted[k]), "call " << i << ", " << k);
    const at::NoGradGuard no_grad;
    w.sub_(got[2], 0.1);
  }
  const torchcc::VariantStats stats = f.stats().variants.at(0);
  BOOST_TEST(stats.graph_calls > 4, f.stats().str());
  BOOST_TEST(stats.graph_backwards > 2, f.stats().str());
  BOOST_TEST(stats.graph_reason == "");
  // Gradients that add up, and two calls before their backward.
  const at::Tensor x = random({8, 64}).requires_grad_();
  const std::vector<at::Tensor> once = gradients(function, x);
  const auto twice = [&](const auto& one) {
    for (at::Tensor tensor : {x, w, b}) tensor.mutable_grad() = at::Tensor();
    const at::Tensor first = one(x);
    const at::Tensor second = one(x);
    second.backward();
    first.backward();
    one(x).backward();
    return w.grad().clone();
  };
  BOOST_TEST(close(twice(f), once[2] * 3));
  BOOST_TEST(f.stats().variants.at(0).graph_reason != "");
}

BOOST_AUTO_TEST_CASE(training_in_a_loop) {
  constexpr int kSteps = 24;
  const auto train = [&](bool compiled) {
    torch::manual_seed(3);
    nn::Sequential net(nn::Linear(16, 64), nn::ReLU(), nn::Linear(64, 4));
    net->to(at::kCUDA);
    torch::optim::Adam optimizer(net->parameters(), 1e-2);
    const auto loss_of = [&](const at::Tensor& x, const at::Tensor& y) {
      return torch::cross_entropy_loss(net->forward(x), y);
    };
    const auto f = torchcc::compile(loss_of, with_graphs(replayed("loop")));
    std::vector<double> losses;
    for (int i = 0; i < kSteps; ++i) {
      const at::Tensor x = random({32, 16});
      const at::Tensor y = x.narrow(1, 0, 4).argmax(1);
      optimizer.zero_grad();
      const at::Tensor loss = compiled ? f(x, y) : loss_of(x, y);
      loss.backward();
      optimizer.step();
      losses.push_back(loss.item<double>());
    }
    if (compiled) {
      const torchcc::VariantStats stats = f.stats().variants.at(0);
      BOOST_TEST(stats.graph_calls > kSteps / 2, f.stats().str());
      BOOST_TEST(stats.graph_backwards > kSteps / 3, f.stats().str());
    }
    return losses;
  };
  const std::vector<double> wanted = train(false);
  const std::vector<double> got = train(true);
  for (int i = 0; i < kSteps; ++i) BOOST_TEST(std::abs(got[i] - wanted[i]) < 1e-3, "step " << i);
}

BOOST_AUTO_TEST_CASE(memory_is_constant) {
  const at::Tensor w = (random({64, 64}) / 8).requires_grad_();
  const auto f = torchcc::compile([&](const at::Tensor& x) { return at::gelu(at::matmul(x, w)).sum(); },
                                  with_graphs(replayed("training memory")));
  const auto step = [&] {
    w.mutable_grad() = at::Tensor();
    f(random({32, 64})).backward();
  };
  for (int i = 0; i < 100; ++i) step();
  synchronize();
  const auto before = gpu_memory();
  for (int i = 0; i < 10000; ++i) step();
  BOOST_TEST((gpu_memory() == before));
  BOOST_TEST(f.stats().variants.at(0).graph_backwards > 10000);
}

// The numbers of optimisers change from step to step, and are in the graph's memory.
BOOST_AUTO_TEST_CASE(whole_steps_with_sgd) {
  compare_training<torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9), at::kFloat, false);
}

BOOST_AUTO_TEST_CASE(whole_steps_with_adam) {
  compare_training<torch::optim::Adam>(torch::optim::AdamOptions(1e-3), at::kFloat, false);
}

BOOST_AUTO_TEST_CASE(whole_steps_with_adamw_and_a_schedule) {
  compare_training<torch::optim::AdamW>(torch::optim::AdamWOptions(1e-2), at::kDouble, true);
}

BOOST_AUTO_TEST_CASE(whole_steps_with_rmsprop_and_a_schedule) {
  compare_training<torch::optim::RMSprop>(torch::optim::RMSpropOptions(1e-3).centered(true), at::kFloat, true);
}

BOOST_AUTO_TEST_CASE(numbers_that_change_from_call_to_call) {
  const at::NoGradGuard no_grad;
  double rate = 1;
  const auto function = [&](const at::Tensor& x) { return (x.sin() * 2 + x.cos() * rate) / (1 + rate); };
  const auto f = torchcc::compile(function, with_graphs(lazily("numbers in a graph")));
  const auto check = [&] {
    rate *= 0.75;
    const at::Tensor x = random({16});
    BOOST_TEST(close(f(x), function(x)));
  };
  for (int i = 0; i < 20; ++i) check();
  BOOST_TEST(f.stats().segments.at(0).graph_calls > 10, f.stats().str());
  BOOST_TEST(f.stats().segments.at(0).graph_reason == "");
  const auto before = gpu_memory();
  for (int i = 0; i < 1000; ++i) check();
  BOOST_TEST((gpu_memory() == before));
  // The call does not wait for what the GPU has to do before.
  const at::Tensor large = random({8192, 8192});
  at::Tensor product;
  for (int i = 0; i < 2; ++i) {
    synchronize();
    for (int k = 0; k < 30; ++k) product = at::matmul(large, large);
    c10::Event before_call(c10::kCUDA);
    before_call.record(c10::impl::VirtualGuardImpl(c10::kCUDA).getStream(large.device()));
    const at::Tensor x = product.narrow(0, 0, 1).flatten().narrow(0, 0, 16);
    const at::Tensor got = f(x);
    if (i == 1) BOOST_TEST(!before_call.query());  // the first launch may load something
    BOOST_TEST(close(got, function(x)));
  }
}

BOOST_AUTO_TEST_CASE(what_cannot_be_in_a_graph_says_which_operator) {
  const at::NoGradGuard no_grad;
  const auto check = [](const auto& function, const std::string& reason) {
    const at::Tensor x = random({16});
    const at::Tensor shift = at::randn({16});
    const auto f = torchcc::compile(function, with_graphs(replayed("refused")));
    for (int i = 0; i < 8; ++i) BOOST_TEST(close(f(x, shift), function(x, shift)));
    const torchcc::VariantStats stats = f.stats().variants.at(0);
    BOOST_TEST(stats.graph_calls == 0);
    BOOST_TEST(stats.graph_reason.find(reason) != std::string::npos, stats.graph_reason);
  };
  check([](const at::Tensor& x, const at::Tensor& shift) { return x.sin() + shift.to(at::kCUDA); }, "aten::to");
  double rate = 1;
  const auto f = torchcc::compile(
      [&](const at::Tensor& x) {
        rate *= 0.5;
        return x.sin() * 2 + at::fmod(x, rate);
      },
      with_graphs(lazily("numbers")));
  for (int i = 0; i < 8; ++i) {
    const at::Tensor x = random({16});
    const at::Tensor got = f(x);
    BOOST_TEST(close(got, x.sin() * 2 + at::fmod(x, rate)));
  }
  const auto segments = f.stats().segments;
  BOOST_TEST(std::any_of(segments.begin(), segments.end(),
                         [](const auto& one) {
                           return one.graph_reason ==
                                  "aten::fmod.Scalar takes a number that changes from call to call, "
                                  "which the host reads";
                         }),
             f.stats().str());
}

/// Where memory runs out: while the graph of the forward code is recorded, or that of backward.
enum class Phase { forward, backward };

// What CUDA cannot record for lack of memory runs as it is, if there is enough for that.
BOOST_AUTO_TEST_CASE(a_lack_of_memory) {
  for (const Phase phase : {Phase::forward, Phase::backward}) {
    for (const bool is_enough : {true, false}) {
      const at::Tensor w = (random({1024, 1024}) / 32).requires_grad_();
      const at::Tensor x = random({1 << 15, 1024});  // 128 MB
      // By value: what else this test has on the stack changes, and could be the function's.
      const auto function = [w](const at::Tensor& given) { return at::gelu(at::matmul(given, w)).pow(2).mean(); };
      const auto step = [&](const auto& one) {
        w.mutable_grad() = at::Tensor();
        const at::Tensor loss = one(x);
        loss.backward();
        return std::pair(loss.detach().clone(), w.grad().clone());
      };
      const auto wanted = step(function);
      const auto f = torchcc::compile(function, with_graphs(replayed("too large")));
      const auto stats = [&] {
        const auto all = f.stats().variants;
        return all.empty() ? torchcc::VariantStats() : all.front();
      };
      const auto check = [&] {
        const auto [loss, gradient] = step(f);
        BOOST_TEST(close(loss, wanted.first));
        BOOST_TEST(close(gradient, wanted.second));
      };
      // Until the next call records the graph: two run as they are.
      const auto is_next = [&] { return phase == Phase::forward ? f.stats().replayed == 2 : stats().graph_calls == 2; };
      for (int i = 0; i < 10 && !is_next(); ++i) check();
      BOOST_REQUIRE(is_next());
      BOOST_TEST(stats().graph_backwards == 0);
      const int64_t captures = stats().graph_captures;
      w.mutable_grad() = at::Tensor();
      {
        // PyTorch keeps it when it is freed, for tensors of calls, but not for graphs, which have memory of their own.
        at::Tensor room = at::empty({is_enough ? int64_t{1} << 31 : 0}, w.options().dtype(at::kByte));
        synchronize();
        c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
        const std::vector<at::Tensor> filling = fill_memory();
        room.reset();
        const int64_t before = gpu_memory().first;
        for (int i = 0; i < 3; ++i) {
          if (is_enough) {
            check();
          } else {
            BOOST_CHECK_THROW(step(f), c10::OutOfMemoryError);  // as the function does
          }
          w.mutable_grad() = at::Tensor();
          BOOST_TEST(gpu_memory().first == before);
        }
        BOOST_TEST(stats().graph_captures == captures);
        const std::string start = phase == Phase::forward ? "" : "backward: ";
        BOOST_TEST(stats().graph_reason.starts_with(start + "CUDA could not record it"), stats().graph_reason);
      }
      c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
      for (int i = 0; i < 3; ++i) check();
      w.mutable_grad() = at::Tensor();
      const int64_t before = gpu_memory().first;
      for (int i = 0; i < 50; ++i) check();
      w.mutable_grad() = at::Tensor();
      BOOST_TEST(gpu_memory().first == before);
      BOOST_TEST(stats().graph_backwards == 0);
      BOOST_TEST((phase == Phase::forward) == (stats().graph_calls == 0));
    }
  }
}

BOOST_AUTO_TEST_CASE(exported_functions) {
  const at::NoGradGuard no_grad;
  const at::Tensor w = random({64, 32});
  const auto function = [&](const at::Tensor& x) { return at::gelu(at::matmul(x, w)); };
  const std::filesystem::path file = std::filesystem::path(std::getenv("TORCHCC_CACHE")) / "exported.pt2";
  std::filesystem::create_directories(file.parent_path());
  torchcc::export_function(file, function, random({8, 64}));
  const torchcc::Function f = torchcc::load(file, {.cuda_graphs = true})["forward"];
  BOOST_TEST(f.stats().target.starts_with("cuda-sm"));
  for (int i = 0; i < 5; ++i) {
    const at::Tensor x = random({8, 64});
    BOOST_TEST(close(f(x), function(x)));
  }
  BOOST_TEST(f.stats().graph_calls == 3);
  const torchcc::Function portable = torchcc::load(file, {.compiled = false})["forward"];
  const at::Tensor x = random({8, 64});
  BOOST_TEST(close(portable(x), function(x)));
}

BOOST_AUTO_TEST_SUITE_END()
