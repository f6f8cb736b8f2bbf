#include "trainings.h"

#include <stdexcept>

#include "layer.h"

namespace benchmarks {
namespace {

torch::nn::Sequential mlp() {
  using torch::nn::Linear;
  using torch::nn::ReLU;
  return torch::nn::Sequential(Linear(64, 256), ReLU(), Linear(256, 256), ReLU(), Linear(256, 10));
}

torch::nn::Sequential cnn() {
  torch::nn::Sequential network;
  const auto block = [&](int64_t inputs, int64_t outputs, int64_t stride) {
    const auto options = torch::nn::Conv2dOptions(inputs, outputs, 3).stride(stride).padding(1).bias(false);
    network->push_back(torch::nn::Conv2d(options));
    network->push_back(torch::nn::BatchNorm2d(outputs));
    network->push_back(torch::nn::ReLU());
  };
  block(3, 16, 1);
  block(16, 32, 2);
  block(32, 64, 2);
  network->push_back(torch::nn::AdaptiveAvgPool2d(torch::nn::AdaptiveAvgPool2dOptions({1, 1})));
  network->push_back(torch::nn::Flatten());
  network->push_back(torch::nn::Linear(64, 10));
  return network;
}

struct GptImpl : torch::nn::Module {
  static constexpr int64_t kTokens = 256, kContext = 64, kWidth = 128, kLayers = 2;
  torch::nn::Embedding token{kTokens, kWidth};
  at::Tensor position = register_parameter("position", torch::zeros({kContext, kWidth}));
  torch::nn::ModuleList layers;
  torch::nn::LayerNorm norm{torch::nn::LayerNormOptions({kWidth})};
  torch::nn::Linear head{torch::nn::LinearOptions(kWidth, kTokens).bias(false)};

  GptImpl() {
    for (int64_t i = 0; i < kLayers; ++i) layers->push_back(Layer(kWidth, /*is_causal=*/true));
    register_module("token", token);
    register_module("layers", layers);
    register_module("norm", norm);
    register_module("head", head);
  }

  /// Scores of the next token, one row for each token of the batch.
  at::Tensor forward(const at::Tensor& tokens) {
    at::Tensor x = token->forward(tokens) + position;
    for (const auto& layer : *layers) x = layer->as<Layer>()->forward(x);
    return head->forward(norm->forward(x)).flatten(0, 1);
  }
};
TORCH_MODULE(Gpt);

template <class Optimizer, class Net, class Options>
Training train(Net network, const Weights& weights, const Options& options) {
  load(*network, weights);
  return {
      .forward = [network](const at::Tensor& x) mutable { return network->forward(x); },
      .optimizer = std::make_unique<Optimizer>(network->parameters(), options),
  };
}

}  // namespace

Training make_training(const std::string& name, const Weights& weights) {
  if (name == "mlp") return train<torch::optim::Adam>(mlp(), weights, torch::optim::AdamOptions(1e-3));
  if (name == "cnn") return train<torch::optim::SGD>(cnn(), weights, torch::optim::SGDOptions(0.01).momentum(0.9));
  if (name == "gpt") return train<torch::optim::AdamW>(Gpt(), weights, torch::optim::AdamWOptions(3e-4));
  throw std::runtime_error("no training '" + name + "'");
}

}  // namespace benchmarks
