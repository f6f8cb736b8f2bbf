// Whole training steps: forward, backward and the optimiser in one compiled function. The same losses, weights and
// statistics as eager, for 200 steps; in double precision, so that rounding errors stay small.
#include "harness.h"

#include <torch/optim.h>

using namespace programs;
namespace nn = torch::nn;

namespace {

struct PerceptronImpl : nn::Module {
  Tensor forward(const Tensor& x) { return second(torch::relu(first(x))); }
  static std::pair<Tensor, Tensor> batch() {
    const Tensor x = torch::randn({16, 8});
    return {x, x.narrow(1, 0, 3).argmax(1)};
  }
  nn::Linear first = register_module("first", nn::Linear(8, 32)), second = register_module("second", nn::Linear(32, 3));
};
TORCH_MODULE(Perceptron);

/// Which quarter of an image is the brightest?
struct ConvolutionsImpl : nn::Module {
  Tensor forward(const Tensor& x) {
    Tensor y = torch::max_pool2d(torch::relu(norm(convolution(x))), 2);
    return last(torch::relu(deeper(y)).mean({2, 3}).flatten(1));
  }
  static std::pair<Tensor, Tensor> batch() {
    const Tensor quarter = torch::randint(4, {16});
    const Tensor bright = torch::one_hot(quarter, 4).to(torch::get_default_dtype()).view({16, 1, 2, 2});
    return {torch::randn({16, 1, 8, 8}) + 2 * torch::upsample_nearest2d(bright, {8, 8}), quarter};
  }
  nn::Conv2d convolution = register_module("convolution", nn::Conv2d(nn::Conv2dOptions(1, 6, 3).padding(1)));
  nn::BatchNorm2d norm = register_module("norm", nn::BatchNorm2d(6));
  nn::Conv2d deeper = register_module("deeper", nn::Conv2d(6, 12, 4));
  nn::Linear last = register_module("last", nn::Linear(12, 4));
};
TORCH_MODULE(Convolutions);

/// Is the sum of a sequence positive?
struct RecurrentImpl : nn::Module {
  Tensor forward(const Tensor& x) { return last(std::get<0>(lstm(x)).select(1, -1)); }
  static std::pair<Tensor, Tensor> batch() {
    const Tensor x = torch::randn({16, 6, 1});
    return {x, (x.sum({1, 2}) > 0).to(at::kLong)};
  }
  nn::LSTM lstm = register_module("lstm", nn::LSTM(nn::LSTMOptions(1, 12).batch_first(true)));
  nn::Linear last = register_module("last", nn::Linear(12, 2));
};
TORCH_MODULE(Recurrent);

/// The next number of a sequence that goes up in steps of 3, or of 5.
struct GptImpl : nn::Module {
  struct Block {
    nn::LayerNorm first{nn::LayerNormOptions({24})}, second{nn::LayerNormOptions({24})};
    nn::Linear qkv{24, 72}, out{24, 24}, up{24, 96}, down{96, 24};
  };
  GptImpl() {
    for (size_t i = 0; i < blocks.size(); ++i) {
      const std::string name = std::to_string(i);
      register_module("first" + name, blocks[i].first);
      register_module("second" + name, blocks[i].second);
      register_module("qkv" + name, blocks[i].qkv);
      register_module("out" + name, blocks[i].out);
      register_module("up" + name, blocks[i].up);
      register_module("down" + name, blocks[i].down);
    }
  }
  Tensor forward(const Tensor& index) {
    Tensor x = words(index) + places(torch::arange(index.size(1)));
    for (Block& block : blocks) {
      const auto parts =
          block.qkv(block.first(x)).view({x.size(0), x.size(1), 3, 2, 12}).permute({2, 0, 3, 1, 4}).unbind();
      const Tensor mixed = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0, true);
      x = x + block.out(mixed.transpose(1, 2).reshape(x.sizes()));
      x = x + block.down(torch::gelu(block.up(block.second(x))));
    }
    return last(norm(x)).flatten(0, 1);
  }
  static std::pair<Tensor, Tensor> batch() {
    const Tensor from = torch::randint(32, {8, 1}), step = torch::randint(2, {8, 1}) * 2 + 3;
    const Tensor all = (from + step * torch::arange(9)) % 32;
    return {all.narrow(1, 0, 8).contiguous(), all.narrow(1, 1, 8).reshape({-1})};
  }
  std::array<Block, 2> blocks;
  nn::Embedding words = register_module("words", nn::Embedding(32, 24));
  nn::Embedding places = register_module("places", nn::Embedding(8, 24));
  nn::LayerNorm norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({24})));
  nn::Linear last = register_module("last", nn::Linear(24, 32));
};
TORCH_MODULE(Gpt);

/// What is compiled.
enum class What { nothing, loss, step };

struct Curve {
  std::vector<double> losses;
  std::vector<Tensor> state;
};

