#pragma once

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "models.h"

// What the programs share that benchmarks/contest.py talks to.
namespace benchmarks {

using Call = std::function<at::Tensor()>;

/// Reads a dictionary of tensors that torch.save wrote.
inline Weights load_weights(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
  Weights weights;
  for (const auto& item : torch::pickle_load(bytes).toGenericDict()) {
    weights[item.key().toStringRef()] = item.value().toTensor();
  }
  return weights;
}

/// Untimed calls before the timed ones; then this program's caches are warm.
constexpr auto kWarm = std::chrono::milliseconds(3);

inline double nanoseconds_per_call(const Call& call, size_t count) {
  const auto warm = std::chrono::steady_clock::now() + kWarm;
  do {
    call();
  } while (std::chrono::steady_clock::now() < warm);
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < count; ++i) call();
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / static_cast<double>(count);
}

/// Reads numbers from standard input, makes that many timed calls, and prints the nanoseconds per call.
inline void answer(const Call& call) {
  size_t count = 0;
  while (std::cin >> count) std::cout << nanoseconds_per_call(call, count) << std::endl;
}

}  // namespace benchmarks
