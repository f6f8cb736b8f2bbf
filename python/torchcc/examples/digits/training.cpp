// Trains the network of network.h twice, from the same weights on the same batches: as it is, and with the whole step
// (forward, backward, optimiser) behind torchcc::compile. `training <digits.bin>` prints one measurement a line, its
// name first.
#include <torch/torch.h>

#include <exception>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/compile.h>

#include "digits.h"
#include "network.h"

namespace {

constexpr int kEpochs = 6;
constexpr int64_t kBatch = 64;

using Batch = std::pair<at::Tensor, at::Tensor>;
using Epochs = std::vector<std::vector<Batch>>;

/// All images in another order in each epoch, less the few that do not fill a batch.
Epochs shuffle(const digits::Images& images) {
  const int64_t count = images.labels.size(0);
  Epochs epochs(kEpochs);
  for (auto& batches : epochs) {
    const at::Tensor order = torch::randperm(count);
    for (int64_t begin = 0; begin + kBatch <= count; begin += kBatch) {
      const at::Tensor chosen = order.slice(0, begin, begin + kBatch);
      batches.emplace_back(images.pixels.index({chosen}), images.labels.index({chosen}));
    }
  }
  return epochs;
}

/// A network, its optimiser, and one step of training.
struct Trainer {
  digits::Network network{/*dropout_rate=*/0};
  torch::optim::Adam optimizer{network.parameters(), torch::optim::AdamOptions(2e-3)};

  at::Tensor step(const at::Tensor& images, const at::Tensor& labels) {
    optimizer.zero_grad();
    const at::Tensor loss = torch::nn::functional::cross_entropy(network.forward(images), labels);
    loss.backward();
    optimizer.step();
    return loss;
  }
};

/// What a training was like: the loss of each step, the seconds of each epoch.
struct Course {
  std::vector<float> losses;
  std::vector<double> seconds;

  template <class Step>
  void run(const std::vector<Batch>& batches, const Step& step) {
    std::vector<at::Tensor> found;
    seconds.push_back(digits::microseconds([&] {
                        for (const auto& [images, labels] : batches) found.push_back(step(images, labels).detach());
                      }) /
                      1e6);
    for (const at::Tensor& loss : found) losses.push_back(loss.item<float>());
  }
};

double accuracy(Trainer& trainer, const digits::Images& held_out) {
  const torch::NoGradGuard no_grad;
  trainer.network.eval();
  return digits::accuracy(trainer.network.forward(held_out.pixels), held_out.labels);
}

/// Operators that ran as part of compiled code: of calls that were replayed, and of segments.
int64_t compiled_operators(const torchcc::CompileStats& stats) {
  int64_t count = stats.compiled_ops;
  for (const torchcc::VariantStats& variant : stats.variants) count += variant.replayed * variant.ops;
  return count;
}

std::string list(const std::vector<float>& values) {
  std::string text;
  for (const float value : values) text += (text.empty() ? "" : " ") + std::to_string(value);
  return text;
}

void run(const char* data_file) {
  at::set_num_threads(1);
  const digits::Images training = digits::read(data_file, digits::Part::training);
  const digits::Images held_out = digits::read(data_file, digits::Part::held_out);
  torch::manual_seed(0);
  Trainer eager;
  torch::manual_seed(0);  // the same weights
  Trainer compiled;
  const Epochs epochs = shuffle(training);

  // The one line: everything inside is LibTorch as it was.
  const auto step = torchcc::compile(
      [&](const at::Tensor& images, const at::Tensor& labels) { return compiled.step(images, labels); },
      {.name = "step"});

  Course eager_course;
  Course compiled_course;
  for (const std::vector<Batch>& batches : epochs) {  // in turns, so that the machine's other work hits both alike
    eager_course.run(batches, [&](const at::Tensor& x, const at::Tensor& y) { return eager.step(x, y); });
    compiled_course.run(batches, step);
  }

  const torchcc::CompileStats stats = step.stats();
  // The first epochs record and compile.
  std::cout << "threads " << at::get_num_threads() << "\nheld_out " << held_out.labels.size(0) << "\nepochs " << kEpochs
            << "\neager_losses " << list(eager_course.losses) << "\ncompiled_losses " << list(compiled_course.losses)
            << "\neager_epoch_s " << digits::median(eager_course.seconds) << "\ncompiled_epoch_s "
            << digits::median(compiled_course.seconds) << "\neager_accuracy " << accuracy(eager, held_out)
            << "\naccuracy " << accuracy(compiled, held_out) << "\npython_files " << digits::mapped_python_files()
            << "\ncompiled_ops " << compiled_operators(stats) << "\neager_ops " << stats.eager_ops << "\neager_steps "
            << stats.eager + stats.recorded << "\ncompile_seconds " << stats.compile_seconds << "\nreason "
            << (stats.reason.empty() ? "none" : stats.reason) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: training <digits.bin>\n";
    return 2;
  }
  try {
    run(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
