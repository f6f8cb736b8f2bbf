// Arguments and results of every kind, kinds of callables, and modes of PyTorch around and inside the function.
#include "autocast.h"
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;

namespace {

enum class Mode { add, multiply };

Tensor scaled(const Tensor& x, double factor) { return x * factor; }

Tensor free_function(Tensor x, const Tensor& y) { return torch::addcmul(x, x, y); }

struct Affine {
  Tensor scale, shift;
  Tensor operator()(const Tensor& x) const { return x * scale + shift; }
};

auto one(int) { return std::tuple(torch::randn({3, 4})); }

auto two(int) {
  const Tensor x = torch::randn({3, 4});
  return std::tuple(x, torch::randn({3, 4}));
}

}  // namespace

BOOST_AUTO_TEST_SUITE(signatures)

BOOST_AUTO_TEST_CASE(function_pointer) {
  check([] { return program(&free_function, two); });
}

BOOST_AUTO_TEST_CASE(functor, *boost::unit_test::label("slow")) {
  check([] { return program(Affine{torch::randn({4}), torch::randn({4})}, one); });
}

BOOST_AUTO_TEST_CASE(standard_function, *boost::unit_test::label("slow")) {
  check([] { return program(std::function<Tensor(Tensor)>([](const Tensor& x) { return scaled(x, 3).cos(); }), one); });
}

BOOST_AUTO_TEST_CASE(generic_lambda, *boost::unit_test::label("slow")) {
  check([] { return program([](const auto& x, auto... rest) { return (x + ... + rest).sin(); }, two); });
}

BOOST_AUTO_TEST_CASE(numbers_texts_and_enums) {
  check([] {
    return program(
        [](Tensor x, int64_t axis, int count, double factor, float shift, bool flip, const std::string& activation,
           Mode mode) {
          Tensor y = x.sum(axis) * factor + shift;
          for (int i = 0; i < count; ++i) y = mode == Mode::multiply ? y * 1.5 : y + 1.5;
          if (flip) y = y.flip(0);
          return activation == "tanh" ? y.tanh() : y.relu();
        },
        [](int) {
          return std::tuple(torch::randn({3, 4}), int64_t{1}, 3, 0.25, 1.5F, true, std::string("tanh"), Mode::multiply);
        });
  });
}

BOOST_AUTO_TEST_CASE(containers_of_tensors) {
  check([] {
    return program(
        [](const std::vector<Tensor>& xs, std::optional<Tensor> bias, const std::optional<Tensor>& none,
           std::array<Tensor, 2> pair, std::vector<int64_t> sizes) {
          Tensor y = torch::cat(xs, 0).view(sizes) * pair[0] + pair[1];
          if (bias) y = y + *bias;
          if (none) y = y * *none;
          return std::array<Tensor, 2>{y, y.mean(0)};
        },
        [](int) {
          std::vector<Tensor> xs = {torch::randn({2, 3}), torch::randn({1, 3}), torch::randn({1, 3})};
          const Tensor bias = torch::randn({2}), scale = torch::randn({2});
          return std::tuple(xs, std::optional<Tensor>(bias), std::optional<Tensor>(),
                            std::array<Tensor, 2>{scale, torch::randn({2})}, std::vector<int64_t>{6, 2});
        });
  });
}

BOOST_AUTO_TEST_CASE(undefined_tensor_as_argument, *boost::unit_test::label("slow")) {
  check([] {
    return program([](Tensor x, Tensor mask) { return mask.defined() ? x * mask : x.exp(); },
                   [](int) { return std::tuple(torch::randn({3}), Tensor()); });
  });
}

BOOST_AUTO_TEST_CASE(results_of_many_kinds) {
  check([] {
    return program(
        [](Tensor x, bool with_mean) {
          std::optional<Tensor> mean;
          if (with_mean) mean = x.mean();
          return std::tuple(x.relu(), std::vector<Tensor>{x + 1, x.sum(0)}, mean, std::optional<Tensor>(), x.size(0),
                            0.5, std::string("done"), std::pair(x.dim() == 2, x.neg()), Tensor());
        },
        [](int) { return std::tuple(torch::randn({3, 4}), true); });
  });
}

