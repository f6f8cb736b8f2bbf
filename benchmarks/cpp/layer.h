#pragma once

#include <torch/torch.h>

namespace benchmarks {

/// Layer of benchmarks/models.py: one layer of an encoder, or of a GPT if causal.
struct LayerImpl : torch::nn::Module {
  torch::nn::LayerNorm norm1, norm2;
  torch::nn::Linear qkv, out, up, down;
  bool causal;

  explicit LayerImpl(int64_t width = 256, bool is_causal = false)
      : norm1(torch::nn::LayerNormOptions({width})),
        norm2(torch::nn::LayerNormOptions({width})),
        qkv(width, 3 * width),
        out(width, width),
        up(width, 4 * width),
        down(4 * width, width),
        causal(is_causal) {
    register_module("norm1", norm1);
    register_module("qkv", qkv);
    register_module("out", out);
    register_module("norm2", norm2);
    register_module("up", up);
    register_module("down", down);
  }

  at::Tensor forward(at::Tensor x) {
    const int64_t b = x.size(0), t = x.size(1), d = x.size(2);
    auto parts = qkv->forward(norm1->forward(x)).view({b, t, 3, 4, d / 4}).permute({2, 0, 3, 1, 4});
    auto attention = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, causal);
    x = x + out->forward(attention.transpose(1, 2).reshape({b, t, d}));
    return x + down->forward(torch::gelu(up->forward(norm2->forward(x))));
  }
};
TORCH_MODULE(Layer);

}  // namespace benchmarks
