// Results of compiled functions against eager ATen on fresh random inputs.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "compare.h"
#include "regions.h"

namespace {

using test::close;
using test::same;

std::pair<at::Tensor, at::Tensor> blend(const at::Tensor& x, const at::Tensor& y, double alpha, int64_t shift,
                                        bool flip) {
  const at::Tensor z = (x * alpha + y + shift) * (flip ? -1.0 : 1.0);
  return {z, z.sum(1)};
}

at::Tensor interleave(const at::Tensor& x, const at::Tensor& y) {
  return at::cat({y * x.repeat(2), y.sum().reshape({1})});
}

/// The encoder of tests/regions.py.
at::Tensor encoder(const at::Tensor& x) {
  const auto weight = [](at::IntArrayRef sizes, double factor) {
    const int64_t count = c10::multiply_integers(sizes);
    return at::sin(at::arange(count, at::kDouble) * factor).reshape(sizes).to(at::kFloat);
  };
  const at::Tensor y = at::linear(x, weight({8, 24}, 1), weight({8}, 2));
  const at::Tensor normed = at::layer_norm(y, {8}, weight({8}, 3), weight({8}, 4));
  const at::Tensor table = weight({300, 300}, 5);
  return normed.matmul(at::softmax(table.matmul(table), 0).slice(0, 0, 8).slice(1, 0, 8));
}

/// Switches bfloat16 autocasting on for a scope.
class Autocast {
 public:
  Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  ~Autocast() { at::autocast::set_autocast_enabled(at::kCPU, false); }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(calls)

BOOST_AUTO_TEST_CASE(generated_header) {
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  BOOST_TEST(same(regions::add_relu(x, y), at::relu(x + y)));
  const at::Tensor a = at::randn({3, 5}, at::kDouble);
  const at::Tensor b = at::randn({3, 5}, at::kDouble);
  const auto [z, sum] = regions::blend(a, b, 0.5, -2, true);
  BOOST_TEST(close(z, blend(a, b, 0.5, -2, true).first));
  BOOST_TEST(close(sum, blend(a, b, 0.5, -2, true).second));
  at::Tensor out = at::empty({16});
  regions::add_relu_out(out, x, y);
  BOOST_TEST(same(out, at::relu(x + y)));
  BOOST_TEST(regions::regions_package()["add_relu"].stats().backend == "compiled");
}

BOOST_AUTO_TEST_CASE(all_sizes_with_empty_and_single) {
  const torchcc::Function function = test::regions()["blend"];
  for (const int64_t n : {0, 1, 2, 3, 17, 64, 4096}) {
    for (const int64_t m : {0, 1, 5, 33}) {
      BOOST_TEST_CONTEXT("n = " << n << ", m = " << m) {
        const at::Tensor x = at::randn({n, m}, at::kDouble);
        const at::Tensor y = at::randn({n, m}, at::kDouble);
        const auto results = function.call({x, y, 1.5, 2, false});
        const auto [z, sum] = blend(x, y, 1.5, 2, false);
        BOOST_TEST(close(results[0], z));
        BOOST_TEST(close(results[1], sum));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(more_threads_than_one) {
  const at::Tensor x = at::randn({4096, 33}, at::kDouble);
  const at::Tensor y = at::randn({4096, 33}, at::kDouble);
  at::set_num_threads(4);
  const auto results = test::regions()["blend"].call({x, y, 1.5, 2, false});
  at::set_num_threads(1);
  BOOST_TEST(close(results[0], blend(x, y, 1.5, 2, false).first));
  BOOST_TEST(close(results[1], blend(x, y, 1.5, 2, false).second));
}

BOOST_AUTO_TEST_CASE(numbers_of_every_kind) {
  const torchcc::Function function = test::regions()["blend"];
  const at::Tensor x = at::randn({2, 3}, at::kDouble);
  const at::Tensor y = at::randn({2, 3}, at::kDouble);
  for (const double alpha : {-1.75, 0.0, 1e300, -0.0}) {
    for (const int shift : {-5, 0, 5}) {
      for (const bool flip : {false, true}) {
        BOOST_TEST(close(function.call({x, y, alpha, shift, flip})[0], blend(x, y, alpha, shift, flip).first));
      }
    }
  }
  const at::Tensor expected = blend(x, y, 3, 1, true).first;
  const at::Tensor as_double = at::scalar_tensor(3.0, at::kDouble);
  const at::Tensor as_bool = at::scalar_tensor(true, at::kBool);
  BOOST_TEST(close(function.call({x, y, 3, uint8_t{1}, true})[0], expected));
  BOOST_TEST(close(function.call({x, y, 3.0F, int64_t{1}, true})[0], expected));
  BOOST_TEST(close(function.call({x, y, as_double, at::scalar_tensor(1, at::kLong), as_bool})[0], expected));
}

BOOST_AUTO_TEST_CASE(sizes_that_are_expressions) {
  for (const int64_t n : {0, 1, 2, 7, 100}) {
    const at::Tensor x = at::randn({n}, at::kDouble);
    const at::Tensor y = at::randn({2 * n}, at::kDouble);
    BOOST_TEST(close(test::regions()["interleave"](x, y), interleave(x, y)));
  }
}

BOOST_AUTO_TEST_CASE(integers_and_booleans) {
  for (const int64_t n : {0, 1, 2, 17, 1000}) {
    const at::Tensor count = at::randint(-(1LL << 40), 1LL << 40, {n}, at::kLong);
    const at::Tensor small = at::randint(-1000, 1000, {n}, at::kInt);
    const at::Tensor byte = at::randint(0, 256, {n}, at::kByte);
    const at::Tensor chosen = at::randint(0, 2, {n}, at::kLong).to(at::kBool);
    const auto results = test::regions()["kinds"].call({count, small, byte, chosen});
    BOOST_TEST(same(results[0], at::where(chosen, count * 3, small.to(at::kLong))));
    BOOST_TEST(same(results[1], byte + byte));
    BOOST_TEST(same(results[2], chosen.logical_not()));
  }
}

BOOST_AUTO_TEST_CASE(operator_without_a_c_entry_point) {
  for (const int64_t n : {0, 1, 2, 9}) {
    const at::Tensor x = at::randn({n, 3, 3}, at::kDouble);
    const auto results = test::regions()["log_determinant"].call({x});
    const auto [sign, logarithm] = at::linalg_slogdet(x);
    BOOST_TEST(close(results[0], sign));
    BOOST_TEST(close(results[1], logarithm));
  }
}

BOOST_AUTO_TEST_CASE(integer_division_rounds_down) {
  for (const int64_t n : {0, 1, 2, 1000}) {
    const at::Tensor x = at::randint(-100, 100, {n}, at::kLong);
    const at::Tensor by = at::randint(1, 9, {n}, at::kLong) * at::where(at::rand({n}) > 0.5, 1, -1);
    BOOST_TEST(same(test::regions()["divide"](x, by), x.floor_divide(by)));
  }
}

BOOST_AUTO_TEST_CASE(rows_of_a_table) {
  const at::Tensor table = at::randn({100, 8});
  for (const int64_t n : {0, 1, 2, 64}) {
    const at::Tensor index = at::randint(0, 100, {n}, at::kLong);
    BOOST_TEST(same(test::regions()["lookup"](table, index), table.index_select(0, index)));
  }
  const at::Tensor last = at::full({1}, 99, at::kLong);
  BOOST_TEST(same(test::regions()["lookup"](table, last), table.slice(0, 99)));
}

BOOST_AUTO_TEST_CASE(module_with_weights) {
  const torchcc::Function function = test::regions()["encoder"];
  for (const int64_t n : {0, 1, 2, 3, 64, 512}) {
    const at::Tensor x = at::randn({n, 24});
    BOOST_TEST(close(function(x), encoder(x)));
  }
}

BOOST_AUTO_TEST_CASE(a_result_is_the_callers_own) {
  const torchcc::Function function = test::regions()["add_relu"];
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  const at::Tensor first = function(x, y);
  const at::Tensor expected = first.clone();
  function(y, y).fill_(9);
  function(x, x);
  BOOST_TEST(same(first, expected));
  BOOST_TEST(!first.is_alias_of(x));
}

BOOST_AUTO_TEST_CASE(inference_mode) {
  const at::Tensor outside = at::randn({16});
  const c10::InferenceMode mode;
  const at::Tensor inside = at::randn({16});
  BOOST_TEST(same(test::regions()["add_relu"](outside, inside), at::relu(outside + inside)));
  at::Tensor total = at::zeros({2, 3}, at::kDouble);
  test::regions()["accumulate"](total, at::ones({2, 3}, at::kDouble));
  BOOST_TEST(same(total, at::ones({2, 3}, at::kDouble)));
}

BOOST_AUTO_TEST_CASE(inference_tensors_outside_of_inference_mode) {
  at::Tensor x;
  {
    const c10::InferenceMode mode;
    x = at::randn({16});
  }
  BOOST_TEST(same(test::regions()["add_relu"](x, x), at::relu(x + x)));
}

BOOST_AUTO_TEST_CASE(gradients_flow_through_the_graph) {
  const torchcc::Function function = test::regions()["add_relu"];
  const at::Tensor x = at::randn({16}).requires_grad_(true);
  const at::Tensor y = at::randn({16});
  const at::Tensor result = function(x, y);
  BOOST_TEST(same(result.detach(), at::relu(x + y).detach()));
  result.sum().backward();
  BOOST_TEST(same(x.grad(), (x.detach() + y > 0).to(at::kFloat)));
  BOOST_TEST(function.stats().portable_calls == 1);
  BOOST_TEST(same(function(x.detach(), y), at::relu(x + y).detach()));
  const at::NoGradGuard off;
  BOOST_TEST(!function(x, y).requires_grad());
  BOOST_TEST(function.stats().portable_calls == 1);
}

BOOST_AUTO_TEST_CASE(autocast_changes_nothing) {
  const at::Tensor x = at::randn({4, 24});
  const at::Tensor square = at::randn({2, 3, 3}, at::kDouble);
  const at::Tensor encoded = test::regions()["encoder"](x);
  const at::Tensor logarithm = test::regions()["log_determinant"].call({square})[1];
  const Autocast autocast;
  BOOST_TEST(same(test::regions()["encoder"](x), encoded));
  BOOST_TEST(same(test::regions()["log_determinant"].call({square})[1], logarithm));
}

BOOST_AUTO_TEST_CASE(signatures_as_people_read_them) {
  BOOST_TEST(test::regions()["blend"].signature().str() ==
             "blend(x: float64[n, m], y: float64[n, m], alpha: double, shift: int64_t, flip: bool) -> (float64[n, m], "
             "float64[n]) with 0 <= n <= 4096, 0 <= m");
  BOOST_TEST(test::regions()["interleave"].signature().str() ==
             "interleave(x: float64[n], y: float64[2*n]) -> float64[2*n+1] with 0 <= n");
}

BOOST_AUTO_TEST_SUITE_END()
