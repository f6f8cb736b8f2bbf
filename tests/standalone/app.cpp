// `app <images.bin> <logits.bin> <tokens.bin> <steps.bin> <weights of the cache>`: runs both models on the contents of
// files, and writes what they give. Then both from two threads at once, and prints what it saw.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>
#include <vector>

#include <torchcc/torchcc.h>

#include "cache.h"
#include "classifier.h"

extern "C" {
extern long torchcc_test_allocations __attribute__((weak));
}

namespace {

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const char* path, const torchcc::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary | std::ios::app);
  const auto bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  file.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(bytes));
}

long allocations() { return &torchcc_test_allocations == nullptr ? 0 : torchcc_test_allocations; }

bool same(const torchcc::Tensor& one, const torchcc::Tensor& other) {
  for (int64_t i = 0; i < one.numel(); ++i) {
    if (one.data_ptr<float>()[i] != other.data_ptr<float>()[i]) return false;
  }
  return true;
}

void run(char** files) {
  std::vector<char> pixels = read(files[0]);
  const torchcc::Tensor images =
      torchcc::from_memory(reinterpret_cast<uint8_t*>(pixels.data()), {static_cast<int64_t>(pixels.size()) / 64, 8, 8});
  const torchcc::Tensor logits = classifier::forward(images);
  write(files[1], logits);

  cache::cache_package(files[4]);
  std::vector<char> numbers = read(files[2]);
  auto* tokens = reinterpret_cast<float*>(numbers.data());
  const int64_t steps = static_cast<int64_t>(numbers.size()) / (32 * 4);
  for (int64_t step = 0; step < steps; ++step) {
    write(files[3],
          cache::forward(torchcc::from_memory(tokens + 32 * step, {1, 32}), torchcc::from_memory(&step, {1})));
  }

  const torchcc::Tensor one_image = images.as_strided({1, 8, 8}, {64, 8, 1});
  torchcc::Tensor out = torchcc::empty({1, 10});
  for (int i = 0; i < 3; ++i) {
    classifier::forward(one_image);
    classifier::forward_out(out, one_image);
  }
  const long before = allocations();
  for (int i = 0; i < 100; ++i) {
    classifier::forward(one_image);
    classifier::forward_out(out, one_image);
  }
  std::cout << "allocations " << allocations() - before << "\n";

  bool agree = true;
  const torchcc::Tensor token = torchcc::from_memory(tokens, {1, 32});
  int64_t last = 15;
  const torchcc::Tensor place = torchcc::from_memory(&last, {1});
  const torchcc::Tensor step = cache::forward(token, place);
  std::thread other([&] {
    for (int i = 0; i < 300; ++i) agree = agree && same(classifier::forward(images), logits);
  });
  bool steps_agree = true;
  for (int i = 0; i < 300; ++i) {
    steps_agree = steps_agree && same(cache::forward(token, place), step) && same(classifier::forward(images), logits);
  }
  other.join();
  std::cout << "threads " << (agree && steps_agree ? "agree" : "differ") << "\n";
  std::cout << classifier::classifier_package()["forward"].signature().str() << "\n"
            << classifier::classifier_package()["forward"].stats().backend << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  try {
    try {
      cache::forward(torchcc::empty({1, 32}), torchcc::empty({1}, torchcc::kLong));
    } catch (const torchcc::PackageError& error) {
      std::cout << error.what() << "\n";
    }
    run(argv + 1);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
