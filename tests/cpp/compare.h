// Comparisons of tensors for BOOST_TEST.
#pragma once

#include <boost/test/unit_test.hpp>

#include "support.h"

namespace test {

inline boost::test_tools::assertion_result differ(const at::Tensor& got, const at::Tensor& expected) {
  boost::test_tools::assertion_result result(false);
  result.message() << "got " << got.toString() << got.sizes() << ", expected " << expected.toString()
                   << expected.sizes();
  if (got.sizes() == expected.sizes() && got.numel() != 0) {
    const at::Tensor difference = (got.to(at::kDouble) - expected.to(at::kDouble)).abs().max();
    result.message() << "; largest difference " << difference.item<double>();
  }
  return result;
}

/// Whether two tensors have the same dtype, sizes and values.
inline boost::test_tools::assertion_result same(const at::Tensor& got, const at::Tensor& expected) {
  if (got.scalar_type() != expected.scalar_type() || !at::equal(got, expected)) return differ(got, expected);
  return true;
}

/// Whether two tensors have the same dtype and sizes, and values within rounding errors of that dtype.
inline boost::test_tools::assertion_result close(const at::Tensor& got, const at::Tensor& expected) {
  const double tolerance = expected.scalar_type() == at::kDouble ? 1e-10 : 1e-4;
  if (got.scalar_type() != expected.scalar_type() || got.sizes() != expected.sizes() ||
      !at::allclose(got, expected, tolerance, tolerance)) {
    return differ(got, expected);
  }
  return true;
}

}  // namespace test
