// Programs that must not be replayed. Each is right on every call, and says why it stays eager.
#include "harness.h"

#include <iostream>
#include <random>
#include <thread>

using namespace programs;
namespace nn = torch::nn;

namespace {

auto one(int) { return std::tuple(torch::randn({3, 4})); }

auto two(int) {
  const Tensor x = torch::randn({3, 4});
  return std::tuple(x, torch::randn({3, 4}));
}

/// A value that a program keeps on the heap, so that a function can capture it by reference.
template <class T>
std::shared_ptr<T> keep(T value) {
  return std::make_shared<T>(std::move(value));
}

State hold(std::shared_ptr<Tensor> tensor) {
  return [tensor = std::move(tensor)] { return std::vector<Tensor>{*tensor}; };
}

template <class T>
State hold_only(std::shared_ptr<T> value) {
  return [value = std::move(value)] { return std::vector<Tensor>{}; };
}

struct Counter {
  float calls = 0;
  Tensor operator()(const Tensor& x) { return x * ++calls; }
};

struct StatefulImpl : nn::Module {
  nn::GRUCell cell = register_module("cell", nn::GRUCell(4, 4));
  Tensor hidden = torch::randn({3, 4});

  Tensor forward(const Tensor& x) { return hidden = cell(x, hidden); }
};
TORCH_MODULE(Stateful);

/// Remembers an inner result for whoever asks later.
struct ObservedImpl : nn::Module {
  nn::Linear layer = register_module("layer", nn::Linear(4, 4));
  Tensor seen;

