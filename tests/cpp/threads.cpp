// Many threads at once. Values are compared exactly: one thread, one kernel, one result.
#include <atomic>
#include <functional>

#include "compare.h"
#include "together.h"

namespace {

constexpr int kThreads = 8;
constexpr int kCalls = 10'000;

using Arguments = std::vector<torchcc::Argument>;
using test::require;
using test::run_together;

/// Calls one function from all threads, each with inputs of its own; results must be what the first call gave.
void call_together(const torchcc::Function& function, const std::function<std::vector<at::Tensor>()>& inputs) {
  std::vector<std::vector<at::Tensor>> tensors;
  std::vector<std::vector<at::Tensor>> expected;
  for (int i = 0; i < kThreads; ++i) {
    tensors.push_back(inputs());
    expected.push_back(function.call(Arguments(tensors.back().begin(), tensors.back().end())));
  }
  run_together(kThreads, [&](int index) {
    const torchcc::Function own = function;
    const Arguments arguments(tensors[index].begin(), tensors[index].end());
    for (int i = 0; i < kCalls; ++i) {
      const std::vector<at::Tensor> results = own.call(arguments);
      for (size_t k = 0; k < results.size(); ++k) {
        require(at::equal(results[k], expected[index][k]), "another result than in a single thread");
      }
    }
  });
}

}  // namespace

BOOST_AUTO_TEST_SUITE(threads)

BOOST_AUTO_TEST_CASE(pointwise) {
  call_together(test::regions()["add_relu"], [] { return std::vector<at::Tensor>{at::randn({16}), at::randn({16})}; });
}

BOOST_AUTO_TEST_CASE(with_weights) {
  call_together(test::regions()["encoder"], [] { return std::vector<at::Tensor>{at::randn({3, 24})}; });
}

BOOST_AUTO_TEST_CASE(through_the_proxy_executor) {
  call_together(test::regions()["log_determinant"],
                [] { return std::vector<at::Tensor>{at::randn({2, 3, 3}, at::kDouble)}; });
}

BOOST_AUTO_TEST_CASE(with_layouts_that_are_copied) {
  call_together(test::regions()["lookup"], [] {
    return std::vector<at::Tensor>{at::randn({8, 100}).t(), at::randint(0, 100, {10}, at::kLong).slice(0, 0, 10, 2)};
  });
}

BOOST_AUTO_TEST_CASE(into_given_outputs) {
  const torchcc::Function function = test::regions()["accumulate"];
  run_together(kThreads, [&](int index) {
    const at::Tensor total = at::zeros({3, 5}, at::kDouble);
    const at::Tensor step = at::full({3, 5}, index + 1.0, at::kDouble);
    at::Tensor sum = at::empty({3}, at::kDouble);
    for (int i = 0; i < kCalls; ++i) function.call_out({&sum, 1}, Arguments{total, step});
    require(at::equal(total, at::full({3, 5}, (index + 1.0) * kCalls, at::kDouble)), "a step was lost");
    require(at::equal(sum, total.sum(1)), "the output is not of the last step");
  });
}

BOOST_AUTO_TEST_CASE(division_beside_all_else) {
  const torchcc::Function divide = test::regions()["divide"];
  const torchcc::Function blend = test::regions()["blend"];
  const at::Tensor numbers = at::arange(1, 20'001, at::kLong);  // enough that kernels are at work at the same time
  const at::Tensor zero_at_the_end = numbers - 20'000;
  const at::Tensor ones = at::ones_like(numbers);
  const at::Tensor x = at::randn({70, 90}, at::kDouble);
  const at::Tensor expected = blend.call({x, x, 2.0, 1, false})[0];
  std::atomic<int> refused{0};
  run_together(kThreads, [&](int index) {
    for (int i = 0; i < kCalls / 50; ++i) {
      if (index % 4 == 0) {
        require(at::equal(divide(numbers, numbers), ones), "a wrong quotient");
      } else if (index % 4 == 1) {
        try {
          divide(numbers, zero_at_the_end);
        } catch (const torchcc::Error&) {
          ++refused;
        }
      } else {
        require(at::equal(blend.call({x, x, 2.0, 1, false})[0], expected), "a wrong blend");
      }
    }
  });
  BOOST_TEST(refused == kThreads / 4 * (kCalls / 50));
}

BOOST_AUTO_TEST_CASE(first_calls_race) {
  const std::vector<std::byte> bytes = test::read(test::file("regions.pt2"));
  const at::Tensor x = at::randn({4, 24});
  const auto count = [](const std::function<void()>& body) {
    const int64_t before = test::allocations();
    body();
    return test::allocations() - before;
  };
  const torchcc::Function known = torchcc::load(bytes)["encoder"];
  at::Tensor expected;
  const int64_t first = count([&] { expected = known(x); });
  const int64_t later = count([&] { known(x); });
  BOOST_TEST(first > later);  // the first call folds constants
  for (int round = 0; round < 10; ++round) {
    const torchcc::Function fresh = torchcc::load(bytes)["encoder"];
    std::vector<at::Tensor> results(kThreads);
    const int64_t all = count([&] { run_together(kThreads, [&](int index) { results[index] = fresh(x); }); });
    BOOST_TEST(all == first + (kThreads - 1) * later);  // only one of them did
    for (const at::Tensor& result : results) BOOST_TEST(test::same(result, expected));
  }
}

BOOST_AUTO_TEST_CASE(loading_beside_calls) {
  const std::vector<std::byte> bytes = test::read(test::file("twin.pt2"));
  const torchcc::Function function = test::regions()["add_relu"];
  const at::Tensor x = at::randn({16});
  const at::Tensor expected = at::relu(x + x);
  run_together(kThreads, [&](int index) {
    for (int i = 0; i < 10; ++i) {
      if (index % 2 == 0) {
        const torchcc::Package twin = torchcc::load(bytes);
        require(at::equal(twin["add_relu"](x, x), expected + 1), "a wrong result of a new package");
      } else {
        for (int k = 0; k < 100; ++k) require(at::equal(function(x, x), expected), "a wrong result");
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(errors_stay_with_their_thread) {
  const torchcc::Function lookup = test::regions()["lookup"];
  const at::Tensor table = at::randn({100, 8});
  run_together(kThreads, [&](int index) {
    const at::Tensor row = at::full({1}, index % 2 == 0 ? index : 100 + index, at::kLong);
    for (int i = 0; i < kCalls / 20; ++i) {
      std::string message;
      try {
        lookup(table, row);
      } catch (const torchcc::Error& error) {
        message = error.what();
      }
      require(message.empty() == (index % 2 == 0), "an error in the wrong thread");
    }
  });
}

BOOST_AUTO_TEST_SUITE_END()
