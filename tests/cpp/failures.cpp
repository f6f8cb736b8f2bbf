// Calls that fail: the right exception, nothing left behind, and the function works as before. The messages are in
// tests/errors.
#include <functional>

#include "compare.h"

namespace {

using test::same;

using Arguments = std::vector<torchcc::Argument>;

template <class Exception>
void fails(const char* what, const std::function<void()>& call) {
  BOOST_TEST_CONTEXT(what) {
    BOOST_CHECK_THROW(call(), Exception);  // also makes what is made once, such as libtorch's tables
    const int64_t alive = test::alive();
    const int64_t descriptors = test::descriptors();
    for (int i = 0; i < 20; ++i) BOOST_CHECK_THROW(call(), Exception);
    BOOST_TEST(test::alive() == alive);
    BOOST_TEST(test::descriptors() == descriptors);
  }
}

struct Tensors {
  at::Tensor x = at::randn({16});
  at::Tensor y = at::randn({16});
  at::Tensor a = at::randn({4, 3}, at::kDouble);
  at::Tensor b = at::randn({4, 3}, at::kDouble);
  torchcc::Function add_relu = test::regions()["add_relu"];
  torchcc::Function blend = test::regions()["blend"];
};

}  // namespace

BOOST_FIXTURE_TEST_SUITE(failures, Tensors)

BOOST_AUTO_TEST_CASE(counts) {
  using torchcc::ArgumentError;
  std::vector<at::Tensor> none;
  std::vector<at::Tensor> one(1);
  fails<ArgumentError>("no argument", [&] { add_relu.call({}); });
  fails<ArgumentError>("too few arguments", [&] { add_relu(x); });
  fails<ArgumentError>("too many arguments", [&] { add_relu(x, y, x); });
  fails<ArgumentError>("two outputs as one", [&] { blend(a, b, 1.0, 1, true); });
  fails<ArgumentError>("no place for the output", [&] { add_relu.call_into(none, Arguments{x, y}); });
  fails<ArgumentError>("one place for two outputs", [&] { blend.call_out(one, Arguments{a, b, 1.0, 1, true}); });
  fails<ArgumentError>("an empty handle", [&] { torchcc::Function()(x); });
}

BOOST_AUTO_TEST_CASE(kinds_of_tensors) {
  using torchcc::ArgumentError;
  const at::Tensor nested = at::_nested_tensor_from_mask(at::randn({2, 3, 4}), at::ones({2, 3}, at::kBool));
  fails<ArgumentError>("undefined", [&] { add_relu(x, at::Tensor()); });
  fails<ArgumentError>("dtype", [&] { add_relu(x, y.to(at::kDouble)); });
  fails<ArgumentError>("rank", [&] { add_relu(x, y.unsqueeze(0)); });
  fails<ArgumentError>("rank 0", [&] { add_relu(x, y.sum()); });
  fails<ArgumentError>("sparse", [&] { add_relu(x.to_sparse(), y); });
  fails<ArgumentError>("compressed", [&] { blend(a.to_sparse_csr(), b, 1.0, 1, true); });
  fails<ArgumentError>("another device", [&] { add_relu(x.to(at::kMeta), y); });
  fails<ArgumentError>("nested", [&] { blend.call({nested, b, 1.0, 1, true}); });
  fails<ArgumentError>("lazily zero", [&] { add_relu(at::_efficientzerotensor({16}), y); });
  fails<ArgumentError>("complex", [&] { add_relu(at::randn({16}, at::kComplexFloat), y); });
  BOOST_TEST(same(add_relu(x, y), at::relu(x + y)));
}

BOOST_AUTO_TEST_CASE(sizes) {
  using torchcc::ArgumentError;
  const torchcc::Function interleave = test::regions()["interleave"];
  const at::Tensor large = at::randn({4097, 1}, at::kDouble);
  fails<ArgumentError>("fixed", [&] { add_relu(x, at::randn({15})); });
  fails<ArgumentError>("shared", [&] { blend.call({a, at::randn({3, 3}, at::kDouble), 1.0, 1, true}); });
  fails<ArgumentError>("shared, to be broadcast", [&] { blend.call({a, b.slice(0, 0, 1), 1.0, 1, true}); });
  fails<ArgumentError>("range", [&] { blend.call({large, large, 1.0, 1, true}); });
  fails<ArgumentError>("expression", [&] { interleave(at::randn({4}, at::kDouble), at::randn({7}, at::kDouble)); });
  BOOST_TEST(blend.call({a, b, 1.0, 1, true}).size() == 2U);
}

