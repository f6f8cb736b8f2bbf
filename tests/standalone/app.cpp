// `app <calls> <results> <weights of the zoo>`: makes the calls of a file with two models. Then calls both from two
// threads at once, counts allocations, and prints what it saw.
#include <cstdint>
#include <cstring>
#include <exception>
#include <iostream>
#include <string>
#include <thread>
#include <tuple>

#include "calls.h"
#include "classifier.h"
#include "zoo.h"

extern "C" {
extern long torchcc_test_allocations __attribute__((weak));
}

namespace {

long allocations() { return &torchcc_test_allocations == nullptr ? 0 : torchcc_test_allocations; }

const torchcc::Function& find(const std::string& name) {
  const std::string package = name.substr(0, name.find('.'));
  const std::string function = name.substr(name.find('.') + 1);
  return package == "zoo" ? zoo::zoo_package()[function] : classifier::classifier_package()[function];
}

torchcc::Tensor zeros(torchcc::IntArrayRef sizes, torchcc::ScalarType dtype) {
  const torchcc::Tensor tensor = torchcc::empty(sizes, dtype);
  std::memset(tensor.data_ptr(), 0, calls::bytes_of(tensor));
  return tensor;
}

bool same(const torchcc::Tensor& one, const torchcc::Tensor& other) {
  return std::memcmp(one.const_data_ptr(), other.const_data_ptr(), calls::bytes_of(one)) == 0;
}

void count_allocations() {
  const torchcc::Tensor image = zeros({1, 8, 8}, torchcc::kByte);
  torchcc::Tensor out = torchcc::empty({1, 10});
  for (int i = 0; i < 3; ++i) {
    classifier::forward(image);
    classifier::forward_out(out, image);
  }
  const long before = allocations();
  for (int i = 0; i < 100; ++i) {
    classifier::forward(image);
    classifier::forward_out(out, image);
  }
  std::cout << "allocations " << allocations() - before << "\n";
}

/// Both threads call both models; the decoder's calls change what it keeps, so that they wait for one another.
void use_threads() {
  const torchcc::Tensor images = zeros({7, 8, 8}, torchcc::kByte);
  const torchcc::Tensor tokens = zeros({3, 7}, torchcc::kLong);
  const torchcc::Tensor state = zeros({2, 3, 12}, torchcc::kFloat);
  const torchcc::Tensor token = zeros({1, 1}, torchcc::kLong);
  const torchcc::Tensor logits = classifier::forward(images);
  const torchcc::Tensor scores = std::get<0>(zoo::predict(tokens, state, state));
  for (const auto& [name, tensor] : zoo::zoo_package()["decode"].weights()) {
    std::memset(tensor.data_ptr(), 0, calls::bytes_of(tensor));
  }
  const auto work = [&](bool& agree) {
    for (int i = 0; i < 200; ++i) {
      agree = agree && same(classifier::forward(images), logits) &&
              same(std::get<0>(zoo::predict(tokens, state, state)), scores);
      if (i % 100 == 0) zoo::decode(token);
    }
  };
  bool first = true;
  bool second = true;
  std::thread other([&] { work(second); });
  work(first);
  other.join();
  const int64_t steps = *std::get<1>(zoo::decode(token)).data_ptr<int64_t>();
  std::cout << "threads " << (first && second && steps == 5 ? "agree" : "differ") << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    try {
      zoo::decode(torchcc::empty({1, 1}, torchcc::kLong));
    } catch (const torchcc::PackageError& error) {
      std::cout << error.what() << "\n";
    }
    zoo::zoo_package(argv[3]);
    calls::make(argv[1], argv[2], find);
    count_allocations();
    use_threads();
    std::cout << classifier::classifier_package()["forward"].signature().str() << "\n"
              << classifier::classifier_package()["forward"].stats().backend << "\n";
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
