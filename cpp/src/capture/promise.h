#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torchcc/compile_options.h>
#include <torchcc/detail/leaves.h>

#include "plan.h"
#include "recording.h"

namespace torchcc::detail {

struct Variant;

/// The promise about a size of an input, if it is an argument; else null.
const DynamicSize* promise_of(const std::vector<DynamicSize>& promises, const Recording& recording, const Input& input,
                              int64_t dim);

/// Arguments for which compiled code is promised to be right: those of a recording, with other sizes.
class PromisedSizes {
 public:
  /// Null where the promises do not suffice: other sizes are free too, results are views of arguments or numbers, or
  /// arguments are not contiguous.
  static std::unique_ptr<const PromisedSizes> of(const std::vector<DynamicSize>& promises, const Plan& plan);

  /// Whether sizes and strides are among those; dtypes and ranks have been compared.
  bool fit(const Leaves& arguments) const;

 private:
  struct Size {
    int64_t number;       ///< the size, where it is not free
    int64_t symbol = -1;  ///< else
  };
  struct Range {
    int64_t min;
    int64_t max;
  };
  std::vector<std::vector<Size>> sizes_;  ///< per tensor of the arguments
  std::vector<Range> ranges_;             ///< per symbol
  const Recording* recording_ = nullptr;
  const Signature* conditions_ = nullptr;  ///< where there are more than ranges
};

/// What a program promises of the sizes of one function's arguments, and the plans that serve all calls of promised
/// sizes. plans() is free for all; everything else belongs to CoreState::mutex.
class Promises {
 public:
  /// A plan for all calls of promised sizes.
  struct Promised {
    Variant* variant;
    const Plan* plan;
    std::unique_ptr<const PromisedSizes> sizes;
  };
  using Plans = std::vector<const Promised*>;

  /// Those of different code, the latest first; null while there are none.
  const Plans* plans() const { return plans_.load(std::memory_order_acquire); }
  /// Makes a variant's plan one of these, if the promises suffice.
  void serve(Variant& variant, const Plan& plan);

  /// The options' promises, and those of marked arguments.
  const std::vector<DynamicSize>& sizes() const { return sizes_; }
  void set(std::vector<DynamicSize> sizes) { sizes_ = std::move(sizes); }
  /// Adds the marks of torchcc::dynamic() on arguments.
  void add_marks(const Leaves& arguments);

  /// Notes that a call has shown a promise to be wrong, if all sizes in which two recordings differ are promised.
  void note_broken(const Recording& sample, const Recording& now, const std::string& why);
  /// Why the latest such call has; once, and else empty.
  std::string take_broken() { return std::exchange(broken_, {}); }

 private:
  std::vector<DynamicSize> sizes_;
  std::string broken_;
  std::atomic<const Plans*> plans_{nullptr};
  // Other threads may still read these.
  std::vector<std::unique_ptr<const Promised>> promised_;
  std::vector<std::unique_ptr<const Plans>> lists_;
};

}  // namespace torchcc::detail
