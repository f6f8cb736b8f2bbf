// Functions whose results require grad: compiled forward and backward. The other suites run with gradients too, when
// TORCHCC_PROGRAMS is "training"; see harness.h.
#include "harness.h"

#include <ATen/core/grad_mode.h>

using namespace programs;
namespace nn = torch::nn;
namespace F = torch::nn::functional;

namespace {

auto one(int) { return std::tuple(torch::randn({3, 4})); }

template <class Make>
void check_trained(const Make& make, const Expect& expect = {}) {
  programs::check_trained(runners(make, plain_options()), expect);
}

/// A compiled function that is replayed from now on. `call` calls it once, and lets go of what it returned.
template <class Compiled, class Call>
void warm(const Compiled& compiled, const Call& call) {
  for (int i = 0; i < 3; ++i) call();
  compiled.wait();
  BOOST_TEST_REQUIRE(compiled.stats().replayed == 1, compiled.stats().str());
}

struct Loss {
  nn::Linear first{4, 8}, second{8, 2};
  Tensor operator()(const Tensor& x) { return second(torch::tanh(first(x))).square().mean(); }
  std::vector<Tensor> parameters() const {
    std::vector<Tensor> all = first->parameters();
    for (const Tensor& one : second->parameters()) all.push_back(one);
    return all;
  }
};

Tensor flat_gradients(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> parts;
  for (const Tensor& tensor : tensors) parts.push_back(tensor.grad().flatten());
  return torch::cat(parts);
}

}  // namespace

BOOST_AUTO_TEST_SUITE(training)

BOOST_AUTO_TEST_CASE(perceptron) {
  check_trained([] {
    Loss loss;
    return program(loss, one, [loss] { return loss.parameters(); });
  });
}

// There is nothing to compile, and nothing that gradients go through.
BOOST_AUTO_TEST_CASE(no_operators) {
  check_trained([] {
    return program([](Tensor x, Tensor y) { return std::pair(y, x); },
                   [](int) { return std::tuple(torch::randn({3, 4}), torch::randn({2})); });
  });
}

