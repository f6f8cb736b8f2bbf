// CUDA graphs behind loaded packages.
#include <ATen/core/grad_mode.h>

#include "gpu.h"

namespace {

using test::close;
using test::expected;
using test::packaged;
using test::random;
using test::same;

torchcc::Package load(const char* name) { return torchcc::load(packaged(name), {.cuda_graphs = true}); }

}  // namespace

BOOST_AUTO_TEST_SUITE(graphs)

BOOST_AUTO_TEST_CASE(the_third_call_records_a_graph) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["forward"];
  const at::Tensor x = random({8, 128});
  for (int i = 0; i < 10; ++i) {
    x.copy_(random({8, 128}));
    BOOST_TEST(close(f(x), expected(f, x)));
  }
  BOOST_TEST(f.stats().graph_captures == 1);
  BOOST_TEST(f.stats().graph_calls == 8);
  BOOST_TEST(f.stats().graph_reason == "");
}

BOOST_AUTO_TEST_CASE(inputs_that_move_are_copied) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["forward"];
  std::vector<at::Tensor> kept;
  for (int i = 0; i < 10; ++i) {
    kept.push_back(random({8, 128}));
    BOOST_TEST(close(f(kept.back()), expected(f, kept.back())));
  }
  BOOST_TEST(f.stats().graph_captures == 1);
  // One that stayed, and then moves: the graph is recorded anew, once.
  for (int i = 0; i < 10; ++i) {
    const at::Tensor x = i < 5 ? kept[0].narrow(0, 0, 4) : kept[static_cast<size_t>(i)].narrow(0, 0, 4);
    BOOST_TEST(close(f(x), expected(f, x)));
  }
  BOOST_TEST(f.stats().graph_captures == 3);
  const at::Tensor turned = random({128, 4}).t();
  BOOST_TEST(close(f(turned), expected(f, turned)));
  BOOST_TEST(f.stats().graph_captures == 3);
}

BOOST_AUTO_TEST_CASE(results_are_valid_until_the_next_call) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["forward"];
  const at::Tensor a = random({8, 128});
  const at::Tensor b = random({8, 128});
  for (int i = 0; i < 4; ++i) f(i % 2 == 0 ? a : b);
  const at::Tensor first = f(a);
  const at::Tensor kept = first.clone();
  const at::Tensor second = f(b);
  BOOST_TEST(close(second, expected(f, b)));
  BOOST_TEST(close(kept, expected(f, a)));
  BOOST_TEST((first.data_ptr() == second.data_ptr()));  // as documented
  const at::Tensor other = f(random({3, 128}));         // other sizes leave it alone
  BOOST_TEST(close(second, expected(f, b)));
}

BOOST_AUTO_TEST_CASE(graphs_leave_the_results_of_others_alone) {
  const at::NoGradGuard no_grad;
  const torchcc::Package package = load("functions.pt2");
  const torchcc::Function chain = package["chain"];  // has many results between, in memory that graphs share
  const torchcc::Function f = package["forward"];
  const at::Tensor a = random({64, 64});
  const at::Tensor b = random({64, 128});
  for (int i = 0; i < 4; ++i) {
    chain(a);
    f(b);
  }
  const at::Tensor of_chain = chain(a);
  const at::Tensor of_f = f(b);
  const at::Tensor kept_chain = of_chain.clone();
  const at::Tensor kept_f = of_f.clone();
  chain(a);
  BOOST_TEST(same(of_f, kept_f));
  f(b);
  BOOST_TEST(same(of_chain, kept_chain));
  BOOST_TEST(chain.stats().graph_captures == 1);
  BOOST_TEST(f.stats().graph_captures == 1);
}

