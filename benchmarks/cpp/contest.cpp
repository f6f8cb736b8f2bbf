// Runs a model in several ways, timed on request; benchmarks/contest.py says how it is talked to.
//   contest MODEL FOLDER THREADS CONTENDER

#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>
#include <torch/torch.h>
#include <nlohmann/json.hpp>

#include "contender.h"
#include "models.h"

namespace {

using benchmarks::Call;

/// What to call, by the contender's name. Everything that is not the call itself is done before.
Call make_call(const std::string& contender, const benchmarks::Model& model, const std::string& folder,
               const at::Tensor& x) {
  if (contender == "eager") return [&model, x] { return model.eager(x); };
  if (contender == "aoti") {
    auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(folder + "/aoti.pt2", "model");
    return [loader, inputs = std::vector<at::Tensor>{x}] { return loader->run(inputs)[0]; };
  }
  if (contender == "script") {
    return [module = torch::jit::load(folder + "/script.pt"), x]() mutable { return module.forward({x}).toTensor(); };
  }
  if (contender != "compiled" && contender != "twin") throw std::runtime_error("no contender '" + contender + "'");
  for (int i = 0; i < 3; ++i) model.compiled(x);
  model.wait();
  return [&model, x] { return model.compiled(x); };
}

}  // namespace

int main(int count, char** arguments) try {
  if (count != 5) throw std::runtime_error("usage: contest MODEL FOLDER THREADS CONTENDER");
  const std::string folder = arguments[2];
  at::set_num_threads(std::stoi(arguments[3]));
  const torch::NoGradGuard no_grad;
  const benchmarks::Weights weights = benchmarks::load_weights(folder + "/weights.pt");
  const at::Tensor& x = weights.at("input");
  const benchmarks::Model model = benchmarks::make_model(arguments[1], weights);
  const Call call = make_call(arguments[4], model, folder, x);
  for (int i = 0; i < 4; ++i) call();  // TorchScript optimises what it has seen
  const auto difference = (call() - weights.at("output")).abs().max().item<double>();
  const torchcc::CompileStats stats = model.stats();
  const bool is_eager = stats.calls > 0 && stats.replayed == 0;
  std::cerr << stats.str();
  std::cout << nlohmann::json{{"difference", difference}, {"eager", is_eager ? stats.reason : ""}}.dump() << std::endl;
  benchmarks::answer(call);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
