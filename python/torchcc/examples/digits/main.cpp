// Classifies handwritten digits with a network that was trained in Python and compiled by torchcc, and compares it with
// the same network in LibTorch: `digits <digits.bin> <weights.pt>`. Prints one measurement a line, its name first.
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/torchcc.h>

#include "classifier.h"

namespace {

constexpr int64_t kHeldOut = 4;  // every 4th image was kept from training, see digits.py
constexpr int64_t kRecord = 65;  // 64 pixels and the digit

std::vector<char> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Images uint8[n, 8, 8] and digits int64[n] that the network has never seen.
std::pair<at::Tensor, at::Tensor> held_out(std::vector<char> bytes) {
  const auto count = static_cast<int64_t>(bytes.size()) / kRecord;
  const at::Tensor all = torch::from_blob(bytes.data(), {count, kRecord}, torch::kUInt8);
  const at::Tensor records = all.slice(0, 0, count, kHeldOut);
  return {records.slice(1, 0, 64).reshape({-1, 8, 8}).clone(), records.select(1, 64).to(torch::kInt64)};
}

/// The network of digits.py, written in C++ and run op by op.
struct Eager : torch::nn::Module {
  torch::nn::Linear embed = register_module("embed", torch::nn::Linear(64, 64));
  at::Tensor norm_weight = register_parameter("norm_weight", torch::ones(64));
  torch::nn::Linear gate = register_module("gate", torch::nn::Linear(64, 64));
  torch::nn::Linear up = register_module("up", torch::nn::Linear(64, 64));
  torch::nn::Linear down = register_module("down", torch::nn::Linear(64, 64));
  torch::nn::Linear head = register_module("head", torch::nn::Linear(64, 10));

  explicit Eager(const c10::Dict<at::IValue, at::IValue>& weights) {
    for (auto& parameter : named_parameters()) parameter->copy_(weights.at(parameter.key()).toTensor());
  }

  at::Tensor forward(const at::Tensor& images) {
    const at::Tensor x = embed(images.to(torch::kFloat32).flatten(1) / 16);
    const at::Tensor y = at::rms_norm(x, {64}, norm_weight, 1e-6);
    return head(x + down(at::silu(gate(y)) * up(y)));
  }
};

using Clock = std::chrono::steady_clock;

double microseconds(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Median times of one call of each, in turns, so that whatever else the machine does hits both alike.
std::pair<double, double> race(int repeats, const std::function<void()>& one, const std::function<void()>& other) {
  std::vector<double> times, other_times;
  for (int i = -repeats / 10; i < repeats; ++i) {
    const double time = microseconds(one), other_time = microseconds(other);
    if (i < 0) continue;  // warming up
    times.push_back(time);
    other_times.push_back(other_time);
  }
  return {median(times), median(other_times)};
}

/// How many files with "python" in their own name (libpython, libtorch_python) are mapped into this process.
size_t mapped_python_files() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> found;
  for (std::string line; std::getline(maps, line);) {
    const std::string file = line.substr(line.rfind('/') + 1);
    if (line.find('/') != std::string::npos && file.find("python") != std::string::npos) found.insert(file);
  }
  return found.size();
}

void run(const char* data_file, const char* weights_file) {
  const torch::NoGradGuard no_grad;
  at::set_num_threads(1);

  const double load = microseconds([] { digits::classifier_package(); });
  const auto stats = digits::classifier_package()["classify"].stats();
  const auto [images, labels] = held_out(read_file(data_file));

  const at::Tensor logits = digits::classify(images);
  const double accuracy = logits.argmax(1).eq(labels).to(torch::kFloat64).mean().item<double>();
  const size_t python_files = mapped_python_files();

  Eager eager(torch::pickle_load(read_file(weights_file)).toGenericDict());
  const double difference = (logits - eager.forward(images)).abs().max().item<double>();

  const at::Tensor image = images.slice(0, 0, 1);
  const auto one = race(5000, [&] { digits::classify(image); }, [&] { eager.forward(image); });
  const auto all = race(500, [&] { digits::classify(images); }, [&] { eager.forward(images); });

  std::cout << "backend " << stats.backend << "\ntarget " << stats.target << "\nthreads " << at::get_num_threads()
            << "\nheld_out " << images.size(0) << "\naccuracy " << accuracy << "\nlogit_difference " << difference
            << "\npython_files " << python_files << "\nload_us " << load << "\ncompiled_1_us " << one.first
            << "\neager_1_us " << one.second << "\ncompiled_all_us " << all.first << "\neager_all_us " << all.second
            << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: digits <digits.bin> <weights.pt>\n";
    return 2;
  }
  try {
    run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
