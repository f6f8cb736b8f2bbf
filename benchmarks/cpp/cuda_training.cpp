// Trains GPT-2 on a GPU; benchmarks/cuda_training.py says what its numbers mean.
//   cuda_training WEIGHTS
// Reads lines "WAY STEPS" and answers each with a line of JSON. For 0 steps, it makes the way, and gives the losses of
// its first steps.

#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <ATen/autocast_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "contender.h"

namespace {

namespace nn = torch::nn;
using Clock = std::chrono::steady_clock;

constexpr int64_t kWidth = 768, kHeads = 12, kLayers = 12, kWords = 50257, kTokens = 512;
constexpr int kCheckedSteps = 12;

struct LayerImpl : nn::Module {
  nn::LayerNorm norm1 = register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
  nn::Linear qkv = register_module("qkv", nn::Linear(kWidth, 3 * kWidth));
  nn::Linear out = register_module("out", nn::Linear(kWidth, kWidth));
  nn::LayerNorm norm2 = register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
  nn::Linear up = register_module("up", nn::Linear(kWidth, 4 * kWidth));
  nn::Linear down = register_module("down", nn::Linear(4 * kWidth, kWidth));

  at::Tensor forward(at::Tensor x) {
    const int64_t b = x.size(0), t = x.size(1), d = x.size(2);
    const auto parts = qkv(norm1(x)).view({b, t, 3, kHeads, d / kHeads}).permute({2, 0, 3, 1, 4}).unbind();
    const at::Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, true);
    x = x + out(mixed.transpose(1, 2).reshape({b, t, d}));
    return x + down(at::gelu(up(norm2(x)), "tanh"));
  }
};
TORCH_MODULE(Layer);

struct GptImpl : nn::Module {
  nn::Embedding words = register_module("words", nn::Embedding(kWords, kWidth));
  nn::Embedding positions = register_module("positions", nn::Embedding(kTokens, kWidth));
  nn::ModuleList layers = register_module("layers", nn::ModuleList());
  nn::LayerNorm norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));

  GptImpl() {
    for (int64_t i = 0; i < kLayers; ++i) layers->push_back(Layer());
  }
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& targets) {
    at::Tensor x = words(tokens) + positions(torch::arange(tokens.size(1), tokens.options()));
    for (const auto& layer : *layers) x = layer->as<Layer>()->forward(x);
    const at::Tensor scores = at::linear(norm(x), words->weight);
    return torch::cross_entropy_loss(scores.flatten(0, 1), targets.flatten());
  }
};
TORCH_MODULE(Gpt);

/// One way to train, with a network of its own.
struct Way {
  Gpt network;
  std::unique_ptr<torch::optim::AdamW> optimizer;
  std::function<at::Tensor(const at::Tensor&, const at::Tensor&)> step;
  std::function<std::string()> stats = [] { return std::string(); };
  size_t done = 0;
};

at::Tensor loss_of(Gpt& network, const at::Tensor& tokens, const at::Tensor& targets) {
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
  const at::Tensor loss = network->forward(tokens, targets);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCUDA, false);
  return loss;
}

void make(Way& way, const std::string& kind, const benchmarks::Weights& weights) {
  benchmarks::load(*way.network, weights);
  way.network->to(at::kCUDA);
  way.optimizer = std::make_unique<torch::optim::AdamW>(way.network->parameters(), torch::optim::AdamWOptions(1e-4));
  const auto loss = [&way](const at::Tensor& x, const at::Tensor& y) { return loss_of(way.network, x, y); };
  const auto update = [&way] { way.optimizer->step(); };
  const auto step = [&way](const auto& one_loss, const auto& one_update) {
    return [&way, one_loss, one_update](const at::Tensor& x, const at::Tensor& y) {
      way.optimizer->zero_grad();
      const at::Tensor got = one_loss(x, y);
      got.backward();
      one_update();
      return got;
    };
  };
  if (kind == "eager") {
    way.step = step(loss, update);
  } else if (kind == "step") {
    const auto compiled =
        torchcc::compile(step(loss, update), {.mode = torchcc::CompileMode::lazy, .name = "step", .timeout = 1200});
    way.step = compiled;
    way.stats = [compiled] { return compiled.stats().str(); };
  } else {
    const auto one = torchcc::compile(loss, {.name = "loss", .cuda_graphs = kind == "graphs"});
    const auto other = torchcc::compile(update, {.mode = torchcc::CompileMode::lazy, .name = "update"});
    way.step = step(one, other);
    way.stats = [one, other] { return one.stats().str() + other.stats().str(); };
  }
}

}  // namespace

int main(int, char** arguments) try {
  const benchmarks::Weights weights = benchmarks::load_weights(arguments[1]);
  std::vector<std::pair<at::Tensor, at::Tensor>> batches;
  for (const at::Tensor& text : weights.at("text").to(at::kCUDA).unbind()) {
    batches.emplace_back(text.narrow(1, 0, kTokens).contiguous(), text.narrow(1, 1, kTokens).contiguous());
  }
  std::map<std::string, Way> ways;
  std::string kind;
  for (int64_t steps = 0; std::cin >> kind >> steps;) {
    Way& way = ways[kind];
    const auto call = [&] {
      const auto& [x, y] = batches[way.done++ % batches.size()];
      return way.step(x, y);
    };
    if (steps == 0) {
      make(way, kind, weights);
      std::vector<double> losses;
      for (int i = 0; i < kCheckedSteps; ++i) losses.push_back(call().item<double>());
      std::cout << nlohmann::json{{"losses", losses}, {"stats", way.stats()}}.dump() << std::endl;
      continue;
    }
    const c10::impl::VirtualGuardImpl cuda(c10::kCUDA);
    call();
    cuda.synchronizeDevice(0);
    const auto start = Clock::now();
    for (int64_t i = 0; i < steps; ++i) call();
    cuda.synchronizeDevice(0);
    const double spent = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    std::cout << nlohmann::json{{"total", spent / static_cast<double>(steps)}}.dump() << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
