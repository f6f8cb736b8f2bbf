// Trains a network in one of several ways, timed on request; benchmarks/contest.py says how it is talked to.
//   training MODEL FOLDER THREADS CONTENDER

#include <algorithm>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "contender.h"
#include "peak.h"
#include "trainings.h"

namespace {

using benchmarks::Training;
using Step = std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>;

/// A step is warm after this many in a row in which nothing was recorded; there are at most so many before.
constexpr int kQuietSteps = 10, kMostSteps = 200;

/// Warm steps whose memory is measured.
constexpr int kMeasuredSteps = 3;

/// One way to make a step, and what torchcc says of it.
struct Way {
  Step step;
  std::function<torchcc::CompileStats()> stats = [] { return torchcc::CompileStats(); };
};

/// Forward and loss.
Step make_loss(Training& training) {
  return [&training](const at::Tensor& x, const at::Tensor& target) {
    return torch::cross_entropy_loss(training.forward(x), target);
  };
}

/// A whole step.
Step make_step(Training& training, const Step& loss_of) {
  return [&training, loss_of](const at::Tensor& x, const at::Tensor& target) {
    training.optimizer->zero_grad();
    const at::Tensor loss = loss_of(x, target);
    loss.backward();
    training.optimizer->step();
    return loss;
  };
}

template <class Compiled>
Way compiled_way(Compiled compiled, Step step) {
  return {.step = std::move(step), .stats = [compiled] { return compiled.stats(); }};
}

Way make_way(const std::string& contender, Training& training) {
  if (contender == "eager") return {.step = make_step(training, make_loss(training))};
  if (contender == "loss") {
    const auto compiled = torchcc::compile(make_loss(training), {.name = "loss"});
    return compiled_way(compiled, make_step(training, compiled));
  }
  if (contender != "compiled" && contender != "twin") throw std::runtime_error("no contender '" + contender + "'");
  const auto compiled = torchcc::compile(make_step(training, make_loss(training)), {.name = "step"});
  return compiled_way(compiled, compiled);
}

int64_t recordings(const torchcc::CompileStats& stats) {
  int64_t count = stats.recorded;
  for (const torchcc::SegmentStats& segment : stats.segments) count += segment.recorded;
  return count;
}

bool ran_compiled_code(const torchcc::CompileStats& stats) { return stats.replayed > 0 || stats.compiled_ops > 0; }

}  // namespace

int main(int count, char** arguments) try {
  if (count != 5) throw std::runtime_error("usage: training MODEL FOLDER THREADS CONTENDER");
  at::set_num_threads(std::stoi(arguments[3]));
  const benchmarks::Weights weights = benchmarks::load_weights(std::string(arguments[2]) + "/weights.pt");
  std::vector<at::Tensor> inputs, targets;
  for (const at::Tensor& input : weights.at("inputs").unbind()) inputs.push_back(input.clone());
  for (const at::Tensor& target : weights.at("targets").unbind()) targets.push_back(target.clone());

  Training training;
  Way way;
  size_t done = 0;
  const benchmarks::Call call = [&] {
    const size_t batch = done++ % inputs.size();
    return way.step(inputs[batch], targets[batch]);
  };
  const at::Tensor expected = weights.at("losses");
  double difference = 0;
  int64_t most = 0;
  {
    benchmarks::Peak peak;  // before the weights, which count
    training = benchmarks::make_training(arguments[1], weights);
    way = make_way(arguments[4], training);
    for (int64_t step = 0; step < expected.size(0); ++step) {
      const double apart = (call().detach() - expected[step]).abs().item<double>();
      difference = apart <= difference ? difference : apart;  // a NaN stays
    }
    for (int step = 0, quiet = 0; step < kMostSteps && quiet < kQuietSteps; ++step) {
      const int64_t before = recordings(way.stats());
      call();
      quiet = recordings(way.stats()) == before ? quiet + 1 : 0;
    }
    for (int step = 0; step < kMeasuredSteps; ++step) most = std::max(most, peak.of(call));
  }
  const torchcc::CompileStats stats = way.stats();
  std::string reason;
  if (stats.calls > 0) {
    std::cerr << stats.str();
    if (!ran_compiled_code(stats)) reason = stats.reason.empty() ? "no compiled code ran" : stats.reason;
  }
  const nlohmann::json state{{"difference", difference}, {"eager", reason}, {"peak", most}};
  std::cout << state.dump() << std::endl;
  benchmarks::answer(call);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
