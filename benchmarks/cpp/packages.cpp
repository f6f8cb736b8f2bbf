// Measures packages of whole models; benchmarks/packages.py says what its numbers mean.
//   packages portable|native|swap FOLDER ROUNDS CALLS

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torchcc/package.h>
#include <nlohmann/json.hpp>

#include "rounds.h"

namespace {

using Clock = std::chrono::steady_clock;

at::Tensor hundred_operators(const at::Tensor& x, const at::Tensor& w) {
  at::Tensor y = x;
  for (int i = 0; i < 25; ++i) {
    y = at::relu(at::mul(at::add(y, w), x));
    y = at::sub(y, w);
  }
  return y;
}

at::Tensor load_input(const std::string& folder) {
  std::ifstream stream(folder + "/x.pt", std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
  return torch::jit::pickle_load(bytes).toTupleRef().elements()[0].toTensor();
}

void require_close(const at::Tensor& a, const at::Tensor& b) {
  if (!at::allclose(a, b, 1e-3, 1e-3)) throw std::runtime_error("the contenders differ");
}

benchmarks::Samples portable(const std::string& folder, size_t rounds, size_t calls) {
  const torchcc::Function function = torchcc::load(folder + "/small.pt2")["forward"];
  const at::Tensor x = at::randn({8});
  const at::Tensor w = at::randn({8});
  require_close(function(x, w), hundred_operators(x, w));
  return benchmarks::measure({{"portable",
                               [&](size_t count) {
                                 for (size_t i = 0; i < count; ++i) function(x, w);
                               }},
                              {"eager",
                               [&](size_t count) {
                                 for (size_t i = 0; i < count; ++i) hundred_operators(x, w);
                               }}},
                             rounds, calls);
}

benchmarks::Samples native(const std::string& folder, size_t rounds, size_t calls) {
  const torchcc::Function function = torchcc::load(folder + "/encoder.pt2")["forward"];
  const torchcc::Function updatable = torchcc::load(folder + "/encoder-updatable.pt2")["forward"];
  torch::inductor::AOTIModelPackageLoader loader(folder + "/plain.pt2", "model");
  const at::Tensor x = load_input(folder);
  const std::vector<at::Tensor> inputs{x};
  require_close(function(x), loader.run(inputs)[0]);
  require_close(updatable(x), loader.run(inputs)[0]);
  if (function.stats().backend != "compiled") throw std::runtime_error("the package has no code for this machine");
  return benchmarks::measure({{"native",
                               [&](size_t count) {
                                 for (size_t i = 0; i < count; ++i) function(x);
                               }},
                              {"updatable",
                               [&](size_t count) {
                                 for (size_t i = 0; i < count; ++i) updatable(x);
                               }},
                              {"loader",
                               [&](size_t count) {
                                 for (size_t i = 0; i < count; ++i) loader.run(inputs);
                               }}},
                             rounds, calls);
}

/// The slowest of 100 calls of each of 4 threads, in nanoseconds.
double slowest(const torchcc::Function& function, const at::Tensor& x) {
  std::atomic<int64_t> longest{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const c10::AutoGradMode no_grad(false);
      for (int call = 0; call < 100; ++call) {
        const auto start = Clock::now();
        function(x);
        const int64_t took = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
        int64_t before = longest;
        while (took > before && !longest.compare_exchange_weak(before, took)) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(longest.load());
}

benchmarks::Samples swap(const std::string& folder, size_t rounds) {
  const torchcc::Function function = torchcc::load(folder + "/encoder-updatable.pt2")["forward"];
  const at::Tensor x = load_input(folder);
  std::vector<torchcc::NamedTensor> weights = function.weights();
  for (auto& [name, tensor] : weights) tensor = tensor.clone();
  benchmarks::Samples samples;
  function(x);
  for (size_t round = 0; round < rounds; ++round) {
    samples["without"].push_back(slowest(function, x));
    std::atomic<bool> ends{false};
    std::thread swapper([&] {
      while (!ends) {
        const auto start = Clock::now();
        function.set_weights(weights);
        samples["swap"].push_back(std::chrono::duration<double, std::nano>(Clock::now() - start).count());
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    samples["beside"].push_back(slowest(function, x));
    ends = true;
    swapper.join();
  }
  if (function.stats().portable_calls != 0) throw std::runtime_error("the portable graph ran");
  return samples;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) return 2;
  const std::string mode = arguments[1];
  const std::string folder = arguments[2];
  const size_t rounds = std::stoul(arguments[3]);
  const size_t calls = std::stoul(arguments[4]);
  const c10::AutoGradMode no_grad(false);
  try {
    const benchmarks::Samples samples = mode == "portable" ? portable(folder, rounds, calls)
                                        : mode == "native" ? native(folder, rounds, calls)
                                                           : swap(folder, rounds);
    std::cout << nlohmann::json(samples).dump() << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
