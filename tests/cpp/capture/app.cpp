// A program as users write it, for tests of what can go wrong around it: it calls a compiled function some times,
// compares each result with the same code run eagerly, and prints what happened, one fact a line.
//
//   app [--calls N] [--width N] [--background] [--no-freeze] [--faster-only] [--timeout SECONDS] [--threads N]
//       [--weights-change CALL] [--seed N] [--inductor NAME] [--train]
#include <torch/torch.h>
#include <torchcc/compile.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Settings {
  int calls = 6;
  int threads = 1;
  int64_t width = 128;      ///< of the network's middle
  int weights_change = -1;  ///< before this call, the weights are changed in place
  int64_t seed = 1;
  bool trains = false;  ///< calls are steps of a training, with an optimiser
  torchcc::CompileOptions options{.name = "app", .allow_slower = true};
};

Settings parse(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--background") {
      settings.options.background = true;
      continue;
    }
    if (option == "--train") {
      settings.trains = true;
      continue;
    }
    if (option == "--no-freeze") {
      settings.options.freeze = false;
      continue;
    }
    if (option == "--faster-only") {
      settings.options.allow_slower = false;
      continue;
    }
    const char* value = ++i < argc ? argv[i] : "";
    if (option == "--calls") settings.calls = std::atoi(value);
    if (option == "--width") settings.width = std::atoi(value);
    if (option == "--threads") settings.threads = std::atoi(value);
    if (option == "--timeout") settings.options.timeout = std::atof(value);
    if (option == "--weights-change") settings.weights_change = std::atoi(value);
    if (option == "--seed") settings.seed = std::atoi(value);
    if (option == "--inductor") settings.options.options[value] = true;
  }
  return settings;
}

struct Net : torch::nn::Module {
  explicit Net(int64_t width)
      : first(register_module("first", torch::nn::Linear(64, width))),
        second(register_module("second", torch::nn::Linear(width, 64))) {}

  at::Tensor forward(const at::Tensor& x) { return second(torch::gelu(first(x))).softmax(-1); }

  torch::nn::Linear first, second;
};

/// How many files of Python's are mapped into this process.
int python_files() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    const std::string file = line.substr(line.rfind('/') + 1);
    count += line.find('/') != std::string::npos && file.find("python") != std::string::npos ? 1 : 0;
  }
  return count;
}

/// A training loop: a compiled step against an eager one that begins with the same weights.
int train(const Settings& settings) {
  at::set_num_threads(1);
  struct Training {
    explicit Training(const Settings& settings) : net(settings.width), optimizer(net.parameters(), 1e-3) {}
    at::Tensor operator()(const at::Tensor& x, const at::Tensor& y) {
      optimizer.zero_grad();
      at::Tensor loss = torch::mse_loss(net.forward(x), y);
      loss.backward();
      optimizer.step();
      return loss;
    }
    Net net;
    torch::optim::Adam optimizer;
  };
  torch::manual_seed(settings.seed);
  Training plain(settings);
  torch::manual_seed(settings.seed);
  Training other(settings);
  const auto compiled =
      torchcc::compile([&](const at::Tensor& x, const at::Tensor& y) { return other(x, y); }, settings.options);
  int wrong = 0;
  for (int call = 0; call < settings.calls; ++call) {
    const at::Tensor x = torch::randn({16, 64}), y = torch::rand({16, 64});
    if (!torch::allclose(compiled(x, y), plain(x, y), 1e-4, 1e-5)) ++wrong;
  }
  for (size_t i = 0; i < plain.net.parameters().size(); ++i) {
    if (!torch::allclose(other.net.parameters()[i], plain.net.parameters()[i], 1e-3, 1e-4)) ++wrong;
  }
  const torchcc::CompileStats stats = compiled.stats();
  bool from_cache = false;
  for (const torchcc::SegmentStats& segment : stats.segments) from_cache = from_cache || segment.from_cache;
  std::cout << "wrong " << wrong << "\nlazy " << stats.lazy << "\ncompiled_ops " << stats.compiled_ops
            << "\npython_files " << python_files() << "\nfrom_cache " << from_cache << "\nreason " << stats.reason
            << "\n"
            << stats.str();
  return wrong == 0 ? 0 : 1;
}

int run(Settings settings) {
  const torch::NoGradGuard no_grad;
  at::set_num_threads(1);
  torch::manual_seed(settings.seed);
  Net net(settings.width);
  settings.options.progress = [](const std::string& step) { std::cout << "progress " << step << std::endl; };
  const auto compiled = torchcc::compile(net, settings.options);
  std::atomic<int> wrong{0};
  const auto calls = [&] {
    const torch::NoGradGuard no_grad_here;
    for (int call = 0; call < settings.calls; ++call) {
      if (call == settings.weights_change) net.first->weight.mul_(1.5);
      const at::Tensor x = torch::randn({16, 64});
      if (!torch::allclose(compiled(x), net.forward(x), 1e-4, 1e-5)) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < settings.threads; ++i) threads.emplace_back(calls);
  calls();
  for (std::thread& thread : threads) thread.join();
  std::cout << "waiting" << std::endl;
  compiled.wait();
  if (settings.options.background) calls();
  const torchcc::CompileStats stats = compiled.stats();
  std::cout << "wrong " << wrong << "\ncalls " << stats.calls << "\nreplayed " << stats.replayed << "\neager "
            << stats.eager << "\nreason " << stats.reason << "\npython_files " << python_files() << "\nfrom_cache "
            << (!stats.variants.empty() && stats.variants[0].from_cache) << "\nfrozen "
            << (!stats.variants.empty() && stats.variants[0].frozen) << "\n"
            << stats.str();
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Settings settings = parse(argc, argv);
    return settings.trains ? train(settings) : run(settings);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
