// Recurrent networks, attention and transformers, and loops over time written by hand.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;

namespace {

auto sequence(std::vector<int64_t> sizes) {
  return [sizes](int) { return std::tuple(torch::randn(sizes)); };
}

}  // namespace

BOOST_AUTO_TEST_SUITE(sequences)

BOOST_AUTO_TEST_CASE(rnn, *boost::unit_test::label("slow")) {
  check([] {
    nn::RNN net(nn::RNNOptions(4, 5).nonlinearity(torch::kReLU));
    return program([net](Tensor x) mutable { return net->forward(x); }, sequence({6, 2, 4}), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(lstm) {
  check([] {
    nn::LSTM net(nn::LSTMOptions(4, 5).num_layers(2).bidirectional(true).batch_first(true));
    return program(
        [net](Tensor x, Tensor h, Tensor c) mutable { return net->forward(x, std::tuple(h, c)); },
        [](int) { return std::tuple(torch::randn({2, 4, 4}), torch::randn({4, 2, 5}), torch::randn({4, 2, 5})); },
        tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(gru, *boost::unit_test::label("slow")) {
  check([] {
    nn::GRU net(nn::GRUOptions(4, 5));
    return program([net](Tensor x) mutable { return std::get<0>(net->forward(x)).mean(0); }, sequence({5, 2, 4}),
                   tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(lstm_cell_100_steps) {
  check([] {
    nn::LSTMCell cell(3, 4);
    return program(
        [cell](Tensor x) mutable {
          Tensor h = torch::zeros({2, 4}), c = torch::zeros({2, 4});
          for (int step = 0; step < 100; ++step) std::tie(h, c) = cell(x[step], std::tuple(h, c));
          return std::tuple(h, c);
        },
        sequence({100, 2, 3}), tensors_of(cell));
  });
}

BOOST_AUTO_TEST_CASE(gru_and_rnn_cells) {
  check([] {
    nn::GRUCell gru(3, 4);
    nn::RNNCell rnn(4, 4);
    return program(
        [=](Tensor x, std::optional<Tensor> start) mutable {
          Tensor h = start.value_or(torch::zeros({2, 4}));
          std::vector<Tensor> seen;
          for (const Tensor& step : x.unbind(0)) {
            h = rnn(gru(step, h), h);
            seen.push_back(h);
          }
          return torch::stack(seen);
        },
        [](int) { return std::tuple(torch::randn({5, 2, 3}), std::optional<Tensor>(torch::randn({2, 4}))); },
        tensors_of(gru));
  });
}

BOOST_AUTO_TEST_CASE(multi_head_attention) {
  check([] {
    nn::MultiheadAttention net(nn::MultiheadAttentionOptions(8, 2).dropout(0.1));
    net->eval();
    return program([net](Tensor q, Tensor kv) mutable { return net->forward(q, kv, kv); },
                   [](int) { return std::tuple(torch::randn({3, 2, 8}), torch::randn({5, 2, 8})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(self_attention_with_mask, *boost::unit_test::label("slow")) {
  check([] {
    nn::MultiheadAttention net(nn::MultiheadAttentionOptions(8, 2));
    return program(
        [net](Tensor x) mutable {
          const Tensor mask = torch::ones({4, 4}, torch::kBool).triu(1);
          return std::get<0>(net->forward(x, x, x, /*key_padding_mask=*/{}, /*need_weights=*/false, mask));
        },
        sequence({4, 2, 8}), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(scaled_dot_product_attention) {
  check([] {
    return program(
        [](Tensor q, Tensor k, Tensor v) { return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true); },
        [](int) {
          const auto heads = [] { return torch::randn({2, 5, 3, 8}).transpose(1, 2); };
          const Tensor q = heads(), k = heads();
          return std::tuple(q, k, heads());
        });
  });
}

BOOST_AUTO_TEST_CASE(transformer_encoder) {
  check([] {
    nn::TransformerEncoderLayer layer(
        nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(16).activation(torch::kGELU));
    nn::TransformerEncoder net(
        nn::TransformerEncoderOptions(layer, 2).norm(nn::AnyModule(nn::LayerNorm(nn::LayerNormOptions({8})))));
    net->eval();
    return program([net](Tensor x) mutable { return net->forward(x); }, sequence({4, 2, 8}), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(transformer_encoder_layer_with_frozen_weights, *boost::unit_test::label("slow")) {
  check(
      [] {
        nn::TransformerEncoderLayer net(nn::TransformerEncoderLayerOptions(16, 4).dim_feedforward(32));
        net->eval();
        return program(net, sequence({5, 2, 16}), tensors_of(net));
      },
      {}, freezing_options());
}

BOOST_AUTO_TEST_CASE(transformer_decoder) {
  check([] {
    nn::TransformerDecoderLayer layer(nn::TransformerDecoderLayerOptions(8, 2).dim_feedforward(16));
    nn::TransformerDecoder net(nn::TransformerDecoderOptions(layer, 1));
    net->eval();
    return program(
        [net](Tensor target, Tensor memory) mutable {
          return net->forward(target, memory, nn::TransformerImpl::generate_square_subsequent_mask(target.size(0)));
        },
        [](int) { return std::tuple(torch::randn({3, 2, 8}), torch::randn({4, 2, 8})); }, tensors_of(net));
  });
}

// One token per call: each call writes its keys and values at a position, which is an argument, and reads all before.
BOOST_AUTO_TEST_CASE(key_value_cache_mutated_in_place) {
  check([] {
    nn::Linear project(8, 24);
    auto cache = std::make_shared<std::array<Tensor, 2>>();
    for (Tensor& part : *cache) part = torch::randn({2, 6, 8});
    return program(
        [project, cache](Tensor token, Tensor position) mutable {
          auto& [keys, values] = *cache;
          const std::vector<Tensor> qkv = project(token).chunk(3, -1);
          keys.index_copy_(1, position, qkv[1].unsqueeze(1));
          values.index_copy_(1, position, qkv[2].unsqueeze(1));
          const Tensor later = torch::arange(6) > position;
          const Tensor scores = torch::einsum("bd,btd->bt", {qkv[0], keys}).masked_fill(later, -INFINITY);
          return torch::einsum("bt,btd->bd", {torch::softmax(scores, -1), values});
        },
        [](int call) { return std::tuple(torch::randn({2, 8}), torch::tensor({call % 6})); },
        [=] { return std::vector<Tensor>{(*cache)[0], (*cache)[1], project->weight}; });
  });
}

BOOST_AUTO_TEST_CASE(leapfrog_100_steps, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor position, Tensor velocity) {
          const auto force = [](const Tensor& x) { return -x * torch::rsqrt(x.square().sum(1, /*keepdim=*/true) + 1); };
          const double step = 0.01;
          for (int i = 0; i < 100; ++i) {
            velocity = velocity + 0.5 * step * force(position);
            position = position + step * velocity;
            velocity = velocity + 0.5 * step * force(position);
          }
          return std::pair(position, velocity);
        },
        [](int) {
          const Tensor start = torch::randn({6, 3}, torch::kDouble);
          return std::tuple(start, torch::randn({6, 3}, torch::kDouble));
        });
  });
}

BOOST_AUTO_TEST_SUITE_END()
