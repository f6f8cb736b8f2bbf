// The convolutional network of convolutional.cpp and training.cpp, as a user of LibTorch writes it.
#pragma once

#include <torch/torch.h>

namespace digits {

struct Network : torch::nn::Module {
  torch::nn::Sequential features = register_module(
      "features", torch::nn::Sequential(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1).bias(false)),
                                        torch::nn::BatchNorm2d(16), torch::nn::ReLU(),
                                        torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1).bias(false)),
                                        torch::nn::BatchNorm2d(32), torch::nn::ReLU(), torch::nn::MaxPool2d(2)));
  torch::nn::Dropout dropout;
  torch::nn::Linear head = register_module("head", torch::nn::Linear(32 * 4 * 4, 10));

  /// Without dropout, two trainings from the same weights on the same batches have the same losses.
  explicit Network(double dropout_rate) : dropout(register_module("dropout", torch::nn::Dropout(dropout_rate))) {}

  at::Tensor forward(const at::Tensor& images) {
    const at::Tensor x = images.to(torch::kFloat32).unsqueeze(1) / 16;
    return head(dropout(features->forward(x).flatten(1)));
  }
};

}  // namespace digits
