// What the program changes behind a function that is being replayed: weights, flags, modules. And exceptions half way.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;

namespace {

auto rows(int) { return std::tuple(torch::randn({3, 4})); }

/// As check(), but for a program that is changed by `change` before call 4, after it was replayed: it has to be right
/// from that call on. It may or may not be replayed again.
template <class Make, class Change>
void check_changed(const Make& make, const Change& change, const Options& options = plain_options()) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(kSeed);
  auto [plain, plain_state] = make();
  torch::manual_seed(kSeed);
  auto [other, other_state] = make();
  auto compiled = torchcc::compile(other.function, options);
  for (int call = 1; call <= 7; ++call) {
    if (call == 4) {
      BOOST_TEST_REQUIRE(compiled.stats().replayed == 1, compiled.stats().str());
      torch::manual_seed(kSeed + 100);
      change(*plain_state);
      torch::manual_seed(kSeed + 100);
      change(*other_state);
    }
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    const Outcome expected = observe(plain.function, plain.inputs(call), plain.state);
    torch::manual_seed(kSeed + static_cast<uint64_t>(call));
    const Outcome got = observe(compiled, other.inputs(call), other.state);
    compare(got, expected, {}, call);
  }
}

struct Weights {
  Tensor first = torch::randn({4}), second = torch::randn({4}), third = torch::randn({4});
  bool negate = false;
  double factor = 1.5;
};

/// A program over weights that its function captures by reference.
auto by_reference() {
  auto weights = std::make_shared<Weights>();
  auto made = program(
      [&w = *weights](Tensor x) {
        const Tensor y = (x * w.first + w.second) * w.factor;
        return (w.negate ? -y : y) / (w.third.abs() + 1);
      },
      rows);
  return std::pair(made, weights);
}

auto network() {
  nn::Sequential net(nn::Linear(4, 6), nn::BatchNorm1d(6), nn::Dropout(0.5), nn::Linear(6, 2));
  net->eval();
  return net;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(changes)

BOOST_AUTO_TEST_CASE(weight_assigned) {
  check_changed(by_reference, [](Weights& w) { w.second = torch::randn({4}); });
}

BOOST_AUTO_TEST_CASE(first_weight_assigned, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.first = torch::randn({4}); });
}

BOOST_AUTO_TEST_CASE(weight_assigned_while_its_old_value_lives_on, *boost::unit_test::label("slow")) {
  std::vector<Tensor> old;
  check_changed(by_reference, [&](Weights& w) {
    old.push_back(w.second);
    w.second = torch::randn({4});
  });
}

BOOST_AUTO_TEST_CASE(weights_swapped, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { std::swap(w.first, w.second); });
}

BOOST_AUTO_TEST_CASE(last_weights_swapped, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { std::swap(w.second, w.third); });
}

BOOST_AUTO_TEST_CASE(flag_flipped, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.negate = true; });
}

BOOST_AUTO_TEST_CASE(number_changed, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.factor = 0.25; });
}

BOOST_AUTO_TEST_CASE(data_of_a_weight_replaced, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.second.set_data(torch::randn({4})); });
}

BOOST_AUTO_TEST_CASE(dtype_of_a_weight_replaced, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.second.set_data(torch::randn({4}, torch::kDouble)); });
}

BOOST_AUTO_TEST_CASE(weight_resized, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.second.resize_({1}).normal_(); });
}

BOOST_AUTO_TEST_CASE(weight_written_through_data_ptr) {
  check_changed(by_reference, [](Weights& w) { w.second.data_ptr<float>()[2] = 50; });
}

BOOST_AUTO_TEST_CASE(weights_made_to_share_memory, *boost::unit_test::label("slow")) {
  check_changed(by_reference, [](Weights& w) { w.second.set_data(w.first); });
}

BOOST_AUTO_TEST_CASE(captured_flag_flipped, *boost::unit_test::label("slow")) {
  check_changed(
      [] {
        auto flag = std::make_shared<bool>(false);
        auto made = program([&flag = *flag](Tensor x) { return flag ? x.sin() : x.cos(); }, rows);
        return std::pair(made, flag);
      },
      [](bool& flag) { flag = true; });
}

BOOST_AUTO_TEST_CASE(captured_function_replaced, *boost::unit_test::label("slow")) {
  check_changed(
      [] {
        auto inner = std::make_shared<std::function<Tensor(const Tensor&)>>([](const Tensor& x) { return x.sin(); });
        auto made = program([&inner = *inner](Tensor x) { return inner(x) + 1; }, rows);
        return std::pair(made, inner);
      },
      [](auto& inner) { inner = [](const Tensor& x) { return x.cos(); }; });
}

BOOST_AUTO_TEST_CASE(module_set_to_train) {
  const auto make = [] {
    nn::Sequential net(nn::Linear(4, 6), nn::BatchNorm1d(6));
    net->eval();
    return std::pair(program(net, rows, tensors_of(net)), net.ptr());
  };
  check_changed(make, [](nn::SequentialImpl& net) { net.train(); });
}

