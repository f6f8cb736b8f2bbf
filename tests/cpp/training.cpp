// Code for training in packages (network.py, regions.py): gradients as in eager PyTorch, and what autograd promises.
#include <functional>
#include <thread>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torchcc/module.h>

#include "compare.h"
#include "regions.h"

namespace {

using test::close;

/// The network of network.py in training mode, with weights of its own.
struct Reference {
  explicit Reference(const torchcc::Function& function) {
    for (const auto& [name, tensor] : function.weights()) {
      at::Tensor copy = tensor.detach().clone();
      if (name.ends_with("weight") || name.ends_with("bias")) parameters.push_back(copy.requires_grad_());
      weights.emplace_back(name, copy);
    }
  }
  const at::Tensor& operator[](const std::string& name) const {
    for (const auto& [known, tensor] : weights) {
      if (known == name) return tensor;
    }
    throw std::runtime_error("no weight " + name);
  }
  at::Tensor operator()(const at::Tensor& x) const {
    const at::Tensor hidden = at::batch_norm(at::linear(x, (*this)["first.weight"], (*this)["first.bias"]),
                                             (*this)["norm.weight"], (*this)["norm.bias"], (*this)["norm.running_mean"],
                                             (*this)["norm.running_var"], true, 0.1, 1e-5, false);
    return at::linear(at::relu(hidden), (*this)["last.weight"], (*this)["last.bias"]);
  }

