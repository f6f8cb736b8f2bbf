// What a call of compiled code costs beside the code itself. Prints raw measurements as JSON;
// benchmarks/call_overhead.py makes cases of them.
//   call_overhead PACKAGE ROUNDS CALLS THREAD_ROUNDS BURSTS

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>
#include <pthread.h>
#include <sched.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>
#include <torchcc/torchcc.h>
#include <nlohmann/json.hpp>

#include "artifact.h"
#include "benchmark_regions.h"
#include "rounds.h"

namespace {

using benchmarks::Artifact;
using benchmarks::Contender;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kSmall = 16;
constexpr int64_t kHeavyMax = 8192;
constexpr double kHeavyNanoseconds = 50e3;
constexpr int kBurstCalls = 20;

at::Tensor small_eager(const at::Tensor& x, const at::Tensor& y) { return torch::relu(x + y) * y; }

template <class Call>
Contender repeat(std::string name, Call call) {
  return {std::move(name), [call = std::move(call)](size_t calls) {
            for (size_t i = 0; i < calls; ++i) call();
          }};
}

json measure_calls(const std::string& package, size_t rounds, size_t calls) {
  const at::Tensor x = torch::randn({kSmall});
  const at::Tensor y = torch::randn({kSmall});
  at::Tensor out = torch::empty({kSmall});
  const torchcc::Function function = regions::benchmark_regions_package()["small"];
  torch::inductor::AOTIModelPackageLoader loader(package, "model");
  const std::vector<at::Tensor> inputs{x, y};
  const Artifact artifact(package);
  return benchmarks::measure(
      {
          repeat("typed", [&] { regions::small(x, y); }),
          repeat("handle", [&] { function(x, y); }),
          repeat("out", [&] { regions::small_out(out, x, y); }),
          repeat("loader", [&] { loader.run(inputs); }),
          repeat("bare", [&] { artifact.run<Artifact::Entry::shared>(x, y); }),
          repeat("bare_single", [&] { artifact.run<Artifact::Entry::single_threaded>(x, y); }),
          repeat("eager", [&] { small_eager(x, y); }),
      },
      rounds, calls);
}

/// A size for which one call of the heavy region takes about kHeavyNanoseconds here.
int64_t calibrate(const torchcc::Function& heavy) {
  const at::Tensor x = torch::randn({kHeavyMax});
  const Contender call = repeat("heavy", [&] { heavy(x, x); });
  call.run(20);
  std::vector<double> times;
  for (int i = 0; i < 51; ++i) times.push_back(benchmarks::nanoseconds_per_call(call, 4));
  std::nth_element(times.begin(), times.begin() + 25, times.end());
  const auto size = static_cast<int64_t>(kHeavyMax * kHeavyNanoseconds / times[25]);
  return std::clamp<int64_t>(size / 16 * 16, 16, kHeavyMax);
}

/// Keeps the calling thread on one of the process's cores: otherwise, beside busy programs, all threads may stay on
/// one.
void pin(size_t thread) {
  static const std::vector<int> cores = [] {
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof(allowed), &allowed);
    std::vector<int> found;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &allowed)) found.push_back(core);
    }
    return found;
  }();
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cores[thread % cores.size()], &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

/// Waits, without sleeping, until `count` threads have come `turn` times.
void meet(std::atomic<size_t>& arrivals, size_t count, size_t turn) {
  ++arrivals;
  for (size_t tries = 0; arrivals.load() < count * turn; ++tries) {
    if (tries > 10000) std::this_thread::yield();  // there are more threads than cores
  }
}

/// Calls per second of `count` threads that share one function, each with inputs of its own, in the fastest of many
/// short bursts. Other programs can only slow a burst down, and so can a lock, but a lock does so to every burst.
double throughput(const torchcc::Function& heavy, int64_t size, size_t count, size_t bursts) {
  std::vector<Clock::time_point> begins(count);
  std::vector<Clock::time_point> ends(count);
  auto fastest = Clock::duration::max();
  std::atomic<size_t> arrivals{0};
  std::barrier finish(static_cast<std::ptrdiff_t>(count), [&]() noexcept {
    const auto begin = *std::min_element(begins.begin(), begins.end());
    fastest = std::min(fastest, *std::max_element(ends.begin(), ends.end()) - begin);
  });
  std::vector<std::jthread> threads;
  for (size_t t = 0; t < count; ++t) {
    threads.emplace_back([&, t] {
      pin(t);
      const torch::NoGradGuard no_grad;
      const at::Tensor x = torch::randn({size});
      const at::Tensor y = torch::randn({size});
      for (size_t burst = 1; burst <= bursts; ++burst) {
        heavy(x, y);
        meet(arrivals, count, burst);
        begins[t] = Clock::now();
        for (int i = 0; i < kBurstCalls; ++i) heavy(x, y);
        ends[t] = Clock::now();
        finish.arrive_and_wait();
      }
    });
  }
  threads.clear();  // joins
  return static_cast<double>(count * kBurstCalls) / std::chrono::duration<double>(fastest).count();
}

json measure_threads(size_t rounds, size_t bursts) {
  const torchcc::Function heavy = regions::benchmark_regions_package()["heavy"];
  const int64_t size = calibrate(heavy);
  const at::Tensor x = torch::randn({size});
  const std::vector<Contender> kernel{repeat("heavy", [&] { heavy(x, x); })};
  json result{{"size", size}, {"kernel", benchmarks::measure(kernel, std::max<size_t>(rounds, 11), 20)["heavy"]}};
  std::map<std::string, std::vector<double>> rates;
  for (size_t round = 0; round < rounds; ++round) {
    for (const size_t count : {1, 2, 4, 8}) {
      rates[std::to_string(count)].push_back(throughput(heavy, size, count, bursts));
    }
  }
  result["rates"] = rates;
  return result;
}

/// Results that differ from eager ones, when eight threads call one function at once.
size_t wrong_results() {
  constexpr int kThreads = 8;
  constexpr int kCalls = 10000;
  const torchcc::Function function = regions::benchmark_regions_package()["small"];
  std::atomic<size_t> wrong{0};
  std::barrier start(kThreads);
  std::vector<std::jthread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      const torch::NoGradGuard no_grad;
      const at::Tensor x = torch::randn({kSmall});
      const at::Tensor y = torch::randn({kSmall});
      const at::Tensor expected = small_eager(x, y);
      start.arrive_and_wait();
      for (int i = 0; i < kCalls; ++i) wrong += at::equal(function(x, y), expected) ? 0 : 1;
    });
  }
  threads.clear();  // joins
  return wrong;
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 6) throw std::runtime_error("usage: call_overhead PACKAGE ROUNDS CALLS THREAD_ROUNDS BURSTS");
  const auto number = [&](int index) { return std::stoul(arguments[index]); };
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  json result;
  result["calls"] = measure_calls(arguments[1], number(2), number(3));
  result["threads"] = measure_threads(number(4), number(5));
  result["wrong"] = wrong_results();
  std::cout << result.dump() << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