BOOST_AUTO_TEST_CASE(nothing_as_result, *boost::unit_test::label("slow")) {
  check([] {
    const Tensor log = torch::randn({3, 4});
    return program([log](Tensor x) { log.add_(x); }, one, [log] { return std::vector<Tensor>{log}; });
  });
}

BOOST_AUTO_TEST_CASE(no_arguments, *boost::unit_test::label("slow")) {
  check([] {
    const Tensor state = torch::randn({4});
    return program([state] { return state.mul_(0.9).sum(); }, [](int) { return std::tuple(); },
                   [state] { return std::vector<Tensor>{state}; });
  });
}

BOOST_AUTO_TEST_CASE(no_operators) {
  check([] { return program([](Tensor x, Tensor y) { return std::pair(y, x); }, two); });
}

BOOST_AUTO_TEST_CASE(empty_tensors, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x, Tensor none) { return std::pair(torch::cat({x, none}) * 2, none.sum() + none.numel()); },
        [](int) { return std::tuple(torch::randn({3, 4}), torch::empty({0, 4})); });
  });
}

BOOST_AUTO_TEST_CASE(scalars_as_tensors, *boost::unit_test::label("slow")) {
  check(
      [] {
        return program([](Tensor x, Tensor factor, Tensor shift) { return x * factor + shift; },
                       [](int) {
                         const Tensor x = torch::randn({3}), factor = torch::randn({}, torch::kDouble);
                         return std::tuple(x, factor, torch::randint(1, 9, {}));
                       });
      },
      {.gradient_tolerance = 1e5});  // the sum is one of float32
}

BOOST_AUTO_TEST_CASE(nested_compiled_function) {
  check([] {
    auto inner = torchcc::compile([](Tensor x) { return x.sin() + 1; }, plain_options());
    return program([inner](Tensor x, Tensor y) { return inner(x * 2) * inner(y); }, two);
  });
}

BOOST_AUTO_TEST_CASE(nested_modes, *boost::unit_test::label("slow")) {
  check(
      [] {
        nn::Linear net(4, 4);
        return program(
            [net](Tensor x) mutable {
              Tensor y;
              {
                const torch::NoGradGuard no_grad;
                y = net->forward(x);
                const torch::AutoGradMode grad(false);
                y = y.relu();
              }
              {
                const Autocast autocast(true);
                y = net->forward(y) + torch::mm(y, y.t()).sum();
                const Autocast off(false);
                y = y.to(torch::kFloat) + torch::mm(y.to(torch::kFloat), net->weight);
              }
              return std::pair(y, net->forward(y));
            },
            one, tensors_of(net));
      },
      {.tolerance = 300, .gradient_tolerance = 300});  // of bfloat16
}

BOOST_AUTO_TEST_CASE(autocast_around_the_call, *boost::unit_test::label("slow")) {
  const Autocast autocast(true);
  check(
      [] {
        nn::Sequential net(nn::Linear(4, 8), nn::LayerNorm(nn::LayerNormOptions({8})), nn::GELU(), nn::Linear(8, 2));
        return program([net](Tensor x) mutable { return net->forward(x).softmax(-1); }, one, tensors_of(net));
      },
      {.gradient_tolerance = 300});  // of bfloat16
}

BOOST_AUTO_TEST_CASE(inference_mode_around_the_call) {
  const c10::InferenceMode inference;
  check([] {
    nn::Linear net(4, 4);
    const Tensor kept = torch::randn({4});
    return program(
        [=](Tensor x) mutable {
          kept.add_(x[0]);
          return net->forward(x) * kept;
        },
        one, [kept] { return std::vector<Tensor>{kept}; });
  });
}

BOOST_AUTO_TEST_CASE(inference_mode_inside, *boost::unit_test::label("slow")) {
  check([] {
    nn::Linear net(4, 4);
    return program(
        [=](Tensor x) mutable {
          const c10::InferenceMode inference;
          return net->forward(x).relu();
        },
        one, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(other_default_dtype, *boost::unit_test::label("slow")) {
  torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
  check([] {
    return program([](Tensor x) { return x + torch::ones({4}) * torch::arange(4) / 3 + torch::full({4}, 0.1); }, one);
  });
  torch::set_default_dtype(caffe2::TypeMeta::Make<float>());
}

BOOST_AUTO_TEST_SUITE_END()