  std::vector<torchcc::NamedTensor> weights;
  std::vector<at::Tensor> parameters;
};

torchcc::Function trains(const torchcc::LoadOptions& options = {}) {
  return torchcc::load(test::file("trains.pt2"), options)["forward"];
}

std::vector<at::Tensor> eager_springs(const at::Tensor& x, const at::Tensor& stiffness, double rest) {
  const at::Tensor stretch = x.square().sum(1).sqrt() - rest;
  return {(stiffness * stretch.square()).sum(), at::tanh(stretch)};
}

std::vector<at::Tensor> springs(const torchcc::Function& f, const at::Tensor& x, const at::Tensor& stiffness,
                                double rest) {
  return f.call({x, stiffness, rest});
}

/// What backward throws; empty when it throws nothing.
std::string failure(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

at::Tensor leaf(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return at::randn(sizes, dtype).requires_grad_();
}

}  // namespace

BOOST_AUTO_TEST_SUITE(training)

BOOST_AUTO_TEST_CASE(gradients_of_inputs_weights_and_state) {
  const torchcc::Function f = trains();
  const Reference reference(f);
  torchcc::Module module(f);
  BOOST_TEST(!f.stats().training_target.empty());
  for (const int64_t size : {2, 3, 50}) {
    const at::Tensor x = leaf({size, 8});
    const at::Tensor same = x.detach().clone().requires_grad_();
    const at::Tensor y = module.forward(x);
    const at::Tensor expected = reference(same);
    BOOST_TEST(close(y, expected));
    const at::Tensor tangent = at::randn({size, 4});
    y.backward(tangent);
    expected.backward(tangent);
    BOOST_TEST(close(x.grad(), same.grad()));
    for (const auto& [name, weight] : f.weights()) {
      BOOST_TEST_CONTEXT(name << " at " << size) {
        if (weight.requires_grad()) BOOST_TEST(close(weight.grad(), reference[name].grad()));
        if (name.find("running") != std::string::npos) BOOST_TEST(close(weight, reference[name]));
        if (name == "norm.num_batches_tracked") BOOST_TEST(weight.item<int64_t>() == f.stats().training_calls);
      }
    }
    // Any layout of the input and of the gradient.
    const at::Tensor turned = leaf({8, size});
    const at::Tensor by_turned = torch::autograd::grad({f(turned.t())}, {turned}, {tangent.t().contiguous().t()})[0];
    BOOST_TEST(close(by_turned, torch::autograd::grad({reference(turned.t())}, {turned}, {tangent})[0]));
  }
  BOOST_TEST(f.stats().training_calls == 6);
  BOOST_TEST(f.stats().portable_calls == 0);
  // Without gradients the code for inference runs, which takes the same weights.
  const c10::AutoGradMode no_grad(false);
  const at::Tensor x = at::randn({5, 8});
  BOOST_TEST(close(f(x), reference(x)));
  BOOST_TEST(!f(x).requires_grad());
  BOOST_TEST(f.stats().training_calls == 6);
  BOOST_TEST(f.stats().portable_calls == 0);
}

BOOST_AUTO_TEST_CASE(optimisers_follow_eager) {
  for (const bool adam : {true, false}) {
    at::manual_seed(4);
    const torchcc::Function f = trains();
    const Reference reference(f);
    torchcc::Module module(f);
    std::vector<std::unique_ptr<torch::optim::Optimizer>> optimizers;
    for (const std::vector<at::Tensor>& parameters : {module.parameters(), reference.parameters}) {
      if (adam) {
        optimizers.push_back(std::make_unique<torch::optim::Adam>(parameters, 0.01));
      } else {
        optimizers.push_back(std::make_unique<torch::optim::SGD>(parameters, 0.1));
      }
    }
    double first = 0;
    double last = 0;
    const at::Tensor data = at::randn({64, 8});
    const at::Tensor target = at::sin(data.slice(1, 0, 4) * 2);
    for (int step = 0; step < 50; ++step) {
      const int64_t size = step % 3 == 0 ? 64 : 32 + step;  // another size with nearly each step
      for (const auto& optimizer : optimizers) optimizer->zero_grad();
      const at::Tensor loss = at::mse_loss(module.forward(data.slice(0, 0, size)), target.slice(0, 0, size));
      const at::Tensor expected = at::mse_loss(reference(data.slice(0, 0, size)), target.slice(0, 0, size));
      loss.backward();
      expected.backward();
      for (const auto& optimizer : optimizers) optimizer->step();
      BOOST_TEST(std::abs(loss.item<double>() - expected.item<double>()) < 1e-4);
      (step == 0 ? first : last) = loss.item<double>();
    }
    BOOST_TEST(last < 0.6 * first);
    for (const auto& [name, weight] : f.weights()) {
      // The gradient of a bias in front of a batch norm is rounding alone, which Adam makes large.
      if (name == "first.bias" || name == "norm.running_mean" || name == "norm.num_batches_tracked") continue;
      BOOST_TEST_CONTEXT(name) BOOST_TEST(at::allclose(weight, reference[name], 1e-2, 1e-3));
    }
    BOOST_TEST(f.stats().training_calls == 50);
    BOOST_TEST(f.stats().portable_calls == 0);
  }
}

BOOST_AUTO_TEST_CASE(graphs_are_kept_and_freed_as_in_eager) {
  const torchcc::Function f = trains();
  torchcc::Module module(f);
  const at::Tensor x = leaf({6, 8});
  const at::Tensor kept = module.forward(x).sum();
  kept.backward({}, /*keep_graph=*/true);
  const at::Tensor once = x.grad().clone();
  kept.backward();
  BOOST_TEST(close(x.grad(), 2 * once));
  BOOST_TEST(has(failure([&] { kept.backward(); }), "backward through the graph a second time"));

  // What was saved goes with backward, although the result lives on.
  const int64_t before = test::alive();
  const at::Tensor loss = module.forward(x).sum();
  BOOST_TEST(test::alive() > before + 1);
  loss.backward();
  BOOST_TEST(test::alive() == before + 1);

  const at::Tensor late = module.forward(x).sum();
  {
    const c10::AutoGradMode no_grad(false);
    module.named_parameters()["last.weight"].add_(1);
  }
  BOOST_TEST(has(failure([&] { late.backward(); }), "modified by an inplace operation"));
}

BOOST_AUTO_TEST_CASE(only_what_is_wanted_gets_a_gradient) {
  const torchcc::Function f = trains();
  const at::Tensor x = leaf({4, 8});
  f(x).sum().backward();  // weights of a function alone do not require grad
  BOOST_TEST(x.grad().defined());
  for (const auto& [name, weight] : f.weights()) BOOST_TEST(!weight.grad().defined());
  torchcc::Module module(f);
  for (const auto& parameter : module.named_parameters())
    parameter.value().set_requires_grad(parameter.key() == "last.bias");
  module.forward(x.detach()).sum().backward();
  for (const auto& [name, weight] : f.weights()) BOOST_TEST(weight.grad().defined() == (name == "last.bias"));
  BOOST_TEST(f.stats().training_calls == 2);

  const torchcc::Function g = test::regions()["springs"];
  const at::Tensor stiffness = leaf({5}, at::kDouble);
  const at::Tensor y = leaf({5, 3}, at::kDouble);
  const std::vector<at::Tensor> outputs = springs(g, y, stiffness, 0.5);
  outputs[1].sum().backward();  // does not depend on the stiffness
  BOOST_TEST(!stiffness.grad().defined());
  const at::Tensor same = y.detach().clone().requires_grad_();
  const at::Tensor same_stiffness = stiffness.detach().clone().requires_grad_();
  const std::vector<at::Tensor> expected = eager_springs(same, same_stiffness, 0.5);
  expected[1].sum().backward();
  BOOST_TEST(close(y.grad(), same.grad()));
  // The other result still has all that it needs.
  outputs[0].backward();
  eager_springs(same, same_stiffness, 0.5)[0].backward();
  BOOST_TEST(close(stiffness.grad(), same_stiffness.grad()));
  BOOST_TEST(close(y.grad(), same.grad()));
  BOOST_TEST(has(failure([&] { outputs[1].sum().backward(); }), "backward through the graph a second time"));
}

BOOST_AUTO_TEST_CASE(the_generated_function) {
  const torchcc::Function f = test::regions()["springs"];
  for (const int64_t size : {0, 1, 2, 40}) {
    const at::Tensor x = leaf({size, 3}, at::kDouble);
    const at::Tensor stiffness = leaf({size}, at::kDouble);
    const at::Tensor tangent = at::randn({size}, at::kDouble);
    const auto run = [&](const std::vector<at::Tensor>& outputs) {
      return torch::autograd::grad({outputs[0], outputs[1]}, {x, stiffness}, {at::ones({}, at::kDouble), tangent});
    };
    const auto [energy, bent] = regions::springs(x, stiffness, 1.5);
    const std::vector<at::Tensor> got = run({energy, bent});
    const std::vector<at::Tensor> expected = run(eager_springs(x, stiffness, 1.5));
    for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(close(got[i], expected[i]));
  }
  BOOST_TEST(regions::regions_package()["springs"].stats().training_calls == 4);
  BOOST_TEST(regions::regions_package()["springs"].stats().portable_calls == 0);
  BOOST_CHECK_THROW(springs(f, leaf({3, 3}, at::kDouble), leaf({4}, at::kDouble), 1), torchcc::ArgumentError);
  BOOST_CHECK_THROW(springs(f, leaf({3, 3}), leaf({3}, at::kDouble), 1), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(in_many_threads) {
  const torchcc::Function f = torchcc::load(test::file("regions.pt2"))["springs"];
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        const at::Tensor x = leaf({8, 3}, at::kDouble);
        const at::Tensor stiffness = leaf({8}, at::kDouble);
        const auto run = [&](const std::vector<at::Tensor>& outputs) {
          return torch::autograd::grad({outputs[0]}, {x, stiffness});
        };
        const std::vector<at::Tensor> got = run(springs(f, x, stiffness, 0.1));
        const std::vector<at::Tensor> expected = run(eager_springs(x, stiffness, 0.1));
        if (!close(got[0], expected[0]) || !close(got[1], expected[1])) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  BOOST_TEST(wrong == 0);
  BOOST_TEST(f.stats().training_calls == 200);
}

BOOST_AUTO_TEST_CASE(twice_differentiated) {
  const torchcc::Function f = torchcc::load(test::file("regions.pt2"))["springs"];
  const at::Tensor x = leaf({4, 3}, at::kDouble);
  const at::Tensor stiffness = leaf({4}, at::kDouble);
  const auto second = [&](const std::vector<at::Tensor>& outputs) {
    const at::Tensor first =
        torch::autograd::grad({outputs[0]}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.square().sum()}, {x, stiffness});
  };
  const std::vector<at::Tensor> expected = second(eager_springs(x, stiffness, 0.5));
  for (const int64_t portable : {0, 1}) {  // by the graph, and from then on from the start
    const std::vector<at::Tensor> got = second(springs(f, x, stiffness, 0.5));
    for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(close(got[i], expected[i]));
    BOOST_TEST(f.stats().portable_calls == portable);
  }
  BOOST_TEST(has(f.stats().portable_reason, "create_graph"));

  // The statistics have changed since then.
  const torchcc::Function g = trains();
  const at::Tensor z = leaf({4, 8});
  const at::Tensor loss = g(z).sum();
  BOOST_CHECK_THROW(torch::autograd::grad({loss}, {z}, {}, true, true), torchcc::CaptureError);
  BOOST_TEST(torch::autograd::grad({g(z).sum()}, {z}, {}, true, true)[0].requires_grad());
  BOOST_TEST(g.stats().portable_calls == 1);
}

BOOST_AUTO_TEST_CASE(a_frozen_package_passes_gradients_on) {
  for (const char* file : {"network.pt2", "network-updatable.pt2", "trains.pt2"}) {
    at::manual_seed(6);
    const torchcc::Function f = torchcc::load(test::file(file))["forward"];
    torchcc::Module frozen(f);
    for (const at::Tensor& parameter : frozen.parameters()) parameter.set_requires_grad(false);
    std::vector<at::Tensor> before;
    for (const at::Tensor& parameter : frozen.parameters()) before.push_back(parameter.clone());
    torch::nn::Linear head(8, 8);
    torch::nn::Linear tail(4, 1);
    torch::nn::Sequential chain(head, frozen, tail);
    // The same with the portable graph.
    torchcc::LoadOptions portable;
    portable.compiled = false;
    const torchcc::Function graph = torchcc::load(test::file(file), portable)["forward"];
    torch::optim::SGD optimizer(chain->parameters(), 0.1);
    for (int step = 0; step < 3; ++step) {
      const at::Tensor x = at::randn({16, 8});
      optimizer.zero_grad();
      chain->forward(x).square().sum().backward();
      const at::Tensor expected = torch::autograd::grad({tail(graph(head(x))).square().sum()}, {head->weight})[0];
      BOOST_TEST(close(head->weight.grad(), expected));
      BOOST_TEST(head->weight.grad().abs().sum().item<double>() > 0);
      optimizer.step();
    }
    for (size_t i = 0; i < before.size(); ++i) {
      BOOST_TEST(test::same(frozen.parameters()[i], before[i]));
      BOOST_TEST(!frozen.parameters()[i].grad().defined());
    }
    BOOST_TEST(f.stats().training_calls == (std::string(file) == "trains.pt2" ? 3 : 0));
  }
}

BOOST_AUTO_TEST_CASE(without_compiled_code_the_graph_trains) {
  torchcc::LoadOptions options;
  options.compiled = false;
  const torchcc::Function f = trains(options);
  BOOST_TEST(f.stats().training_target == "");
  BOOST_TEST(has(f.stats().reasons.back(), "for training: LoadOptions::compiled is false"));
  const at::Tensor x = leaf({3, 8});
  const Reference reference(f);
  BOOST_TEST(close(torch::autograd::grad({f(x).square().sum()}, {x})[0],
                   torch::autograd::grad({reference(x).square().sum()}, {x})[0]));
  BOOST_TEST(f.stats().training_calls == 0);
  // Arguments are converted under autograd's eyes.
  options.compiled = true;
  options.convert = true;
  const torchcc::Function lenient = trains(options);
  const at::Tensor wide = x.detach().to(at::kDouble).requires_grad_();
  const at::Tensor got = torch::autograd::grad({lenient(wide).square().sum()}, {wide})[0];
  BOOST_TEST(close(got.to(at::kFloat), torch::autograd::grad({reference(x).square().sum()}, {x})[0]));
  BOOST_TEST(lenient.stats().training_calls == 1);
}

BOOST_AUTO_TEST_SUITE_END()
