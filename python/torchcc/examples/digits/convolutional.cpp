// Classifies handwritten digits with a convolutional network that is written, and trained for a few seconds, in C++
// with torch::nn, and compares it with itself behind torchcc::compile: `convolutional <digits.bin>`. Prints one
// measurement a line, its name first.
#include <torch/torch.h>

#include <exception>
#include <iostream>

#include <torchcc/compile.h>

#include "digits.h"
#include "network.h"

namespace {

void train(digits::Network& network, const digits::Images& images) {
  torch::optim::Adam optimizer(network.parameters(), torch::optim::AdamOptions(2e-3));
  const int64_t count = images.labels.size(0);
  for (int epoch = 0; epoch < 8; ++epoch) {
    const at::Tensor order = torch::randperm(count);
    for (int64_t begin = 0; begin < count; begin += 64) {
      const at::Tensor batch = order.slice(0, begin, begin + 64);
      optimizer.zero_grad();
      torch::nn::functional::cross_entropy(network.forward(images.pixels.index({batch})), images.labels.index({batch}))
          .backward();
      optimizer.step();
    }
  }
  network.eval();
}

void run(const char* data_file) {
  at::set_num_threads(1);
  torch::manual_seed(0);
  const digits::Images training = digits::read(data_file, digits::Part::training);
  const digits::Images held_out = digits::read(data_file, digits::Part::held_out);
  digits::Network network(/*dropout_rate=*/0.25);
  const double training_time = digits::microseconds([&] { train(network, training); });

  const torch::NoGradGuard no_grad;
  // The one line: everything else is LibTorch as it was.
  const auto compiled = torchcc::compile(network, {.name = "network"});

  const auto eager = [&](const at::Tensor& images) { return network.forward(images); };
  const at::Tensor one_image = held_out.pixels.slice(0, 0, 1);
  for (int call = 0; call < 3; ++call) {  // recorded, recorded and compiled, replayed
    compiled(held_out.pixels);
    compiled(one_image);
  }
  const at::Tensor logits = compiled(held_out.pixels);
  const double accuracy = digits::accuracy(logits, held_out.labels);
  const double difference = (logits - eager(held_out.pixels)).abs().max().item<double>();
  const auto one = digits::race(2000, [&] { compiled(one_image); }, [&] { eager(one_image); });
  const auto all = digits::race(100, [&] { compiled(held_out.pixels); }, [&] { eager(held_out.pixels); });

  const torchcc::CompileStats stats = compiled.stats();
  std::cout << "threads " << at::get_num_threads() << "\nheld_out " << held_out.labels.size(0) << "\ntraining_us "
            << training_time << "\naccuracy " << accuracy << "\nlogit_difference " << difference << "\npython_files "
            << digits::mapped_python_files() << "\nvariants " << stats.variants.size() << "\nreplayed "
            << stats.replayed << "\ncompile_seconds " << stats.compile_seconds << "\ncompiled_1_us " << one.first
            << "\neager_1_us " << one.second << "\ncompiled_all_us " << all.first << "\neager_all_us " << all.second
            << "\nreason " << (stats.reason.empty() ? "none" : stats.reason) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: convolutional <digits.bin>\n";
    return 2;
  }
  try {
    run(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
