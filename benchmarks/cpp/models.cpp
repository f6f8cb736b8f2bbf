#include "models.h"

#include <stdexcept>

#include <torchcc/torchcc.h>

#include "layer.h"

namespace benchmarks {
namespace {

at::Tensor chain(const at::Tensor& x) {
  auto y = torch::tanh(x * 1.5 + 0.25);
  auto z = torch::sigmoid(x - y) * y;
  return torch::relu(z + x * 0.5) - y * y;
}

struct NormGeluImpl : torch::nn::Module {
  torch::nn::LayerNorm norm{torch::nn::LayerNormOptions({768})};
  NormGeluImpl() { register_module("norm", norm); }
  at::Tensor forward(const at::Tensor& x) { return torch::gelu(norm->forward(x)); }
};
TORCH_MODULE(NormGelu);

struct MlpImpl : torch::nn::Module {
  torch::nn::Linear first{128, 256}, second{256, 256}, third{256, 10};
  MlpImpl() {
    register_module("first", first);
    register_module("second", second);
    register_module("third", third);
  }
  at::Tensor forward(at::Tensor x) {
    x = torch::relu(first->forward(x));
    x = torch::relu(second->forward(x));
    return third->forward(x);
  }
};
TORCH_MODULE(Mlp);

struct EncoderImpl : torch::nn::Module {
  torch::nn::ModuleList layers;
  torch::nn::LayerNorm norm{torch::nn::LayerNormOptions({256})};
  EncoderImpl() {
    for (int i = 0; i < 6; ++i) layers->push_back(Layer());
    register_module("layers", layers);
    register_module("norm", norm);
  }
  at::Tensor forward(at::Tensor x) {
    for (const auto& layer : *layers) x = layer->as<Layer>()->forward(x);
    return norm->forward(x);
  }
};
TORCH_MODULE(Encoder);

template <class F>
Model both(F function, const std::string& name) {
  torchcc::CompileOptions options;
  options.name = name;
  auto compiled = torchcc::compile(function, options);
  return {
      .eager = function,
      .compiled = compiled,
      .stats = [compiled] { return compiled.stats(); },
      .wait = [compiled] { compiled.wait(); },
  };
}

template <class Net>
Model both_of(Net net, const std::string& name, const Weights& weights) {
  load(*net, weights);
  net->eval();
  return both([net](const at::Tensor& x) mutable { return net->forward(x); }, name);
}

}  // namespace

void load(torch::nn::Module& module, const Weights& weights) {
  const torch::NoGradGuard no_grad;
  for (auto& item : module.named_parameters()) item.value().copy_(weights.at(item.key()));
}

Model make_model(const std::string& name, const Weights& weights) {
  if (name == "chain") return both(chain, name);
  if (name == "norm_gelu") return both_of(NormGelu(), name, weights);
  if (name == "mlp_1" || name == "mlp_256") return both_of(Mlp(), name, weights);
  if (name == "encoder") return both_of(Encoder(), name, weights);
  if (name == "library_encoder") {
    const auto layer = torch::nn::TransformerEncoderLayerOptions(256, 4).dim_feedforward(1024).dropout(0.0);
    return both_of(torch::nn::TransformerEncoder(torch::nn::TransformerEncoderOptions(layer, 6)), name, weights);
  }
  throw std::runtime_error("no model '" + name + "'");
}

}  // namespace benchmarks
