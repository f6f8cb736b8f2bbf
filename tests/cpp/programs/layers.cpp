// torch::nn layers that are not about images or sequences, and ways of putting modules together.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;
namespace F = torch::nn::functional;

namespace {

struct ResidualImpl : nn::Module {
  explicit ResidualImpl(int64_t width)
      : norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})))),
        first(register_module("first", nn::Linear(width, 2 * width))),
        second(register_module("second", nn::Linear(2 * width, width))),
        scale(register_parameter("scale", torch::randn({width}))),
        shift(register_buffer("shift", torch::randn({width}))) {}

  Tensor forward(const Tensor& x) { return x + second(torch::gelu(first(norm(x)))) * scale + shift; }

  nn::LayerNorm norm;
  nn::Linear first, second;
  Tensor scale, shift;
};
TORCH_MODULE(Residual);

auto rows(int64_t count, int64_t width) {
  return [=](int) { return std::tuple(torch::randn({count, width})); };
}

}  // namespace

BOOST_AUTO_TEST_SUITE(layers)

BOOST_AUTO_TEST_CASE(linear) {
  check([] {
    nn::Linear net(8, 4);
    return program([net](Tensor x) mutable { return net->forward(x); }, rows(3, 8), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(linear_module_itself, *boost::unit_test::label("slow")) {
  check([] {
    nn::Linear net(nn::LinearOptions(8, 4).bias(false));
    return program(net, rows(3, 8), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(activations) {
  check([] {
    nn::PReLU prelu(nn::PReLUOptions().num_parameters(1));
    nn::RReLU rrelu;
    rrelu->eval();
    return program(
        [=](Tensor x) mutable {
          std::vector<Tensor> y = {torch::relu(x),
                                   torch::gelu(x),
                                   F::gelu(x, F::GELUFuncOptions().approximate("tanh")),
                                   torch::silu(x),
                                   torch::tanh(x),
                                   torch::sigmoid(x),
                                   F::elu(x),
                                   F::leaky_relu(x, F::LeakyReLUFuncOptions().negative_slope(0.2)),
                                   F::softplus(x),
                                   F::hardtanh(x),
                                   F::mish(x),
                                   F::softmax(x, 1),
                                   F::log_softmax(x, -1),
                                   F::selu(x),
                                   F::celu(x),
                                   F::hardshrink(x),
                                   F::softshrink(x),
                                   F::softsign(x),
                                   F::tanhshrink(x),
                                   F::threshold(x, F::ThresholdFuncOptions(0.1, 20)),
                                   F::logsigmoid(x),
                                   F::relu6(x),
                                   prelu(x),
                                   rrelu(x)};
          return std::tuple(torch::stack(y), F::glu(x), F::softmin(x, 1));
        },
        rows(4, 10), tensors_of(prelu));
  });
}

BOOST_AUTO_TEST_CASE(norms) {
  check([] {
    nn::Sequential net(nn::GroupNorm(2, 6), nn::InstanceNorm1d(nn::InstanceNorm1dOptions(6).affine(true)),
                       nn::LayerNorm(nn::LayerNormOptions({5}).eps(1e-3)));
    return program(
        [net](Tensor x) mutable {
          return std::pair(net->forward(x), F::normalize(x, F::NormalizeFuncOptions().p(2).dim(1)));
        },
        [](int) { return std::tuple(torch::randn({3, 6, 5})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(batch_norm_in_eval) {
  check([] {
    nn::Sequential net(nn::Linear(6, 5), nn::BatchNorm1d(5), nn::ReLU());
    for (const Tensor& buffer : net->buffers()) {
      if (buffer.is_floating_point()) buffer.uniform_(0.5, 1.5);
    }
    net->eval();
    return program([net](Tensor x) mutable { return net->forward(x); }, rows(7, 6), tensors_of(net));
  });
}

// The running statistics and the counter of batches change on each call.
BOOST_AUTO_TEST_CASE(batch_norm_in_training) {
  check([] {
    nn::Sequential net(nn::Linear(6, 5), nn::BatchNorm1d(5), nn::ReLU());
    net->train();
    return program([net](Tensor x) mutable { return net->forward(x); }, rows(7, 6), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(batch_norm_2d_in_training_as_module, *boost::unit_test::label("slow")) {
  check([] {
    nn::BatchNorm2d net(nn::BatchNorm2dOptions(3).momentum(0.3));
    return program(net, [](int) { return std::tuple(torch::randn({2, 3, 4, 4})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(dropout_in_eval, *boost::unit_test::label("slow")) {
  check([] {
    nn::Sequential net(nn::Dropout(0.4), nn::Linear(6, 6), nn::AlphaDropout(0.5), nn::FeatureAlphaDropout(0.5),
                       nn::Dropout2d(0.3));
    net->eval();
    return program(
        [net](Tensor x) mutable { return net->forward(x) + F::dropout(x, F::DropoutFuncOptions().training(false)); },
        [](int) { return std::tuple(torch::randn({2, 3, 4, 6})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(embeddings) {
  check([] {
    nn::Embedding words(nn::EmbeddingOptions(20, 6).padding_idx(3));
    nn::EmbeddingBag bags(nn::EmbeddingBagOptions(20, 6).mode(torch::kSum));
    return program(
        [=](Tensor tokens, Tensor offsets) mutable {
          const Tensor ascending = std::get<0>(offsets.sort());  // also where there are more of them: check_sizes()
          return std::tuple(words(tokens), bags(tokens.flatten(), ascending), F::one_hot(tokens, 20));
        },
        [](int) { return std::tuple(torch::randint(20, {3, 4}), torch::tensor({0, 5, 9})); },
        [=] { return std::vector<Tensor>{words->weight, bags->weight}; });
  });
}

BOOST_AUTO_TEST_CASE(losses) {
  check([] {
    return program(
        [](Tensor x, Tensor y, Tensor labels) {
          const Tensor p = torch::sigmoid(y);
          return std::vector<Tensor>{
              torch::mse_loss(x, y),
              torch::nn::functional::cross_entropy(x, labels),
              F::nll_loss(F::log_softmax(x, 1), labels),
              torch::binary_cross_entropy_with_logits(x, p),
              F::smooth_l1_loss(x, y),
              F::huber_loss(x, y),
              F::l1_loss(x, y, F::L1LossFuncOptions(torch::kNone)),
              F::kl_div(F::log_softmax(x, 1), F::softmax(y, 1), F::KLDivFuncOptions(torch::kBatchMean)),
              F::cosine_embedding_loss(x, y, labels.sign() * 2 - 1)};
        },
        [](int) { return std::tuple(torch::randn({4, 5}), torch::randn({4, 5}), torch::randint(5, {4})); });
  });
}

BOOST_AUTO_TEST_CASE(distances, *boost::unit_test::label("slow")) {
  check([] {
    nn::Bilinear both(4, 4, 3);
    nn::CosineSimilarity cosine(nn::CosineSimilarityOptions().dim(1));
    nn::PairwiseDistance distance(nn::PairwiseDistanceOptions().p(2));
    return program(
        [=](Tensor x, Tensor y) mutable {
          return std::tuple(both(x, y), cosine(x, y), distance(x, y), torch::cdist(x, y));
        },
        [](int) { return std::tuple(torch::randn({5, 4}), torch::randn({5, 4})); }, tensors_of(both));
  });
}

BOOST_AUTO_TEST_CASE(sequential, *boost::unit_test::label("slow")) {
  check([] {
    nn::Sequential net({{"first", nn::Linear(8, 16).ptr()},
                        {"act", nn::Functional(torch::relu).ptr()},
                        {"second", nn::Linear(16, 3).ptr()},
                        {"shape", nn::Unflatten(1, std::vector<int64_t>{3, 1}).ptr()}});
    return program(net, rows(3, 8), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(module_holder, *boost::unit_test::label("slow")) {
  check([] {
    Residual net(8);
    return program(net, rows(3, 8), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(module_by_shared_pointer, *boost::unit_test::label("slow")) {
  check([] {
    auto net = std::make_shared<ResidualImpl>(8);
    return program(net, rows(3, 8), tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(module_list_with_frozen_weights, *boost::unit_test::label("slow")) {
  check(
      [] {
        nn::ModuleList blocks;
        for (int i = 0; i < 3; ++i) blocks->push_back(Residual(16));
        return program(
            [blocks](Tensor x) {
              for (const auto& block : *blocks) x = block->as<Residual>()->forward(x);
              return x;
            },
            rows(4, 16), tensors_of(blocks));
      },
      {}, freezing_options());
}

BOOST_AUTO_TEST_SUITE_END()
