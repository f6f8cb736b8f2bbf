// Memory: inputs of any layout, inputs that are written to, and outputs that the caller gives.
#include <functional>

#include "compare.h"

namespace {

using test::close;
using test::same;

using Arguments = std::vector<torchcc::Argument>;

struct Layout {
  std::string name;
  std::function<at::Tensor(int64_t, int64_t)> make;  ///< a float64 tensor of these sizes with random values
  bool writable = true;                              ///< one place in memory per element
};

at::Tensor randn(at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble); }

// Memory that libtorch does not own.
at::Tensor foreign(int64_t n, int64_t m) {
  auto* values = new std::vector<double>(static_cast<size_t>(n * m));
  const at::Tensor tensor = at::from_blob(values->data(), {n, m}, [values](void*) { delete values; }, at::kDouble);
  return tensor.normal_();
}

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all{
      {"contiguous", [](int64_t n, int64_t m) { return randn({n, m}); }},
      {"transposed", [](int64_t n, int64_t m) { return randn({m, n}).t(); }},
      {"every other row", [](int64_t n, int64_t m) { return randn({2 * n, m}).slice(0, 0, 2 * n, 2); }},
      {"every third column", [](int64_t n, int64_t m) { return randn({n, 3 * m}).slice(1, 1, 3 * m, 3); }},
      {"odd strides", [](int64_t n, int64_t m) { return randn({n, m + 7}).narrow(1, 3, m); }},
      {"odd offset", [](int64_t n, int64_t m) { return randn({n * m + 1}).slice(0, 1).view({n, m}); }},
      {"inner of three", [](int64_t n, int64_t m) { return randn({m, 2, n}).select(1, 1).t(); }},
      {"negated view", [](int64_t n, int64_t m) { return at::_neg_view(randn({n, m})); }},
      {"negated and strided",
       [](int64_t n, int64_t m) { return at::imag(at::conj(at::randn({n, m}, at::kComplexDouble))); }},
      {"foreign memory", foreign},
      {"expanded row", [](int64_t n, int64_t m) { return randn({1, m}).expand({n, m}); }, false},
      {"expanded column", [](int64_t n, int64_t m) { return randn({n, 1}).expand({n, m}); }, false},
      {"expanded element", [](int64_t n, int64_t m) { return randn({1, 1}).expand({n, m}); }, false},
  };
  return all;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(layouts_of_inputs)