  Tensor forward(const Tensor& x) {
    seen = layer(x);
    return seen.relu();
  }
};
TORCH_MODULE(Observed);

/// Sends std::clog into a string until the end of a scope.
class Redirect {
 public:
  Redirect() : old_(std::clog.rdbuf(text_.rdbuf())) {}
  ~Redirect() { std::clog.rdbuf(old_); }
  Redirect(const Redirect&) = delete;
  Redirect& operator=(const Redirect&) = delete;
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* old_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(eager)

BOOST_AUTO_TEST_CASE(branch_on_item) {
  check([] { return program([](Tensor x) { return x.sum().item<float>() > 0 ? x + 1 : x - 1; }, one); },
        {.eager = "on the host&item"});
}

BOOST_AUTO_TEST_CASE(loop_until_small) {
  check(
      [] {
        return program(
            [](Tensor x) {
              while ((x.abs() > 0.1).any().item<bool>()) x = x * 0.5;
              return x;
            },
            one);
      },
      {.eager = "on the host"});
}

BOOST_AUTO_TEST_CASE(branch_on_equal_and_allclose) {
  check([] { return program([](Tensor x, Tensor y) { return torch::equal(x, y) ? x : y; }, two); },
        {.eager = "on the host&equal"});
  check([] { return program([](Tensor x, Tensor y) { return torch::allclose(x, y) ? x : y * 2; }, two); },
        {.eager = "on the host"});
  // NaN is not equal to itself; the fourth call has one.
  check(
      [] {
        return program([](Tensor x) { return torch::equal(x, x) ? x + 1 : x.nan_to_num(7.0); },
                       [](int call) { return std::tuple(torch::randn({2, 3}) * (call == 4 ? NAN : 1)); });
      },
      {.eager = "on the host&equal"});
  check([] {
    return program([](Tensor x) { return torch::equal(x, x) ? x + 1 : x; },
                   [](int) { return std::tuple(torch::randint(9, {2, 3})); });
  });
}

BOOST_AUTO_TEST_CASE(results_whose_sizes_depend_on_data) {
  check([] { return program([](Tensor x) { return x.index({x > 0}); }, one); }, {.eager = "sizes&index"});
  check([] { return program([](Tensor x) { return x.relu().nonzero(); }, one); }, {.eager = "sizes&nonzero"});
  check([] { return program([](Tensor x) { return x.masked_select(x > 0).sum(); }, one); },
        {.eager = "sizes", .needs_compiler = true});
  check([] { return program([](Tensor x) { return std::get<0>(at::_unique(x.round())); }, one); },
        {.eager = "sizes", .needs_compiler = true});
  check([] { return program([](Tensor x) { return torch::where(x > 0); }, one); },
        {.eager = "sizes", .needs_compiler = true});
  check(
      [] { return program([](Tensor x) { return x.repeat_interleave(x[0].abs().ceil().to(torch::kLong), 1); }, one); },
      {.eager = "sizes", .needs_compiler = true});
}

BOOST_AUTO_TEST_CASE(counter_by_reference) {
  check(
      [] {
        auto count = keep(0);
        return program([&count = *count](Tensor x) { return x * ++count; }, one, hold_only(count));
      },
      {.eager = "C++ variable"});
}

// The operators are the same for three calls, so only the variable itself can tell.
BOOST_AUTO_TEST_CASE(counter_that_matters_later) {
  check(
      [] {
        auto count = keep(0);
        return program([&count = *count](Tensor x) { return ++count > 3 ? x * 2 : x; }, one, hold_only(count));
      },
      {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(counter_in_mutable_lambda, *boost::unit_test::label("slow")) {
  check([] { return program([count = 0](Tensor x) mutable { return ++count > 3 ? x * 2 : x; }, one); },
        {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(counter_in_functor) {
  check([] { return program(Counter{}, one); }, {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(number_argument_that_always_changes) {
  check(
      [] {
        return program([](Tensor x, int64_t step) { return x / step; },
                       [](int call) { return std::tuple(torch::randn({3}), int64_t{call}); });
      },
      {.eager = "recorded once"});
}

BOOST_AUTO_TEST_CASE(random_number_of_cpp) {
  check(
      [] {
        auto engine = keep(std::mt19937(7));
        return program(
            [&engine = *engine](Tensor x) { return x * std::uniform_real_distribution<double>(0.5, 1)(engine); }, one,
            hold_only(engine));
      },
      {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(captured_tensor_written_through_data_ptr) {
  check(
      [] {
        auto weight = keep(torch::randn({4}));
        return program(
            [weight = *weight](Tensor x) {
              weight.data_ptr<float>()[0] += 1;
              return x * weight;
            },
            one, hold(weight));
      },
      {.eager = "without operators"});
}

BOOST_AUTO_TEST_CASE(captured_tensor_written_through_data_ptr_after_use) {
  check(
      [] {
        auto weight = keep(torch::randn({4}));
        return program(
            [weight = *weight](Tensor x) {
              Tensor y = x * weight;
              weight.data_ptr<float>()[1] *= 1.5F;
              return y;
            },
            one, hold(weight));
      },
      {.eager = "without operators"});
}

BOOST_AUTO_TEST_CASE(inner_value_written_through_data_ptr) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor y = x * 2;
              y.data_ptr<float>()[1] = 42;
              return y + 1;
            },
            one);
      },
      {.eager = "without operators"});
}

BOOST_AUTO_TEST_CASE(result_written_through_data_ptr) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor y = x * 2;
              y.data_ptr<float>()[1] = 42;
              return y;
            },
            one);
      },
      {.eager = "without operators"});
}

BOOST_AUTO_TEST_CASE(argument_written_through_data_ptr) {
  check(
      [] {
        return program(
            [](Tensor x) {
              x.data_ptr<float>()[1] = 42;
              return x.sin();
            },
            one);
      },
      {.eager = "without operators"});
}

BOOST_AUTO_TEST_CASE(result_computed_by_a_cpp_loop) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor y = torch::empty({12});
              const float* from = x.data_ptr<float>();
              float* to = y.data_ptr<float>();
              for (int i = 0; i < 12; ++i) to[i] = from[i] * from[i];
              return y;
            },
            one);
      },
      {.eager = "C++ code"});
}

