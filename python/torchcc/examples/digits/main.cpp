// Classifies handwritten digits with a network that was trained in Python and compiled by torchcc, and compares it with
// the same network in LibTorch: `digits <digits.bin> <weights.pt>`. Prints one measurement a line, its name first.
#include <torch/torch.h>

#include <exception>
#include <iostream>

#include <torchcc/torchcc.h>

#include "classifier.h"
#include "digits.h"

namespace {

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

void run(const char* data_file, const char* weights_file) {
  const torch::NoGradGuard no_grad;
  at::set_num_threads(1);

  const double load = digits::microseconds([] { digits::classifier_package(); });
  const auto stats = digits::classifier_package()["classify"].stats();
  const auto [images, labels] = digits::read(data_file, digits::Part::held_out);

  const at::Tensor logits = digits::classify(images);
  const double accuracy = digits::accuracy(logits, labels);
  const size_t python_files = digits::mapped_python_files();

  Eager eager(torch::pickle_load(digits::read_file(weights_file)).toGenericDict());
  const double difference = (logits - eager.forward(images)).abs().max().item<double>();

  const at::Tensor image = images.slice(0, 0, 1);
  const auto one = digits::race(5000, [&] { digits::classify(image); }, [&] { eager.forward(image); });
  const auto all = digits::race(500, [&] { digits::classify(images); }, [&] { eager.forward(images); });

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
