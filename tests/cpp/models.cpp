// Packages of whole models (network.py): names, weights, state, gradients, chains, and which backend runs.
#include <atomic>
#include <thread>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <torchcc/module.h>

#include "compare.h"

namespace {

using test::close;

at::Tensor network(const at::Tensor& x, const std::vector<torchcc::NamedTensor>& weights) {
  const auto get = [&](const std::string& name) {
    for (const auto& [known, tensor] : weights) {
      if (known == name) return tensor;
    }
    throw std::runtime_error("no weight " + name);
  };
  const at::Tensor hidden =
      at::batch_norm(at::linear(x, get("first.weight"), get("first.bias")), get("norm.weight"), get("norm.bias"),
                     get("norm.running_mean"), get("norm.running_var"), false, 0.1, 1e-5, false);
  return at::linear(at::relu(hidden), get("last.weight"), get("last.bias"));
}

torchcc::Function function(const char* file, const char* name = "forward", const torchcc::LoadOptions& options = {}) {
  return torchcc::load(test::file(file), options)[name];
}

}  // namespace

BOOST_AUTO_TEST_SUITE(models)

BOOST_AUTO_TEST_CASE(the_backends_agree) {
  const c10::AutoGradMode no_grad(false);
  torchcc::LoadOptions portable;
  portable.compiled = false;
  for (const char* file : {"network.pt2", "network-updatable.pt2", "network-portable.pt2"}) {
    for (const torchcc::LoadOptions& options : {torchcc::LoadOptions(), portable}) {
      const torchcc::Function f = function(file, "forward", options);
      const bool is_compiled = options.compiled && std::string(file) != "network-portable.pt2";
      BOOST_TEST(f.stats().backend == (is_compiled ? "compiled" : "portable"));
      BOOST_TEST(f.signature().str() == "forward(x: float32[n, 8]) -> float32[n, 4] with 1 <= n");
      for (const int64_t size : {1, 2, 3, 50}) {
        const at::Tensor x = at::randn({size, 8});
        BOOST_TEST(close(f(x), network(x, f.weights())));
      }
      BOOST_TEST(f.stats().portable_calls == (is_compiled ? 0 : 4));
      const at::Tensor strided = at::randn({8, 6}).t();
      BOOST_TEST(close(f(strided), network(strided, f.weights())));
    }
  }
}

