// Measures a package on a GPU; benchmarks/cuda.py says what its numbers mean.
//   cuda FOLDER NAME
// Reads lines "graph CALLS", "plain CALLS" and "check 1", and answers each with a line of JSON.

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torchcc/package.h>
#include <nlohmann/json.hpp>

namespace {

using Clock = std::chrono::steady_clock;

std::vector<at::Tensor> read(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::vector<at::Tensor> tensors;
  const c10::IValue loaded = torch::jit::pickle_load(bytes);
  for (const c10::IValue& value : loaded.toTupleRef().elements()) {
    tensors.push_back(value.toTensor().to(at::kCUDA));
  }
  return tensors;
}

void synchronize() { c10::impl::VirtualGuardImpl(c10::kCUDA).synchronizeDevice(0); }

double nanoseconds(Clock::time_point start, int64_t calls) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() / static_cast<double>(calls);
}

nlohmann::json measure(const torchcc::Function& function, const std::vector<torchcc::Argument>& arguments,
                       int64_t calls) {
  at::Tensor result;
  for (int i = 0; i < 4; ++i) function.call_into({&result, 1}, arguments);
  synchronize();
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < calls; ++i) function.call_into({&result, 1}, arguments);
  const double host = nanoseconds(start, calls);
  synchronize();
  return {{"host", host}, {"total", nanoseconds(start, calls)}};
}

}  // namespace

int main(int, char** argv) {
  const c10::InferenceMode inference;
  const std::string folder = argv[1];
  const std::string name = argv[2];
  const std::string package = folder + "/" + name + ".pt2";
  const torchcc::Function graph = torchcc::load(package, {.cuda_graphs = true})["forward"];
  const torchcc::Function plain = torchcc::load(package)["forward"];
  const std::vector<at::Tensor> inputs = read(folder + "/" + name + ".pt");
  const at::Tensor expected = read(folder + "/" + name + "-expected.pt")[0];
  const std::vector<torchcc::Argument> arguments(inputs.begin(), inputs.end());
  std::string kind;
  for (int64_t calls = 0; std::cin >> kind >> calls;) {
    if (kind != "check") {
      std::cout << measure(kind == "graph" ? graph : plain, arguments, calls).dump() << std::endl;
      continue;
    }
    const at::Tensor difference = (graph.call(arguments)[0] - expected).abs().max() / expected.abs().max();
    const torchcc::Stats stats = graph.stats();
    const nlohmann::json answer{
        {"difference", difference.item<double>()}, {"captures", stats.graph_captures}, {"replays", stats.graph_calls}};
    std::cout << answer.dump() << std::endl;
    if (!stats.graph_reason.empty()) std::cerr << stats.graph_reason << std::endl;
  }
  return 0;
}
