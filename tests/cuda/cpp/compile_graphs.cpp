// torchcc::compile on a GPU: calls with gradients and lazy mode by CUDA graphs, and what cannot be in one.
#include "compile.h"

#include <torch/torch.h>
#include <torchcc/export.h>
#include <torchcc/package.h>

using namespace test;
namespace nn = torch::nn;

namespace {

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

BOOST_AUTO_TEST_CASE(whole_steps_in_lazy_mode) {
  constexpr int kSteps = 24;
  const auto train = [&](bool compiled) {
    torch::manual_seed(5);
    nn::Sequential net(nn::Linear(16, 64), nn::ReLU(), nn::Linear(64, 16));
    net->to(at::kCUDA);
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    const auto step_of = [&](const at::Tensor& x, const at::Tensor& y) {
      optimizer.zero_grad();
      const at::Tensor loss = torch::mse_loss(net->forward(x), y);
      loss.backward();
      optimizer.step();
      return loss;
    };
    const auto f = torchcc::compile(step_of, with_graphs(lazily("whole step")));
    torch::manual_seed(6);
    std::vector<at::Tensor> losses;  // which stay as they are
    for (int i = 0; i < kSteps; ++i) {
      const at::Tensor x = random({8, 16});
      losses.push_back(compiled ? f(x, x.sin()) : step_of(x, x.sin()));
    }
    if (compiled) {
      int64_t by_graph = 0;
      for (const torchcc::SegmentStats& segment : f.stats().segments) by_graph += segment.graph_calls;
      BOOST_TEST(by_graph > kSteps / 4, f.stats().str());
    }
    return at::stack(losses).detach();
  };
  const at::Tensor wanted = train(false);
  BOOST_TEST(close(train(true), wanted));
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
        return x.sin() * 2 + x.cos() * rate;
      },
      with_graphs(lazily("numbers")));
  for (int i = 0; i < 8; ++i) {
    const at::Tensor x = random({16});
    const at::Tensor got = f(x);
    BOOST_TEST(close(got, x.sin() * 2 + x.cos() * rate));
  }
  const auto segments = f.stats().segments;
  BOOST_TEST(std::any_of(segments.begin(), segments.end(),
                         [](const auto& one) {
                           return one.graph_reason.find("aten::mul") != std::string::npos &&
                                  one.graph_reason.find("a number that changes from call to call") != std::string::npos;
                         }),
             f.stats().str());
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