BOOST_AUTO_TEST_CASE(arguments_are_converted_when_asked) {
  const c10::AutoGradMode no_grad(false);
  const at::Tensor x = at::randn({3, 8});
  for (const bool compiled : {true, false}) {
    torchcc::LoadOptions options;
    options.compiled = compiled;
    const torchcc::Function strict = function("network.pt2", "forward", options);
    options.convert = true;
    const torchcc::Function lenient = function("network.pt2", "forward", options);
    const at::Tensor expected = strict(x);
    BOOST_TEST(at::equal(lenient(x), expected));
    BOOST_TEST(at::equal(lenient(x.to(at::kDouble)), expected));
    BOOST_TEST(lenient(x.to(at::kDouble)).scalar_type() == at::kFloat);
    const at::Tensor whole = at::randint(-3, 3, {2, 8}, at::kLong);
    BOOST_TEST(at::equal(lenient(whole), strict(whole.to(at::kFloat))));
    BOOST_CHECK_THROW(strict(whole), torchcc::ArgumentError);
    BOOST_CHECK_THROW(lenient(x.to(at::kComplexFloat)), torchcc::ArgumentError);  // would lose the imaginary part
    BOOST_CHECK_THROW(lenient(at::Tensor()), torchcc::ArgumentError);
    BOOST_CHECK_THROW(lenient(at::randn({3, 9}, at::kDouble)), torchcc::ArgumentError);
    // Gradients go through the conversion.
    const c10::AutoGradMode grad(true);
    const at::Tensor wide = x.to(at::kDouble).requires_grad_();
    lenient(wide).sum().backward();
    const at::Tensor narrow = x.clone().requires_grad_();
    strict(narrow).sum().backward();
    BOOST_TEST(close(wide.grad().to(at::kFloat), narrow.grad()));
  }
  // A function writes into its argument: a converted copy would be lost.
  torchcc::LoadOptions options;
  options.convert = true;
  const torchcc::Function accumulate = function("regions.pt2", "accumulate", options);
  const at::Tensor total = at::randn({4, 2}, at::kDouble);
  const at::Tensor sum = total.add(x.slice(1, 0, 2).slice(0, 0, 1));
  BOOST_TEST(close(accumulate(total, x.slice(1, 0, 2).slice(0, 0, 1).expand({4, 2})), sum.sum(1)));
  BOOST_TEST(close(total, sum));
  BOOST_CHECK_THROW(accumulate(at::randn({4, 2}), total), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(from_memory) {
  const std::vector<std::byte> bytes = test::read(test::file("network.pt2"));
  const c10::AutoGradMode no_grad(false);
  const torchcc::Function f = torchcc::load(bytes)["forward"];
  const at::Tensor x = at::randn({3, 8});
  BOOST_TEST(close(f(x), network(x, f.weights())));
}

BOOST_AUTO_TEST_CASE(from_an_unpacked_folder) {
  const c10::AutoGradMode no_grad(false);
  const at::Tensor x = at::randn({3, 8});
  for (const char* name : {"network", "plain"}) {
    const std::filesystem::path folder = test::file("unpacked") / name;
    for (const std::filesystem::path& root : {folder, folder / name}) {
      const torchcc::Package package = torchcc::load(root);
      const torchcc::Function f = package[package.names().front()];
      BOOST_TEST(close(f(x), network(x, f.weights())));
      BOOST_TEST(f.stats().backend == (std::string(name) == "plain" ? "portable" : "compiled"));
    }
  }
}

BOOST_AUTO_TEST_CASE(operators_that_are_missing) {
  BOOST_CHECK_THROW(torchcc::load_operators("/nonexistent/operators.so"), torchcc::PackageError);
}

BOOST_AUTO_TEST_CASE(a_file_of_torch_export_itself) {
  const c10::AutoGradMode no_grad(false);
  const torchcc::Package package = torchcc::load(test::file("plain.pt2"));
  BOOST_TEST_REQUIRE(package.names().size() == 1U);
  const torchcc::Function f = package["model"];
  BOOST_TEST(f.stats().backend == "portable");
  BOOST_TEST(f.signature().inputs[0].type().ends_with(", 8]"));
  for (const int64_t size : {2, 7, 50}) {
    const at::Tensor x = at::randn({size, 8});
    BOOST_TEST(close(f(x), network(x, f.weights())));
  }
  BOOST_CHECK_THROW(f(at::randn({3, 9})), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(in_inference_mode) {
  const c10::InferenceMode mode;
  for (const char* file : {"network.pt2", "network-portable.pt2"}) {
    const torchcc::Function f = function(file);
    const at::Tensor x = at::randn({3, 8});
    BOOST_TEST(close(f(x), network(x, f.weights())));
    f.set_weight("last.bias", at::randn({4}));
    BOOST_TEST(close(f(x), network(x, f.weights())));
  }
}

BOOST_AUTO_TEST_CASE(names) {
  const torchcc::Function f = function("cache.pt2");
  const at::Tensor x = at::randn({4});
  const torchcc::Outputs outputs = f({{"x", x}});
  BOOST_TEST(outputs.size() == 2U);
  BOOST_TEST(close(outputs["mean"], x));
  BOOST_TEST(close(outputs[0], x));
  BOOST_TEST(outputs["count"].item<int64_t>() == 1);
  BOOST_CHECK_THROW(outputs["median"], torchcc::ArgumentError);
  BOOST_CHECK_THROW(outputs[2], torchcc::ArgumentError);
  BOOST_CHECK_THROW(f({{"y", x}}), torchcc::ArgumentError);
  BOOST_CHECK_THROW((f({{"x", x}, {"x", x}})), torchcc::ArgumentError);
  BOOST_CHECK_THROW(f(std::initializer_list<torchcc::NamedArgument>{}), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_CASE(state_persists_and_is_shared) {
  for (const bool compiled : {true, false}) {
    torchcc::LoadOptions options;
    options.compiled = compiled;
    const torchcc::Package package = torchcc::load(test::file("cache.pt2"), options);
    const torchcc::Function f = package["forward"];
    for (int round = 0; round < 2; ++round) {
      at::Tensor sum = at::zeros({4});
      for (int i = 1; i <= 5; ++i) {
        const at::Tensor x = at::randn({4});
        sum += x;
        const torchcc::Outputs outputs = f({{"x", x}});
        BOOST_TEST(close(outputs["mean"], sum / i));
        BOOST_TEST(outputs["count"].item<int64_t>() == i);
      }
      BOOST_TEST(package["reset"](at::ones({1})).item<float>() == 2);
    }
    BOOST_TEST(f.stats().portable_calls == (compiled ? 0 : 10));
    // Another load has a state of its own.
    f({{"x", at::randn({4})}});
    BOOST_TEST(function("cache.pt2")({{"x", at::randn({4})}})["count"].item<int64_t>() == 1);
  }
}

BOOST_AUTO_TEST_CASE(a_weight_that_is_set_is_used) {
  const c10::AutoGradMode no_grad(false);
  for (const char* file : {"network.pt2", "network-updatable.pt2", "network-portable.pt2"}) {
    const torchcc::Function f = function(file);
    const at::Tensor x = at::randn({3, 8});
    f(x);
    f.set_weight("last.bias", at::randn({4}));
    BOOST_TEST(close(f(x), network(x, f.weights())));
    // Other strides, which compiled code does not expect.
    f.set_weight("first.weight", at::randn({8, 16}).t());
    BOOST_TEST(close(f(x), network(x, f.weights())));
    for (auto& [name, tensor] : f.weights()) {
      if (name == "norm.running_var") tensor.mul_(3);
    }
    BOOST_TEST(close(f(x), network(x, f.weights())));
    const bool is_burnt_in = std::string(file) == "network.pt2";
    BOOST_TEST(f.stats().portable_calls == (std::string(file) == "network-updatable.pt2" ? 0 : is_burnt_in ? 3 : 4));
    BOOST_TEST((f.stats().portable_reason.find("burnt into") != std::string::npos) == is_burnt_in);
  }
}

BOOST_AUTO_TEST_CASE(a_change_in_place_is_seen) {
  const c10::AutoGradMode no_grad(false);
  const torchcc::Function f = function("network.pt2");
  const at::Tensor x = at::randn({3, 8});
  f(x);
  BOOST_TEST(f.stats().portable_calls == 0);
  f.weights().front().second.add_(1);
  BOOST_TEST(close(f(x), network(x, f.weights())));
  BOOST_TEST(f.stats().portable_calls == 1);
}

// data() gives a tensor whose changes no version counter shows; torch::optim::SGD writes through it.
BOOST_AUTO_TEST_CASE(a_change_through_data_is_seen) {
  const c10::AutoGradMode no_grad(false);
  const torchcc::Function f = function("network.pt2");
  const at::Tensor x = at::randn({3, 8});
  f(x);
  f.weights().front().second.data().add_(1);
  BOOST_TEST(close(f(x), network(x, f.weights())));
  BOOST_TEST(f.stats().portable_calls == 1);
}

BOOST_AUTO_TEST_CASE(mistakes_with_weights_change_nothing) {
  const c10::AutoGradMode no_grad(false);
  const torchcc::Function f = function("network.pt2");
  const at::Tensor x = at::randn({3, 8});
  const at::Tensor before = f(x);
  BOOST_CHECK_THROW(f.set_weight("middle.bias", at::randn({4})), torchcc::ArgumentError);
  BOOST_CHECK_THROW(f.set_weight("last.bias", at::randn({5})), torchcc::ArgumentError);
  BOOST_CHECK_THROW(f.set_weight("last.bias", at::randn({4}, at::kDouble)), torchcc::ArgumentError);
  BOOST_CHECK_THROW(f.set_weight("last.bias", at::Tensor()), torchcc::ArgumentError);
  const std::vector<torchcc::NamedTensor> weights{{"last.bias", at::randn({4})}, {"last.weight", at::randn({5})}};
  BOOST_CHECK_THROW(f.set_weights(weights), torchcc::ArgumentError);
  BOOST_TEST(test::same(f(x), before));
  BOOST_TEST(f.stats().portable_calls == 0);
}

// Each set has one number in all weights: the result of a call is that of one set, or the call saw two.
BOOST_AUTO_TEST_CASE(weights_are_swapped_as_a_whole) {
  for (const bool compiled : {true, false}) {
    torchcc::LoadOptions options;
    options.compiled = compiled;
    const torchcc::Function f = function("scales.pt2", "forward", options);
    std::atomic<bool> ends{false};
    std::atomic<int64_t> calls{0};
    std::atomic<int64_t> torn{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        const c10::AutoGradMode no_grad(false);
        const at::Tensor x = at::ones({64});
        while (!ends) {
          const at::Tensor scale = (f(x) - 1) / 8;
          if (!scale.eq(scale[0]).all().item<bool>() || scale[0].item<float>() != std::round(scale[0].item<float>())) {
            ++torn;
          }
          ++calls;
        }
      });
    }
    for (int set = 2; set < 400 || calls < 2000; ++set) {
      std::vector<torchcc::NamedTensor> weights;
      for (int i = 0; i < 8; ++i) {
        weights.emplace_back("weights." + std::to_string(i), at::full({64}, static_cast<float>(set % 1000)));
      }
      f.set_weights(weights);
    }
    ends = true;
    for (std::thread& thread : threads) thread.join();
    BOOST_TEST(torn == 0);
    BOOST_TEST(f.stats().portable_calls == (compiled ? 0 : calls.load()));
  }
}

BOOST_AUTO_TEST_CASE(gradients_flow) {
  const torchcc::Function f = function("network.pt2");
  const at::Tensor x = at::randn({3, 8}).requires_grad_();
  const at::Tensor y = f(x);
  BOOST_TEST(y.requires_grad());
  const at::Tensor expected = torch::autograd::grad({network(x, f.weights()).sum()}, {x})[0];
  BOOST_TEST(close(torch::autograd::grad({y.sum()}, {x})[0], expected));
  BOOST_TEST(f.stats().portable_reason.find("gradient") != std::string::npos);
  const c10::AutoGradMode no_grad(false);
  BOOST_TEST(!f(x).requires_grad());
  BOOST_TEST(f.stats().portable_calls == 1);
}

BOOST_AUTO_TEST_CASE(a_module_in_a_sequential_trains) {
  at::manual_seed(3);
  const torchcc::Function f = function("network.pt2");
  torch::nn::Sequential chain(torchcc::Module(f), torch::nn::Linear(4, 2));
  BOOST_TEST(chain->parameters().size() == 8U);
  BOOST_TEST(chain->named_parameters().contains("0.first.weight"));
  BOOST_TEST(chain->named_buffers().contains("0.norm.running_mean"));
  const at::Tensor x = at::randn({32, 8});
  const at::Tensor target = at::randn({32, 2});
  const at::Tensor before = f.weights().front().second.clone();
  torch::optim::SGD optimizer(chain->parameters(), 0.1);
  double first = 0;
  double last = 0;
  for (int i = 0; i < 20; ++i) {
    optimizer.zero_grad();
    const at::Tensor loss = at::mse_loss(chain->forward(x), target);
    loss.backward();
    optimizer.step();
    (i == 0 ? first : last) = loss.item<double>();
  }
  BOOST_TEST(last < 0.9 * first);
  BOOST_TEST(!at::equal(f.weights().front().second, before));
  const c10::AutoGradMode no_grad(false);
  BOOST_TEST(close(f(x), network(x, f.weights())));

  // Saved from one, loaded into another.
  const test::Folder folder;
  torch::save(chain, (folder.path() / "chain.pt").string());
  torch::nn::Sequential other(torchcc::Module(function("network.pt2")), torch::nn::Linear(4, 2));
  torch::load(other, (folder.path() / "chain.pt").string());
  BOOST_TEST(close(other->forward(x), chain->forward(x)));
}

BOOST_AUTO_TEST_CASE(a_function_with_two_outputs_is_no_module) {
  BOOST_CHECK_THROW(torchcc::Module(function("cache.pt2")), torchcc::ArgumentError);
}

BOOST_AUTO_TEST_SUITE_END()