template <class Net, class MakeOptimizer>
Curve train_for(What what, const MakeOptimizer& make_optimizer, bool clips) {
  constexpr int steps = 200;
  torch::manual_seed(3);
  Net net;
  const std::vector<Tensor> parameters = net->parameters();
  const std::unique_ptr<torch::optim::Optimizer> optimizer = make_optimizer(parameters);
  torch::optim::StepLR schedule(*optimizer, 80, 0.5);
  auto forward = [net](const Tensor& x, const Tensor& y) mutable {
    return torch::cross_entropy_loss(net->forward(x), y);
  };
  const auto compiled_forward = torchcc::compile(forward, plain_options());
  const auto step = [&](const Tensor& x, const Tensor& y) {
    optimizer->zero_grad();
    Tensor loss = what == What::loss ? compiled_forward(x, y) : forward(x, y);
    loss.backward();
    if (clips) nn::utils::clip_grad_norm_(parameters, 1.0);
    optimizer->step();
    return loss;
  };
  const auto compiled_step = torchcc::compile(step, plain_options());
  Curve curve;
  torchcc::CompileStats before;
  for (int i = 0; i < steps; ++i) {
    const auto [x, y] = std::decay_t<decltype(*net)>::batch();
    const Tensor loss = what == What::step ? compiled_step(x, y) : step(x, y);
    curve.losses.push_back(loss.template item<double>());
    schedule.step();
    if (i == steps / 2) before = compiled_step.stats();
  }
  if (what == What::loss) BOOST_TEST(compiled_forward.stats().replayed == steps - 2, compiled_forward.stats().str());
  if (what == What::step) {
    const torchcc::CompileStats after = compiled_step.stats();
    const int64_t ran = after.compiled_ops - before.compiled_ops, all = ran + after.eager_ops - before.eager_ops;
    BOOST_TEST(static_cast<double>(ran) >= 0.8 * static_cast<double>(all), after.str());
    BOOST_TEST(all > 0);
  }
  curve.state = net->parameters();
  for (const Tensor& buffer : net->buffers()) curve.state.push_back(buffer);
  for (const Tensor& parameter : parameters) curve.state.push_back(parameter.grad());
  return curve;
}

template <class Net, class MakeOptimizer>
void check_curve(What what, const MakeOptimizer& make_optimizer, bool clips = false) {
  torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
  const Curve eager = train_for<Net>(What::nothing, make_optimizer, clips);
  const Curve compiled = train_for<Net>(what, make_optimizer, clips);
  torch::set_default_dtype(caffe2::TypeMeta::Make<float>());
  for (size_t i = 0; i < eager.losses.size(); ++i) {
    BOOST_TEST(std::abs(eager.losses[i] - compiled.losses[i]) < 1e-6, "step " << i);
  }
  for (size_t i = 0; i < eager.state.size(); ++i) BOOST_TEST(difference(compiled.state[i], eager.state[i], 1e4) == "");
  BOOST_TEST(eager.losses.back() < 0.6 * eager.losses.front());
}

auto momentum(const std::vector<Tensor>& parameters) {
  return std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.05).momentum(0.9));
}

auto adam(const std::vector<Tensor>& parameters) {
  return std::make_unique<torch::optim::Adam>(parameters, torch::optim::AdamOptions(1e-2));
}

auto adamw(const std::vector<Tensor>& parameters) {
  return std::make_unique<torch::optim::AdamW>(parameters, torch::optim::AdamWOptions(5e-3));
}

auto rmsprop(const std::vector<Tensor>& parameters) {
  return std::make_unique<torch::optim::RMSprop>(parameters, torch::optim::RMSpropOptions(1e-3));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(steps)

BOOST_AUTO_TEST_CASE(perceptron_with_rmsprop, *boost::unit_test::label("slow")) {
  check_curve<Perceptron>(What::step, rmsprop);
}

BOOST_AUTO_TEST_CASE(convolutions_with_momentum) { check_curve<Convolutions>(What::step, momentum); }

BOOST_AUTO_TEST_CASE(lstm_with_adam) { check_curve<Recurrent>(What::step, adam); }

BOOST_AUTO_TEST_CASE(gpt_with_adamw_schedule_and_clipping) { check_curve<Gpt>(What::step, adamw, true); }

// The same with a compiled loss, and an optimiser that runs eagerly.
BOOST_AUTO_TEST_CASE(perceptron_loss) { check_curve<Perceptron>(What::loss, adamw, true); }

BOOST_AUTO_TEST_CASE(convolutions_loss, *boost::unit_test::label("slow")) {
  check_curve<Convolutions>(What::loss, momentum);
}

BOOST_AUTO_TEST_CASE(lstm_loss, *boost::unit_test::label("slow")) { check_curve<Recurrent>(What::loss, adam); }

BOOST_AUTO_TEST_CASE(gpt_loss, *boost::unit_test::label("slow")) { check_curve<Gpt>(What::loss, adamw, true); }

BOOST_AUTO_TEST_SUITE_END()
