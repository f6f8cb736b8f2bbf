#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <torchcc/compile_options.h>
#include <torchcc/detail/leaves.h>

#include "plan.h"
#include "recording.h"

namespace torchcc::detail {

/// The marks of torchcc::dynamic() on some arguments that are not among the promises yet.
std::vector<DynamicSize> new_marks(const Leaves& arguments, const std::vector<DynamicSize>& promises);

/// The promise about a size of an input, if it is an argument; else null.
const DynamicSize* promise_of(const std::vector<DynamicSize>& promises, const Recording& recording, const Input& input,
                              int64_t dim);

/// Whether all sizes in which two recordings differ are promised to make no difference.
bool are_promised(const std::vector<DynamicSize>& promises, const Recording& before, const Recording& now);

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

}  // namespace torchcc::detail
