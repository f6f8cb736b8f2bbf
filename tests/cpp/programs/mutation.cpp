// Functions that write into tensors, and results that share memory.
#include "harness.h"

using namespace programs;
namespace nn = torch::nn;
using torch::indexing::Slice;

namespace {

auto one(std::vector<int64_t> sizes) {
  return [sizes](int) { return std::tuple(torch::randn(sizes)); };
}

auto two(std::vector<int64_t> sizes) {
  return [sizes](int) {
    const Tensor x = torch::randn(sizes);
    return std::tuple(x, torch::randn(sizes));
  };
}

}  // namespace

BOOST_AUTO_TEST_SUITE(mutation)

BOOST_AUTO_TEST_CASE(chain_of_operators_in_place) {
  check([] {
    return program(
        [](Tensor x) {
          Tensor y = x.clone();
          y.mul_(2).add_(1).relu_().clamp_(0.1, 3).sqrt_();
          y.t().add_(torch::arange(4).view({4, 1}));
          y[1].zero_();
          y.slice(1, 1, 3).copy_(x.slice(1, 0, 2));
          y += x;
          y.transpose_(0, 1).unsqueeze_(0);
          return y;
        },
        one({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(argument_written_into) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          x.add_(y);
          y.select(0, 1).mul_(x.sum());
          return x * y;
        },
        two({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(argument_written_into_without_a_result, *boost::unit_test::label("slow")) {
  check([] {
    return program([](Tensor& x, const Tensor& y) { x.mul_(0.5).index_put_({Slice(0, 2)}, y[0]); }, two({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(view_of_a_larger_tensor_written_into, *boost::unit_test::label("slow")) {
  check([] {
    auto whole = std::make_shared<Tensor>();
    return program([](Tensor part) { part.mul_(0.5).select(0, 1).add_(1); },
                   [whole](int) {
                     *whole = torch::randn({6, 8});
                     return std::tuple(whole->slice(0, 1, 4).slice(1, 0, 8, 2));
                   },
                   [whole] { return std::vector<Tensor>{*whole}; });
  });
}

BOOST_AUTO_TEST_CASE(captured_tensors_written_into) {
  check([] {
    const Tensor total = torch::randn({4}), count = torch::zeros({}, torch::kLong);
    return program(
        [=](Tensor x) {
          total.mul_(0.9).add_(x, 0.1);
          count.add_(1);
          return total / count;
        },
        one({4}), [=] { return std::vector<Tensor>{total, count}; });
  });
}

BOOST_AUTO_TEST_CASE(ring_buffer_by_views) {
  check([] {
    const Tensor buffer = torch::randn({4, 3});
    return program(
        [=](Tensor x) {
          buffer.slice(0, 0, 3).copy_(buffer.slice(0, 1, 4).clone());
          buffer[3].copy_(x);
          return buffer.mean(0);
        },
        one({3}), [=] { return std::vector<Tensor>{buffer}; });
  });
}

BOOST_AUTO_TEST_CASE(results_that_alias_arguments) {
  check([] {
    return program(
        [](Tensor x) {
          const Tensor y = x * 2;
          return std::tuple(x.t(), x.view({-1}), y, y.select(0, 1), x.slice(0, 1, 2));
        },
        one({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(results_that_alias_each_other, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x) {
          Tensor y = torch::relu(x);
          const Tensor head = y.slice(1, 0, 2);
          y.select(0, 0).add_(10);
          const std::vector<Tensor> rows = y.unbind(0);
          return std::tuple(y, head, rows, y);
        },
        one({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(results_that_are_arguments, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          y.add_(x);
          return std::tuple(x, y, x.contiguous(), x.to(torch::kFloat), x + y);
        },
        two({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(result_that_is_a_captured_tensor, *boost::unit_test::label("slow")) {
  check([] {
    const Tensor weight = torch::randn({4});
    return program(
        [=](Tensor x) {
          weight.add_(x);
          return std::tuple(weight, weight.view({2, 2}), weight.sum());
        },
        one({4}), [=] { return std::vector<Tensor>{weight}; });
  });
}

BOOST_AUTO_TEST_CASE(one_tensor_for_two_arguments, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          x.add_(1);
          return x * y;
        },
        [](int) {
          const Tensor x = torch::randn({3});
          return std::tuple(x, x);
        });
  });
}

BOOST_AUTO_TEST_CASE(overlapping_arguments) {
  check([] {
    return program(
        [](Tensor x, Tensor y) {
          x.mul_(2);
          return x + y;
        },
        [](int) {
          const Tensor whole = torch::randn({6});
          return std::tuple(whole.slice(0, 0, 4), whole.slice(0, 2, 6));
        });
  });
}

BOOST_AUTO_TEST_CASE(argument_that_is_also_captured, *boost::unit_test::label("slow")) {
  check([] {
    const Tensor weight = torch::randn({4});
    return program(
        [=](Tensor x) {
          x.mul_(0.5);
          return x + weight;
        },
        [=](int) { return std::tuple(weight); }, [=] { return std::vector<Tensor>{weight}; });
  });
}

BOOST_AUTO_TEST_CASE(values_without_uses, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x, Tensor unused) {
          const Tensor a = x.exp().sum();
          const Tensor b = unused.matmul(unused.t());
          Tensor c = torch::empty({3});
          c.copy_(x[0].slice(0, 0, 3));
          return x.sin();
        },
        two({3, 4}));
  });
}

BOOST_AUTO_TEST_CASE(out_variants) {
  check([] {
    Tensor kept = torch::randn({3, 4});
    return program(
        [kept](Tensor x, Tensor y, Tensor result) mutable {
          torch::add_out(result, x, y);
          torch::mul_out(kept, result, x);
          Tensor made = torch::empty({3, 3});
          torch::mm_out(made, x, y.t());
          Tensor sorted = torch::empty({3, 4}), order = torch::empty({3, 4}, torch::kLong);
          torch::sort_out(sorted, order, x, 1, true);
          Tensor joined = torch::empty({6, 4});
          torch::cat_out(joined, {x, y});
          return std::tuple(made, sorted, order, joined, result);
        },
        [](int) {
          const Tensor x = torch::randn({3, 4}), y = torch::randn({3, 4});
          return std::tuple(x, y, torch::randn({3, 4}));
        },
        [=] { return std::vector<Tensor>{kept}; });
  });
}

// As an optimizer does: the weights change between the calls, the function only reads them.
BOOST_AUTO_TEST_CASE(weights_that_change_between_calls) {
  check([] {
    nn::Linear net(5, 3);
    return program([net](Tensor x) mutable { return torch::tanh(net->forward(x)); },
                   [net](int) {
                     const torch::NoGradGuard no_grad;
                     for (Tensor& weight : net->parameters()) weight.sub_(torch::randn_like(weight), 0.1);
                     return std::tuple(torch::randn({4, 5}));
                   },
                   tensors_of(net));
  });
}

BOOST_AUTO_TEST_CASE(frozen_weights_that_change_between_calls, *boost::unit_test::label("slow")) {
  check(
      [] {
        nn::Sequential net(nn::Linear(5, 8), nn::ReLU(), nn::Linear(8, 3));
        return program(
            net,
            [net](int call) {
              const torch::NoGradGuard no_grad;
              if (call == 4 || call == 7) {
                for (Tensor& weight : net->parameters()) weight.add_(torch::randn_like(weight));
              }
              return std::tuple(torch::randn({4, 5}));
            },
            tensors_of(net));
      },
      {.calls = 8}, freezing_options());
}

// torch::optim::SGD writes through data(), which no version counter shows.
BOOST_AUTO_TEST_CASE(frozen_weights_that_an_optimizer_changes) {
  check(
      [] {
        nn::Sequential net(nn::Linear(5, 8), nn::ReLU(), nn::Linear(8, 3));
        return program(
            net,
            [net](int call) mutable {
              if (call == 4 || call == 6) {
                const torch::AutoGradMode grad_mode(true);
                torch::optim::SGD optimizer(net->parameters(), 0.5);
                optimizer.zero_grad();
                net->forward(torch::randn({4, 5})).square().sum().backward();
                optimizer.step();
                optimizer.zero_grad();
              }
              return std::tuple(torch::randn({4, 5}));
            },
            tensors_of(net));
      },
      {.calls = 8}, freezing_options());
}

// A step of an optimizer written by hand, inside the function.
BOOST_AUTO_TEST_CASE(optimizer_step_inside) {
  check([] {
    const Tensor weight = torch::randn({4, 3}), momentum = torch::zeros({4, 3});
    return program(
        [=](Tensor x, Tensor target) {
          const Tensor error = x.matmul(weight) - target;
          const Tensor gradient = x.t().matmul(error) * (2.0 / 5);
          momentum.mul_(0.9).add_(gradient);
          weight.sub_(momentum, 0.05);
          return error.square().mean();
        },
        [](int) {
          const Tensor x = torch::randn({5, 4});
          return std::tuple(x, torch::randn({5, 3}));
        },
        [=] { return std::vector<Tensor>{weight, momentum}; });
  });
}

BOOST_AUTO_TEST_CASE(vector_element_replaced) {
  check([] {
    return program(
        [](std::vector<Tensor> layers) {
          for (size_t i = 1; i < layers.size(); ++i) layers[i] = layers[i] + layers[i - 1];
          return layers;
        },
        [](int) { return std::tuple(std::vector<Tensor>{torch::randn({3}), torch::randn({3}), torch::randn({3})}); });
  });
}

BOOST_AUTO_TEST_SUITE_END()