BOOST_AUTO_TEST_CASE(numbers) {
  using torchcc::ArgumentError;
  fails<ArgumentError>("a tensor for a number", [&] { blend.call({a, b, a, 1, true}); });
  fails<ArgumentError>("a number for a tensor", [&] { blend.call({a, 1.0, 1.0, 1, true}); });
  fails<ArgumentError>("a double for an integer", [&] { blend.call({a, b, 1.0, 1.0, true}); });
  fails<ArgumentError>("a bool for an integer", [&] { blend.call({a, b, 1.0, true, true}); });
  fails<ArgumentError>("a bool for a double", [&] { blend.call({a, b, false, 1, true}); });
  fails<ArgumentError>("an integer for a bool", [&] { blend.call({a, b, 1.0, 1, 1}); });
  fails<ArgumentError>("out of range", [&] { blend.call({a, b, 1.0, 6, true}); });
  fails<ArgumentError>("out of range, as a tensor",
                       [&] { blend.call({a, b, 1.0, at::scalar_tensor(-6, at::kLong), true}); });
}

BOOST_AUTO_TEST_CASE(outputs) {
  using torchcc::ArgumentError;
  const auto out_into = [&](at::Tensor out) { add_relu.call_out({&out, 1}, Arguments{x, y}); };
  const at::Tensor expected = x.clone();
  const at::Tensor memory = at::empty({4, 3}, at::kDouble);
  fails<ArgumentError>("undefined", [&] { out_into(at::Tensor()); });
  fails<ArgumentError>("dtype", [&] { out_into(at::empty({16}, at::kDouble)); });
  fails<ArgumentError>("rank", [&] { out_into(at::empty({1, 16})); });
  fails<ArgumentError>("size", [&] { out_into(at::empty({17})); });
  fails<ArgumentError>("strided", [&] { out_into(at::empty({32}).slice(0, 0, 32, 2)); });
  fails<ArgumentError>("expanded", [&] { out_into(at::empty({1}).expand({16})); });
  fails<ArgumentError>("negated", [&] { out_into(at::_neg_view(at::empty({16}))); });
  fails<ArgumentError>("sparse", [&] { out_into(at::zeros({16}).to_sparse()); });
  fails<ArgumentError>("an input", [&] { out_into(x); });
  fails<ArgumentError>("with gradients", [&] { out_into(at::empty({16}).requires_grad_(true)); });
  fails<ArgumentError>("each other", [&] {
    at::Tensor outs[]{memory, memory.view({12}).narrow(0, 8, 4)};
    blend.call_out(outs, Arguments{a, b, 1.0, 1, true});
  });
  fails<ArgumentError>("no such variant", [&] {
    at::Tensor out = at::empty({9}, at::kDouble);
    test::regions()["interleave"].call_out({&out, 1}, Arguments{a.select(1, 0), b.select(1, 0)});
  });
  BOOST_TEST(same(x, expected));
}

BOOST_AUTO_TEST_CASE(while_the_code_runs) {
  const torchcc::Function divide = test::regions()["divide"];
  const torchcc::Function lookup = test::regions()["lookup"];
  const at::Tensor table = at::randn({100, 8});
  const at::Tensor seven = at::full({3}, 7, at::kLong);
  fails<torchcc::Error>("division by zero", [&] { divide(seven, seven - 7); });
  fails<torchcc::Error>("index too large", [&] { lookup(table, seven + 93); });
  fails<torchcc::Error>("index too small", [&] { lookup(table, seven - 200); });
  BOOST_TEST(same(divide(seven, seven - 5), seven - 4));
  BOOST_TEST(same(lookup(table, seven), table.index_select(0, seven)));
}

BOOST_AUTO_TEST_CASE(in_the_very_first_call) {
  const torchcc::Package fresh = torchcc::load(test::file("regions.pt2"));
  const at::Tensor seven = at::full({3}, 7, at::kLong);
  BOOST_CHECK_THROW(fresh["divide"](seven, seven - 7), torchcc::Error);
  BOOST_TEST(same(fresh["divide"](seven, seven), seven - 6));
}

BOOST_AUTO_TEST_SUITE_END()
