// Random programs: directed graphs of operators made from a seed, and run by an interpreter.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace programs {

using at::Tensor;

/// One random program. Its operators are defined everywhere (no NaN, no division by zero), keep values small, and jump
/// (comparisons, floor) only where values of the inputs hardly ever are, so that rounding errors stay rounding errors.
class Dag {
 public:
  explicit Dag(uint64_t seed);

  /// Fresh inputs, from PyTorch's random numbers.
  std::vector<Tensor> inputs() const;

  /// Runs all operators; gives the values that nothing uses, and some others.
  std::vector<Tensor> run(std::vector<Tensor> values) const;
  /// The same, and calls `after` with what each operator gave.
  std::vector<Tensor> run(std::vector<Tensor> values, const std::function<void(Tensor&)>& after) const;
  /// As run(), but some operators in a row, about a quarter of all, run with grad mode off.
  std::vector<Tensor> run_partly_without_grad(std::vector<Tensor> values) const;

  /// What is computed, one operator to a line.
  std::string text() const;

  uint64_t seed() const { return seed_; }
  /// Whether results are float64 in name only: some value on the way was float32.
  bool is_coarse() const { return is_coarse_; }

 private:
  friend class Growth;

  struct Input {
    std::vector<int64_t> sizes;
    at::ScalarType dtype;
  };
  struct Step {
    std::string text;
    std::function<Tensor(const std::vector<Tensor>&)> run;  ///< from all values so far to the next one
  };

  std::vector<Tensor> results_of(const std::vector<Tensor>& values) const;

  uint64_t seed_;
  bool is_coarse_ = false;
  std::vector<Input> inputs_;
  std::vector<Step> steps_;
  std::vector<size_t> results_;
};

}  // namespace programs