BOOST_AUTO_TEST_CASE(accessor) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor y = torch::zeros({3, 4});
              auto from = x.accessor<float, 2>();
              auto to = y.accessor<float, 2>();
              for (int i = 0; i < 3; ++i) to[i][i] = from[i][0];
              return y.matmul(x.t());
            },
            one);
      },
      {.eager = "without operators"});
}

// A number read from memory becomes a constant of the operators.
BOOST_AUTO_TEST_CASE(number_read_through_data_ptr) {
  check([] { return program([](Tensor x) { return x * x.data_ptr<float>()[0]; }, one); },
        {.eager = "aten::mul.Scalar&became"});
}

BOOST_AUTO_TEST_CASE(blob_refilled_in_each_call) {
  check(
      [] {
        auto engine = keep(std::mt19937(7));
        return program(
            [&engine = *engine](Tensor x) {
              std::vector<float> noise(4);
              for (float& value : noise) value = std::normal_distribution<float>()(engine);
              return x + torch::from_blob(noise.data(), {4});
            },
            one, hold_only(engine));
      },
      {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(blob_refilled_between_calls) {
  check(
      [] {
        auto buffer = keep(std::vector<float>(4));
        return program([data = buffer->data()](Tensor x) { return x + torch::from_blob(data, {4}); },
                       [buffer](int call) {
                         for (float& value : *buffer) value = static_cast<float>(call) + 0.5F;
                         return one(call);
                       });
      },
      {.eager = "from_blob"});
}

BOOST_AUTO_TEST_CASE(tensor_of_a_changing_vector) {
  check(
      [] {
        auto values = keep(std::vector<float>(4));
        return program(
            [&values = *values](Tensor x) {
              for (float& value : values) value += 0.25F;
              return x + torch::tensor(values);
            },
            one, hold_only(values));
      },
      {.eager = "C++"});
}

// Content that depends on the arguments only by way of C++.
BOOST_AUTO_TEST_CASE(tensor_of_values_of_an_argument) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const float* data = x.data_ptr<float>();
              return x.sum(1) + torch::tensor(std::vector<float>{data[0], data[5], data[10]});
            },
            one);
      },
      {.eager = "C++"});
}

