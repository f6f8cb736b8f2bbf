// What the programs of this folder share: the images, and how they measure.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torch/torch.h>

namespace digits {

struct Images {
  at::Tensor pixels;  ///< uint8[n, 8, 8], 0 to 16
  at::Tensor labels;  ///< int64[n]
};

enum class Part { training, held_out };

inline std::vector<char> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Every 4th image was kept from training, see digits.py. A record is 64 pixels and the digit.
inline Images read(const char* path, Part part) {
  constexpr int64_t kHeldOut = 4;
  constexpr int64_t kRecord = 65;
  std::vector<char> bytes = read_file(path);
  const auto count = static_cast<int64_t>(bytes.size()) / kRecord;
  const at::Tensor all = torch::from_blob(bytes.data(), {count, kRecord}, torch::kUInt8);
  const at::Tensor is_held_out = torch::arange(count).remainder(kHeldOut).eq(0);
  const at::Tensor records = all.index({part == Part::held_out ? is_held_out : is_held_out.logical_not()});
  return {records.slice(1, 0, 64).reshape({-1, 8, 8}).clone(), records.select(1, 64).to(torch::kInt64)};
}

inline double accuracy(const at::Tensor& logits, const at::Tensor& labels) {
  return logits.argmax(1).eq(labels).to(torch::kFloat64).mean().item<double>();
}

using Clock = std::chrono::steady_clock;

inline double microseconds(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Median times of one call of each, in turns, so that whatever else the machine does hits both alike.
inline std::pair<double, double> race(int repeats, const std::function<void()>& one,
                                      const std::function<void()>& other) {
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
inline size_t mapped_python_files() {
  std::ifstream maps("/proc/self/maps");
  std::set<std::string> found;
  for (std::string line; std::getline(maps, line);) {
    const std::string file = line.substr(line.rfind('/') + 1);
    if (line.find('/') != std::string::npos && file.find("python") != std::string::npos) found.insert(file);
  }
  return found.size();
}

}  // namespace digits
