// What lazy mode costs, beside eager LibTorch and PyTorch's own lazy tensors. Prints raw measurements as JSON;
// benchmarks/lazy.py makes cases of them.
//   lazy ROUNDS CALLS

#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/csrc/lazy/core/lazy_graph_executor.h>
#include <torch/csrc/lazy/ts_backend/ts_backend_impl.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "rounds.h"

namespace {

using nlohmann::json;

/// Operators of tiny(), on 16 floats.
constexpr int kSteps = 50, kOperators = 4 * kSteps;

at::Tensor tiny(const at::Tensor& start, const at::Tensor& w) {
  at::Tensor x = start;
  for (int i = 0; i < kSteps; ++i) x = torch::tanh(x * w + w) - w;
  return x;
}

/// Time steps of an LSTM cell, one sequence at a time.
constexpr int64_t kTime = 64, kInputs = 32, kHidden = 64;

torchcc::CompileOptions lazy_options(const char* name) {
  torchcc::CompileOptions options;
  options.mode = torchcc::CompileMode::lazy;
  options.name = name;
  return options;
}

/// Calls a function until its operators run compiled, all but those that make tensors out of nothing.
template <class Compiled, class Call>
void warm(const Compiled& compiled, const Call& call) {
  for (int i = 0; i < 4; ++i) call();
  const torchcc::CompileStats before = compiled.stats();
  call();
  const torchcc::CompileStats after = compiled.stats();
  if ((after.eager_ops - before.eager_ops) * 20 > after.compiled_ops - before.compiled_ops ||
      after.compiled_ops == before.compiled_ops) {
    throw std::runtime_error("operators ran one by one:\n" + after.str());
  }
}

benchmarks::Contender repeat(const char* name, std::function<void()> call) {
  return {name, [call = std::move(call)](size_t count) {
            for (size_t i = 0; i < count; ++i) call();
          }};
}

/// Nanoseconds a call, computing the result included.
json measure_tiny(size_t rounds, size_t calls) {
  const at::Tensor x = torch::randn({16}), w = torch::rand({16});
  const auto lazy = torchcc::compile(tiny, lazy_options("tiny"));
  warm(lazy, [&] { lazy(x, w); });

  torch::lazy::InitTorchScriptBackend();
  const at::Tensor their_x = x.to(at::kLazy), their_w = w.to(at::kLazy);
  const auto theirs = [&] {
    const at::Tensor result = tiny(their_x, their_w);
    torch::lazy::LazyGraphExecutor::Get()->SyncLiveTensorsGraph(nullptr, {}, /*wait=*/true);
    torch::lazy::LazyGraphExecutor::Get()->MarkStep({});
    torch::lazy::LazyGraphExecutor::Get()->WaitDeviceOps({});
    return result;
  };
  for (const at::Tensor& result : {lazy(x, w), theirs().cpu()}) {
    if (!at::allclose(result, tiny(x, w), 1e-4, 1e-5)) throw std::runtime_error("wrong results");
  }
  return benchmarks::measure(
      {repeat("eager", [&] { tiny(x, w); }), repeat("lazy", [&] { lazy(x, w); }), repeat("theirs", [&] { theirs(); })},
      rounds, calls);
}

json measure_cell(size_t rounds, size_t calls) {
  torch::nn::LSTMCell cell(kInputs, kHidden);
  const at::Tensor x = torch::randn({kTime, 1, kInputs});
  const auto run = [cell](const at::Tensor& steps) mutable {
    at::Tensor h = torch::zeros({1, kHidden}), c = torch::zeros({1, kHidden});
    for (int64_t step = 0; step < kTime; ++step) std::tie(h, c) = cell(steps[step], std::tuple(h, c));
    return h;
  };
  auto eager = run;
  const auto lazy = torchcc::compile(run, lazy_options("cell"));
  warm(lazy, [&] { lazy(x); });
  if (!at::allclose(lazy(x), eager(x), 1e-4, 1e-5)) throw std::runtime_error("wrong results");
  return benchmarks::measure({repeat("eager", [&] { eager(x); }), repeat("lazy", [&] { lazy(x); })}, rounds, calls);
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 3) throw std::runtime_error("usage: lazy ROUNDS CALLS");
  const size_t rounds = std::stoul(arguments[1]), calls = std::stoul(arguments[2]);
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  const json result{{"operators", kOperators},
                    {"tiny", measure_tiny(rounds, calls)},
                    {"steps", kTime},
                    {"cell", measure_cell(rounds, calls)}};
  std::cout << result.dump() << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
