// What recording and replay cost. Prints raw measurements as JSON; benchmarks/capture.py makes cases of them.
//   capture recording ROUNDS           with TORCHCC_COMPILER=off: nothing is to be compiled
//   capture replay ROUNDS CALLS

#include <ctime>
#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "benchmark_regions.h"
#include "rounds.h"

namespace {

using nlohmann::json;

/// 1000 pointwise operators.
at::Tensor pointwise(const at::Tensor& start, const at::Tensor& w) {
  at::Tensor x = start;
  for (int i = 0; i < 250; ++i) x = torch::tanh(x * w + w) - w;
  return x;
}

/// 1000 operators on 16 floats: views, matrix products, concatenation, in-place, softmax, masks.
at::Tensor mixed(const at::Tensor& start, const at::Tensor& w) {
  at::Tensor x = start;
  for (int i = 0; i < 100; ++i) {
    const at::Tensor square = x.view({4, 4});
    const at::Tensor rows = torch::softmax(torch::matmul(square, square.t()), 1);
    x = torch::cat({rows.flatten(), w}).narrow(0, 8, 16);
    x.add_(w);
    x = torch::where(x > 0, x, w);
  }
  return x;
}

/// 8 operators, for large tensors.
at::Tensor few(const at::Tensor& start, const at::Tensor& w) {
  at::Tensor x = start;
  for (int i = 0; i < 2; ++i) x = torch::tanh(x * w + w) - w;
  return x;
}

double thread_nanoseconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

/// Processor time of this thread, the only one that computes. The second recording wakes a thread that prepares the
/// compilation; on a busy machine that one often takes the core, which is not the recording's cost.
template <class F>
double nanoseconds(F call) {
  const double start = thread_nanoseconds();
  call();
  return thread_nanoseconds() - start;
}

/// Nanoseconds an operator: eager, in the first recording and in the second one, of a function compiled anew each
/// round.
json measure_recording(at::Tensor (*function)(const at::Tensor&, const at::Tensor&), int64_t size, size_t rounds) {
  const at::Tensor w = torch::rand({size});
  const at::Tensor x = torch::randn({size});
  torchcc::CompileOptions options;
  options.background = true;
  std::map<std::string, std::vector<double>> samples;
  int64_t ops = 0;
  for (size_t round = 0; round <= rounds; ++round) {
    const auto compiled = torchcc::compile([&](const at::Tensor& start) { return function(start, w); }, options);
    const double eager = nanoseconds([&] { function(x, w); });
    const double first = nanoseconds([&] { compiled(x); });
    ops = compiled.stats().variants.at(0).ops;
    const double second = nanoseconds([&] { compiled(x); });
    compiled.wait();
    const torchcc::CompileStats stats = compiled.stats();
    if (stats.recorded != 2) throw std::runtime_error("two calls were not two recordings:\n" + stats.str());
    if (round == 0) continue;  // it loads code and fills caches
    const auto count = static_cast<double>(ops);
    samples["eager"].push_back(eager / count);
    samples["first"].push_back(first / count);
    samples["second"].push_back(second / count);
  }
  return {{"ops", ops}, {"samples", samples}};
}

json measure_replay(size_t rounds, size_t calls) {
  const at::Tensor x = torch::randn({16});
  const at::Tensor y = torch::randn({16});
  const auto compiled =
      torchcc::compile([](const at::Tensor& a, const at::Tensor& b) { return torch::relu(a + b) * b; });
  for (int i = 0; i < 3; ++i) compiled(x, y);
  if (compiled.stats().replayed != 1) throw std::runtime_error("no compiled code runs:\n" + compiled.stats().str());
  const std::vector<benchmarks::Contender> contenders{
      {"region",
       [&](size_t count) {
         for (size_t i = 0; i < count; ++i) regions::small(x, y);
       }},
      {"replay",
       [&](size_t count) {
         for (size_t i = 0; i < count; ++i) compiled(x, y);
       }},
  };
  return benchmarks::measure(contenders, rounds, calls);
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string kind = count > 1 ? arguments[1] : "";
  const auto number = [&](int index) { return std::stoul(arguments[index]); };
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  json result;
  if (kind == "recording" && count == 3) {
    result["pointwise"] = measure_recording(pointwise, 16, number(2));
    result["mixed"] = measure_recording(mixed, 16, number(2));
    result["large"] = measure_recording(few, 1 << 20, number(2));
  } else if (kind == "replay" && count == 4) {
    result = measure_replay(number(2), number(3));
  } else {
    throw std::runtime_error("usage: capture recording ROUNDS | capture replay ROUNDS CALLS");
  }
  std::cout << result.dump() << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