BOOST_AUTO_TEST_CASE(sizes_have_graphs_of_their_own_up_to_a_limit) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["forward"];
  for (int round = 0; round < 4; ++round) {
    for (int64_t n = 2; n < 10; ++n) {
      const at::Tensor x = random({n, 128});
      BOOST_TEST(close(f(x), expected(f, x)));
    }
  }
  BOOST_TEST(f.stats().graph_calls == 16);
  for (int64_t n = 2; n < 100; ++n) {
    for (int i = 0; i < 4; ++i) {
      const at::Tensor x = random({n, 128});
      BOOST_TEST(close(f(x), expected(f, x)));
    }
  }
}

BOOST_AUTO_TEST_CASE(writes_reach_arguments_and_buffers) {
  const at::NoGradGuard no_grad;
  const torchcc::Package package = load("functions.pt2");
  const torchcc::Function add = package["add_into"];
  const at::Tensor x = random({4, 128});
  const at::Tensor same_place = random({4, 128});
  for (int i = 0; i < 12; ++i) {
    const at::Tensor y = i < 6 ? same_place : random({4, 128});
    const at::Tensor sum = x + y;
    BOOST_TEST(same(add(x, y), sum * 2));
    BOOST_TEST(same(y, sum));
  }
  BOOST_TEST(add.stats().graph_calls == 10);
  const torchcc::Function remember = package["remember"];
  at::Tensor state = at::zeros({128}, at::kCUDA);
  for (int i = 0; i < 8; ++i) {
    state = state * 0.5 + x.mean(0);
    BOOST_TEST(close(remember(x), state + 1));
  }
  BOOST_TEST(remember.stats().graph_calls == 6);
  BOOST_TEST(remember.stats().portable_calls == 0);
}

BOOST_AUTO_TEST_CASE(random_numbers_are_new_in_each_call) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["random"];
  const at::Tensor x = at::zeros({64, 128}, at::kCUDA);
  at::Tensor before = f(x).clone();
  for (int i = 0; i < 8; ++i) {
    const at::Tensor now = f(x).clone();
    BOOST_TEST(!at::equal(now, before));
    BOOST_TEST(std::abs(now.mean().item<double>() - 0.5) < 0.05);
    before = now;
  }
  BOOST_TEST(f.stats().graph_calls == 7);
  const auto draw = [&] {
    at::manual_seed(7);
    return f(x).clone();
  };
  BOOST_TEST(same(draw(), draw()));
}

BOOST_AUTO_TEST_CASE(what_cannot_be_in_a_graph_runs_without_and_says_why) {
  const at::NoGradGuard no_grad;
  const torchcc::Package package = load("functions.pt2");
  const at::Tensor x = random({4, 128});
  const auto check = [&](const torchcc::Function& f, const at::Tensor& wanted, const std::string& reason,
                         auto... more) {
    for (int i = 0; i < 5; ++i) BOOST_TEST(close(f(x, more...), wanted));
    BOOST_TEST(f.stats().graph_calls == 0);
    BOOST_TEST(f.stats().graph_reason.find(reason) != std::string::npos, f.stats().graph_reason);
  };
  const at::Tensor shift = at::randn({128});
  check(package["host"], x * x.sum(), "aten.item.default reads a number from the GPU");
  check(package["mixed"], x + shift.to(at::kCUDA), "the argument 'shift' is on the CPU", shift);
  check(package["turned"], x.t(), "a result is a view of an argument");
  check(torchcc::load(packaged("functions.pt2"), {.compiled = false, .cuda_graphs = true})["forward"],
        expected(package["forward"], x), "no compiled code runs");
}

BOOST_AUTO_TEST_CASE(weights_can_be_replaced) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("updatable.pt2")["forward"];
  const at::Tensor x = random({4, 128});
  for (int swap = 0; swap < 3; ++swap) {
    f.set_weight("first.weight", random({256, 128}));
    for (int i = 0; i < 5; ++i) BOOST_TEST(close(f(x), expected(f, x)));
    f.weights()[0].second.mul_(0.5);  // in place: the graph reads it where it is
    BOOST_TEST(close(f(x), expected(f, x)));
  }
  BOOST_TEST(f.stats().graph_captures == 3);
  BOOST_TEST(f.stats().graph_calls > 9);
}