BOOST_AUTO_TEST_CASE(weight_assigned_in_each_call) {
  check(
      [] {
        auto weight = keep(torch::randn({4}));
        return program(
            [&weight = *weight](Tensor x) {
              weight = weight * 0.9 + x[0];
              return x * weight;
            },
            one, hold(weight));
      },
      {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(weight_assigned_between_calls) {
  check(
      [] {
        auto weight = keep(torch::randn({4}));
        return program([&weight = *weight](Tensor x) { return x * weight; },
                       [weight](int call) {
                         *weight = torch::randn({4});
                         return one(call);
                       },
                       hold(weight));
      },
      {.eager = "recorded once"});
}

BOOST_AUTO_TEST_CASE(hidden_state_in_a_module) {
  check(
      [] {
        Stateful net;
        return program(net, one, [net] { return std::vector<Tensor>{net->hidden}; });
      },
      {.eager = "assigned anew"});
}

BOOST_AUTO_TEST_CASE(hidden_state_in_a_captured_module, *boost::unit_test::label("slow")) {
  check(
      [] {
        Stateful net;
        return program([net](Tensor x) mutable { return net->forward(x) + 1; }, one,
                       [net] { return std::vector<Tensor>{net->hidden}; });
      },
      {.eager = "assigned anew"});
}

BOOST_AUTO_TEST_CASE(inner_result_kept_in_a_module, *boost::unit_test::label("slow")) {
  check(
      [] {
        Observed net;
        return program(net, one, [net] { return std::vector<Tensor>{net->seen}; });
      },
      {.eager = "keeps"});
}

BOOST_AUTO_TEST_CASE(results_collected_in_a_vector) {
  check(
      [] {
        auto history = keep(std::vector<Tensor>());
        return program(
            [&history = *history](Tensor x) {
              history.push_back(x.mean());
              return x.relu();
            },
            one, [history] { return *history; });
      },
      {.eager = "C++ variable"});
}

BOOST_AUTO_TEST_CASE(argument_assigned_by_reference) {
  check(
      [] {
        return program(
            [](Tensor& x) {
              x = x * 2;
              return x + 1;
            },
            one);
      },
      {.eager = "argument"});
}

BOOST_AUTO_TEST_CASE(number_assigned_by_reference, *boost::unit_test::label("slow")) {
  check(
      [] {
        return program([](const Tensor& x, int64_t& calls) { return x * ++calls; },
                       [](int) { return std::tuple(torch::randn({3}), int64_t{4}); });
      },
      {.eager = "argument"});
}

// Each of the two forms prints five tensors of three rows.
BOOST_AUTO_TEST_CASE(printing) {
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kLong}) {
    const Redirect redirect;
    static int calls;
    calls = 0;
    const auto print = [](Tensor x) {
      ++calls;
      std::clog << x * 2 << '\n';
      return x.abs();
    };
    check([&] { return program(print, [=](int) { return std::tuple(torch::randint(1, 9, {3, 4}).to(dtype)); }); },
          {.eager = "printing"});
    const std::string printed = redirect.text();
    BOOST_TEST(std::count(printed.begin(), printed.end(), '{') == calls, printed);
  }
}

BOOST_AUTO_TEST_CASE(printing_of_other_layouts, *boost::unit_test::label("slow")) {
  const Redirect redirect;
  static int calls;
  calls = 0;
  check(
      [] {
        return program(
            [](Tensor x) {
              ++calls;
              std::clog << (x * 2).t() << '\n' << x.flatten() << '\n';
              return x.abs();
            },
            [](int) { return std::tuple(torch::randn({3, 4})); });
      },
      {.eager = "printing"});
  const std::string printed = redirect.text();
  BOOST_TEST(std::count(printed.begin(), printed.end(), '{') == 2 * calls, printed);
}

BOOST_AUTO_TEST_CASE(double_on_the_way, *boost::unit_test::label("slow")) {
  check([] {
    return program(
        [](Tensor x) {
          const Tensor wide = x.to(torch::kDouble).t().contiguous();
          return std::tuple(wide.view(-1) * 2, (x + 1).to(torch::kDouble), wide.to(torch::kFloat).sum());
        },
        [](int) { return std::tuple(torch::randn({3, 4})); });
  });
}

BOOST_AUTO_TEST_CASE(operators_in_another_thread) {
  check(
      [] {
        return program(
            [](Tensor x) {
              Tensor y;
              std::thread([&] {
                const torch::NoGradGuard no_grad;
                y = x.sin();
              }).join();
              return y + 1;
            },
            one);
      },
      {.eager = "another thread"});
}

BOOST_AUTO_TEST_CASE(argument_written_by_another_thread) {
  check(
      [] {
        return program(
            [](Tensor x) {
              const Tensor y = x * 2;
              std::thread([&] {
                const torch::NoGradGuard no_grad;
                x.add_(1);
              }).join();
              return x + y;
            },
            one);
      },
      {.eager = "another thread"});
}

BOOST_AUTO_TEST_CASE(captured_tensor_resized) {
  check(
      [] {
        auto log = keep(torch::randn({1, 4}));
        return program(
            [log = *log](Tensor x) {
              log.resize_({log.size(0) + 1, 4});
              log[-1].copy_(x[0]);
              return log.sum();
            },
            one, [] { return std::vector<Tensor>{}; });
      },
      {.eager = "storage"});
}

BOOST_AUTO_TEST_CASE(sparse_tensors) {
  check([] { return program([](Tensor x) { return torch::mm(x.relu().to_sparse(), x.t()); }, one); },
        {.eager = "Sparse"});
}

BOOST_AUTO_TEST_CASE(own_generator, *boost::unit_test::label("slow")) {
  check(
      [] {
        auto generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{5});
        return program([generator](Tensor x) { return x + torch::rand({4}, generator); }, one);
      },
      {.eager = "Generator"});
}

BOOST_AUTO_TEST_SUITE_END()