BOOST_AUTO_TEST_CASE(every_pair) {
  const torchcc::Function function = test::regions()["blend"];
  for (const Layout& first : layouts()) {
    for (const Layout& second : layouts()) {
      BOOST_TEST_CONTEXT(first.name << ", " << second.name) {
        const at::Tensor x = first.make(6, 11);
        const at::Tensor y = second.make(6, 11);
        const at::Tensor before = x.clone();
        const at::Tensor expected = (x * 0.5 + y + 1) * -1.0;
        BOOST_TEST(close(function.call({x, y, 0.5, 1, true})[0], expected));
        at::Tensor out[]{at::empty({6, 11}, at::kDouble), at::empty({6}, at::kDouble)};
        function.call_out(out, Arguments{x, y, 0.5, 1, true});
        BOOST_TEST(close(out[0], expected));
        BOOST_TEST(close(out[1], expected.sum(1)));
        BOOST_TEST(same(x, before));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(single_rows_with_meaningless_strides) {
  const at::Tensor memory = randn({3000});
  const at::Tensor x = memory.as_strided({1, 5}, {999, 1});
  const at::Tensor y = memory.as_strided({1, 5}, {3, 2}, 100);
  BOOST_TEST(close(test::regions()["blend"].call({x, y, 2.0, 0, false})[0], x * 2.0 + y));
  const at::Tensor empty = memory.as_strided({0, 5}, {7, 3});
  BOOST_TEST(test::regions()["blend"].call({empty, empty, 2.0, 0, false})[0].numel() == 0);
}

BOOST_AUTO_TEST_CASE(one_tensor_for_all_arguments) {
  const at::Tensor x = randn({4, 4});
  BOOST_TEST(close(test::regions()["blend"].call({x, x.t(), 1.0, 0, false})[0], x + x.t()));
  BOOST_TEST(close(test::regions()["blend"].call({x, x, 1.0, 0, false})[0], x + x));
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(mutation)

BOOST_AUTO_TEST_CASE(lands_in_the_callers_tensor) {
  const torchcc::Function function = test::regions()["accumulate"];
  for (const Layout& layout : layouts()) {
    if (!layout.writable) continue;
    for (const bool out_given : {false, true}) {
      BOOST_TEST_CONTEXT(layout.name << (out_given ? ", output given" : "")) {
        const at::Tensor total = layout.make(5, 7);
        const at::Tensor x = randn({7, 5}).t();
        const at::Tensor expected = total + x;
        at::Tensor sum = at::empty({5}, at::kDouble);
        if (out_given) {
          function.call_out({&sum, 1}, Arguments{total, x});
        } else {
          sum = function(total, x);
        }
        BOOST_TEST(close(total, expected));
        BOOST_TEST(close(sum, expected.sum(1)));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(leaves_the_gaps_between_strides_alone) {
  const at::Tensor memory = randn({10, 9});
  const at::Tensor before = memory.clone();
  const at::Tensor total = memory.slice(0, 0, 10, 2).slice(1, 1, 9, 2);
  const at::Tensor x = randn({5, 4});
  test::regions()["accumulate"](total, x);
  before.slice(0, 0, 10, 2).slice(1, 1, 9, 2).add_(x);
  BOOST_TEST(close(memory, before));
}

BOOST_AUTO_TEST_CASE(nothing_to_write) {
  const at::Tensor total = at::empty({0, 3}, at::kDouble);
  BOOST_TEST(same(test::regions()["accumulate"](total, total.clone()), at::empty({0}, at::kDouble)));
}

BOOST_AUTO_TEST_CASE(is_refused_where_elements_share_memory) {
  const torchcc::Function function = test::regions()["accumulate"];
  const at::Tensor memory = randn({6, 5});
  const at::Tensor before = memory.clone();
  const at::Tensor x = randn({6, 5});
  BOOST_CHECK_THROW(function(memory.select(0, 0).expand({6, 5}), x), torchcc::ArgumentError);
  BOOST_CHECK_THROW(function(memory, memory), torchcc::ArgumentError);
  BOOST_CHECK_THROW(function(memory.narrow(0, 0, 3), memory.narrow(0, 2, 3)), torchcc::ArgumentError);
  const at::Tensor same_place = at::from_blob(memory.mutable_data_ptr(), {6, 5}, at::kDouble);
  BOOST_CHECK_THROW(function(memory, same_place), torchcc::ArgumentError);
  BOOST_TEST(same(memory, before));
  function(memory.narrow(0, 0, 3), memory.narrow(0, 3, 3));
  BOOST_TEST(close(memory.narrow(0, 0, 3), before.narrow(0, 0, 3) + before.narrow(0, 3, 3)));
}

BOOST_AUTO_TEST_CASE(is_seen_by_autograd) {
  const at::Tensor total = randn({2, 3});
  const at::Tensor weight = randn({2, 3}).requires_grad_(true);
  const at::Tensor loss = (weight * total).sum();  // the backward pass needs `total` as it is now
  test::regions()["accumulate"](total, randn({2, 3}));
  BOOST_CHECK_THROW(loss.backward(), c10::Error);
  at::Tensor out = at::empty({16});
  const auto version = out._version();
  test::regions()["add_relu"].call_out({&out, 1}, Arguments{at::randn({16}), at::randn({16})});
  BOOST_TEST(out._version() > version);
}

BOOST_AUTO_TEST_SUITE_END()

BOOST_AUTO_TEST_SUITE(outputs)

BOOST_AUTO_TEST_CASE(every_element_is_written) {
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  at::Tensor out = at::full({16}, NAN);
  void* const memory = out.data_ptr();
  test::regions()["add_relu"].call_out({&out, 1}, Arguments{x, y});
  BOOST_TEST(same(out, at::relu(x + y)));
  BOOST_TEST(out.data_ptr() == memory);
  for (const int64_t n : {0, 1, 3, 300}) {
    const at::Tensor a = randn({n, 40});
    const at::Tensor b = randn({n, 40});
    at::Tensor outs[]{at::full({n, 40}, NAN, at::kDouble), at::full({n}, NAN, at::kDouble)};
    test::regions()["blend"].call_out(outs, Arguments{a, b, 2.0, 3, false});
    BOOST_TEST(close(outs[0], a * 2.0 + b + 3));
    BOOST_TEST(close(outs[1], (a * 2.0 + b + 3).sum(1)));
  }
}

BOOST_AUTO_TEST_CASE(may_be_part_of_a_larger_tensor) {
  const at::Tensor memory = at::full({3, 16}, 5.0F);
  at::Tensor row = memory.select(0, 1);
  const at::Tensor x = at::randn({16});
  test::regions()["add_relu"].call_out({&row, 1}, Arguments{x, x});
  BOOST_TEST(same(memory.select(0, 1), at::relu(x + x)));
  BOOST_TEST(same(memory.select(0, 0), at::full({16}, 5.0F)));
  BOOST_TEST(same(memory.select(0, 2), at::full({16}, 5.0F)));
}

BOOST_AUTO_TEST_CASE(no_memory_is_allocated) {
  const torchcc::Function function = test::regions()["add_relu"];
  const at::Tensor x = at::randn({16});
  const at::Tensor y = at::randn({16});
  at::Tensor out = at::empty({16});
  function.call_out({&out, 1}, Arguments{x, y});
  const int64_t before = test::allocations();
  for (int i = 0; i < 100; ++i) function.call_out({&out, 1}, Arguments{x, y});
  BOOST_TEST(test::allocations() - before == 0);
  function(x, y);
  BOOST_TEST(test::allocations() - before == 1);
}

BOOST_AUTO_TEST_SUITE_END()