BOOST_AUTO_TEST_CASE(part_of_a_captured_module_set_to_train, *boost::unit_test::label("slow")) {
  const auto make = [] {
    nn::Sequential net(nn::Linear(4, 6), nn::BatchNorm1d(6));
    net->eval();
    return std::pair(program([net](Tensor x) mutable { return net->forward(x).sin(); }, rows, tensors_of(net)),
                     net.ptr());
  };
  check_changed(make, [](nn::SequentialImpl& net) { net[1]->train(); });
}

BOOST_AUTO_TEST_CASE(parameters_loaded) {
  const auto make = [] {
    auto net = network();
    return std::pair(program(net, rows, tensors_of(net)), net.ptr());
  };
  const auto load = [](nn::SequentialImpl& net) {
    for (Tensor& tensor : net.parameters()) tensor.copy_(torch::randn_like(tensor));
    for (Tensor& tensor : net.buffers()) {
      if (tensor.is_floating_point()) tensor.uniform_(0.5, 1.5);
    }
  };
  check_changed(make, load);
  check_changed(make, load, freezing_options());
}

BOOST_AUTO_TEST_CASE(module_converted, *boost::unit_test::label("slow")) {
  check_changed(
      [] {
        auto net = network();
        auto made = program([net](Tensor x) mutable { return net->forward(x.to(net->parameters()[0].scalar_type())); },
                            rows, tensors_of(net));
        return std::pair(made, net.ptr());
      },
      [](nn::SequentialImpl& net) { net.to(torch::kDouble); }, freezing_options());
}

// Weights that are frozen into the code, and change in every way that leaves the tensor in its place.
BOOST_AUTO_TEST_CASE(frozen_weights_changed) {
  for (const bool by_data : {false, true}) {
    check_changed(
        [] {
          nn::Linear net(4, 4);
          return std::pair(program(net, rows, tensors_of(net)), net.ptr());
        },
        [by_data](nn::LinearImpl& net) {
          if (by_data) {
            net.weight.set_data(torch::randn({4, 4}));
          } else {
            net.weight.mul_(2);
          }
        },
        freezing_options());
  }
}

BOOST_AUTO_TEST_CASE(exception_of_the_program) {
  const torch::NoGradGuard no_grad;
  int fail_at = 2, call = 0;
  const Tensor total = torch::zeros({4});
  auto compiled = torchcc::compile(
      [&fail_at, &total, count = &call](Tensor x) {
        Tensor y = x.sin();
        if (*count == fail_at) throw std::runtime_error("of the program");
        return y + total;
      },
      plain_options());
  int thrown = 0;
  for (int i = 1; i <= 8; ++i) {
    call = i <= 3 ? i : 0;
    const Tensor x = torch::randn({4});
    try {
      const Tensor y = compiled(x);
      BOOST_TEST(difference(y, x.sin()) == "");
    } catch (const std::runtime_error& error) {
      BOOST_TEST(std::string(error.what()) == "of the program");
      ++thrown;
    }
  }
  BOOST_TEST(thrown == 1);
  BOOST_TEST(compiled.stats().replayed >= 1, compiled.stats().str());
  BOOST_TEST(compiled.stats().calls == 7);  // the one that threw left nothing behind
}

BOOST_AUTO_TEST_CASE(exception_of_an_operator, *boost::unit_test::label("slow")) {
  const torch::NoGradGuard no_grad;
  auto compiled = torchcc::compile([](Tensor x, Tensor y) { return x.exp().matmul(y).relu(); }, plain_options());
  for (int call = 1; call <= 6; ++call) {
    const Tensor x = torch::randn({3, 4}), y = torch::randn({4, 2}), wrong = torch::randn({5, 2});
    BOOST_CHECK_THROW(compiled(x, wrong), c10::Error);
    BOOST_TEST(difference(compiled(x, y), x.exp().matmul(y).relu()) == "");
  }
  BOOST_TEST(compiled.stats().replayed == 4, compiled.stats().str());
}

BOOST_AUTO_TEST_CASE(exception_that_the_program_catches, *boost::unit_test::label("slow")) {
  check(
      [] {
        return program(
            [](Tensor x) {
              try {
                return x.matmul(x);
              } catch (const c10::Error&) {
                return x.matmul(x.t());
              }
            },
            rows);
      },
      {.eager = "exception"});
}

BOOST_AUTO_TEST_CASE(exception_of_an_index_in_compiled_code) {
  const torch::NoGradGuard no_grad;
  auto compiled = torchcc::compile([](Tensor x, Tensor at) { return x.index_select(0, at) * 2; }, plain_options());
  const Tensor x = torch::randn({3, 4});
  for (int call = 0; call < 4; ++call) {
    BOOST_TEST(difference(compiled(x, torch::tensor({0, 2})), x.index_select(0, torch::tensor({0, 2})) * 2) == "");
  }
  BOOST_CHECK_THROW(compiled(x, torch::tensor({0, 3})), std::exception);
  BOOST_TEST(difference(compiled(x, torch::tensor({1, 2})), x.index_select(0, torch::tensor({1, 2})) * 2) == "");
}

BOOST_AUTO_TEST_SUITE_END()