BOOST_AUTO_TEST_CASE(inference_mode_and_gradients) {
  const torchcc::Function f = load("training.pt2")["forward"];
  const at::Tensor x = random({4, 128});
  for (int i = 0; i < 6; ++i) {
    const c10::InferenceMode on(i % 2 == 0);
    const at::NoGradGuard no_grad;
    BOOST_TEST(close(f(x), expected(f, x)));
  }
  BOOST_TEST(f.stats().graph_calls == 4);
}

BOOST_AUTO_TEST_CASE(calls_with_gradients_and_their_backward) {
  const torchcc::Function f = load("training.pt2")["forward"];
  for (const auto& [name, weight] : f.weights()) at::Tensor(weight).set_requires_grad(true);
  const auto check = [&](const at::Tensor& x, const at::Tensor& tangent) {
    const auto gradients = [&](const auto& call) {
      std::vector<at::Tensor> found;
      x.mutable_grad() = at::Tensor();
      for (const auto& [name, weight] : f.weights()) weight.mutable_grad() = at::Tensor();
      call(x).backward(tangent);
      found.push_back(x.grad());
      for (const auto& [name, weight] : f.weights()) {
        if (weight.grad().defined()) found.push_back(weight.grad());
      }
      return found;
    };
    const auto wanted = gradients([&](const at::Tensor& given) { return expected(f, given); });
    const auto got = gradients(f);
    BOOST_REQUIRE(got.size() == wanted.size());
    for (size_t i = 0; i < got.size(); ++i) BOOST_TEST(close(got[i], wanted[i]), "gradient " << i);
  };
  const at::Tensor x = random({4, 128}).requires_grad_();
  for (int i = 0; i < 10; ++i) {
    {
      const at::NoGradGuard no_grad;
      x.copy_(random({4, 128}));
      for (const auto& [name, weight] : f.weights()) weight.mul_(0.9);  // as an optimiser does
    }
    check(x, random({4, 64}));
  }
  BOOST_TEST(f.stats().graph_calls == 8);
  BOOST_TEST(f.stats().graph_backwards >= 5);
  BOOST_TEST(f.stats().graph_reason == "");
  const int64_t before = f.stats().graph_backwards;
  for (int i = 0; i < 5; ++i) check(random({4, 128}).requires_grad_(), random({4, 64}));  // an input that moves
  BOOST_TEST(f.stats().graph_backwards > before);
}

BOOST_AUTO_TEST_CASE(what_backward_reads_stays_until_it_ran) {
  const torchcc::Function f = load("training.pt2")["forward"];
  const at::Tensor x = random({4, 128}).requires_grad_();
  const auto gradient = [&](const at::Tensor& y, const at::Tensor& tangent) {
    x.mutable_grad() = at::Tensor();
    y.backward(tangent);
    return x.grad().clone();
  };
  const at::Tensor tangent = random({4, 64});
  for (int i = 0; i < 8; ++i) gradient(f(x), tangent);
  BOOST_TEST(f.stats().graph_backwards > 0);
  const int64_t before = f.stats().graph_calls;
  const at::Tensor first = f(x);  // by the graph
  const at::Tensor wanted = gradient(expected(f, x), tangent);
  const at::Tensor other = random({4, 128}).requires_grad_();
  const at::Tensor second = f(other);  // not: backward of the first has not run
  BOOST_TEST(f.stats().graph_calls == before + 1);
  BOOST_TEST(f.stats().graph_reason.find("backward has not run yet") != std::string::npos, f.stats().graph_reason);
  BOOST_TEST(close(first, expected(f, x)));
  second.backward(tangent);
  BOOST_TEST(close(gradient(first, tangent), wanted));
  gradient(f(x), tangent);
  BOOST_TEST(f.stats().graph_calls == before + 2);
  f(x);  // whose graph of autograd is gone at once
  f(x);
  BOOST_TEST(f.stats().graph_calls == before + 4);
}