BOOST_AUTO_TEST_CASE(several_results) {
  check_trained([] {
    nn::Linear net(4, 4);
    return program(
        [net](Tensor x, Tensor index) mutable {
          const Tensor y = net(x);
          const auto [largest, where] = y.max(1);
          return std::tuple(y, y.detach() * 2, where, largest.exp(), index + 1, net->weight, y.t(), x.view({2, 6}));
        },
        [](int) { return std::tuple(torch::randn({3, 4}), torch::randint(5, {3})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(a_weight_twice, *boost::unit_test::label("slow")) {
  check_trained([] {
    nn::Linear net(4, 4);
    return program([net](Tensor x) mutable { return net(torch::relu(net(x))) + net->weight.sum() * x; }, one,
                   tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(parts_without_gradients, *boost::unit_test::label("slow")) {
  check_trained([] {
    nn::Linear net(4, 4);
    net->bias.set_requires_grad(false);
    return program(
        [net](Tensor x) mutable {
          const Tensor y = net(x);
          Tensor scale;
          {
            const torch::NoGradGuard no_grad;
            scale = y.std() + 1;
          }
          return y / scale - y.detach().mean() * x;
        },
        one, tensors_of(net));
  });
}

// As in reinforcement learning: the target network is asked without gradients.
BOOST_AUTO_TEST_CASE(a_network_without_gradients) {
  check_trained([] {
    nn::Linear net(4, 4), target(4, 4);
    return program(
        [net, target](Tensor x) mutable {
          Tensor best;
          {
            const torch::NoGradGuard no_grad;
            best = std::get<0>(target(x).max(1));
          }
          return torch::smooth_l1_loss(net(x).select(1, 0), best);
        },
        one, tensors_of(net));
  });
}

// A view requires grad if what it is a view of does, grad mode or not; but no gradient goes through this one.
BOOST_AUTO_TEST_CASE(views_made_with_grad_mode_off) {
  const Tensor weight = torch::randn({4, 4}).requires_grad_();
  const auto turn = [](const Tensor& x) {
    const torch::NoGradGuard no_grad;
    return x.t();
  };
  const std::vector<std::function<Tensor(Tensor)>> functions = {
      [&](Tensor x) { return x * turn(x).mean(); }, [&](Tensor x) { return turn(x); },
      [&](Tensor x) { return turn(x) * 2; },        [&](Tensor x) { return turn(x.mm(weight)); },
      [&](Tensor) { return turn(weight) * 2; },
  };
  for (const auto& function : functions) {
    for (const torchcc::CompileMode mode : {torchcc::CompileMode::automatic, torchcc::CompileMode::lazy}) {
      Options options = plain_options();
      options.mode = mode;
      const auto compiled = torchcc::compile(function, options);
      for (int call = 0; call < 5; ++call) {
        const Tensor x = torch::randn({4, 4}).requires_grad_();
        const auto gradient = [&](const Tensor& y) {
          return torch::autograd::grad({y.square().sum()}, {x}, {}, false, false, /*allow_unused=*/true)[0];
        };
        const Tensor got = compiled(x), expected = function(x);
        BOOST_TEST(got.requires_grad() == expected.requires_grad());
        BOOST_TEST(difference(got.detach(), expected.detach()) == "");
        if (got.requires_grad()) BOOST_TEST(difference(gradient(got), gradient(expected)) == "");
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(written_in_place) {
  check_trained([] {
    nn::Linear net(4, 4);
    return program(
        [net](Tensor x) mutable {
          Tensor y = net(x);
          y.mul_(2);
          y.select(1, 0).mul_(3);
          Tensor z = torch::zeros({3, 6});
          z.narrow(1, 1, 4).copy_(y);
          z.add_(1);
          return std::pair(y.sum(1), z);
        },
        one, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(running_statistics) {
  check_trained([] {
    nn::Sequential net(nn::Conv2d(3, 4, 3), nn::BatchNorm2d(4), nn::ReLU(), nn::MaxPool2d(2));
    return program([net](Tensor x) mutable { return net->forward(x).mean({2, 3}); },
                   [](int) { return std::tuple(torch::randn({2, 3, 10, 10})); }, tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(attention_and_recurrence) {
  check_trained([] {
    nn::Embedding words(20, 8);
    nn::LSTMCell cell(8, 8);
    return program(
        [words, cell](Tensor index) mutable {
          const Tensor x = words(index);
          const Tensor y = torch::scaled_dot_product_attention(x, x, x, {}, 0, true);
          auto [h, c] = cell(y.select(1, 0));
          for (int64_t step = 1; step < 3; ++step) std::tie(h, c) = cell(y.select(1, step), std::tuple(h, c));
          return h + c;
        },
        [](int) { return std::tuple(torch::randint(20, {2, 3})); },
        [words, cell] {
          std::vector<Tensor> all = words->parameters();
          for (const Tensor& one : cell->parameters()) all.push_back(one);
          return all;
        });
  });
}

BOOST_AUTO_TEST_CASE(double_precision, *boost::unit_test::label("slow")) {
  check_trained([] {
    return program([](Tensor x, Tensor y) { return (torch::sin(x) * y).cumsum(0).log1p().sum(); },
                   [](int) { return std::tuple(torch::rand({5, 3}, at::kDouble), torch::rand({5, 1}, at::kDouble)); });
  });
}

// Numerical derivatives, as torch.autograd.gradcheck makes them.
BOOST_AUTO_TEST_CASE(numerical_derivatives) {
  const auto function = [](const Tensor& x, const Tensor& w) {
    return torch::softmax(torch::layer_norm(x.matmul(w), {4}).pow(3), 1).square().sum();
  };
  const auto compiled = torchcc::compile(function, plain_options());
  const auto fresh = [] {
    return std::pair(torch::randn({3, 4}, at::kDouble).requires_grad_(),
                     torch::randn({4, 4}, at::kDouble).requires_grad_());
  };
  warm(compiled, [&] {
    const auto [x, w] = fresh();
    compiled(x, w).backward();
  });
  const auto [x, w] = fresh();
  compiled(x, w).backward();
  constexpr double step = 1e-6;
  const torch::NoGradGuard no_grad;
  for (const Tensor& leaf : {x, w}) {
    const Tensor flat = leaf.detach().view({-1});
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const double before = flat[i].item<double>();
      flat[i] = before + step;
      const double above = function(x, w).item<double>();
      flat[i] = before - step;
      const double below = function(x, w).item<double>();
      flat[i] = before;
      BOOST_TEST(std::abs((above - below) / (2 * step) - leaf.grad().flatten()[i].item<double>()) < 1e-6);
    }
  }
  BOOST_TEST(compiled.stats().replayed == 2);
}

// What PyTorch asks of matrices is asked in forward, once, and its errors are eager's.
BOOST_AUTO_TEST_CASE(checks_of_matrices) {
  const auto energy = [](const Tensor& a, const Tensor& b) {
    return (b * torch::cholesky_solve(b, torch::linalg_cholesky(a))).sum() + torch::linalg_inv(a).sum();
  };
  const auto arguments = [](double scale) {
    const Tensor x = torch::randn({4, 4}, at::kDouble);
    const Tensor a = (scale * (x.matmul(x.t()) + torch::eye(4, at::kDouble))).requires_grad_();
    return std::pair(a, torch::randn({4, 2}, at::kDouble).requires_grad_());
  };
  const auto compiled = torchcc::compile(energy, plain_options());
  const auto gradients = [&](const auto& function, const Tensor& a, const Tensor& b) {
    const Tensor loss = function(a, b);
    std::vector<Tensor> got = torch::autograd::grad({loss}, {a, b});
    got.push_back(loss.detach());
    return got;
  };
  warm(compiled, [&] {
    const auto [a, b] = arguments(1);
    gradients(compiled, a, b);
  });
  const auto [a, b] = arguments(2);
  const auto got = gradients(compiled, a, b), expected = gradients(energy, a, b);
  for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(difference(got[i], expected[i], 10) == "");
  const auto [negative, other] = arguments(-1);
  BOOST_CHECK_THROW(energy(negative, other), c10::LinAlgError);
  BOOST_CHECK_EXCEPTION(compiled(negative, other), c10::Error, [](const c10::Error& error) {
    BOOST_TEST_MESSAGE(error.what_without_backtrace());
    return std::string(error.what_without_backtrace()).find("not positive-definite") != std::string::npos;
  });
  BOOST_TEST(compiled.stats().replayed >= 2, compiled.stats().str());
}

BOOST_AUTO_TEST_CASE(views_of_arguments, *boost::unit_test::label("slow")) {
  check_trained(
      [] { return program([](Tensor x) { return std::tuple(x.t(), x.narrow(0, 1, 2), (x * 2).sum()); }, one); });
}

BOOST_AUTO_TEST_CASE(a_graph_before_and_behind, *boost::unit_test::label("slow")) {
  Loss loss;
  const auto compiled = torchcc::compile([loss](Tensor x) mutable { return loss(x); }, plain_options());
  const Tensor w = torch::randn({4, 4}).requires_grad_();
  const auto call = [&](auto& function, const Tensor& x) {
    for (const Tensor& one : loss.parameters()) one.mutable_grad().reset();
    w.mutable_grad().reset();
    (function(torch::sin(x.matmul(w))).exp() * 3).backward();
    return torch::cat({flat_gradients(loss.parameters()), w.grad().flatten()});
  };
  warm(compiled, [&] { call(compiled, torch::randn({3, 4})); });
  const Tensor x = torch::randn({3, 4});
  BOOST_TEST(difference(call(compiled, x), call(loss, x)) == "");
}

// What autograd does around a compiled function.
BOOST_AUTO_TEST_CASE(autograd_as_ever) {
  Loss loss;
  const std::vector<Tensor> weights = loss.parameters();
  const auto compiled = torchcc::compile([loss](Tensor x) mutable { return loss(x); }, plain_options());
  const auto reset = [&] {
    for (const Tensor& one : weights) one.mutable_grad().reset();
  };
  warm(compiled, [&] { compiled(torch::randn({3, 4})).backward(); });
  const Tensor x = torch::randn({3, 4});
  reset();
  loss(x).backward();
  const Tensor wanted = flat_gradients(weights);

  reset();  // retain_graph, and a graph that is gone
  Tensor result = compiled(x);
  result.backward({}, /*retain_graph=*/true);
  BOOST_TEST(difference(flat_gradients(weights), wanted) == "");
  result.backward();
  BOOST_TEST(difference(flat_gradients(weights), wanted * 2) == "");
  BOOST_CHECK_EXCEPTION(result.backward(), c10::Error, [](const c10::Error& error) {
    return missing(error.what(), "backward through the graph a second time") == "";
  });

  reset();  // only some gradients
  const auto some = torch::autograd::grad({compiled(x)}, {weights[1], weights[2]});
  BOOST_TEST(difference(torch::cat({some[0].flatten(), some[1].flatten()}), wanted.narrow(0, 32, 8 + 16)) == "");
  BOOST_TEST(!weights[0].grad().defined());

  reset();  // hooks on leaves
  const auto hook = weights[3].register_hook([](const Tensor& gradient) { return gradient * 10; });
  compiled(x).backward();
  BOOST_TEST(difference(weights[3].grad(), wanted.narrow(0, wanted.numel() - 2, 2) * 10) == "");
  weights[3].remove_hook(hook);

  reset();  // a weight that is changed before backward
  result = compiled(x);
  {
    const torch::NoGradGuard no_grad;
    weights[2].add_(1);
  }
  BOOST_CHECK_EXCEPTION(result.backward(), c10::Error, [](const c10::Error& error) {
    return missing(error.what(), "modified by an inplace operation") == "";
  });
  {
    const torch::NoGradGuard no_grad;
    weights[2].sub_(1);
  }

  const int64_t before = compiled.stats().replayed;  // other modes are other recordings
  {
    const torch::NoGradGuard no_grad;
    BOOST_TEST(!compiled(x).requires_grad());
  }
  {
    const c10::InferenceMode inference;
    BOOST_TEST(!compiled(x).requires_grad());
  }
  BOOST_TEST(compiled.stats().replayed == before);
  reset();
  compiled(x).backward();
  BOOST_TEST(difference(flat_gradients(weights), wanted, 10) == "");
  BOOST_TEST(compiled.stats().replayed == before + 1);

  reset();  // a weight that is frozen: recorded again
  weights[0].set_requires_grad(false);
  compiled(x).backward();
  BOOST_TEST(!weights[0].grad().defined());
  BOOST_TEST(compiled.stats().replayed == before + 1);
}

// What eager operators do not save may be written into before backward.
BOOST_AUTO_TEST_CASE(written_between_forward_and_backward) {
  const auto function = [](const Tensor& x, const Tensor& w) {
    const Tensor y = (x + w).exp();
    return std::pair(y * 2 + 1, torch::gelu(y).sum());
  };
  const auto compiled = torchcc::compile(function, plain_options());
  const auto call = [](const auto& callee, const Tensor& w, const Tensor& data) {
    const Tensor x = data.clone();
    auto [y, loss] = callee(x, w);
    x.zero_();
    y.mul_(3);
    (loss + y.sum()).backward();
  };
  const auto fresh = [] { return torch::randn({4}).requires_grad_(); };
  warm(compiled, [&] { call(compiled, fresh(), torch::randn({3, 4})); });
  const Tensor w = fresh(), other = w.detach().clone().requires_grad_(), data = torch::randn({3, 4});
  call(compiled, w, data);
  call(function, other, data);
  BOOST_TEST(difference(w.grad(), other.grad()) == "");
  BOOST_TEST(compiled.stats().replayed == 2);
}

// Results with graphs of their own: backward through one leaves the other's alone.
BOOST_AUTO_TEST_CASE(backward_one_after_the_other, *boost::unit_test::label("slow")) {
  const auto function = [](const Tensor& x, const Tensor& w) {
    const Tensor y = torch::sin(x * w);
    return std::tuple(y.exp().sum(), torch::cos(x + w).sum(), y);
  };
  const auto compiled = torchcc::compile(function, plain_options());
  const auto call = [](const auto& callee, const Tensor& w, const Tensor& x) {
    const auto [first, second, third] = callee(x, w);
    first.backward();
    second.backward();
    BOOST_CHECK_THROW(first.backward(), c10::Error);
    BOOST_CHECK_THROW(third.sum().backward(), c10::Error);  // a part of the first's
    return w.grad();
  };
  const auto fresh = [] { return torch::randn({4}).requires_grad_(); };
  warm(compiled, [&] { call(compiled, fresh(), torch::randn({3, 4})); });
  const Tensor w = fresh(), other = w.detach().clone().requires_grad_(), x = torch::randn({3, 4});
  BOOST_TEST(difference(call(compiled, w, x), call(function, other, x)) == "");
  BOOST_TEST(compiled.stats().replayed == 2);
}

// Optimisers skip weights without a gradient, and move weights whose gradient is zero.
BOOST_AUTO_TEST_CASE(weights_that_no_gradient_reaches, *boost::unit_test::label("slow")) {
  const auto function = [](const Tensor& x, const Tensor& v, const Tensor& w) {
    return std::tuple(torch::sin(x * v).sum(), (x * w).exp().sum(), (v * w).sum());
  };
  const auto compiled = torchcc::compile(function, plain_options());
  const auto fresh = [] { return torch::randn({4}).requires_grad_(); };
  const auto sum = [](const auto& results) {
    return std::get<0>(results) + std::get<1>(results) + std::get<2>(results);
  };
  warm(compiled, [&] { sum(compiled(torch::randn({3, 4}), fresh(), fresh())).backward(); });
  const Tensor x = torch::randn({3, 4}), v = fresh(), w = fresh();
  std::get<0>(compiled(x, v, w)).backward();
  BOOST_TEST(v.grad().defined());
  BOOST_TEST(!w.grad().defined());
  std::get<1>(compiled(x, v, w)).backward();
  BOOST_TEST(w.grad().defined());
  BOOST_TEST(compiled.stats().replayed == 3);
}

BOOST_AUTO_TEST_CASE(anomaly_mode, *boost::unit_test::label("slow")) {
  const auto compiled = torchcc::compile([](Tensor x) { return torch::sqrt(x).sum(); }, plain_options());
  const auto fresh = [] { return torch::rand({3}).requires_grad_(); };
  warm(compiled, [&] { compiled(fresh()).backward(); });
  const torch::autograd::DetectAnomalyGuard anomaly;
  compiled(fresh()).backward();
  const Tensor negative = (-torch::ones({3})).requires_grad_();
  BOOST_CHECK_EXCEPTION(compiled(negative).backward(), std::exception, [](const std::exception& error) {
    return missing(error.what(), "returned nan values in its") == "";
  });
  BOOST_TEST(compiled.stats().replayed == 3);
}

// Second derivatives come from the recorded operators; from then on the function runs eagerly.
BOOST_AUTO_TEST_CASE(create_graph) {
  Loss loss;
  const auto compiled = torchcc::compile([loss](Tensor x) mutable { return loss(x); }, plain_options());
  warm(compiled, [&] { compiled(torch::randn({3, 4}).requires_grad_()).backward(); });
  const auto penalty = [&](auto& function, const Tensor& x) {
    for (const Tensor& one : loss.parameters()) one.mutable_grad().reset();
    const Tensor gradient =
        torch::autograd::grad({function(x)}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
    gradient.square().sum().backward();
    return torch::cat({flat_gradients(loss.parameters()).flatten(), x.grad().flatten()});
  };
  const Tensor x = torch::randn({3, 4});
  const Tensor wanted = penalty(loss, x.clone().requires_grad_());
  BOOST_TEST(difference(penalty(compiled, x.clone().requires_grad_()), wanted, 10) == "");
  BOOST_TEST(compiled.stats().replayed == 2);
  BOOST_TEST(difference(penalty(compiled, x.clone().requires_grad_()), wanted, 10) == "");
  BOOST_TEST(compiled.stats().replayed == 2);
  BOOST_TEST(missing(compiled.stats().reason, "create_graph") == "");
}

BOOST_AUTO_TEST_CASE(saved_tensors_are_freed) {
  const auto compiled = torchcc::compile(
      [](Tensor x, Tensor w) { return torch::sin(torch::matmul(x, w)).exp().matmul(w).sum(); }, plain_options());
  const Tensor w = torch::randn({64, 64}).requires_grad_();
  warm(compiled, [&] { compiled(torch::randn({64, 64}), w).backward(); });
  Tensor x = torch::randn({64, 64});
  const c10::weak_intrusive_ptr<c10::StorageImpl> argument = x.storage().getWeakStorageImpl();
  Tensor result = compiled(x, w);
  x.reset();
  BOOST_TEST(!argument.expired());
  result.backward();
  BOOST_TEST(argument.expired());
}

BOOST_AUTO_TEST_CASE(gradients_of_their_own, *boost::unit_test::label("slow")) {
  // Both arguments get the same gradient, which is the caller's tensor.
  const auto compiled = torchcc::compile([](Tensor x, Tensor y) { return x + y; }, plain_options());
  const auto fresh = [] { return torch::randn({4}).requires_grad_(); };
  warm(compiled, [&] { compiled(fresh(), fresh()).sum().backward(); });
  const Tensor x = fresh(), y = fresh(), tangent = torch::ones({4});
  compiled(x, y).backward(tangent);
  x.mutable_grad().mul_(2);
  BOOST_TEST(y.grad().sum().item<float>() == 4);
  BOOST_TEST(tangent.sum().item<float>() == 4);
  y.mutable_grad().mul_(3);
  BOOST_TEST(x.grad().sum().item<float>() == 8);
  BOOST_TEST(compiled.stats().replayed == 2);
}

// The derivative of dropout is known from what it gives: the same elements are zero, and they are those of eager.
BOOST_AUTO_TEST_CASE(dropout) {
  const auto function = [](Tensor x) { return torch::dropout(x * 3, 0.4, true); };
  const auto compiled = torchcc::compile(function, plain_options());
  const auto fresh = [] { return torch::ones({1000}).requires_grad_(); };
  warm(compiled, [&] { compiled(fresh()).sum().backward(); });
  std::vector<Tensor> seen;
  for (const uint64_t seed : {1, 1, 2}) {
    torch::manual_seed(seed);
    const Tensor x = fresh(), y = compiled(x);
    y.sum().backward();
    BOOST_TEST(difference(x.grad(), y.detach()) == "");  // d(3x m)/dx = 3 m, and x is 1
    BOOST_TEST(std::abs((y == 0).sum().item<double>() / 1000 - 0.4) < 0.1);
    torch::manual_seed(seed);
    BOOST_TEST(difference(y.detach(), function(x.detach())) == "");
    seen.push_back(y.detach());
  }
  BOOST_TEST(torch::equal(seen[0], seen[1]));
  BOOST_TEST(!torch::equal(seen[0], seen[2]));
  BOOST_TEST(compiled.stats().replayed == 4);
}

// What autograd's graph shows and the operators do not.
BOOST_AUTO_TEST_CASE(what_stays_eager) {
  struct Double : torch::autograd::Function<Double> {
    static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x * 2; }
    static std::vector<Tensor> backward(torch::autograd::AutogradContext*, std::vector<Tensor> gradients) {
      return {gradients[0] * 20};  // not what the operators say
    }
  };
  const Tensor kept_weight = torch::randn({4}).requires_grad_();
  // Behind a pointer: a variable that is captured itself would be seen to change, which is another reason.
  const auto last = std::make_shared<std::vector<Tensor>>(1);
  const std::vector<std::pair<std::function<Tensor(Tensor)>, std::string>> cases = {
      {[](Tensor x) { return Double::apply(x).sum(); }, "without an operator"},
      {[](Tensor x) {
         Tensor y = x * 2;
         y.register_hook([](const Tensor& gradient) { return gradient * 7; });
         return y.sum();
       },
       "hook"},
      {[](Tensor x) {
         const Tensor y = x * 2;
         return (y.data() * x).sum();
       },
       "data()"},
      {[&kept_weight, last](Tensor x) {
         const Tensor y = x * kept_weight;
         last->front() = y.detach();
         return y.sum();
       },
       "the function keeps a tensor that it has made"},
  };
  for (const auto& [function, reason] : cases) {
    const auto compiled = torchcc::compile(function, plain_options());
    for (int call = 0; call < 12; ++call) {
      const Tensor x = torch::randn({4}), a = x.clone().requires_grad_(), b = x.clone().requires_grad_();
      compiled(a).backward();
      function(b).backward();
      BOOST_TEST(torch::equal(a.grad(), b.grad()));
    }
    BOOST_TEST(compiled.stats().replayed == 0);
    BOOST_TEST(missing(compiled.stats().str(), reason) == "");
  }
}

// Autograd's graphs of earlier calls, and what they keep, are not the function's.
BOOST_AUTO_TEST_CASE(results_that_live, *boost::unit_test::label("slow")) {
  Loss loss;
  const auto compiled = torchcc::compile([loss](Tensor x) mutable { return loss(x); }, plain_options());
  std::vector<Tensor> results;
  for (int call = 0; call < 4; ++call) results.push_back(compiled(torch::randn({3, 4})));
  BOOST_TEST(compiled.stats().replayed == 2, compiled.stats().str());
  for (const Tensor& result : results) result.backward();
}

// Kept until the next call only: the program looks at it in between.
BOOST_AUTO_TEST_CASE(a_variable_that_is_reset) {
  const Tensor w = torch::randn({4}).requires_grad_();
  Tensor hidden;
  const auto compiled = torchcc::compile(
      [&](const Tensor& x) {
        hidden = x * w;
        return hidden.exp().sum();
      },
      plain_options());
  for (int call = 0; call < 5; ++call) {
    const Tensor x = torch::randn({4});
    const Tensor loss = compiled(x);
    BOOST_TEST(difference(hidden.detach(), (x * w).detach()) == "");
    hidden.reset();
    loss.backward();
  }
  BOOST_TEST(compiled.stats().replayed == 0);
}

BOOST_AUTO_TEST_SUITE_END()