BOOST_AUTO_TEST_CASE(gradients_that_add_up) {
  const torchcc::Function f = load("training.pt2")["forward"];
  const at::Tensor x = random({4, 128}).requires_grad_();
  const at::Tensor tangent = random({4, 64});
  for (int i = 0; i < 8; ++i) {
    x.mutable_grad() = at::Tensor();
    f(x).backward(tangent);
  }
  const int64_t before = f.stats().graph_backwards;
  BOOST_TEST(before > 0);
  const at::Tensor once = x.grad().clone();
  f(x).backward(tangent);  // while the gradient of the call before is still there
  BOOST_TEST(close(x.grad(), once * 2));
  f(x).backward(tangent);
  BOOST_TEST(close(x.grad(), once * 3));
  BOOST_TEST(f.stats().graph_backwards == before);
  BOOST_TEST(f.stats().graph_reason.find("zero_grad") != std::string::npos, f.stats().graph_reason);
  x.mutable_grad() = at::Tensor();
  f(x).backward(tangent);
  BOOST_TEST(close(x.grad(), once));
  BOOST_TEST(f.stats().graph_backwards == before + 1);
  x.mutable_grad() = at::Tensor();
  const at::Tensor y = f(x);
  y.backward(tangent, /*retain_graph=*/true);
  y.backward(tangent);
  BOOST_TEST(close(x.grad(), once * 2));
}

BOOST_AUTO_TEST_CASE(a_lack_of_memory_leaves_the_program_as_it_was) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["large"];
  const torchcc::Function portable = torchcc::load(packaged("functions.pt2"), {.compiled = false})["large"];
  const at::Tensor x = random({1 << 20});  // 12 GB beside it
  const at::Tensor wanted = f(x).clone();
  f(x);
  test::synchronize();
  c10::getDeviceAllocator(c10::kCUDA)->emptyCache();
  std::vector<at::Tensor> filling;
  constexpr int64_t kBlock = 1 << 30;
  try {
    while (true) filling.push_back(at::empty({kBlock}, at::TensorOptions().device(at::kCUDA).dtype(at::kByte)));
  } catch (const c10::OutOfMemoryError&) {
  }
  const auto before = test::gpu_memory();
  // As eager: there is not enough for any call.
  for (int i = 0; i < 3; ++i) BOOST_CHECK_THROW(f(x), c10::OutOfMemoryError);
  BOOST_CHECK_THROW(portable(x), c10::OutOfMemoryError);
  BOOST_TEST(f.stats().graph_captures == 0);
  BOOST_TEST(f.stats().graph_reason.find("CUDA could not record it") != std::string::npos, f.stats().graph_reason);
  BOOST_TEST(test::gpu_memory().first == before.first);
  filling.clear();
  BOOST_TEST(same(f(x), wanted));
}

BOOST_AUTO_TEST_CASE(memory_is_constant) {
  const at::NoGradGuard no_grad;
  const torchcc::Function f = load("functions.pt2")["forward"];
  std::pair<int64_t, int64_t> before;
  at::Tensor x;
  for (int i = 0; i < 10000; ++i) {
    x = random({2 + i / 10 % 20, 128});  // more sizes than there are graphs at once; never where the one before was
    f(x);
    if (i == 1999) before = test::gpu_memory();
  }
  const auto after = test::gpu_memory();
  BOOST_TEST(after.first <= before.first);
  BOOST_TEST(after.second <= before.second);
  const torchcc::Function steady = load("functions.pt2")["forward"];
  x = random({8, 128});
  for (int i = 0; i < 10; ++i) steady(x);
  const auto warm = test::gpu_memory();
  for (int i = 0; i < 10000; ++i) steady(x);
  BOOST_TEST((test::gpu_memory() == warm));
  BOOST_TEST(steady.stats().graph_calls == 10008);
}

BOOST_AUTO_TEST_SUITE_END()
